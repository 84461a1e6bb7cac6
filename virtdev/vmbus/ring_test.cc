// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <random>
#include <thread>

#include "tests/fakes/fake_vmbus_ring.h"
#include "virtdev/vmbus/ring_unsafe.h"

namespace kvmbus::virtdev::vmbus {
namespace {

using tests::FakeVmbusRing;
using Status = Channel::ReadStatus;
using testing::Contains;
using testing::ElementsAre;

constexpr uint64_t kDataPages = 2;
constexpr uint32_t kSize = kDataPages * 4096;

/// One ring each way, the guest's ends and the host's. The pages are scattered; the host has them
/// in a row (true), or finds them one by one, as with huge pages.
class RingTest : public testing::TestWithParam<bool> {
 protected:
  RingTest() {
    const vmm::MemoryRange ranges[] = {{0, 1 << 20}};
    memory = vmm::GuestMemory::Create(ranges).value();
    guest_out = std::make_unique<FakeVmbusRing>(Map(kToHost));
    guest_in = std::make_unique<FakeVmbusRing>(Map(kToGuest));
    guest_out->Initialize();
    guest_in->Initialize();
    reader = std::make_unique<RingReader>(HostRing(kToHost), *memory);
    writer = std::make_unique<RingWriter>(HostRing(kToGuest));
  }
  vmm::PageMapping Map(std::span<const uint64_t> pfns) { return MapRing(*memory, pfns).value(); }
  vmm::PageMapping HostRing(std::span<const uint64_t> pfns) {
    if (GetParam()) return Map(pfns);
    std::vector<uint64_t> pages(pfns.begin(), pfns.end());
    pages.insert(pages.end(), pfns.begin() + 1, pfns.end());
    return memory->FindPages(pages).value();
  }
  void Renew() {
    guest_out->Initialize();
    reader = std::make_unique<RingReader>(HostRing(kToHost), *memory);
  }

  /// Puts a packet's raw bytes at the start of the ring to the host and reads.
  Status ReadRaw(uint16_t type, uint16_t offset8, uint16_t length8, uint16_t flags,
                 uint32_t written, std::span<const uint8_t> body = {}) {
    Renew();
    const uint16_t descriptor[] = {type, offset8, length8, flags, 0, 0, 0, 0};
    std::memcpy(guest_out->data(), descriptor, 16);
    if (!body.empty()) std::memcpy(guest_out->data() + 16, body.data(), body.size());
    guest_out->word(FakeVmbusRing::kIn) = written;
    return reader->Read(&packet);
  }
  bool GuestWrites(std::vector<uint8_t> payload, bool* signal) {
    FakeVmbusRing::Packet sent;
    sent.type = 6;
    sent.payload = std::move(payload);
    return guest_out->Write(sent, signal);
  }
  bool HostWrites(size_t bytes) {
    return writer->Write(PacketType::kInBand, 1, false, {}, std::vector<uint8_t>(bytes, 7));
  }

