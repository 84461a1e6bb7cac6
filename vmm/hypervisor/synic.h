// SPDX-License-Identifier: Apache-2.0
/// \file
/// SynicPorts: what VMBus needs of a hypervisor: messages and event flags into a VP, and the
/// guest's HvPostMessage and HvSignalEvent out of it. Reference: TLFS chapters 10 and 11.
#pragma once

#include <cstdint>
#include <span>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// HV_STATUS values that a message sink may answer.
enum class HvStatus : uint16_t {
  kSuccess = 0,
  kInvalidParameter = 5,
  kInvalidConnectionId = 0x12,
  kInsufficientBuffers = 0x13,  ///< the only "try again" that Linux understands
};

inline constexpr size_t kHvMessagePayloadMax = 240;

/// Receives the guest's HvPostMessage. Called on the vCPU's thread that posted.
class HvMessageSink {
 public:
  virtual ~HvMessageSink() = default;
  virtual HvStatus OnGuestMessage(uint32_t connection_id, uint32_t message_type,
                                  std::span<const uint8_t> payload) = 0;
};

/// All calls from any thread, unless said otherwise.
class SynicPorts {
 public:
  virtual ~SynicPorts() = default;

  virtual uint32_t vp_count() const = 0;

  /// Queues a message of type 1 for (vp, sint) and delivers it as soon as the guest's slot is free,
  /// in order. False if the VP's queue (bounded) is full: the caller keeps it and tries again
  /// later.
  virtual bool PostMessage(uint32_t vp, uint8_t sint, std::span<const uint8_t> payload) = 0;
  /// Messages queued and not yet in the guest's slot, over all VPs.
  virtual size_t PendingMessages() const = 0;
  /// Forgets every queued message (a VMBus connection ended).
  virtual void DiscardMessages() = 0;

  /// Sets event flag `flag` (0..2047) of (vp, sint); interrupts the VP only if it was clear.
  /// Dropped if the guest has no event page there.
  virtual void SignalEvent(uint32_t vp, uint8_t sint, uint16_t flag) = 0;

  /// From now on the guest's HvSignalEvent on `connection_id` (24 bits) signals the eventfd,
  /// without an exit.
  virtual Result<void> BindDoorbell(uint32_t connection_id, int event_fd) = 0;
  virtual void UnbindDoorbell(uint32_t connection_id) = 0;

  /// One sink; set before the first vCPU runs, nullptr to detach after the last stopped.
  virtual void SetMessageSink(HvMessageSink* sink) = 0;

  /// The partition's reference time in 100 ns units, as the guest reads it (MSR 0x40000020).
  virtual uint64_t ReferenceTime() const = 0;
};

}  // namespace kvmbus::vmm
