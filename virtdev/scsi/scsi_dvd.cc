// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/scsi_dvd.h"

#include <algorithm>

#include "virtdev/scsi/block_extent.h"

namespace kvmbus::virtdev {

using scsi::kDvdBlockBytes;
using scsi::Opcode;

namespace {

constexpr uint8_t kAllEvents = ScsiDvd::kEjectRequest | ScsiDvd::kRemoval | ScsiDvd::kNewMedium;

/// An image's last block is dropped if it is not whole.
uint32_t BlocksOf(const DiskInfo& info) {
  return static_cast<uint32_t>(info.size_bytes / kDvdBlockBytes);
}

}  // namespace

// --- the host's side

vmm::Result<void> ScsiDvd::CheckMedium(const DiskInfo& info) {
  if (info.logical_sector_bytes > kDvdBlockBytes || kDvdBlockBytes % info.logical_sector_bytes != 0)
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "the image has sectors of {} bytes; a disc's blocks have {}",
                          info.logical_sector_bytes, kDvdBlockBytes);
  const uint64_t blocks = info.size_bytes / kDvdBlockBytes;
  if (blocks == 0 || blocks > 0xffffffff)
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "the image has {} bytes; a disc has 1 to 2^32 - 1 blocks of {} bytes",
                          info.size_bytes, kDvdBlockBytes);
  return {};
}

/// A disc that the guest never heard of needs no farewell, but the one before it does.
void ScsiDvd::NoteRemoval() {
  state_.events = static_cast<uint8_t>((state_.events & ~(kEjectRequest | kNewMedium)) | kRemoval);
  state_.attention = false;
}

void ScsiDvd::NoteInsertion() {
  state_.events |= kNewMedium;
  state_.attention = true;
}

std::shared_ptr<DiskIo> ScsiDvd::SetMedium(std::shared_ptr<DiskIo> medium) {
  KVMBUS_ASSERT(medium == nullptr || CheckMedium(medium->info()).ok());
  std::lock_guard lock(mutex_);
  if (IsReachable()) NoteRemoval();
  state_.tray_open = false;
  state_.locked = false;  // the guest locked the tray for the disc that was in it
  medium_.swap(medium);
  if (medium_ != nullptr) NoteInsertion();
  return medium;
}

bool ScsiDvd::RequestRemoval() {
  std::lock_guard lock(mutex_);
  if (!IsReachable() || !HoldsLocked()) return true;
  state_.events |= kEjectRequest;
  return false;
}

std::shared_ptr<DiskIo> ScsiDvd::medium() const {
  std::lock_guard lock(mutex_);
  return medium_;
}

bool ScsiDvd::IsHeld() const {
  std::lock_guard lock(mutex_);
  return IsReachable() && HoldsLocked();
}

void ScsiDvd::Reset() {
  std::lock_guard lock(mutex_);
  const bool tray_open = state_.tray_open;
  state_ = State();
  state_.tray_open = tray_open;
  set_stored_sense(scsi::kNoSense);
}

ScsiDvd::State ScsiDvd::Save() const {
  std::lock_guard lock(mutex_);
  State state = state_;
  state.stored_sense = stored_sense();
  if (medium_ != nullptr) {
    state.medium = medium_->info().disk_id;
    state.blocks = BlocksOf(medium_->info());
  }
  return state;
}

bool ScsiDvd::IsValid(const State& state) {
  return static_cast<uint8_t>(state.stored_sense.key) <= 0xf && (state.events & ~kAllEvents) == 0;
}

void ScsiDvd::Restore(const State& state) {
  KVMBUS_ASSERT(IsValid(state));
  std::lock_guard lock(mutex_);
  state_ = state;
  state_.stored_sense = {};
  state_.medium = {};
  state_.blocks = 0;
  set_stored_sense(state.stored_sense);
  const vmm::Guid id = medium_ != nullptr ? medium_->info().disk_id : vmm::Guid();
  const uint32_t blocks = medium_ != nullptr ? BlocksOf(medium_->info()) : 0;
  if (id == state.medium && blocks == state.blocks) return;
  state_.tray_open = false;
  state_.locked = false;
  if (state.blocks != 0 && !state.tray_open) NoteRemoval();
  if (medium_ != nullptr) NoteInsertion();
}

