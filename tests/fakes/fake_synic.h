// SPDX-License-Identifier: Apache-2.0
/// \file
/// SynicPorts that record what the host side sent and let a test play the guest.
#pragma once

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "vmm/hypervisor/synic.h"
#include "vmm/os/fd.h"

namespace kvmbus::tests {

class FakeSynic final : public vmm::SynicPorts {
 public:
  struct Message {
    uint32_t vp;
    uint8_t sint;
    std::vector<uint8_t> payload;
  };

  uint32_t vp_count() const override { return vps; }
  bool PostMessage(uint32_t vp, uint8_t sint, std::span<const uint8_t> payload) override {
    std::lock_guard lock(mutex);
    if (refuse_messages) return false;
    messages.push_back({vp, sint, {payload.begin(), payload.end()}});
    return true;
  }
  size_t PendingMessages() const override { return 0; }
  void DiscardMessages() override {}
  void SignalEvent(uint32_t vp, uint8_t sint, uint16_t flag) override {
    std::lock_guard lock(mutex);
    ++events[{vp, sint, flag}];
  }
  vmm::Result<void> BindDoorbell(uint32_t connection_id, int event_fd) override {
    std::lock_guard lock(mutex);
    if (!doorbells.emplace(connection_id, event_fd).second)
      return vmm::Error(vmm::Code::kAlreadyExists, "connection id is bound");
    return {};
  }
  void UnbindDoorbell(uint32_t connection_id) override {
    std::lock_guard lock(mutex);
    doorbells.erase(connection_id);
  }
  void SetMessageSink(vmm::HvMessageSink* new_sink) override { sink = new_sink; }
  uint64_t ReferenceTime() const override { return reference_time; }

  /// The guest's HvSignalEvent.
  bool Ring(uint32_t connection_id) {
    std::lock_guard lock(mutex);
    const auto it = doorbells.find(connection_id);
    if (it == doorbells.end()) return false;
    vmm::SignalEventFd(it->second);
    return true;
  }

  uint32_t vps = 4;
  bool refuse_messages = false;
  uint64_t reference_time = 0;
  vmm::HvMessageSink* sink = nullptr;
  std::mutex mutex;
  std::vector<Message> messages;
  std::map<std::tuple<uint32_t, uint8_t, uint16_t>, int> events;
  std::map<uint32_t, int> doorbells;
};

}  // namespace kvmbus::tests
