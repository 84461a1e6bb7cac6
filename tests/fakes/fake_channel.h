// SPDX-License-Identifier: Apache-2.0
/// \file
/// FakeChannel: a VMBus channel whose guest is a test. Signals as rings do: the guest's packets
/// ring the doorbell only after the device found the ring empty, and what the device wrote is seen
/// only after its Flush.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "virtdev/vmbus/channel.h"

namespace kvmbus::tests {

/// The guest's end. Any thread; outlives its endpoints, one of which exists at a time.
class FakeChannel {
 public:
  /// A packet that the device sent.
  struct Sent {
    virtdev::PacketType type;
    uint64_t transaction_id;
    bool completion_requested;
    std::vector<uint8_t> payload;
  };

  explicit FakeChannel(vmm::GuestMemory& memory, uint32_t target_vp = 0)
      : memory_(memory), target_vp_(target_vp) {}
  ~FakeChannel() { KVMBUS_ASSERT(!open_); }

  /// The device's end, as an open or a restore hands it over; packets that nobody read stay.
  std::unique_ptr<virtdev::Channel> Endpoint();
  bool open() const {
    return Locked([this] { return open_; });
  }
  bool attached() const {
    return Locked([this] { return loop_ != nullptr; });
  }

  /// Puts a packet into the ring to the host, which is boundless.
  void Push(virtdev::IncomingPacket packet) {
    std::lock_guard lock(mutex_);
    to_host_.push_back(std::move(packet));
    if (std::exchange(wants_signal_, false)) PostReady();
  }
  void PushInBand(uint64_t id, std::vector<uint8_t> payload, bool completion_requested = true) {
    Push({virtdev::PacketType::kInBand, completion_requested, id, std::move(payload), {}});
  }
  size_t unread() const {
    return Locked([this] { return to_host_.size(); });
  }
  void BreakRing() {
    std::lock_guard lock(mutex_);
    broken_ = true;
    PostReady();
  }

  /// Takes what the device flushed, and so makes room.
  std::vector<Sent> Take(size_t limit = SIZE_MAX) {
    std::lock_guard lock(mutex_);
    std::vector<Sent> taken;
    while (!to_guest_.empty() && taken.size() < limit) {
      used_ -= RingBytes(to_guest_.front().payload.size());
      taken.push_back(std::move(to_guest_.front()));
      to_guest_.pop_front();
    }
    if (wanted_room_ != 0 && capacity_ - used_ >= wanted_room_) {
      wanted_room_ = 0;
      PostReady();
    }
    return taken;
  }
  size_t waiting() const {
    return Locked([this] { return to_guest_.size(); });
  }
  /// Flushes that made packets visible: interrupts.
  unsigned flushes() const {
    return Locked([this] { return flushes_; });
  }
  /// Bytes of the ring to the guest; a packet takes its payload, rounded up to 8, and 24 more.
  void set_capacity(size_t bytes) {
    std::lock_guard lock(mutex_);
    capacity_ = bytes;
  }
  /// A guest that moves its read index back: packets do not fit although there was room.
  void RefuseWrites(bool refuse) {
    std::lock_guard lock(mutex_);
    refuse_writes_ = refuse;
  }

 private:
  class DeviceEnd;

  static size_t RingBytes(size_t payload) { return ((payload + 7) & ~size_t{7}) + 24; }
  template <typename F>
  std::invoke_result_t<F> Locked(F f) const {
    std::lock_guard lock(mutex_);
    return f();
  }
  /// With the lock held. The task looks again, for the device may have detached meanwhile.
  void PostReady() {
    if (loop_ == nullptr) return;
    loop_->Post([attachment = attachment_] {
      if (*attachment) (*attachment)();
    });
  }