// --- the guest's side

ScsiDvd::View ScsiDvd::Look() const {
  std::lock_guard lock(mutex_);
  View view;
  view.tray_open = state_.tray_open;
  view.locked = HoldsLocked();
  if (!IsReachable()) return view;
  view.medium = medium_.get();
  view.blocks = BlocksOf(medium_->info());
  return view;
}

bool ScsiDvd::TakeAttention() {
  std::lock_guard lock(mutex_);
  return std::exchange(state_.attention, false);
}

ScsiUnit::Step ScsiDvd::Answer(ScsiCommand& command, const scsi::DvdAnswer& answer,
                               size_t allocation_length) {
  if (!answer) return Fail(command, answer.error());
  return Reply(command, *answer, allocation_length);
}

ScsiUnit::Step ScsiDvd::Dispatch(ScsiCommand& command) {
  const View view = Look();
  const auto& cdb = command.cdb;
  switch (static_cast<Opcode>(cdb[0])) {  // these take no attention
    case Opcode::kInquiry:
      return Inquiry(command);
    case Opcode::kRequestSense:
      return RequestSense(command);
    case Opcode::kGetConfiguration:
      return Answer(command, scsi::DvdConfiguration(cdb, view.medium != nullptr),
                    scsi::GetBe<uint16_t>(cdb, 7));
    case Opcode::kGetEventStatus:
      return GetEventStatus(command);
    default:
      break;
  }
  if (TakeAttention()) return Fail(command, scsi::kMediumMayHaveChanged);
  switch (static_cast<Opcode>(cdb[0])) {
    case Opcode::kModeSense6:
    case Opcode::kModeSense10:
      return ModeSense(command, view);
    case Opcode::kModeSelect6:
    case Opcode::kModeSelect10:
      return ModeSelect(command, view);
    case Opcode::kStartStopUnit:
      return StartStop(command);
    case Opcode::kPreventAllowRemoval:
      return PreventRemoval(command);
    case Opcode::kSetStreaming:
      return SetStreaming(command);
    case Opcode::kMechanismStatus:
      return Reply(command, scsi::DvdMechanismStatus(view.tray_open),
                   scsi::GetBe<uint16_t>(cdb, 8));
    default:
      return DispatchMedium(command, view);
  }
}

/// The commands that need a disc.
ScsiUnit::Step ScsiDvd::DispatchMedium(ScsiCommand& command, const View& view) {
  const auto& cdb = command.cdb;
  const auto opcode = static_cast<Opcode>(cdb[0]);
  constexpr Opcode kNeedDisc[] = {Opcode::kTestUnitReady,
                                  Opcode::kReadCapacity10,
                                  Opcode::kRead10,
                                  Opcode::kRead12,
                                  Opcode::kRead16,
                                  Opcode::kReadToc,
                                  Opcode::kReadDiscInformation,
                                  Opcode::kReadTrackInformation,
                                  Opcode::kReadBufferCapacity,
                                  Opcode::kGetPerformance,
                                  Opcode::kReadDvdStructure};
  if (std::find(std::begin(kNeedDisc), std::end(kNeedDisc), opcode) == std::end(kNeedDisc))
    return Fail(command, scsi::kInvalidOpcode);
  if (view.medium == nullptr)
    return Fail(command, view.tray_open ? scsi::kNoMediumTrayOpen : scsi::kNoMediumTrayClosed);
  switch (opcode) {
    case Opcode::kTestUnitReady:
      return Good(command);
    case Opcode::kReadCapacity10:
      return ReadCapacity(command, view);
    case Opcode::kReadToc:
      return Answer(command, scsi::DvdToc(cdb, view.blocks), scsi::GetBe<uint16_t>(cdb, 7));
    case Opcode::kReadDiscInformation:
      return Answer(command, scsi::DvdDiscInformation(cdb), scsi::GetBe<uint16_t>(cdb, 7));
    case Opcode::kReadTrackInformation:
      return Answer(command, scsi::DvdTrackInformation(cdb, view.blocks),
                    scsi::GetBe<uint16_t>(cdb, 7));
    case Opcode::kReadBufferCapacity:
      return Reply(command, scsi::DvdBufferCapacity(), scsi::GetBe<uint16_t>(cdb, 7));
    case Opcode::kGetPerformance: {
      // It gives a number of descriptors, not of bytes.
      const size_t allocation = 8 + size_t{16} * scsi::GetBe<uint16_t>(cdb, 8);
      return Answer(command, scsi::DvdPerformance(cdb, view.blocks), allocation);
    }
    case Opcode::kReadDvdStructure:
      return Answer(command, scsi::DvdStructure(cdb, view.blocks), scsi::GetBe<uint16_t>(cdb, 8));
    default:
      return Read(command, view);
  }
}

