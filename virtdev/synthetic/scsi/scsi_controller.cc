// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/scsi/scsi_controller.h"

#include <algorithm>

#include "state/scsi.pb.h"
#include "virtdev/disk/qos/disk_qos.h"
#include "virtdev/synthetic/scsi/detach_ticket.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

namespace {

constexpr vmm::Guid kScsiInterface = vmm::MakeGuid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");

uint16_t MaxSubChannels(const SyntheticScsiController::Options& options) {
  const uint32_t others = options.vcpus == 0 ? 0 : options.vcpus - 1;
  return static_cast<uint16_t>(std::min<uint32_t>(others, options.max_sub_channels));
}

}  // namespace

SyntheticScsiController::SyntheticScsiController(Options options, vmm::Loop& main_loop,
                                                 std::vector<vmm::Loop*> io_loops)
    : options_(std::move(options)), main_loop_(main_loop), io_loops_(std::move(io_loops)) {
  KVMBUS_ASSERT(!io_loops_.empty() && options_.queue_depth != 0);
  KVMBUS_ASSERT(options_.max_transfer_bytes != 0 &&
                options_.max_transfer_bytes % vmm::kPageSize == 0);
  offer_.interface_id = kScsiInterface;
  offer_.instance_id = options_.instance_id;
  shared_.name = options_.name;
  shared_.queue_depth = options_.queue_depth;
  shared_.limits = {MaxSubChannels(options_), options_.max_transfer_bytes};
  // Both come from the primary channel's loop; `this` is looked at on the main thread alone.
  shared_.on_session_ready = [this, alive = alive_] {
    main_loop_.Post([this, alive] {
      if (*alive) PostToChannels([](ScsiChannel& channel) { channel.Turn(); });
    });
  };
  shared_.on_sub_channels_wanted = [this, alive = alive_](uint16_t count) {
    main_loop_.Post([this, alive, count] {
      if (*alive) OnSubChannelsWanted(count);
    });
  };
}

SyntheticScsiController::~SyntheticScsiController() {
  *alive_ = false;
  while (!ejects_.empty())
    FinishEject(ejects_.begin()->first, vmm::Error(Code::kCancelled, "the machine is gone"));
  for (const auto& [lun, unit] : units_) {
    if (unit.disk != nullptr) unit.disk->io()->SetResizeListener({});
    if (unit.shared != nullptr) unit.shared->io()->SetResizeListener({});
  }
  while (!channels_.empty()) Close(channels_.begin()->first);
}

// --- disks

Result<void> SyntheticScsiController::CheckFree(uint8_t lun) const {
  if (lun >= kMaxLuns)
    return MakeError(Code::kInvalidArgument, "LUN {} of '{}': there are {} LUNs, from 0", lun,
                     options_.name, kMaxLuns);
  if (units_.count(lun) != 0)
    return MakeError(Code::kAlreadyExists, "LUN {} of '{}' has a {} already; detach it first", lun,
                     options_.name, units_.at(lun).dvd != nullptr ? "DVD drive" : "disk");
  return {};
}

Result<void> SyntheticScsiController::AttachDisk(uint8_t lun, std::shared_ptr<DiskIo> disk,
                                                 ScsiDisk::Options options) {
  TRY_VOID(CheckFree(lun));
  const std::shared_ptr<ScsiDisk> unit = TRY_CTX(
      ScsiDisk::Create(std::move(disk), std::move(options)), "LUN {} of '{}'", lun, options_.name);
  units_[lun].disk = unit;
  // The disk's owner may resize it on any thread.
  unit->io()->SetResizeListener([this, alive = alive_, weak = std::weak_ptr(unit)] {
    const auto resized = weak.lock();
    if (resized == nullptr) return;
    resized->NotifyResized();
    main_loop_.Post([this, alive] {
      if (*alive) AnnounceLunChange();  // an idle guest asks nothing, and so would learn nothing
    });
  });
  Insert(lun);
  return {};
}

Result<void> SyntheticScsiController::AttachSharedDisk(uint8_t lun,
                                                       std::shared_ptr<RemoteDisk> disk) {
  TRY_VOID(CheckFree(lun));
  disk->SetResizeListener([this] { AnnounceLunChange(); });
  units_[lun].shared = std::make_shared<RemoteScsiDisk>(std::move(disk));
  Insert(lun);
  return {};
}