  static constexpr uint64_t kToHost[] = {7, 30, 12};
  static constexpr uint64_t kToGuest[] = {50, 41, 40};
  std::unique_ptr<vmm::GuestMemory> memory;
  std::unique_ptr<FakeVmbusRing> guest_out, guest_in;
  std::unique_ptr<RingReader> reader;
  std::unique_ptr<RingWriter> writer;
  IncomingPacket packet;
};

INSTANTIATE_TEST_SUITE_P(MappedOrFound, RingTest, testing::Bool());

TEST_P(RingTest, PacketsOfEverySizeArriveInOrderAcrossTheWrap) {
  std::mt19937 random(1);
  std::deque<FakeVmbusRing::Packet> expected;
  int read = 0;
  for (int round = 0; round < 20000; ++round) {
    FakeVmbusRing::Packet sent;
    sent.type = 6;
    sent.completion_requested = random() % 2 != 0;
    sent.transaction_id = random();
    sent.payload.resize((random() % 200) * 8);
    for (uint8_t& byte : sent.payload) byte = static_cast<uint8_t>(random());
    bool signal = false;
    if (guest_out->Write(sent, &signal)) {
      expected.push_back(sent);
      if (random() % 3 != 0) continue;
    }
    while (reader->Read(&packet) == Status::kPacket) {
      ASSERT_FALSE(expected.empty());
      EXPECT_EQ(packet.type, PacketType::kInBand);
      EXPECT_EQ(packet.completion_requested, expected.front().completion_requested);
      EXPECT_EQ(packet.transaction_id, expected.front().transaction_id);
      EXPECT_EQ(packet.payload, expected.front().payload);
      expected.pop_front();
      ++read;
    }
    reader->Commit();
    EXPECT_TRUE(expected.empty());
  }
  EXPECT_GT(read, 15000);
}

TEST_P(RingTest, WhatTheHostWritesArrivesInOrderAcrossTheWrap) {
  std::mt19937 random(2);
  std::deque<std::vector<uint8_t>> expected;
  uint64_t id = 0, seen = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<uint8_t> header((random() % 4) * 8, 0x11), payload(random() % 900);
    for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random());
    if (writer->Write(PacketType::kCompletion, id, true, header, payload)) {
      ++id;
      payload.resize((payload.size() + 7) & ~size_t{7});  // the ring counts in 8 bytes
      expected.push_back(payload);
      if (random() % 3 != 0) continue;
    }
    writer->Commit();
    bool signal = false;
    for (const FakeVmbusRing::Packet& got : guest_in->ReadAll(&signal)) {
      ASSERT_FALSE(expected.empty());
      EXPECT_EQ(got.type, 0xb);
      EXPECT_TRUE(got.completion_requested);
      EXPECT_EQ(got.transaction_id, seen++);
      EXPECT_EQ(got.payload, expected.front());
      expected.pop_front();
    }
  }
  EXPECT_GT(seen, 15000u);
}

TEST_P(RingTest, TheWholeRingButEightBytesCanBeFilled) {
  EXPECT_FALSE(HostWrites(kSize - 24));
  EXPECT_TRUE(HostWrites(kSize - 8 - 24));
  EXPECT_FALSE(HostWrites(0));
  writer->Commit();
  bool signal = false;
  EXPECT_EQ(guest_in->ReadAll(&signal).size(), 1u);
  EXPECT_TRUE(HostWrites(kSize - 8 - 24));
}

TEST_P(RingTest, TheGuestIsInterruptedOnlyWhenTheRingWasEmptyAndItWantsIt) {
  EXPECT_FALSE(writer->Commit());  // nothing new
  HostWrites(8);
  HostWrites(8);
  EXPECT_TRUE(writer->Commit());
  HostWrites(8);
  EXPECT_FALSE(writer->Commit());  // it has not read the first two yet
  bool signal = false;
  EXPECT_EQ(guest_in->ReadAll(&signal).size(), 3u);
  EXPECT_FALSE(signal);
  guest_in->word(FakeVmbusRing::kInterruptMask) = 1;
  HostWrites(8);
  EXPECT_FALSE(writer->Commit());
}

TEST_P(RingTest, WhatIsNotCommittedIsNotSeen) {
  HostWrites(8);
  bool signal = false;
  EXPECT_TRUE(guest_in->ReadAll(&signal).empty());
  GuestWrites({1, 2, 3, 4, 5, 6, 7, 8}, &signal);
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  EXPECT_EQ(guest_out->used(), 32u);
  reader->Commit();
  EXPECT_EQ(guest_out->used(), 0u);
}

TEST_P(RingTest, TheGuestKeepsQuietWhileTheHostDrains) {
  bool signal = false;
  GuestWrites(std::vector<uint8_t>(8), &signal);
  EXPECT_TRUE(signal);
  reader->DisableSignals();
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  reader->Commit();
  signal = false;
  GuestWrites(std::vector<uint8_t>(8), &signal);
  EXPECT_FALSE(signal);
  EXPECT_FALSE(reader->EnableSignals());  // there is more: read on
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  EXPECT_EQ(reader->Read(&packet), Status::kEmpty);
  reader->Commit();
  EXPECT_TRUE(reader->EnableSignals());
  GuestWrites(std::vector<uint8_t>(8), &signal);
  EXPECT_TRUE(signal);
}

