// SPDX-License-Identifier: Apache-2.0
// A hostile guest on the channels of a controller while disks come and go, the machine stops, is
// saved and restored: no packet is answered twice, no reply is too long, nothing is left behind.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "state/scsi.pb.h"
#include "tests/fakes/fake_channel.h"
#include "tests/fakes/fake_disk.h"
#include "tests/fuzz/fuzz_input.h"
#include "virtdev/synthetic/scsi/scsi_controller.h"
#include "virtdev/synthetic/scsi/storvsc_fuzz.h"
#include "virtdev/synthetic/scsi/storvsc_protocol.h"
#include "vmm/os/log.h"

namespace {

using namespace kvmbus;           // NOLINT: a fuzz target is a program
using namespace kvmbus::virtdev;  // NOLINT
using Input = tests::FuzzInput;
using storvsc::Operation;

constexpr uint64_t kPages = 64;
constexpr uint8_t kDrive = 2;  ///< its LUN

class NoOffers final : public OfferHandle {
 public:
  void OfferSubChannels(uint16_t count) override { KVMBUS_ASSERT(count != 0 && count <= 2); }
};

/// A machine of one loop: two channels, two places for disks, a DVD drive.
class Machine {
 public:
  Machine(vmm::GuestMemory& memory, vmm::Loop& loop, uint8_t shape)
      : loop_(loop), channels_{tests::FakeChannel{memory, 0}, tests::FakeChannel{memory, 1}} {
    timing_ = static_cast<tests::FakeDisk::Timing>(shape % 3);
    options_.vcpus = 3;
    options_.queue_depth = 4;
    options_.max_transfer_bytes = 64 << 10;
    Build();
    for (const uint8_t lun : {0, 1}) Attach(lun);
    KVMBUS_ASSERT(controller_->AttachDvd(kDrive, NewDisc()).ok());
    Open(0);
    if ((shape & 0x10) != 0) Handshake();
    if ((shape & 0x20) != 0) Open(1);
    if ((shape & 0x40) != 0) channels_[0].set_capacity(200);
  }
  ~Machine() {
    controller_.reset();
    Settle();
    for (const auto& [lun, disk] : disks_) KVMBUS_ASSERT(disk->open_queues() == 0);
  }

  void Step(Input& input) {
    const uint8_t action = input.Byte();
    const uint16_t channel = action >> 7;
    switch (action & 0x7f) {
      case 0:
        Settle();
        break;
      case 1:
        for (const auto& [lun, disk] : disks_) disk->Release();
        Settle();
        break;
      case 2:
        Collect();
        break;
      case 3:
        controller_->Stop();
        Collect();
        controller_->Start();
        break;
      case 4:
        SaveAndRestore();
        break;
      case 5:
        Close(channel);
        Open(channel);
        break;
      case 6:
        Detach(input.Byte() % 2);
        break;
      case 7:
        Attach(input.Byte() % 2);
        break;
      case 8:
        for (const auto& [lun, disk] : disks_)
          disk->InjectError(static_cast<tests::FakeDisk::Op>(input.Byte() % 5), EIO);
        break;
      case 9:
        Grow(input.Byte());
        break;
      case 10:
        InsertDisc(input.Byte());
        break;
      case 11:
        controller_->EjectMedium(kDrive, input.Byte() % 2 == 0, [](const auto&) {});
        Settle();
        break;
      default:
        PushPacket(input, channel);
    }
  }

