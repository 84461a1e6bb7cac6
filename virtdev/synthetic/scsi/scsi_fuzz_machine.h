// SPDX-License-Identifier: Apache-2.0
/// \file
/// What scsi_state_fuzz restores: a controller with two disks and a DVD drive, and its guest.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/fakes/fake_channel.h"
#include "tests/fakes/fake_disk.h"
#include "virtdev/synthetic/scsi/scsi_controller.h"
#include "virtdev/synthetic/scsi/storvsc_fuzz.h"
#include "virtdev/synthetic/scsi/storvsc_protocol.h"

namespace kvmbus::virtdev::scsi_fuzz {

using storvsc::Operation;

inline constexpr uint16_t kChannels = 3;
/// LUNs. The first disk has a place for persistent reservations.
inline constexpr uint8_t kStoringDisk = 0, kPlainDisk = 1, kDrive = 2;
inline constexpr uint64_t kDataPage = 3;

/// A command that changes what is saved, or shows it.
struct Command {
  uint8_t cdb[10];
  uint32_t data_bytes;
  bool data_in;
};
inline constexpr Command kCommands[] = {
    {{0x00}, 0, true},                                // TEST UNIT READY
    {{0x03, 0, 0, 0, 18}, 18, true},                  // REQUEST SENSE
    {{0x16}, 0, true},                                // RESERVE
    {{0x17}, 0, true},                                // RELEASE
    {{0x1b, 0, 0, 0, 2}, 0, true},                    // START STOP UNIT: open the tray
    {{0x1e, 0, 0, 0, 1}, 0, true},                    // PREVENT ALLOW MEDIUM REMOVAL
    {{0x25}, 8, true},                                // READ CAPACITY
    {{0x28, 0, 0, 0, 0, 0, 0, 0, 1}, 2048, true},     // READ
    {{0x2a, 0, 0, 0, 0, 0, 0, 0, 1}, 512, false},     // WRITE
    {{0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8}, 8, true},     // GET EVENT STATUS NOTIFICATION
    {{0x5e, 3, 0, 0, 0, 0, 0, 4, 0}, 1024, true},     // PERSISTENT RESERVE IN: full status
    {{0x5f, 0, 0, 0, 0, 0, 0, 0, 24}, 24, false},     // PERSISTENT RESERVE OUT: register
    {{0x5f, 1, 0x05, 0, 0, 0, 0, 0, 24}, 24, false},  // ...: reserve
    {{0x5f, 6, 0, 0, 0, 0, 0, 0, 24}, 24, false},     // ...: register and ignore
    {{0xff}, 0, true},                                // none, so there is sense
};

class Machine {
 public:
  Machine(vmm::GuestMemory& memory, vmm::Loop& loop, bool has_disc) : memory_(memory), loop_(loop) {
    for (uint16_t i = 0; i < kChannels; ++i)
      channels_.push_back(std::make_unique<tests::FakeChannel>(memory, i));
    SyntheticScsiController::Options options;
    options.vcpus = kChannels;
    options.queue_depth = 4;
    options.max_transfer_bytes = 64 << 10;
    controller_ =
        std::make_unique<SyntheticScsiController>(options, loop, std::vector<vmm::Loop*>{&loop});
    ScsiDisk::Options storing;
    storing.reservations = std::make_shared<PersistentReservations>(
        [](const std::string& state) { return state.size() <= 64 << 10; });
    DiskInfo disc = tests::FakeDisk::DefaultInfo(16 << 10);
    disc.read_only = true;
    const auto medium = has_disc ? std::make_shared<tests::FakeDisk>(disc) : nullptr;
    KVMBUS_ASSERT(controller_->AttachDisk(kPlainDisk, NewDisk()).ok());
    KVMBUS_ASSERT(controller_->AttachDisk(kStoringDisk, NewDisk(), storing).ok());
    KVMBUS_ASSERT(controller_->AttachDvd(kDrive, medium).ok());
  }
  ~Machine() {
    controller_.reset();
    Settle();
  }

  VmbusDevice& controller() { return *controller_; }
  tests::FakeChannel& channel(uint16_t index) { return *channels_[index]; }

  void Open(uint16_t index) {
    KVMBUS_ASSERT(controller_->Open(index, channels_[index]->Endpoint()).ok());
    Settle();
  }
  void Handshake() {
    for (const storvsc::Packet& packet : HandshakePackets()) Push(0, packet, 0);
    Settle();
  }
  void Send(uint16_t index, uint8_t lun, uint8_t which, uint16_t patch) {
    const Command& command = kCommands[which % std::size(kCommands)];
    uint8_t data[24] = {};
    data[7] = patch & 3;        // the key
    data[15] = patch >> 2 & 3;  // the service action's
    data[20] = patch >> 4 & 1;  // APTPL
    if (!memory_.Write(kDataPage * vmm::kPageSize, data, sizeof(data))) return;
    storvsc::Packet packet{};
    packet.header.operation = static_cast<uint32_t>(Operation::kExecuteSrb);
    packet.srb.length = storvsc::kSrbBytesWin8;
    packet.srb.lun = lun % 4;
    packet.srb.cdb_length = sizeof(command.cdb);
    packet.srb.data_in = command.data_in;
    packet.srb.transfer_length = command.data_bytes;
    std::memcpy(packet.srb.cdb_or_sense.data(), command.cdb, sizeof(command.cdb));
    // Now and then another one than the table has.
    if (patch >= 0x8000) packet.srb.cdb_or_sense[patch % 10] ^= static_cast<uint8_t>(patch >> 8);
    Push(index, packet, command.data_bytes);
    Settle();
  }
  void Settle() {
    for (int i = 0; i < 4; ++i) loop_.RunOnce(0);
    for (const auto& channel : channels_) (void)channel->Take();
  }
  /// As the bus does before a restore, or a reset.
  void CloseAll() {
    for (uint16_t i = kChannels; i-- != 0;) controller_->Close(i);
    channels_.clear();  // with what nobody has read
    for (uint16_t i = 0; i < kChannels; ++i)
      channels_.push_back(std::make_unique<tests::FakeChannel>(memory_, i));
  }
  /// `open`: a bit a channel.
  vmm::Result<void> Restore(const std::string& state, unsigned open) {
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
    for (uint16_t i = 0; i < kChannels; ++i) {
      if ((open >> i & 1) != 0) endpoints.emplace_back(i, channels_[i]->Endpoint());
    }
    return controller_->Restore(state, std::move(endpoints));
  }

 private:
  static std::shared_ptr<tests::FakeDisk> NewDisk() {
    return std::make_shared<tests::FakeDisk>(tests::FakeDisk::DefaultInfo(16 << 10));
  }
  void Push(uint16_t index, const storvsc::Packet& srb, uint32_t data_bytes) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&srb);
    IncomingPacket packet;
    packet.type = data_bytes == 0 ? PacketType::kInBand : PacketType::kGpaDirect;
    packet.completion_requested = true;
    packet.transaction_id = ++last_id_;
    packet.payload.assign(bytes, bytes + sizeof(srb));
    if (data_bytes != 0) packet.ranges.push_back({data_bytes, 0, {kDataPage}});
    channels_[index]->Push(std::move(packet));
  }

  vmm::GuestMemory& memory_;
  vmm::Loop& loop_;
  std::vector<std::unique_ptr<tests::FakeChannel>> channels_;
  std::unique_ptr<SyntheticScsiController> controller_;
  uint64_t last_id_ = 0;
};

}  // namespace kvmbus::virtdev::scsi_fuzz