ScsiUnit::Step ScsiDvd::Inquiry(ScsiCommand& command) {
  const auto& cdb = command.cdb;
  const bool vpd = (cdb[1] & 0x01) != 0;
  const bool command_data = (cdb[1] & 0x02) != 0;  // CMDDT, long obsolete
  const uint16_t allocation = scsi::GetBe<uint16_t>(cdb, 3);
  if (command_data || (!vpd && cdb[2] != 0)) return Fail(command, scsi::kInvalidFieldInCdb);
  if (!vpd) return Reply(command, scsi::DvdInquiry(), allocation);
  return Answer(command, scsi::DvdVpdPage(cdb[2], id_), allocation);
}

ScsiUnit::Step ScsiDvd::RequestSense(ScsiCommand& command) {
  if ((command.cdb[1] & 0x01) != 0)  // DESC: the descriptor format
    return Fail(command, scsi::kInvalidFieldInCdb);
  const scsi::Sense sense = TakeAttention() ? scsi::kMediumMayHaveChanged : TakeStoredSense();
  return Reply(command, scsi::FixedSense(sense), command.cdb[4]);
}

ScsiUnit::Step ScsiDvd::ModeSense(ScsiCommand& command, const View& view) {
  return Answer(command, scsi::ModeSenseData(command.cdb, scsi::DvdModePages(view.locked), 0),
                scsi::ModeAllocationLength(command.cdb));
}

ScsiUnit::Step ScsiDvd::ModeSelect(ScsiCommand& command, const View& view) {
  std::array<uint8_t, scsi::kMaxModeListBytes> list;
  const size_t length = scsi::ModeAllocationLength(command.cdb);
  if (length > list.size()) return Fail(command, scsi::kParameterListLengthError);
  const size_t have = command.data_in ? 0 : command.data.CopyIn(0, std::span(list).first(length));
  const scsi::Sense sense = scsi::CheckModeSelect(command.cdb, std::span(list).first(have),
                                                  scsi::DvdModePages(view.locked));
  if (sense != scsi::kNoSense) return Fail(command, sense);
  return Good(command, have);
}

ScsiUnit::Step ScsiDvd::StartStop(ScsiCommand& command) {
  const bool load_or_eject = (command.cdb[4] & 0x02) != 0;
  const bool start = (command.cdb[4] & 0x01) != 0;
  const uint8_t power_condition = command.cdb[4] >> 4;
  if (power_condition != 0) return Good(command);  // it never sleeps
  if (load_or_eject) return MoveTray(command, !start);
  const View view = Look();
  if (start && view.medium == nullptr)
    return Fail(command, view.tray_open ? scsi::kNoMediumTrayOpen : scsi::kNoMediumTrayClosed);
  return Good(command);
}

ScsiUnit::Step ScsiDvd::MoveTray(ScsiCommand& command, bool open) {
  {
    std::lock_guard lock(mutex_);
    if (state_.tray_open == open) return Good(command);
    if (open && HoldsLocked())
      return Fail(command, medium_ != nullptr ? scsi::kMediumRemovalPrevented
                                              : scsi::kNoMediumRemovalPrevented);
    if (open && medium_ != nullptr) NoteRemoval();
    state_.tray_open = open;
    if (!open && medium_ != nullptr) NoteInsertion();
  }
  if (open && on_tray_opened_) on_tray_opened_();
  return Good(command);
}

