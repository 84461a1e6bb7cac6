// SPDX-License-Identifier: Apache-2.0
// Reader and writer over rings of hostile content. The input is a list of commands: change the
// rings as the guest may, or let the host work.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tests/fakes/fake_vmbus_ring.h"
#include "tests/fuzz/fuzz_input.h"
#include "vmm/os/log.h"

namespace {

using kvmbus::tests::FakeVmbusRing;
using Input = kvmbus::tests::FuzzInput;
using kvmbus::virtdev::Channel;
using kvmbus::virtdev::IncomingPacket;
using kvmbus::virtdev::PacketType;
namespace vb = kvmbus::virtdev::vmbus;
namespace vmm = kvmbus::vmm;

constexpr uint64_t kToHost[] = {3, 9, 5}, kToGuest[] = {8, 20, 11};

struct Rings {
  vmm::GuestMemory& memory;
  FakeVmbusRing guest_out{vb::MapRing(memory, kToHost).value()};
  FakeVmbusRing guest_in{vb::MapRing(memory, kToGuest).value()};
  vb::RingReader reader{vb::MapRing(memory, kToHost).value(), memory};
  vb::RingWriter writer{vb::MapRing(memory, kToGuest).value()};
};

void Check(const IncomingPacket& packet, const vmm::GuestMemory& memory) {
  KVMBUS_ASSERT(packet.payload.size() <= vb::kPacketLimit);
  KVMBUS_ASSERT(packet.ranges.size() <= vb::kRangeLimit);
  KVMBUS_ASSERT((packet.type == PacketType::kGpaDirect) == !packet.ranges.empty());
  for (const auto& range : packet.ranges) {
    KVMBUS_ASSERT(range.bytes != 0 && range.offset < 4096);
    KVMBUS_ASSERT(range.pfns.size() == (uint64_t{range.bytes} + range.offset + 4095) / 4096);
    for (const uint64_t pfn : range.pfns) KVMBUS_ASSERT(memory.Contains(pfn * 4096, 4096));
  }
}

void HostReads(Rings& rings) {
  IncomingPacket packet;
  for (int i = 0; i < 2000; ++i) {
    const auto status = rings.reader.Read(&packet);
    if (status != Channel::ReadStatus::kPacket) break;
    Check(packet, rings.memory);
    rings.reader.DisableSignals();
  }
  rings.reader.Commit();
  rings.reader.EnableSignals();
}

/// A GPA-direct packet's header where the guest writes next, its words from the input.
void GuestWritesRanges(FakeVmbusRing& ring, Input& input) {
  FakeVmbusRing::Packet packet;
  packet.type = 9;
  const size_t words = input.Take<uint8_t>() % 40;
  packet.header.resize(words * 8);
  for (size_t i = 0; i < words; ++i) {
    const uint64_t word =
        input.Take<uint8_t>() % 2 == 0 ? input.Take<uint8_t>() : input.Take<uint64_t>();
    std::memcpy(packet.header.data() + i * 8, &word, 8);
  }
  bool signal = false;
  ring.Write(packet, &signal);
}

void Command(Rings& rings, Input& input) {
  constexpr FakeVmbusRing::Word kWords[] = {
      FakeVmbusRing::kIn, FakeVmbusRing::kOut, FakeVmbusRing::kInterruptMask,
      FakeVmbusRing::kPendingSendSize, FakeVmbusRing::kFeatureBits};
  const uint8_t command = input.Take<uint8_t>();
  FakeVmbusRing& ring = command & 0x80 ? rings.guest_in : rings.guest_out;
  const bool sound = rings.guest_out.word(FakeVmbusRing::kIn) < rings.guest_out.size() &&
                     rings.guest_out.word(FakeVmbusRing::kOut) < rings.guest_out.size();
  switch (command % 9) {
    case 0:
      ring.word(kWords[input.Take<uint8_t>() % 5]) = input.Take<uint32_t>();
      return;
    case 1:
      ring.word(kWords[input.Take<uint8_t>() % 2]) =
          static_cast<uint32_t>(input.Take<uint16_t>() % ring.size()) & ~7u;
      return;
    case 2: {
      const uint64_t value = input.Take<uint64_t>();
      std::memcpy(ring.data() + input.Take<uint16_t>() % ring.size(), &value, sizeof(value));
      return;
    }
    case 3:
      return HostReads(rings);
    case 4: {
      const size_t bytes = input.Take<uint16_t>() % 9000;
      if (rings.writer.HasRoom(bytes, 1)) {
        const bool written = rings.writer.Write(PacketType::kCompletion, 1, false, {},
                                                std::vector<uint8_t>(bytes, 1));
        KVMBUS_ASSERT(written);
      }
      return;
    }
    case 5:
      rings.writer.Commit();
      return;
    case 6:
      rings.writer.WaitForRoom(input.Take<uint16_t>(), input.Take<uint8_t>());
      return;
    case 7: {
      FakeVmbusRing::Packet packet;
      packet.type = input.Take<uint8_t>() % 16;
      packet.payload.resize(input.Take<uint16_t>() % 4096);
      bool signal = false;
      if (sound) rings.guest_out.Write(packet, &signal);
      return;
    }
    default:
      if (sound) GuestWritesRanges(rings.guest_out, input);
      return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr vmm::MemoryRange kRam[] = {{0, 64 * 4096}};
  static const auto memory = vmm::GuestMemory::Create(kRam).value();
  spdlog::set_level(spdlog::level::off);
  if (!memory->Zero(0, 64 * 4096)) return 0;
  Input input(data, size);
  for (int opens = 0; opens < 4 && !input.empty(); ++opens) {  // the indices stay, as at a restore
    Rings rings{*memory};
    for (int i = 0; i < 200 && !input.empty(); ++i) Command(rings, input);
    HostReads(rings);
  }
  return 0;
}