TEST_P(RingTest, ABlockedGuestIsSignalledOnceWhenItsRoomAppears) {
  bool signal = false;
  int packets = 0;
  while (GuestWrites(std::vector<uint8_t>(1000), &signal)) ++packets;  // blocked: 1024 wanted
  EXPECT_EQ(packets, 7);
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  EXPECT_TRUE(reader->Commit());
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  EXPECT_FALSE(reader->Commit());  // it was there already
  while (GuestWrites(std::vector<uint8_t>(1000), &signal)) continue;
  guest_out->word(FakeVmbusRing::kPendingSendSize) = kSize - 1;  // "tell me when it is empty"
  int signals = 0;
  while (reader->Read(&packet) == Status::kPacket) {
    const bool signalled = reader->Commit();
    EXPECT_EQ(signalled, guest_out->used() == 0);
    signals += signalled ? 1 : 0;
  }
  EXPECT_EQ(signals, 1);
}

TEST_P(RingTest, ABlockedHostAsksForItsRoomAndTheGuestSignals) {
  while (HostWrites(1000)) continue;
  EXPECT_FALSE(writer->HasRoom(1000, 2));
  writer->Commit();
  EXPECT_FALSE(writer->WaitForRoom(1000, 2));
  EXPECT_EQ(guest_in->word(FakeVmbusRing::kPendingSendSize), 2048u);
  EXPECT_EQ(guest_in->word(FakeVmbusRing::kFeatureBits) & 1, 1u);
  bool signal = false;
  guest_in->ReadAll(&signal);
  EXPECT_TRUE(signal);
  EXPECT_TRUE(writer->HasRoom(1000, 2));
  EXPECT_EQ(guest_in->word(FakeVmbusRing::kPendingSendSize), 0u);
}

TEST_P(RingTest, AWishBeyondTheRingIsCutToTheRing) {
  EXPECT_FALSE(writer->WaitForRoom(60000, 100000));
  EXPECT_EQ(guest_in->word(FakeVmbusRing::kPendingSendSize), kSize - 8);
}

TEST_P(RingTest, ImpossibleIndicesBreakTheReaderForGood) {
  for (const uint32_t in : {kSize, 0xffffffffu, 4u, 12u, 8u, 16u}) {
    Renew();
    guest_out->word(FakeVmbusRing::kIn) = in;
    EXPECT_EQ(reader->Read(&packet), Status::kBroken) << in;
    guest_out->word(FakeVmbusRing::kIn) = 0;
    EXPECT_EQ(reader->Read(&packet), Status::kBroken);
    EXPECT_FALSE(reader->Commit());
  }
  for (const uint32_t in : {kSize, kSize + 32, 36u, 0xfffffff8u})  // though a packet stands there
    EXPECT_EQ(ReadRaw(6, 2, 3, 0, in), Status::kBroken) << in;
  for (const uint32_t out : {kSize, 0xffffffffu, 4u}) {  // found at the open
    guest_out->Initialize();
    guest_out->word(FakeVmbusRing::kOut) = out;
    reader = std::make_unique<RingReader>(HostRing(kToHost), *memory);
    EXPECT_EQ(reader->Read(&packet), Status::kBroken);
  }
}

TEST_P(RingTest, ImpossibleDescriptorsBreakTheReader) {
  EXPECT_EQ(ReadRaw(6, 2, 3, 0, 32), Status::kPacket);
  EXPECT_EQ(ReadRaw(6, 2, 3, 1, 32), Status::kPacket);
  EXPECT_EQ(ReadRaw(6, 3, 3, 0, 32), Status::kPacket);  // no payload
  EXPECT_EQ(ReadRaw(6, 2, 3, 0, 40), Status::kPacket);  // more follows
  EXPECT_EQ(ReadRaw(6, 2, 3, 0, 24), Status::kBroken);  // not all there
  EXPECT_EQ(ReadRaw(6, 2, 1, 0, 32), Status::kBroken);  // shorter than its descriptor
  EXPECT_EQ(ReadRaw(6, 2, 0, 0, 32), Status::kBroken);
  EXPECT_EQ(ReadRaw(6, 1, 3, 0, 32), Status::kBroken);  // payload in the descriptor
  EXPECT_EQ(ReadRaw(6, 4, 3, 0, 32), Status::kBroken);  // payload after the end
  EXPECT_EQ(ReadRaw(6, 2, 0xffff, 0, 4096), Status::kBroken);
  EXPECT_EQ(ReadRaw(6, 2, 3, 2, 32), Status::kBroken);  // an unknown flag
  for (const uint16_t type : {0, 1, 5, 7, 8, 0xa, 0xc, 0xd, 0xffff})
    EXPECT_EQ(ReadRaw(type, 2, 3, 0, 32), Status::kBroken) << type;
  EXPECT_EQ(ReadRaw(0xb, 2, 3, 0, 32), Status::kPacket);
}