ScsiUnit::Step ScsiDvd::PreventRemoval(ScsiCommand& command) {
  const bool prevent = (command.cdb[4] & 0x01) != 0;
  const bool persistent = (command.cdb[4] & 0x02) != 0;
  std::lock_guard lock(mutex_);
  (persistent ? state_.locked_persistently : state_.locked) = prevent;
  return Good(command);
}

/// Polled for alone; an event is gone once it has been told whole.
ScsiUnit::Step ScsiDvd::GetEventStatus(ScsiCommand& command) {
  constexpr uint8_t kPolled = 0x01;
  constexpr uint8_t kMediaClass = 4;
  constexpr uint8_t kNoEventAvailable = 0x80;
  const uint8_t classes = command.cdb[4];
  const size_t allocation = scsi::GetBe<uint16_t>(command.cdb, 7);
  if ((command.cdb[1] & kPolled) == 0) return Fail(command, scsi::kInvalidFieldInCdb);
  if ((classes & 1 << kMediaClass) == 0) {
    const std::array<uint8_t, 4> none = {0, 2, kNoEventAvailable, 1 << kMediaClass};
    return Reply(command, none, allocation);
  }
  std::array<uint8_t, 8> bytes = {0, 6, kMediaClass, 1 << kMediaClass, 0, 0, 0, 0};
  std::lock_guard lock(mutex_);
  uint8_t told = 0;
  for (const auto& [event, code] :
       {std::pair<uint8_t, uint8_t>{kEjectRequest, 1}, {kRemoval, 3}, {kNewMedium, 2}}) {
    if ((state_.events & event) == 0) continue;
    told = event;
    bytes[4] = code;
    break;
  }
  bytes[5] = static_cast<uint8_t>((state_.tray_open ? 0x01 : 0) | (IsReachable() ? 0x02 : 0));
  const Step step = Reply(command, bytes, allocation);
  if (command.bytes_moved == bytes.size()) state_.events &= static_cast<uint8_t>(~told);
  return step;
}

/// Speeds are the host's.
ScsiUnit::Step ScsiDvd::SetStreaming(ScsiCommand& command) {
  constexpr size_t kDescriptorBytes = 28;
  const size_t length = scsi::GetBe<uint16_t>(command.cdb, 9);
  if (length == 0) return Good(command);
  if (length != kDescriptorBytes || command.data_in || command.data.size() < length)
    return Fail(command, scsi::kParameterListLengthError);
  return Good(command, length);
}

ScsiUnit::Step ScsiDvd::ReadCapacity(ScsiCommand& command, const View& view) {
  std::array<uint8_t, 8> bytes{};
  scsi::PutBe<uint32_t>(bytes, 0, view.blocks - 1);
  scsi::PutBe<uint32_t>(bytes, 4, kDvdBlockBytes);
  return Reply(command, bytes, bytes.size());
}

ScsiUnit::Step ScsiDvd::Read(ScsiCommand& command, const View& view) {
  constexpr uint8_t kProtectAndRelative = 0xe1;
  if ((command.cdb[1] & kProtectAndRelative) != 0) return Fail(command, scsi::kInvalidFieldInCdb);
  const scsi::BlockExtent blocks = scsi::ParseExtent(command.cdb);
  if (blocks.lba > view.blocks || blocks.count > view.blocks - blocks.lba)
    return Fail(command, scsi::kLbaOutOfRange);
  // The channel still has the queue of the disc before this one: a moment later it has not.
  if (view.medium != command.medium_ || command.queue_ == nullptr)
    return End(command, scsi::Status::kBusy);
  if (!command.data_in) command.data.Clear();
  const uint64_t wanted = blocks.count * kDvdBlockBytes;
  const uint64_t room = command.data.size() / kDvdBlockBytes * kDvdBlockBytes;
  command.overrun = room < wanted;
  command.data.Truncate(std::min(room, wanted));
  if (command.data.size() == 0) return Good(command);
  command.request_.iov = command.data.iov();
  return Submit(command, DiskRequest::Op::kRead, {blocks.lba * kDvdBlockBytes, command.data.size()},
                &ScsiDvd::FinishRead);
}

ScsiUnit::Step ScsiDvd::FinishRead(ScsiCommand& command) {
  command.data.MarkDirty(command.data.size());
  return Good(command, command.data.size());
}

}  // namespace kvmbus::virtdev