void SyntheticScsiController::Insert(uint8_t lun) {
  PostToChannels(
      [lun, added = units_[lun].lun()](ScsiChannel& channel) { channel.InsertUnit(lun, added); });
  AnnounceLunChange();
}

Result<void> SyntheticScsiController::DetachDisk(uint8_t lun, DetachDone done) {
  const auto at = units_.find(lun);
  if (at == units_.end())
    return MakeError(Code::kNotFound, "LUN {} of '{}' has no disk", lun, options_.name);
  FinishEject(lun, vmm::Error(Code::kCancelled, "the drive was taken out"));
  const Unit unit = std::move(at->second);
  units_.erase(at);
  if (unit.disk != nullptr) unit.disk->io()->SetResizeListener({});
  if (unit.shared != nullptr) unit.shared->io()->SetResizeListener({});
  const std::shared_ptr<DiskIo> medium = unit.lun().medium;
  // The last requests of a disk that goes wait for no limit.
  if (medium != nullptr && medium->qos() != nullptr) medium->qos()->SetLimits({});
  auto ticket = std::make_shared<DetachTicket>(main_loop_, medium, std::move(done));
  PostToChannels([lun, ticket](ScsiChannel& channel) { channel.RemoveUnit(lun, ticket); });
  AnnounceLunChange();
  return {};
}

void SyntheticScsiController::AnnounceLunChange() {
  const auto primary = channels_.find(0);
  if (primary == channels_.end()) return;
  primary->second->loop().Post([channel = primary->second] { channel->AnnounceLunChange(); });
}

// --- channels

vmm::Loop& SyntheticScsiController::LoopFor(const Channel& channel) const {
  return *io_loops_[channel.target_vp() % io_loops_.size()];
}

std::shared_ptr<ScsiChannel> SyntheticScsiController::MakeChannel(
    uint16_t index, std::unique_ptr<Channel> channel) {
  vmm::Loop& loop = LoopFor(*channel);
  std::map<uint8_t, ScsiChannel::Lun> luns;
  for (const auto& [lun, unit] : units_) luns[lun] = unit.lun();
  return std::make_shared<ScsiChannel>(shared_, index, std::move(channel), loop, luns);
}

void SyntheticScsiController::PostToChannels(std::function<void(ScsiChannel&)> task) {
  for (const auto& [index, channel] : channels_)
    channel->loop().Post([channel = channel, task] { task(*channel); });
}

void SyntheticScsiController::OnSubChannelsWanted(uint16_t count) {
  if (offer_handle_ != nullptr && channels_.count(0) != 0) offer_handle_->OfferSubChannels(count);
}

Result<void> SyntheticScsiController::Open(uint16_t index, std::unique_ptr<Channel> channel) {
  if (index > shared_.limits.max_sub_channels || channels_.count(index) != 0)
    return MakeError(Code::kInvalidArgument, "'{}' has no closed channel {}", options_.name, index);
  const std::shared_ptr<ScsiChannel> opened = MakeChannel(index, std::move(channel));
  Result<void> attached;
  opened->loop().PostAndWait([&] { attached = opened->Attach(); });
  if (attached.ok()) channels_[index] = opened;
  return attached;
}

void SyntheticScsiController::Close(uint16_t index) {
  const auto at = channels_.find(index);
  if (at == channels_.end()) return;
  std::unique_ptr<Channel> channel;
  at->second->loop().PostAndWait([&] { channel = at->second->Shutdown(); });
  channels_.erase(at);
  if (index == 0) shared_.session_ready.store(false, std::memory_order_release);
}

// --- life cycle

void SyntheticScsiController::Start() {
  for (const auto& [index, channel] : channels_) {
    Result<void> attached;
    channel->loop().PostAndWait([&, &channel_ref = *channel] { attached = channel_ref.Attach(); });
    if (!attached.ok())
      spdlog::error("{}: channel {} cannot be served: {}", options_.name, index,
                    attached.error().ToString());
  }
}

void SyntheticScsiController::Stop() {
  for (const auto& [index, channel] : channels_)
    channel->loop().PostAndWait([&channel_ref = *channel] { channel_ref.Detach(); });
}

