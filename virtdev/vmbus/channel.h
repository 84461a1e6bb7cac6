// SPDX-License-Identifier: Apache-2.0
/// \file
/// What VMBus and a synthetic device say to each other: the device's offer, its channels, packets.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/event/loop.h"
#include "vmm/guid/guid.h"
#include "vmm/memory/guest_memory.h"
#include "vmm/os/counter.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// Packet types of the ring (VMBus wire values).
enum class PacketType : uint16_t {
  kInBand = 6,
  kTransferPages = 7,
  kGpaDirect = 9,
  kCompletion = 0xb
};

/// One buffer of a GPA-direct packet: `bytes` starting `offset` into the first page.
struct GpaRange {
  uint32_t bytes = 0;
  uint32_t offset = 0;
  std::vector<uint64_t> pfns;
};

/// A packet from the guest, copied out of the ring once and checked.
struct IncomingPacket {
  PacketType type = PacketType::kInBand;
  bool completion_requested = false;
  uint64_t transaction_id = 0;
  std::vector<uint8_t> payload;  ///< reused from packet to packet
  std::vector<GpaRange> ranges;  ///< kGpaDirect alone; every PFN is guest RAM
};

/// Part of the buffer that a transfer-pages packet points into.
struct TransferRange {
  uint32_t bytes = 0;
  uint32_t offset = 0;
};

/// An open channel: both rings, the guest's doorbell and ours. Given to a device at open. Home: the
/// thread of the loop that it is attached to; before Attach the main thread.
class Channel {
 public:
  virtual ~Channel() = default;

  /// `ready` runs whenever the guest signalled, or when room appeared that a failed Write waits
  /// for; it runs once right after Attach. It drains with Read until kEmpty. Called on the loop's
  /// own thread (PostAndWait); so is Detach.
  virtual vmm::Result<void> Attach(vmm::Loop& loop, std::function<void()> ready) = 0;
  /// After it `ready` does not run. Read and Write are illegal until Attach.
  virtual void Detach() = 0;

  enum class ReadStatus {
    kPacket,
    kEmpty,   ///< `ready` will run when there is more; also said after very many packets in one
              ///< run of it, so that no guest keeps a loop to itself
    kBroken,  ///< the guest corrupted the ring: nothing more will ever be read; counted and logged
              ///< by the channel
  };
  virtual ReadStatus Read(IncomingPacket* packet) = 0;

  /// Room for `packets` outgoing packets of at most `payload_bytes` each. If not, remembers to run
  /// `ready` when there is (pending_send_size). Devices check before they consume a request that
  /// they will answer.
  virtual bool ReserveRoom(size_t payload_bytes, unsigned packets = 1) = 0;
  /// Appends a packet; false if it does not fit. The guest sees it at the next Flush.
  virtual bool Write(PacketType type, uint64_t transaction_id, bool completion_requested,
                     std::span<const uint8_t> payload) = 0;
  /// A transfer-pages packet: the payload's data is at `ranges` of the buffer that the guest knows
  /// as `set_id`. For ReserveRoom it counts 8 + 8 * ranges bytes more than its payload.
  virtual bool WriteTransferPages(uint64_t transaction_id, bool completion_requested,
                                  uint16_t set_id, std::span<const TransferRange> ranges,
                                  std::span<const uint8_t> payload) {
    (void)transaction_id, (void)completion_requested, (void)set_id, (void)ranges, (void)payload;
    return false;
  }
  /// Publishes what was read and written since the last Flush and raises at most one interrupt.
  virtual void Flush() = 0;

  virtual vmm::GuestMemory& memory() = 0;
  /// A buffer that the guest gave this channel by GPADL (never its rings); empty if there is none.
  /// All of it is RAM. The guest may tear it down at any time, which changes nothing for the host.
  virtual std::vector<GpaRange> GpadlRanges(uint32_t gpadl_id) {
    (void)gpadl_id;
    return {};
  }
  /// The VP that the guest wants interrupted; for choosing an io thread.
  virtual uint32_t target_vp() const = 0;
};

/// Offer flags (VMBus wire values).
inline constexpr uint16_t kOfferEnumerateDeviceInterface = 0x0001;
inline constexpr uint16_t kOfferNamedPipeMode = 0x0010;

struct ChannelOffer {
  vmm::Guid interface_id;
  vmm::Guid instance_id;
  uint16_t flags = 0;
  uint16_t mmio_megabytes = 0;
  std::array<uint8_t, 120> user_defined{};
};

/// A message pipe's offer (integration services, mouse, video): flags and user data as Hyper-V sets
/// them.
ChannelOffer MakePipeOffer(const vmm::Guid& interface_id, const vmm::Guid& instance_id,
                           bool enumerate_interface);

/// What a device asks of the bus. Any thread.
class OfferHandle {
 public:
  virtual ~OfferHandle() = default;
  /// Offers sub-channels 1..count of the same instance; those that exist already stay. Nothing
  /// happens if channel 0 has been closed meanwhile.
  virtual void OfferSubChannels(uint16_t count) = 0;
};

/// A device on the bus. All calls come from the main thread, none while the machine is stopped
/// except Close (from a reset) and Restore.
class VmbusDevice {
 public:
  virtual ~VmbusDevice() = default;

  virtual std::string_view device_name()
      const = 0;  ///< "scsi/0", "heartbeat": log lines and saved state
  virtual const ChannelOffer& offer() const = 0;

  /// The device is on the bus; `handle` stays valid until OnRevoked.
  virtual void OnOffered(OfferHandle* handle) { (void)handle; }
  virtual void OnRevoked() {}

  /// The guest opened (sub-)channel `index`. The device keeps the channel and attaches it to a loop
  /// of its choice. An error refuses the open.
  virtual vmm::Result<void> Open(uint16_t index, std::unique_ptr<Channel> channel) = 0;
  /// The guest closed it. When this returns the device has finished its I/O into guest memory and
  /// destroyed the channel. Closing 0 also ends the device's protocol session.
  virtual void Close(uint16_t index) = 0;

  /// Stop: finish or park everything, write guest memory no more, Detach every channel (keep them).
  /// Start: attach them again. Both idempotent; Start also follows Restore.
  virtual void Start() = 0;
  virtual void Stop() = 0;

  /// As after power-on; channels were closed before.
  virtual void Reset() = 0;
  /// The device's protocol state as one serialized protobuf message (not the channels: the bus
  /// keeps those). Code::kUnimplemented: it cannot be saved; after a restore the guest finds it
  /// revoked and offered anew.
  virtual vmm::Result<std::string> Save() = 0;
  /// Comes while stopped; `channels` are the (sub-)channels that were open when saved, by index.
  virtual vmm::Result<void> Restore(
      std::string_view state,
      std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels) = 0;

  virtual void VisitCounters(const vmm::CounterVisitor&) const {}
};

}  // namespace kvmbus::virtdev