class GpaDirectTest : public RingTest {
 protected:
  Status ReadRanges(std::vector<uint64_t> header) {
    const auto offset8 = static_cast<uint16_t>(2 + header.size());
    std::vector<uint8_t> body(header.size() * 8);
    if (!header.empty()) std::memcpy(body.data(), header.data(), body.size());
    return ReadRaw(9, offset8, static_cast<uint16_t>(offset8 + 1), 0, offset8 * 8u + 16, body);
  }
  static uint64_t Extent(uint64_t bytes, uint64_t offset) { return bytes | offset << 32; }
  static constexpr uint64_t kOne = uint64_t{1} << 32, kTwo = uint64_t{2} << 32;
};

INSTANTIATE_TEST_SUITE_P(MappedOrFound, GpaDirectTest, testing::Bool());

TEST_P(GpaDirectTest, RangesArriveChecked) {
  EXPECT_EQ(ReadRanges({kTwo | 0xdead, Extent(4097, 4095), 3, 4, Extent(1, 0), 255}),
            Status::kPacket);
  ASSERT_EQ(packet.ranges.size(), 2u);
  EXPECT_EQ(packet.ranges[0].bytes, 4097u);
  EXPECT_EQ(packet.ranges[0].offset, 4095u);
  EXPECT_THAT(packet.ranges[0].pfns, ElementsAre(3, 4));
  EXPECT_THAT(packet.ranges[1].pfns, ElementsAre(255));
  EXPECT_EQ(packet.payload.size(), 8u);
  EXPECT_EQ(ReadRaw(6, 2, 3, 0, 32), Status::kPacket);  // a plain packet has none left over
  EXPECT_TRUE(packet.ranges.empty());
}

TEST_P(GpaDirectTest, ImpossibleRangesBreakTheReader) {
  EXPECT_EQ(ReadRanges({}), Status::kBroken);
  EXPECT_EQ(ReadRanges({0}), Status::kBroken);                         // no range
  EXPECT_EQ(ReadRanges({kOne}), Status::kBroken);                      // it is missing
  EXPECT_EQ(ReadRanges({kOne, Extent(0, 0), 3}), Status::kBroken);     // no bytes
  EXPECT_EQ(ReadRanges({kOne, Extent(1, 4096), 3}), Status::kBroken);  // offset
  EXPECT_EQ(ReadRanges({kOne, Extent(4097, 0), 3}), Status::kBroken);  // a page is missing
  EXPECT_EQ(ReadRanges({kOne, Extent(4096, 1), 3}), Status::kBroken);
  EXPECT_EQ(ReadRanges({kOne, Extent(1, 0), 256}), Status::kBroken);  // not RAM
  EXPECT_EQ(ReadRanges({kOne, Extent(1, 0), ~uint64_t{0}}), Status::kBroken);
  EXPECT_EQ(ReadRanges({kOne, Extent(0xffffffff, 0xfff), 3}), Status::kBroken);
  EXPECT_EQ(ReadRanges({kTwo, Extent(1, 0), 3}), Status::kBroken);
  EXPECT_EQ(ReadRanges({uint64_t{0xffffffff} << 32, Extent(1, 0), 3}), Status::kBroken);
  std::vector<uint64_t> many = {uint64_t{kRangeLimit + 1} << 32};
  for (size_t i = 0; i <= kRangeLimit; ++i) many.insert(many.end(), {Extent(1, 0), 3});
  EXPECT_EQ(ReadRanges(many), Status::kBroken);
}

