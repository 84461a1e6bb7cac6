// SPDX-License-Identifier: Apache-2.0
// The worker's requests about Storage QoS.
#include "cmd/vmm/worker.h"
#include "vmm/config/disk_qos.h"

namespace kvmbus::cmd {
namespace {

void Fill(const vmm::HistogramSnapshot& histogram, worker::Histogram* message) {
  message->set_count(histogram.count);
  message->set_sum_ns(histogram.sum_ns);
  message->set_max_ns(histogram.max_ns);
  message->set_p50_ns(histogram.Quantile(0.5));
  message->set_p99_ns(histogram.Quantile(0.99));
  for (size_t i = 0; i < histogram.buckets.size(); ++i) {
    if (histogram.buckets[i] == 0) continue;
    worker::Histogram::Bucket* bucket = message->add_buckets();
    bucket->set_end_ns(vmm::HistogramBuckets::EndOf(i));
    bucket->set_count(histogram.buckets[i]);
  }
}

worker::MinimumStatus ToProto(virtdev::MinimumStatus status) {
  switch (status) {
    case virtdev::MinimumStatus::kNotMonitored:
      return worker::NOT_MONITORED;
    case virtdev::MinimumStatus::kOk:
      return worker::SUFFICIENT;
    case virtdev::MinimumStatus::kInsufficientThroughput:
      return worker::INSUFFICIENT_THROUGHPUT;
  }
  return worker::NOT_MONITORED;
}

void Fill(const virtdev::DiskStatistics& statistics, worker::DiskStatistics* message) {
  using Kind = virtdev::DiskStatistics::Kind;
  Fill(statistics.latency[Kind::kRead], message->mutable_read());
  Fill(statistics.latency[Kind::kWrite], message->mutable_write());
  Fill(statistics.latency[Kind::kFlush], message->mutable_flush());
  Fill(statistics.latency[Kind::kUnmap], message->mutable_unmap());
  Fill(statistics.latency[Kind::kHeld], message->mutable_held());
  message->set_bytes_read(statistics.bytes_read);
  message->set_bytes_written(statistics.bytes_written);
  message->set_normalized_ios(statistics.normalized_ios);
  message->set_errors(statistics.errors);
  message->set_minimum(ToProto(statistics.minimum));
  message->set_insufficient_seconds(statistics.insufficient_seconds);
}

}  // namespace

vmm::Result<void> Worker::SetDiskQos(const worker::SetDiskQosRequest& request) {
  for (config::Disk& disk : *options_.config.mutable_disks()) {
    if (disk.controller() != request.controller() || disk.lun() != request.lun()) continue;
    config::DiskQos qos = disk.qos();
    vmm::ChangeDiskQos(request.change(), &qos);
    TRY_VOID(board_->SetDiskQos(request.controller(), request.lun(), qos));
    *disk.mutable_qos() = qos;
    return {};
  }
  return Board::NoDisk(request.controller(), request.lun());
}

worker::DiskStatisticsReply Worker::DiskStatistics() const {
  worker::DiskStatisticsReply reply;
  board_->VisitDiskStatistics(
      [&](uint32_t controller, uint32_t lun, const virtdev::DiskStatistics& statistics) {
        worker::DiskStatistics* disk = reply.add_disks();
        disk->set_controller(controller);
        disk->set_lun(lun);
        Fill(statistics, disk);
      });
  return reply;
}

}  // namespace kvmbus::cmd
