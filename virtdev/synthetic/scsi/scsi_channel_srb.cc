// SPDX-License-Identifier: Apache-2.0
// EXECUTE_SRB: from a packet to a command on a unit's queue, and back to a packet.
#include <algorithm>

#include "virtdev/scsi/scsi_inquiry.h"
#include "virtdev/synthetic/scsi/lun_commands.h"
#include "virtdev/synthetic/scsi/scsi_channel.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {

namespace {

uint32_t NtStatusOf(uint8_t srb_status) {
  switch (srb_status & 0x3f) {
    case storvsc::kSrbSuccess:
      return storvsc::kStatusSuccess;
    case storvsc::kSrbBusy:
      return storvsc::kStatusDeviceBusy;
    case storvsc::kSrbInvalidLun:
      return storvsc::kStatusDeviceDoesNotExist;
    case storvsc::kSrbAborted:
      return storvsc::kStatusCancelled;
    case storvsc::kSrbDataOverrun:
      return storvsc::kStatusBufferOverflow;
    default:
      return storvsc::kStatusIoDeviceError;
  }
}

}  // namespace

/// One buffer at most, as long as it says.
bool ScsiChannel::CheckDataBuffer(const storvsc::Srb& srb) {
  const size_t ranges = packet_.type == PacketType::kGpaDirect ? packet_.ranges.size() : 0;
  if (ranges == 0) return srb.transfer_length == 0;
  return ranges == 1 && packet_.ranges[0].bytes >= srb.transfer_length;
}

void ScsiChannel::HandleSrb(const storvsc::Packet& packet, size_t reply_bytes) {
  if (!CheckDataBuffer(packet.srb))
    return ProtocolError("a SCSI request whose buffer is not one range of its length");
  Request& request = NewRequest();
  request.transaction_id = packet_.transaction_id;
  request.reply_bytes = reply_bytes;
  request.srb = packet.srb;
  std::copy_n(packet.srb.cdb_or_sense.begin(), request.cdb.size(), request.cdb.begin());
  request.cdb_length = packet.srb.cdb_length;
  request.data_in = packet.srb.data_in != storvsc::kDataInWrite;
  request.data.Clear();
  bool valid = packet.srb.cdb_length <= storvsc::kCdbBytes &&
               packet.srb.transfer_length <= shared_.limits.max_transfer_bytes;
  if (valid && packet.srb.transfer_length != 0) {
    const GpaRange& range = packet_.ranges[0];
    valid = request.data.AppendPages(channel_->memory(), range.pfns, range.offset,
                                     packet.srb.transfer_length);
  }
  if (!valid) {
    Finish(request, {storvsc::kSrbInvalidRequest, scsi::Status::kCheckCondition,
                     scsi::kInvalidFieldInCdb, 0});
    return;
  }
  Start(request);
}

void ScsiChannel::Start(Request& request) {
  if (request.cdb[0] == static_cast<uint8_t>(scsi::Opcode::kReportLuns))
    return Finish(request, ReportLuns(request));
  const storvsc::Srb& srb = request.srb;
  LunSlot* slot =
      srb.path == 0 && srb.target == 0 && srb.lun < kMaxLuns ? slots_[srb.lun].get() : nullptr;
  if (slot == nullptr) return Finish(request, AnswerForAbsent(request));
  if (slot->lun.medium != nullptr && !OpenQueue(*slot, srb.lun)) {
    // The host may have a descriptor to spare the next time.
    return Finish(request, {storvsc::kSrbBusy, scsi::Status::kBusy, scsi::kNoSense, 0});
  }
  request.slot = slot;
  request.completion = this;
  ++slot->in_flight;
  if (slot->queue != nullptr && !slot->to_kick) {
    slot->to_kick = true;
    to_kick_.push_back(slot);
  }
  slot->lun.unit->Execute(request, slot->queue.get(), slot->lun.medium.get());
}

/// Late, for most guests use few of their units on few of their channels.
bool ScsiChannel::OpenQueue(LunSlot& slot, uint8_t lun) {
  if (slot.queue != nullptr) return true;
  auto queue = slot.lun.medium->OpenQueue(loop_);
  if (!queue.ok()) {
    shared_.counters.queue_failures.Add();
    KVMBUS_LOG_LIMITED("{}: channel {} opens no queue for LUN {}: {}", shared_.name, index_, lun,
                       queue.error().ToString());
    return false;
  }
  slot.queue = std::move(*queue);
  return true;
}

ScsiChannel::SrbResult ScsiChannel::ReportLuns(Request& request) {
  if (request.cdb_length < 12)
    return {storvsc::kSrbError, scsi::Status::kCheckCondition, scsi::kInvalidFieldInCdb, 0};
  uint64_t luns = 0;
  if (request.srb.path == 0 && request.srb.target == 0) {
    for (unsigned lun = 0; lun < kMaxLuns; ++lun) {
      if (slots_[lun] != nullptr) luns |= uint64_t{1} << lun;
    }
  }
  const std::vector<uint8_t> bytes = ReportLunsData(luns);
  const size_t room =
      request.data_in ? std::min<uint64_t>(ReportLunsAllocation(request.cdb), request.data.size())
                      : 0;
  SrbResult result;
  if (room >= 8)
    result.bytes_moved = static_cast<uint32_t>(
        request.data.CopyOut(0, std::span(bytes).first(std::min(room, bytes.size()))));
  return result;
}