void SyntheticScsiController::Reset() {
  while (!channels_.empty()) Close(channels_.begin()->first);
  // A restore that failed half way had a session, and has no channel that could be closed.
  shared_.session_ready.store(false, std::memory_order_release);
  for (const auto& [lun, unit] : units_) {
    if (unit.disk != nullptr) unit.disk->Reset();
    if (unit.dvd != nullptr) unit.dvd->Reset();
    if (unit.shared != nullptr) unit.shared->Reset();
  }
}

// --- saved state

Result<std::string> SyntheticScsiController::Save() {
  state::SyntheticScsi saved;
  for (const auto& [index, channel] : channels_) {
    ScsiChannel::State state;
    channel->loop().PostAndWait([&, &channel_ref = *channel] { state = channel_ref.Save(); });
    if (state.failed) saved.add_failed_channels(index);
    if (index != 0) continue;
    saved.set_phase(static_cast<uint32_t>(state.session.phase));
    saved.set_version(state.session.version);
    saved.set_sub_channels(state.session.sub_channels);
    saved.set_announce_pending(state.announce_pending);
  }
  for (const auto& [lun, unit] : units_) {
    state::ScsiLun* entry = saved.add_luns();
    entry->set_lun(lun);
    TRY_VOID_CTX(SaveLun(unit, entry), "LUN {}", lun);
  }
  return saved.SerializeAsString();
}

Result<void> SyntheticScsiController::Restore(
    std::string_view bytes, std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels) {
  state::SyntheticScsi saved;
  if (!saved.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return vmm::Error(Code::kDataLoss, "saved SCSI state cannot be parsed");
  TRY_VOID(CheckSavedLuns(saved));
  if (saved.phase() > 0xff || saved.version() > 0xffff || saved.sub_channels() > 0xffff)
    return vmm::Error(Code::kDataLoss, "saved SCSI session is not valid");

  while (!channels_.empty()) Close(channels_.begin()->first);
  std::map<uint16_t, std::shared_ptr<ScsiChannel>> restored;
  for (auto& [index, channel] : channels) {
    if (index > shared_.limits.max_sub_channels || restored.count(index) != 0)
      return MakeError(Code::kDataLoss, "saved SCSI channel {} is not one of this controller",
                       index);
    restored[index] = MakeChannel(index, std::move(channel));
  }
  ScsiChannel::State primary;
  primary.session.phase = static_cast<StorvscSession::Phase>(saved.phase());
  primary.session.version = static_cast<uint16_t>(saved.version());
  primary.session.sub_channels = static_cast<uint16_t>(saved.sub_channels());
  primary.announce_pending = saved.announce_pending();
  if (restored.count(0) == 0 &&
      (primary.session != StorvscSession::State() || primary.announce_pending))
    return vmm::Error(Code::kDataLoss, "saved SCSI session has no open channel");
  for (const uint32_t index : saved.failed_channels()) {
    if (index > 0xffff || restored.count(static_cast<uint16_t>(index)) == 0)
      return MakeError(Code::kDataLoss, "saved SCSI channel {} is not open", index);
  }
  for (const auto& [index, channel] : restored) {
    ScsiChannel::State state = index == 0 ? primary : ScsiChannel::State();
    state.failed =
        std::count(saved.failed_channels().begin(), saved.failed_channels().end(), index) != 0;
    TRY_VOID(channel->Restore(state));
  }
  for (const state::ScsiLun& entry : saved.luns())
    TRY_VOID_CTX(RestoreLun(units_.at(static_cast<uint8_t>(entry.lun())), entry), "LUN {}",
                 entry.lun());
  channels_ = std::move(restored);
  return {};
}

void SyntheticScsiController::VisitCounters(const vmm::CounterVisitor& visit) const {
  visit("scsi_requests", shared_.counters.requests);
  visit("scsi_bytes_read", shared_.counters.bytes_read);
  visit("scsi_bytes_written", shared_.counters.bytes_written);
  visit("scsi_errors", shared_.counters.errors);
  visit("scsi_refused_packets", shared_.counters.refused_packets);
  visit("scsi_protocol_errors", shared_.counters.protocol_errors);
  visit("scsi_queue_failures", shared_.counters.queue_failures);
  for (const auto& [lun, unit] : units_) {
    if (const auto medium = unit.lun().medium) medium->VisitCounters(visit);
  }
}

}  // namespace kvmbus::virtdev
