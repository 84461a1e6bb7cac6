// SPDX-License-Identifier: Apache-2.0
/// \file
/// The guest's end of a VMBus ring, signalling by the rules that Linux follows.
#pragma once

#include <atomic>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "virtdev/vmbus/ring_unsafe.h"

namespace kvmbus::tests {

/// One end of a ring of which the host has the other. A test writes to the one and reads from the
/// other of a channel's two.
class FakeVmbusRing {
 public:
  enum Word : size_t {
    kIn = 0,
    kOut = 4,
    kInterruptMask = 8,
    kPendingSendSize = 12,
    kFeatureBits = 64
  };
  struct Packet {
    uint16_t type = 0;
    bool completion_requested = false;
    uint64_t transaction_id = 0;
    std::vector<uint8_t> header;  ///< between descriptor and payload
    std::vector<uint8_t> payload;
  };

  /// `mapping` is MapRing's, of small pages.
  explicit FakeVmbusRing(vmm::PageMapping mapping)
      : mapping_(std::move(mapping)),
        size_(static_cast<uint32_t>((mapping_.size() - virtdev::vmbus::kRingControlBytes) / 2)) {}

  uint32_t size() const { return size_; }
  // SAFETY: the mapping has a control page, and every word of it that is named above is aligned.
  std::atomic_ref<uint32_t> word(Word which) const {
    return std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(all() + which));
  }
  uint8_t* data() const { return all() + virtdev::vmbus::kRingControlBytes; }

  /// What Linux does before it opens a channel.
  void Initialize() {
    std::memset(all(), 0, virtdev::vmbus::kRingControlBytes);
    word(kFeatureBits) = 1;
  }
  uint32_t used() const { return (word(kIn) + size_ - word(kOut)) % size_; }

  /// Producer. False if it does not fit; then the host is told how much room we wait for.
  /// `*signal` is set if the host must be signalled.
  bool Write(const Packet& packet, bool* signal) {
    const size_t payload = (packet.payload.size() + 7) & ~size_t{7};
    const auto bytes = static_cast<uint32_t>(16 + packet.header.size() + payload + 8);
    if (size_ - used() <= bytes) {
      word(kPendingSendSize) = bytes;
      if (size_ - used() <= bytes) return false;
    }
    word(kPendingSendSize) = 0;
    const uint32_t old_in = word(kIn);
    std::vector<uint8_t> ring_bytes(bytes);
    const uint16_t descriptor[] = {packet.type, static_cast<uint16_t>(2 + packet.header.size() / 8),
                                   static_cast<uint16_t>(bytes / 8 - 1),
                                   static_cast<uint16_t>(packet.completion_requested ? 1 : 0)};
    std::memcpy(ring_bytes.data(), descriptor, 8);
    std::memcpy(ring_bytes.data() + 8, &packet.transaction_id, 8);
    Copy(packet.header, ring_bytes.data() + 16);
    Copy(packet.payload, ring_bytes.data() + 16 + packet.header.size());
    const uint64_t trailer = uint64_t{old_in} << 32;
    std::memcpy(ring_bytes.data() + bytes - 8, &trailer, 8);
    // SAFETY: old_in < size_, bytes < size_, and the data is mapped twice.
    std::memcpy(data() + old_in, ring_bytes.data(), bytes);
    word(kIn).store((old_in + bytes) % size_, std::memory_order_seq_cst);
    if (word(kInterruptMask) == 0 && word(kOut) == old_in) *signal = true;
    return true;
  }

  /// Consumer: everything that is there, in one batch. `*signal` is set if the host waits for the
  /// room.
  std::vector<Packet> ReadAll(bool* signal) {
    std::vector<Packet> packets;
    word(kInterruptMask) = 1;
    do {
      const uint32_t start = word(kOut), in = word(kIn).load(std::memory_order_acquire);
      uint32_t out = start;
      while (out != in) out = ReadOne(out, &packets);
      word(kOut).store(out, std::memory_order_seq_cst);
      const uint32_t pending = word(kPendingSendSize);
      const uint32_t free = size_ - used(), freed = (out + size_ - start) % size_;
      if (pending != 0 && free > pending && free - freed <= pending) *signal = true;
      word(kInterruptMask) = 0;
    } while (word(kIn) != word(kOut));
    return packets;
  }

 private:
  uint8_t* all() const { return mapping_.Piece(0, mapping_.size()).data(); }
  static void Copy(const std::vector<uint8_t>& from, uint8_t* to) {
    if (!from.empty()) std::memcpy(to, from.data(), from.size());
  }
  uint32_t ReadOne(uint32_t out, std::vector<Packet>* packets) const {
    const uint8_t* base = data() + out;
    uint16_t descriptor[4];
    std::memcpy(descriptor, base, 8);
    Packet& packet = packets->emplace_back();
    packet.type = descriptor[0];
    packet.completion_requested = descriptor[3] != 0;
    std::memcpy(&packet.transaction_id, base + 8, 8);
    const size_t offset = size_t{descriptor[1]} * 8, length = size_t{descriptor[2]} * 8;
    KVMBUS_ASSERT(offset >= 16 && offset <= length && length + 8 < size_);
    packet.header.assign(base + 16, base + offset);
    packet.payload.assign(base + offset, base + length);
    uint64_t trailer;
    std::memcpy(&trailer, base + length, 8);
    KVMBUS_ASSERT(trailer == uint64_t{out} << 32);
    return static_cast<uint32_t>((out + length + 8) % size_);
  }

  vmm::PageMapping mapping_;
  const uint32_t size_;
};

}  // namespace kvmbus::tests