/// An error would do but for INQUIRY, whose failure guests take for a disk of zeroes.
ScsiChannel::SrbResult ScsiChannel::AnswerForAbsent(Request& request) {
  if (request.cdb[0] != static_cast<uint8_t>(scsi::Opcode::kInquiry))
    return {storvsc::kSrbInvalidLun, scsi::Status::kGood, scsi::kNoSense, 0};
  if (request.cdb_length < 6 || (request.cdb[1] & 0x03) != 0 || request.cdb[2] != 0)
    return {storvsc::kSrbError, scsi::Status::kCheckCondition, scsi::kInvalidFieldInCdb, 0};
  const scsi::InquiryData bytes = scsi::AbsentInquiry(request.srb.lun == 0);
  const size_t room = std::min<size_t>(scsi::GetBe<uint16_t>(request.cdb, 3), bytes.size());
  SrbResult result;
  if (request.data_in)
    result.bytes_moved =
        static_cast<uint32_t>(request.data.CopyOut(0, std::span(bytes).first(room)));
  return result;
}

void ScsiChannel::OnScsiComplete(ScsiCommand& command) {
  auto& request = static_cast<Request&>(command);
  --request.slot->in_flight;
  SrbResult result;
  result.scsi_status = request.status;
  result.bytes_moved = static_cast<uint32_t>(request.bytes_moved);
  switch (request.status) {
    case scsi::Status::kGood:
      result.srb_status = request.overrun ? storvsc::kSrbDataOverrun : storvsc::kSrbSuccess;
      break;
    case scsi::Status::kCheckCondition:
      result.srb_status = storvsc::kSrbError;
      result.sense = request.sense;
      break;
    case scsi::Status::kReservationConflict:
      result.srb_status = storvsc::kSrbError;
      break;
    case scsi::Status::kTaskAborted:
      result.srb_status = storvsc::kSrbAborted;
      break;
    case scsi::Status::kBusy:
      result.srb_status = storvsc::kSrbBusy;
      break;
  }
  Finish(request, result);
  if (!in_turn_) ScheduleTurn();
}

void ScsiChannel::Finish(Request& request, const SrbResult& result) {
  storvsc::Packet reply{};
  reply.header.operation = static_cast<uint32_t>(storvsc::Operation::kCompleteIo);
  reply.header.status = NtStatusOf(result.srb_status);
  reply.srb = request.srb;
  reply.srb.length = request.reply_bytes < storvsc::kMaxPacketBytes ? storvsc::kSrbBytesWin7
                                                                    : storvsc::kSrbBytesWin8;
  reply.srb.srb_status = result.srb_status;
  reply.srb.scsi_status = static_cast<uint8_t>(result.scsi_status);
  reply.srb.cdb_length = storvsc::kCdbBytes;
  reply.srb.sense_length = storvsc::kSenseBytes;
  reply.srb.transfer_length = result.bytes_moved;
  reply.srb.cdb_or_sense = {};
  if (result.scsi_status == scsi::Status::kCheckCondition) {
    reply.srb.srb_status |= storvsc::kSrbAutosenseValid;
    const auto sense = scsi::FixedSense(result.sense);
    std::copy(sense.begin(), sense.end(), reply.srb.cdb_or_sense.begin());
  }
  ++tally_.requests;
  if (result.srb_status != storvsc::kSrbSuccess) ++tally_.errors;
  (request.data_in ? tally_.bytes_read : tally_.bytes_written) += result.bytes_moved;
  const uint64_t transaction_id = request.transaction_id;
  const size_t reply_bytes = request.reply_bytes;
  ReleaseRequest(request);
  Send(transaction_id, reply, reply_bytes);
}

ScsiChannel::Request& ScsiChannel::NewRequest() {
  if (idle_.empty()) idle_.push_back(std::make_unique<Request>());
  std::unique_ptr<Request> request = std::move(idle_.back());
  idle_.pop_back();
  request->slot = nullptr;
  request->position = active_.size();
  active_.push_back(std::move(request));
  return *active_.back();
}

void ScsiChannel::ReleaseRequest(Request& request) {
  const size_t position = request.position;
  std::unique_ptr<Request> released = std::move(active_[position]);
  if (position + 1 != active_.size()) {
    active_[position] = std::move(active_.back());
    active_[position]->position = position;
  }
  active_.pop_back();
  if (idle_.size() < kIdleRequests) idle_.push_back(std::move(released));
}

}  // namespace kvmbus::virtdev
