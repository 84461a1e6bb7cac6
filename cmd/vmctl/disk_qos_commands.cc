// SPDX-License-Identifier: Apache-2.0
// vmctl disk list and vmctl disk qos: the disks of a machine, their limits and what they do.
#include <cstdio>
#include <map>
#include <memory>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"
#include "cmd/vmctl/qos_arguments.h"

namespace kvmbus::cmd {

void QosArguments::AddTo(CLI::App* verb) {
  verb->add_option("--min-iops", min_iops,
                   "I/O operations a second that it should do, of 8 KiB each: reported if it does "
                   "not; 0: none");
  verb->add_option("--max-iops", max_iops,
                   "I/O operations a second that it may do, of 8 KiB each; 0: any number");
  verb->add_option("--max-bytes", max_bytes, "Bytes a second, as 512K or 100M; 0: any number");
}

bool QosArguments::Fill(config::DiskQosChange* change) const {
  if (min_iops) change->set_min_iops(*min_iops);
  if (max_iops) change->set_max_iops(*max_iops);
  if (max_bytes.empty()) return true;
  uint64_t bytes;
  if (!ParseBytes(max_bytes, &bytes)) {
    std::fprintf(stderr, "vmctl: '%s' is no size; write 512K or 100M\n", max_bytes.c_str());
    return false;
  }
  change->set_max_bytes_per_second(bytes);
  return true;
}

namespace {

using Statistics = std::map<std::pair<uint32_t, uint32_t>, worker::DiskStatistics>;

std::vector<std::pair<const char*, const worker::Histogram*>> KindsOf(
    const worker::DiskStatistics& disk) {
  return {{"read", &disk.read()},
          {"write", &disk.write()},
          {"flush", &disk.flush()},
          {"unmap", &disk.unmap()},
          {"held", &disk.held()}};
}

/// "850 us", "12.5 ms", "3200.0 ms", "12.5 s".
std::string HumanLatency(uint64_t ns) {
  const auto value = static_cast<double>(ns);
  if (ns < 10'000'000) return fmt::format("{:.0f} us", value / 1e3);
  if (ns < 10'000'000'000) return fmt::format("{:.1f} ms", value / 1e6);
  return fmt::format("{:.1f} s", value / 1e9);
}

std::string LimitText(uint64_t limit) { return limit == 0 ? "-" : std::to_string(limit); }

const char* StatusText(worker::MinimumStatus status) {
  switch (status) {
    case worker::SUFFICIENT:
      return "OK";
    case worker::INSUFFICIENT_THROUGHPUT:
      return "Insufficient throughput";
    default:
      return "Not monitored";
  }
}

Json ToJson(const worker::Histogram& histogram) {
  std::vector<Json> buckets;
  for (const auto& bucket : histogram.buckets())
    buckets.push_back(Json::Object(
        {{"below", Json::Number(bucket.end_ns())}, {"count", Json::Number(bucket.count())}}));
  return Json::Object({{"count", Json::Number(histogram.count())},
                       {"sum", Json::Number(histogram.sum_ns())},
                       {"p50", Json::Number(histogram.p50_ns())},
                       {"p99", Json::Number(histogram.p99_ns())},
                       {"max", Json::Number(histogram.max_ns())},
                       {"buckets", Json::Array(buckets)}});
}

/// Without statistics: the machine is off.
Json ToJson(const config::Disk& disk, const worker::DiskStatistics* statistics) {
  std::vector<std::pair<std::string, Json>> members = {
      {"path", Json::Text(disk.path())},
      {"controller", Json::Number(disk.controller())},
      {"location", Json::Number(disk.lun())},
      {"read_only", Json::Boolean(disk.read_only())},
      {"min_iops", Json::Number(disk.qos().min_iops())},
      {"max_iops", Json::Number(disk.qos().max_iops())},
      {"max_bytes_per_second", Json::Number(disk.qos().max_bytes_per_second())}};
  if (statistics == nullptr) return Json::Object(members);
  std::vector<std::pair<std::string, Json>> latency;
  for (const auto& [name, histogram] : KindsOf(*statistics))
    latency.emplace_back(name, ToJson(*histogram));
  members.insert(members.end(),
                 {{"status", Json::Text(StatusText(statistics->minimum()))},
                  {"insufficient_seconds", Json::Number(statistics->insufficient_seconds())},
                  {"normalized_ios", Json::Number(statistics->normalized_ios())},
                  {"bytes_read", Json::Number(statistics->bytes_read())},
                  {"bytes_written", Json::Number(statistics->bytes_written())},
                  {"errors", Json::Number(statistics->errors())},
                  {"latency_ns", Json::Object(latency)}});
  return Json::Object(members);
}

void PrintDisks(const config::Vm& vm, const Statistics& statistics) {
  std::vector<std::vector<std::string>> disks = {
      {"SCSI", "IMAGE", "MIN IOPS", "MAX IOPS", "MAX RATE", "MINIMUM", "READ", "WRITTEN"}};
  std::vector<std::vector<std::string>> latencies = {
      {"SCSI", "KIND", "REQUESTS", "P50", "P99", "LONGEST"}};
  for (const config::Disk& disk : vm.disks()) {
    if (disk.kind() != config::HARD_DISK) continue;
    const std::string place = fmt::format("{}:{}", disk.controller(), disk.lun());
    const uint64_t rate = disk.qos().max_bytes_per_second();
    disks.push_back({place, disk.path(), LimitText(disk.qos().min_iops()),
                     LimitText(disk.qos().max_iops()), rate == 0 ? "-" : HumanBytes(rate) + "/s"});
    const auto at = statistics.find({disk.controller(), disk.lun()});
    if (at == statistics.end()) {
      disks.back().insert(disks.back().end(), {"-", "-", "-"});
      continue;
    }
    disks.back().insert(disks.back().end(),
                        {StatusText(at->second.minimum()), HumanBytes(at->second.bytes_read()),
                         HumanBytes(at->second.bytes_written())});
    for (const auto& [name, histogram] : KindsOf(at->second)) {
      if (histogram->count() == 0) continue;
      latencies.push_back({place, name, std::to_string(histogram->count()),
                           HumanLatency(histogram->p50_ns()), HumanLatency(histogram->p99_ns()),
                           HumanLatency(histogram->max_ns())});
    }
  }
  PrintTable(disks);
  if (latencies.size() == 1) return;
  std::printf("\n");
  PrintTable(latencies);
}

int List(const Context& context, const std::string& name) {
  Client client(context.socket);
  api::VmReference request;
  request.set_vm(name);
  api::VmStatus vm;
  grpc::ClientContext call;
  if (const int failed = client.Check(client.machines().GetVm(&call, request, &vm))) return failed;
  Statistics statistics;
  if (vm.state() == worker::RUNNING || vm.state() == worker::PAUSED) {
    api::DiskStatisticsReply reply;
    grpc::ClientContext second_call;
    if (const int failed =
            client.Check(client.machines().GetDiskStatistics(&second_call, request, &reply)))
      return failed;
    for (const auto& disk : reply.disks()) statistics[{disk.controller(), disk.lun()}] = disk;
  }
  if (context.format == Format::kTable) {
    PrintDisks(vm.config(), statistics);
    return kExitDone;
  }
  std::vector<Json> disks;
  for (const config::Disk& disk : vm.config().disks()) {
    if (disk.kind() != config::HARD_DISK) continue;
    const auto at = statistics.find({disk.controller(), disk.lun()});
    disks.push_back(ToJson(disk, at == statistics.end() ? nullptr : &at->second));
  }
  std::printf("%s\n", Json::Array(disks).text().c_str());
  return kExitDone;
}

struct ChangeArguments {
  std::string vm;
  uint32_t controller = 0, location = 0;
  QosArguments qos;
};

int Change(const Context& context, const ChangeArguments& arguments) {
  api::SetDiskQosRequest request;
  config::DiskQosChange& change = *request.mutable_change();
  if (!arguments.qos.Fill(&change)) return kExitUsage;
  if (!arguments.qos.given()) {
    std::fprintf(stderr,
                 "vmctl: nothing to change: give --min-iops, --max-iops or --max-bytes (0 lifts "
                 "one); 'vmctl disk list' shows what they are\n");
    return kExitUsage;
  }
  request.set_vm(arguments.vm);
  request.set_controller(arguments.controller);
  request.set_lun(arguments.location);
  Client client(context.socket);
  api::VmStatus reply;
  grpc::ClientContext call;
  return client.Check(client.machines().SetDiskQos(&call, request, &reply));
}

}  // namespace

void AddDiskQosCommands(CLI::App* disk, Context& context) {
  auto vm = std::make_shared<std::string>();
  CLI::App* verb = disk->add_subcommand(
      "list", "The disks of a virtual machine: limits, and how long their requests take");
  verb->add_option("VM", *vm, "Name or id")->required();
  verb->callback([&context, vm] { context.exit_status = List(context, *vm); });

  auto arguments = std::make_shared<ChangeArguments>();
  verb = disk->add_subcommand(
      "qos", "Change what a disk may do and should do, running or not; the rest stays");
  verb->add_option("VM", arguments->vm, "Name or id")->required();
  verb->add_option("--controller", arguments->controller, "SCSI controller (default 0)");
  verb->add_option("--location", arguments->location, "0 to 63")->required();
  arguments->qos.AddTo(verb);
  verb->callback([&context, arguments] { context.exit_status = Change(context, *arguments); });
}

}  // namespace kvmbus::cmd