 private:
  void Build() {
    controller_ =
        std::make_unique<SyntheticScsiController>(options_, loop_, std::vector<vmm::Loop*>{&loop_});
    controller_->OnOffered(&offers_);
  }
  void Settle() {
    for (int i = 0; i < 4; ++i) loop_.RunOnce(0);
    Collect();
  }
  void Open(uint16_t index) {
    KVMBUS_ASSERT(controller_->Open(index, channels_[index].Endpoint()).ok());
    open_[index] = true;
    loop_.RunOnce(0);
  }
  void Close(uint16_t index) {
    if (!open_[index]) return;
    controller_->Close(index);
    open_[index] = false;
    Collect();
  }
  void Handshake() {
    for (const storvsc::Packet& packet : HandshakePackets()) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(&packet);
      channels_[0].PushInBand(next_id_++, {bytes, bytes + sizeof(packet)});
    }
    Settle();
  }
  /// Not smaller: a request under way would be beyond the end.
  void Grow(uint8_t blocks) {
    constexpr uint64_t kMaxBytes = 256 << 10;
    if (disks_.empty()) return;
    tests::FakeDisk& disk = *disks_.begin()->second;
    disk.Resize(std::min(kMaxBytes, disk.info().size_bytes + blocks % 8 * 4096));
  }
  std::shared_ptr<tests::FakeDisk> NewDisc() {
    DiskInfo info = tests::FakeDisk::DefaultInfo(16 << 10);
    info.read_only = true;
    disc_ = std::make_shared<tests::FakeDisk>(info);
    disc_->set_timing(timing_ == tests::FakeDisk::Timing::kHeld ? tests::FakeDisk::Timing::kPosted
                                                                : timing_);
    return disc_;
  }
  void InsertDisc(uint8_t how) {
    if (how % 2 == 0) controller_->EjectMedium(kDrive, true, [](const auto&) {});
    const auto before = disc_;
    if (!controller_->InsertMedium(kDrive, NewDisc(), [](const auto&) {}).ok()) disc_ = before;
    Settle();
  }
  void Attach(uint8_t lun) {
    if (disks_.count(lun) != 0) return;
    DiskInfo info = tests::FakeDisk::DefaultInfo(64 << 10);
    auto disk = std::make_shared<tests::FakeDisk>(info);
    disk->set_timing(timing_);
    KVMBUS_ASSERT(controller_->AttachDisk(lun, disk).ok());
    disks_[lun] = disk;
  }
  void Detach(uint8_t lun) {
    if (disks_.count(lun) == 0) return;
    // Held here until it is back, for what is held must be released.
    const std::shared_ptr<tests::FakeDisk> disk = disks_[lun];
    bool back = false;
    KVMBUS_ASSERT(controller_
                      ->DetachDisk(lun,
                                   [&back](std::shared_ptr<DiskIo> returned) {
                                     KVMBUS_ASSERT(returned->Close().ok());
                                     back = true;
                                   })
                      .ok());
    disks_.erase(lun);
    for (int i = 0; i < 10000 && !back; ++i) {
      disk->Release();
      Settle();
    }
    KVMBUS_ASSERT(back);
  }
  /// The disc that the saved machine has: the last one, unless the drive is empty.
  std::shared_ptr<DiskIo> MediumOf(const std::string& saved) const {
    state::SyntheticScsi message;
    KVMBUS_ASSERT(message.ParseFromString(saved));
    for (const state::ScsiLun& lun : message.luns()) {
      if (lun.has_dvd() && lun.dvd().blocks() != 0) return disc_;
    }
    return nullptr;
  }
  void SaveAndRestore() {
    controller_->Stop();
    Collect();
    const std::string saved = *controller_->Save();
    const auto medium = MediumOf(saved);
    controller_.reset();
    Build();
    for (const auto& [lun, disk] : disks_) KVMBUS_ASSERT(controller_->AttachDisk(lun, disk).ok());
    KVMBUS_ASSERT(controller_->AttachDvd(kDrive, medium).ok());
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
    for (const uint16_t index : {0, 1}) {
      if (open_[index]) endpoints.emplace_back(index, channels_[index].Endpoint());
    }
    KVMBUS_ASSERT(controller_->Restore(saved, std::move(endpoints)).ok());
    KVMBUS_ASSERT(*controller_->Save() == saved);
    controller_->Start();
  }
  void Collect() {
    for (tests::FakeChannel& channel : channels_) {
      for (const auto& sent : channel.Take()) {
        KVMBUS_ASSERT(sent.payload.size() <= 64 && sent.payload.size() % 8 == 0);
        if (sent.type != PacketType::kCompletion) {
          KVMBUS_ASSERT(sent.type == PacketType::kInBand && sent.transaction_id == 0);
          continue;
        }
        const auto at = pending_.find(sent.transaction_id);
        KVMBUS_ASSERT(at != pending_.end() || sent.transaction_id < kHandshakeIds);
        if (at == pending_.end()) continue;
        storvsc::Packet reply{};
        std::memcpy(&reply, sent.payload.data(), sent.payload.size());
        KVMBUS_ASSERT(reply.header.operation == 1);
        if (at->second) {
          KVMBUS_ASSERT((reply.srb.srb_status & 0x40) == 0);
        }
        pending_.erase(at);
      }
    }
  }
  void PushPacket(Input& input, uint16_t channel) {
    const uint8_t kind = input.Byte();
    IncomingPacket packet;
    constexpr PacketType kTypes[] = {PacketType::kGpaDirect, PacketType::kInBand,
                                     PacketType::kCompletion, PacketType::kTransferPages};
    packet.type = kTypes[(kind & 0x0f) < 13 ? (kind & 1) : (kind & 0x0f) - 12];
    packet.completion_requested = (kind & 0x30) != 0x30;
    packet.transaction_id = next_id_++;
    const size_t length = (kind & 0x40) != 0 ? 64 : input.Byte() % 80;
    packet.payload.resize(length);
    for (uint8_t& byte : packet.payload) byte = input.Byte();
    if ((kind & 0x80) != 0 && length == 64) {
      const auto operation = static_cast<uint32_t>(Operation::kExecuteSrb);
      std::memcpy(packet.payload.data(), &operation, sizeof(operation));
    }
    if (packet.type == PacketType::kGpaDirect) {
      const uint8_t ranges = input.Byte();
      for (int i = 0; i < (ranges < 0xf0 ? 1 : ranges & 3); ++i) AddRange(input, packet);
      // Usually the transfer is as long as the range: deeper that way.
      if (length == 64 && !packet.ranges.empty() && (ranges & 1) == 0)
        std::memcpy(&packet.payload[12 + 12], &packet.ranges[0].bytes, 4);
    }
    const bool is_srb = length >= 12 && packet.payload[0] == 3;
    pending_[packet.transaction_id] = is_srb;
    if (channels_[channel].unread() < 64) channels_[channel].Push(std::move(packet));
  }
  /// Valid, as the channel guarantees; the pages may repeat.
  void AddRange(Input& input, IncomingPacket& packet) {
    GpaRange range;
    range.offset = input.Byte() * 16u;
    range.bytes = 1u + static_cast<uint32_t>(input.Byte()) * 128 + input.Byte();
    if ((range.bytes & 1) != 0) range.bytes = range.bytes / 512 * 512 + 512;
    for (uint32_t i = 0; i < (range.offset + range.bytes + 4095) / 4096; ++i)
      range.pfns.push_back(input.Byte() % kPages);
    packet.ranges.push_back(std::move(range));
  }

  static constexpr uint64_t kHandshakeIds = 16;

  vmm::Loop& loop_;
  tests::FakeChannel channels_[2];
  bool open_[2] = {};
  NoOffers offers_;
  tests::FakeDisk::Timing timing_;
  SyntheticScsiController::Options options_;
  std::shared_ptr<tests::FakeDisk> disc_;  ///< the last one that went into the drive
  std::map<uint8_t, std::shared_ptr<tests::FakeDisk>> disks_;
  std::unique_ptr<SyntheticScsiController> controller_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, bool> pending_;  ///< by id: is it an EXECUTE_SRB
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  spdlog::set_level(spdlog::level::off);
  static const std::unique_ptr<vmm::GuestMemory> memory = [] {
    const vmm::MemoryRange ranges[] = {{0, kPages * vmm::kPageSize}};
    return *vmm::GuestMemory::Create(ranges);
  }();
  const std::unique_ptr<vmm::Loop> loop = *vmm::Loop::Create();
  Input input(bytes, size);
  Machine machine(*memory, *loop, input.Byte());
  for (int steps = 0; steps < 100 && !input.empty(); ++steps) machine.Step(input);
  return 0;
}
