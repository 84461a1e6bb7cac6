// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tests of the synthetic SCSI controller share: a guest that speaks storvsp over fake
/// channels, and a controller with fake disks on loops that the test turns by hand.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "tests/fakes/fake_channel.h"
#include "tests/fakes/fake_disk.h"
#include "virtdev/scsi/scsi_protocol.h"
#include "virtdev/synthetic/scsi/scsi_controller.h"
#include "virtdev/synthetic/scsi/storvsc_protocol.h"

namespace kvmbus::virtdev::scsi_test {

using Bytes = std::vector<uint8_t>;
using storvsc::Operation;
using tests::FakeChannel;
using tests::FakeDisk;
using Timing = FakeDisk::Timing;

inline constexpr uint64_t kInitId = ~uint64_t{2};

/// A scattered buffer in guest memory.
struct Buffer {
  uint32_t offset = 0;
  uint32_t bytes = 0;
  std::vector<uint64_t> pfns;
};

inline void CopyToGuest(vmm::GuestMemory& memory, const Buffer& buffer, const Bytes& data) {
  for (size_t i = 0; i < data.size(); ++i) {
    const size_t at = buffer.offset + i;
    const uint64_t gpa = (buffer.pfns.at(at / 4096) << 12) + at % 4096;
    ASSERT_TRUE(memory.Write(gpa, &data[i], 1));
  }
}
inline Bytes CopyFromGuest(const vmm::GuestMemory& memory, const Buffer& buffer) {
  Bytes data(buffer.bytes);
  for (size_t i = 0; i < data.size(); ++i) {
    const size_t at = buffer.offset + i;
    const uint64_t gpa = (buffer.pfns.at(at / 4096) << 12) + at % 4096;
    EXPECT_TRUE(memory.Read(gpa, &data[i], 1));
  }
  return data;
}

inline storvsc::Packet ToPacket(const FakeChannel::Sent& sent) {
  storvsc::Packet packet{};
  std::memcpy(&packet, sent.payload.data(), std::min(sizeof(packet), sent.payload.size()));
  return packet;
}

/// Packets as Linux sends them.
inline Bytes ControlPayload(Operation operation, uint16_t argument = 0, size_t size = 64) {
  storvsc::Packet packet{};
  packet.header.operation = static_cast<uint32_t>(operation);
  packet.header.flags = 1;
  packet.version.major_minor = argument;  // also a count of sub-channels
  Bytes bytes(std::max(size, sizeof(packet)));
  std::memcpy(bytes.data(), &packet, sizeof(packet));
  bytes.resize(size);
  return bytes;
}

struct SrbOptions {
  uint8_t lun = 0;
  uint8_t target = 0;
  uint8_t path = 0;
  bool data_in = true;
  size_t size = 64;  ///< of the packet
};

inline IncomingPacket SrbPacket(uint64_t id, const Bytes& cdb, const Buffer& buffer,
                                const SrbOptions& options) {
  storvsc::Packet packet{};
  packet.header.operation = static_cast<uint32_t>(Operation::kExecuteSrb);
  packet.header.flags = 1;
  packet.srb.length = storvsc::kSrbBytesWin8;
  packet.srb.path = options.path;
  packet.srb.target = options.target;
  packet.srb.lun = options.lun;
  packet.srb.cdb_length = static_cast<uint8_t>(cdb.size());
  packet.srb.sense_length = 20;
  packet.srb.data_in = options.data_in ? 1 : 0;
  packet.srb.transfer_length = buffer.bytes;
  std::copy(cdb.begin(), cdb.end(), packet.srb.cdb_or_sense.begin());
  Bytes payload(std::max(options.size, sizeof(packet)));
  std::memcpy(payload.data(), &packet, sizeof(packet));
  payload.resize(options.size);
  IncomingPacket incoming;
  incoming.type = buffer.bytes == 0 ? PacketType::kInBand : PacketType::kGpaDirect;
  incoming.completion_requested = true;
  incoming.transaction_id = id;
  incoming.payload = std::move(payload);
  if (buffer.bytes != 0) incoming.ranges.push_back({buffer.bytes, buffer.offset, buffer.pfns});
  return incoming;
}

inline Bytes Cdb10(uint8_t opcode, uint32_t lba, uint16_t count) {
  Bytes cdb(10);
  cdb[0] = opcode;
  scsi::PutBe<uint32_t>(cdb, 2, lba);
  scsi::PutBe<uint16_t>(cdb, 7, count);
  return cdb;
}

class FakeOffers final : public OfferHandle {
 public:
  void OfferSubChannels(uint16_t count) override { offered.push_back(count); }
  std::vector<uint16_t> offered;
};

inline std::unique_ptr<vmm::GuestMemory> TestMemory() {
  const vmm::MemoryRange ranges[] = {{0, 8u << 20}};
  return *vmm::GuestMemory::Create(ranges);
}

/// One controller with LUN 0, its main loop and two io loops, none with a thread of its own.
class ScsiControllerTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kDiskBytes = 1 << 20;