  vmm::GuestMemory& memory_;
  const uint32_t target_vp_;
  mutable std::mutex mutex_;  // guards all below
  std::deque<virtdev::IncomingPacket> to_host_;
  std::deque<Sent> to_guest_;
  std::vector<Sent> unflushed_;
  size_t used_ = 0;
  size_t capacity_ = 128 << 10;
  size_t wanted_room_ = 0;
  unsigned flushes_ = 0;
  bool wants_signal_ = false;
  bool broken_ = false;
  bool refuse_writes_ = false;
  bool open_ = false;
  vmm::Loop* loop_ = nullptr;
  std::shared_ptr<std::function<void()>> attachment_;  ///< touched on the loop; empty: detached
};

class FakeChannel::DeviceEnd final : public virtdev::Channel {
 public:
  explicit DeviceEnd(FakeChannel& guest) : guest_(guest) {}
  ~DeviceEnd() override {
    std::lock_guard lock(guest_.mutex_);
    KVMBUS_ASSERT(guest_.loop_ == nullptr);  // the device detaches first
    guest_.open_ = false;
  }

  vmm::Result<void> Attach(vmm::Loop& loop, std::function<void()> ready) override {
    std::lock_guard lock(guest_.mutex_);
    KVMBUS_ASSERT(guest_.loop_ == nullptr && loop.IsCurrent());
    guest_.loop_ = &loop;
    guest_.attachment_ = std::make_shared<std::function<void()>>(std::move(ready));
    guest_.PostReady();
    return {};
  }
  void Detach() override {
    std::lock_guard lock(guest_.mutex_);
    if (guest_.loop_ == nullptr) return;
    KVMBUS_ASSERT(guest_.loop_->IsCurrent());
    FlushLocked();
    *guest_.attachment_ = nullptr;
    guest_.loop_ = nullptr;
  }
  ReadStatus Read(virtdev::IncomingPacket* packet) override {
    std::lock_guard lock(guest_.mutex_);
    CheckHome();
    if (guest_.broken_) return ReadStatus::kBroken;
    if (guest_.to_host_.empty()) {
      guest_.wants_signal_ = true;
      return ReadStatus::kEmpty;
    }
    *packet = std::move(guest_.to_host_.front());
    guest_.to_host_.pop_front();
    guest_.wants_signal_ = false;
    return ReadStatus::kPacket;
  }
  bool ReserveRoom(size_t payload_bytes, unsigned packets) override {
    std::lock_guard lock(guest_.mutex_);
    CheckHome();
    const size_t needed = RingBytes(payload_bytes) * packets;
    const bool room = guest_.capacity_ - guest_.used_ >= needed;
    guest_.wanted_room_ = room ? 0 : std::min(needed, guest_.capacity_);
    return room;
  }
  bool Write(virtdev::PacketType type, uint64_t transaction_id, bool completion_requested,
             std::span<const uint8_t> payload) override {
    std::lock_guard lock(guest_.mutex_);
    CheckHome();
    if (guest_.refuse_writes_ || guest_.capacity_ - guest_.used_ < RingBytes(payload.size()))
      return false;
    guest_.used_ += RingBytes(payload.size());
    guest_.unflushed_.push_back(
        {type, transaction_id, completion_requested, {payload.begin(), payload.end()}});
    return true;
  }
  void Flush() override {
    std::lock_guard lock(guest_.mutex_);
    CheckHome();
    FlushLocked();
  }
  vmm::GuestMemory& memory() override { return guest_.memory_; }
  uint32_t target_vp() const override { return guest_.target_vp_; }

 private:
  void CheckHome() const { KVMBUS_ASSERT(guest_.loop_ != nullptr && guest_.loop_->IsCurrent()); }
  void FlushLocked() {
    if (guest_.unflushed_.empty()) return;
    ++guest_.flushes_;
    for (Sent& sent : guest_.unflushed_) guest_.to_guest_.push_back(std::move(sent));
    guest_.unflushed_.clear();
  }

  FakeChannel& guest_;
};

inline std::unique_ptr<virtdev::Channel> FakeChannel::Endpoint() {
  std::lock_guard lock(mutex_);
  KVMBUS_ASSERT(!open_);
  open_ = true;
  wants_signal_ = false;
  wanted_room_ = 0;
  return std::make_unique<DeviceEnd>(*this);
}

}  // namespace kvmbus::tests
