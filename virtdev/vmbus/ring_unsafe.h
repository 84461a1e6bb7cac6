// SPDX-License-Identifier: Apache-2.0
/// \file
/// Ring buffers shared with the guest: the reader of guest-to-host, the writer of host-to-guest.
/// Layout: a control page {u32 in, u32 out, u32 interrupt_mask, u32 pending_send_size, ..., u32
/// feature_bits @64}, then the data pages, twice in a row so that no packet wraps.
/// Reference: Linux, drivers/hv/ring_buffer.c (the other end).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "virtdev/vmbus/channel.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::virtdev::vmbus {

inline constexpr uint32_t kRingControlBytes = 4096;
inline constexpr uint32_t kPacketLimit = 64u << 10;  ///< bytes of one packet, either way
inline constexpr size_t kRangeLimit = 256;           ///< GPA ranges of one packet
inline constexpr uint64_t kRangePagesLimit = 4096;   ///< pages of all ranges of one packet

/// Maps a control page and its data pages, these twice.
vmm::Result<vmm::PageMapping> MapRing(vmm::GuestMemory& memory, std::span<const uint64_t> pfns);

/// Consumer of the guest-to-host ring. One thread.
class RingReader {
 public:
  RingReader(vmm::PageMapping mapping, const vmm::GuestMemory& memory);

  /// kEmpty leaves the guest's signals as they are: see EnableSignals. kBroken is for good.
  Channel::ReadStatus Read(IncomingPacket* packet);
  /// Publishes the read index; true if the guest waits for this room and must be signalled.
  bool Commit();
  /// Asks the guest not to signal while we drain.
  void DisableSignals();
  /// Asks for signals again; false if more arrived meanwhile: read on. Commit goes before it: a
  /// guest signals only when it finds the ring empty, by the published index.
  bool EnableSignals();
  /// True if the guest signals when it made room that a writer waits for.
  bool GuestSignalsRoom() const;

 private:
  bool ParseRanges(std::span<const uint8_t> header, IncomingPacket* packet) const;

  vmm::PageMapping mapping_;
  const vmm::GuestMemory& memory_;
  const uint32_t size_;
  uint32_t out_ = 0;        ///< ours, ahead of the published one
  uint32_t published_ = 0;  ///< the read index that the guest sees
  uint32_t in_ = 0;         ///< the guest's, as last read and checked
  bool masked_ = false;     ///< signals are disabled
  bool broken_ = false;
  std::vector<uint8_t> header_;  ///< scratch: what stands between descriptor and payload
};

/// Producer of the host-to-guest ring. One thread.
class RingWriter {
 public:
  explicit RingWriter(vmm::PageMapping mapping);

  bool HasRoom(size_t payload_bytes, unsigned packets);
  /// Notes for the guest that we wait for this room; true if it has appeared meanwhile. Commit goes
  /// before it: the guest counts by the published index.
  bool WaitForRoom(size_t payload_bytes, unsigned packets);
  /// False if it does not fit. `header` stands between descriptor and payload and is a multiple of
  /// 8 bytes.
  bool Write(PacketType type, uint64_t transaction_id, bool completion_requested,
             std::span<const uint8_t> header, std::span<const uint8_t> payload);
  /// Publishes the write index; true if the guest must be interrupted.
  bool Commit();
  /// The guest's index made no sense when last looked at.
  bool broken() const { return broken_; }

 private:
  uint32_t FreeBytes();
  static uint64_t RingBytes(size_t payload_bytes);

  vmm::PageMapping mapping_;
  const uint32_t size_;
  uint32_t in_ = 0;         ///< ours, ahead of the published one
  uint32_t published_ = 0;  ///< the write index that the guest sees
  bool waiting_ = false;    ///< our note for the guest stands
  bool broken_ = false;
  std::vector<uint8_t> packet_;  ///< scratch: one whose place is not in a row
};

}  // namespace kvmbus::virtdev::vmbus