TEST_P(RingTest, AHostileReadIndexStallsTheWriterUntilItIsMended) {
  for (const uint32_t out : {kSize, 4u, 0xffffffffu}) {
    guest_in->word(FakeVmbusRing::kOut) = out;
    EXPECT_FALSE(HostWrites(8));
    EXPECT_TRUE(writer->broken());
    EXPECT_FALSE(writer->WaitForRoom(8, 1));
  }
  guest_in->word(FakeVmbusRing::kOut) = 0;
  EXPECT_TRUE(HostWrites(8));
  EXPECT_FALSE(writer->broken());
}

TEST_P(RingTest, WhatTheHostWritesIsMarkedDirty) {
  memory->StartDirtyTracking();
  HostWrites(4096);
  EXPECT_THAT(memory->TakeDirtyPages(), ElementsAre(40, 41));
  writer->Commit();
  EXPECT_THAT(memory->TakeDirtyPages(), ElementsAre(50));
  writer->WaitForRoom(8000, 1);
  EXPECT_THAT(memory->TakeDirtyPages(), ElementsAre(50));
  reader->DisableSignals();
  EXPECT_THAT(memory->TakeDirtyPages(), ElementsAre(7));
  reader->EnableSignals();
  EXPECT_THAT(memory->TakeDirtyPages(), ElementsAre(7));
  bool signal = false;
  GuestWrites(std::vector<uint8_t>(8), &signal);
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  EXPECT_TRUE(memory->TakeDirtyPages().empty());
  reader->Commit();
  EXPECT_THAT(memory->TakeDirtyPages(), ElementsAre(7));
}

TEST_P(RingTest, NewObjectsGoOnWhereTheOldOnesCommitted) {
  bool signal = false;
  for (int i = 0; i < 3; ++i)
    GuestWrites(std::vector<uint8_t>(8, static_cast<uint8_t>(i)), &signal);
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  reader->Commit();
  HostWrites(8);
  writer->Commit();
  reader = std::make_unique<RingReader>(HostRing(kToHost), *memory);
  writer = std::make_unique<RingWriter>(HostRing(kToGuest));
  EXPECT_EQ(reader->Read(&packet), Status::kPacket);
  EXPECT_EQ(packet.payload[0], 1);
  HostWrites(8);
  writer->Commit();
  EXPECT_EQ(guest_in->ReadAll(&signal).size(), 2u);
}

TEST_P(RingTest, ARingNeedsDataPages) {
  const uint64_t one[] = {3}, absent[] = {3, 256};
  EXPECT_FALSE(MapRing(*memory, one).ok());
  EXPECT_FALSE(MapRing(*memory, absent).ok());
}

// SAFETY: the other thread writes what the two ends read, as a guest may; that is the test. The
// words are written atomically so that only the rings' own copies race.
TEST_P(RingTest, AGuestThatScribblesWhileTheHostWorksHarmsNobody) {
  std::atomic<bool> stop{false};
  std::thread scribbler([&] {
    std::mt19937 random(3);
    while (!stop.load()) {
      for (FakeVmbusRing* ring : {guest_out.get(), guest_in.get()}) {
        const FakeVmbusRing::Word words[] = {FakeVmbusRing::kIn, FakeVmbusRing::kOut,
                                             FakeVmbusRing::kInterruptMask,
                                             FakeVmbusRing::kPendingSendSize};
        ring->word(words[random() % 4]) =
            static_cast<uint32_t>(random() % 4 == 0 ? random() : (random() % kSize) & ~7u);
        auto* data = reinterpret_cast<uint64_t*>(ring->data());
        const std::atomic_ref<uint64_t> target(data[random() % (kSize / 8)]);
        target = random() % 2 == 0 ? 0x0000000400020006u : random();
      }
    }
  });
  uint64_t packets = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  while (std::chrono::steady_clock::now() < end) {
    reader = std::make_unique<RingReader>(HostRing(kToHost), *memory);
    for (int i = 0; i < 100; ++i) {
      if (reader->Read(&packet) == Status::kPacket) ++packets;
      EXPECT_LE(packet.payload.size(), kSize);
      reader->Commit();
      reader->EnableSignals();
      if (writer->HasRoom(64, 2)) HostWrites(64);
      writer->Commit();
      writer->WaitForRoom(64, 2);
    }
  }
  stop = true;
  scribbler.join();
  RecordProperty("packets", static_cast<int>(packets));
}

}  // namespace
}  // namespace kvmbus::virtdev::vmbus
