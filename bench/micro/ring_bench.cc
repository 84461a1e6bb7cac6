// SPDX-License-Identifier: Apache-2.0
// How fast the host's ends of VMBus rings are, by packet size and batch. The guest's share is one
// store a batch: the ring is full of equal packets, and its index moves.
#include <benchmark/benchmark.h>

#include <cstring>

#include "tests/fakes/fake_vmbus_ring.h"
#include "virtdev/vmbus/ring_unsafe.h"

namespace kvmbus::virtdev::vmbus {
namespace {

using Packet = tests::FakeVmbusRing::Packet;

constexpr uint64_t kDataPages = 32;  // about what Linux's storage and network drivers ask for
constexpr size_t kOverhead = 24;     // descriptor and trailer

/// Pages of one ring, no two in a row.
struct Ring {
  Ring() {
    const vmm::MemoryRange ranges[] = {{0, 4 << 20}};
    memory = vmm::GuestMemory::Create(ranges).value();
    for (uint64_t i = 0; i <= kDataPages; ++i) pfns.push_back(100 + 2 * i);
  }
  vmm::PageMapping Map() { return MapRing(*memory, pfns).value(); }
  std::unique_ptr<vmm::GuestMemory> memory;
  std::vector<uint64_t> pfns;
};

void Report(benchmark::State& state, size_t packet_bytes, int64_t batch) {
  state.SetItemsProcessed(state.iterations() * batch);
  state.SetBytesProcessed(state.iterations() * batch * static_cast<int64_t>(packet_bytes));
}

/// `packet` takes a power of two of bytes, so that it fits the ring's end.
void ReadBatches(benchmark::State& state, const Packet& packet, int64_t batch) {
  Ring ring;
  tests::FakeVmbusRing guest(ring.Map());
  guest.Initialize();
  bool signal = false;
  guest.Write(packet, &signal);
  const uint32_t bytes = guest.used();
  for (uint32_t at = bytes; at < guest.size(); at += bytes)
    std::memcpy(guest.data() + at, guest.data(), bytes);
  guest.word(tests::FakeVmbusRing::kIn) = 0;

  RingReader reader(ring.Map(), *ring.memory);
  IncomingPacket received;
  uint32_t in = 0;
  for (auto _ : state) {
    in = (in + bytes * static_cast<uint32_t>(batch)) % guest.size();
    guest.word(tests::FakeVmbusRing::kIn).store(in, std::memory_order_release);
    int64_t read = 0;
    while (reader.Read(&received) == Channel::ReadStatus::kPacket) {
      reader.DisableSignals();
      ++read;
    }
    benchmark::DoNotOptimize(reader.Commit());
    benchmark::DoNotOptimize(reader.EnableSignals());
    if (read != batch) return state.SkipWithError("packets are missing");
  }
  Report(state, bytes, batch);
}

/// Arguments: bytes of a packet in the ring, packets of a batch.
void BM_ReadInBand(benchmark::State& state) {
  Packet packet;
  packet.type = 6;
  packet.payload.resize(static_cast<size_t>(state.range(0)) - kOverhead);
  ReadBatches(state, packet, state.range(1));
}
BENCHMARK(BM_ReadInBand)->ArgsProduct({{128, 1024, 4096}, {1, 8, 16}});

/// A request of 32 KiB as storage drivers make it. Argument: packets of a batch.
void BM_ReadGpaDirect(benchmark::State& state) {
  Packet packet;
  packet.type = 9;
  const uint64_t header[] = {uint64_t{1} << 32, 8 * 4096, 1, 2, 3, 4, 5, 6, 7, 8};
  packet.header.resize(sizeof(header));
  std::memcpy(packet.header.data(), header, sizeof(header));
  packet.payload.resize(256 - kOverhead - sizeof(header));
  ReadBatches(state, packet, state.range(0));
}
BENCHMARK(BM_ReadGpaDirect)->Arg(1)->Arg(8)->Arg(64);

/// Arguments as BM_ReadInBand.
void BM_Write(benchmark::State& state) {
  Ring ring;
  tests::FakeVmbusRing guest(ring.Map());
  guest.Initialize();
  RingWriter writer(ring.Map());
  const std::vector<uint8_t> payload(static_cast<size_t>(state.range(0)) - kOverhead, 0x5a);
  for (auto _ : state) {
    bool room = writer.HasRoom(payload.size(), static_cast<unsigned>(state.range(1)));
    for (int64_t i = 0; i < state.range(1); ++i)
      room = room && writer.Write(PacketType::kCompletion, 1, false, {}, payload);
    if (!room) return state.SkipWithError("the ring is full");
    benchmark::DoNotOptimize(writer.Commit());
    guest.word(tests::FakeVmbusRing::kOut) = guest.word(tests::FakeVmbusRing::kIn).load();
  }
  Report(state, static_cast<size_t>(state.range(0)), state.range(1));
}
BENCHMARK(BM_Write)->ArgsProduct({{128, 1024, 4096}, {1, 8, 16}});

}  // namespace
}  // namespace kvmbus::virtdev::vmbus