  ScsiControllerTest() {
    options_.name = "scsi/0";
    options_.instance_id = vmm::MakeGuid("f8b3781a-1e82-4818-a1c3-63d806ec15bb");
    options_.vcpus = 4;
    disk_ = NewDisk();
  }
  ~ScsiControllerTest() override {
    controller_.reset();
    Settle();
  }

  static std::shared_ptr<FakeDisk> NewDisk() {
    auto disk = std::make_shared<FakeDisk>(FakeDisk::DefaultInfo(kDiskBytes));
    for (size_t i = 0; i < disk->content().size(); ++i)
      disk->content()[i] = static_cast<uint8_t>(i * 5 + i / 512);
    return disk;
  }
  void Build() {
    controller_ = std::make_unique<SyntheticScsiController>(
        options_, *main_loop_, std::vector<vmm::Loop*>{io_loops_[0].get(), io_loops_[1].get()});
    controller_->OnOffered(&offers_);
    ASSERT_TRUE(controller_->AttachDisk(0, disk_).ok());
  }
  void Open(uint16_t index) {
    const auto opened = controller_->Open(index, channels_[index].Endpoint());
    ASSERT_TRUE(opened.ok()) << opened.error().ToString();
    Settle();
  }
  /// Turns all loops until nothing moves.
  void Settle() {
    for (int round = 0; round < 8; ++round) {
      main_loop_->RunOnce(0);
      for (auto& loop : io_loops_) loop->RunOnce(0);
    }
  }

  storvsc::Packet Control(Operation operation, uint16_t argument = 0, uint16_t channel = 0) {
    channels_[channel].PushInBand(kInitId, ControlPayload(operation, argument));
    Settle();
    const auto replies = channels_[channel].Take();
    EXPECT_EQ(replies.size(), 1u);
    if (replies.size() != 1) return {};
    EXPECT_EQ(replies[0].type, PacketType::kCompletion);
    EXPECT_EQ(replies[0].transaction_id, kInitId);
    EXPECT_EQ(replies[0].payload.size(), 64u);
    const storvsc::Packet packet = ToPacket(replies[0]);
    EXPECT_EQ(packet.header.operation, static_cast<uint32_t>(Operation::kCompleteIo));
    return packet;
  }
  void Handshake(uint16_t version = storvsc::kVersionWin10) {
    EXPECT_EQ(Control(Operation::kBeginInitialization).header.status, 0u);
    EXPECT_EQ(Control(Operation::kQueryProtocolVersion, version).header.status, 0u);
    EXPECT_EQ(Control(Operation::kQueryProperties).header.status, 0u);
    EXPECT_EQ(Control(Operation::kEndInitialization).header.status, 0u);
  }
  void BuildAndHandshake() {
    Build();
    Open(0);
    Handshake();
  }

  /// A buffer of its own pages, the pages in random order; its memory is reused after 4 MiB.
  Buffer NewBuffer(uint32_t bytes, uint32_t offset = 0) {
    Buffer buffer;
    buffer.offset = offset;
    buffer.bytes = bytes;
    for (uint32_t i = 0; i < (offset + bytes + 4095) / 4096; ++i)
      buffer.pfns.push_back(0x100 + next_page_++ % 0x400);
    std::shuffle(buffer.pfns.begin(), buffer.pfns.end(), random_);
    return buffer;
  }

  void Push(uint64_t id, const Bytes& cdb, const Buffer& buffer = {}, SrbOptions options = {},
            uint16_t channel = 0) {
    channels_[channel].Push(SrbPacket(id, cdb, buffer, options));
  }
  /// One command to its end.
  storvsc::Packet Execute(const Bytes& cdb, const Buffer& buffer = {}, SrbOptions options = {},
                          uint16_t channel = 0) {
    Push(77, cdb, buffer, options, channel);
    Settle();
    const auto replies = channels_[channel].Take();
    EXPECT_EQ(replies.size(), 1u);
    if (replies.size() != 1) return {};
    EXPECT_EQ(replies[0].transaction_id, 77u);
    return ToPacket(replies[0]);
  }

  uint64_t CounterValue(std::string_view name) const {
    uint64_t value = ~uint64_t{0};
    controller_->VisitCounters([&](std::string_view counter, const vmm::Counter& c) {
      if (counter == name) value = c.value();
    });
    return value;
  }

  std::unique_ptr<vmm::GuestMemory> memory_ = TestMemory();
  std::unique_ptr<vmm::Loop> main_loop_ = *vmm::Loop::Create();
  std::unique_ptr<vmm::Loop> io_loops_[2] = {*vmm::Loop::Create(), *vmm::Loop::Create()};
  FakeChannel channels_[4] = {FakeChannel{*memory_, 0}, FakeChannel{*memory_, 1},
                              FakeChannel{*memory_, 2}, FakeChannel{*memory_, 3}};
  FakeOffers offers_;
  std::shared_ptr<FakeDisk> disk_;
  SyntheticScsiController::Options options_;
  std::unique_ptr<SyntheticScsiController> controller_;
  std::mt19937 random_{20240607};
  uint64_t next_page_ = 0;
};

}  // namespace kvmbus::virtdev::scsi_test
