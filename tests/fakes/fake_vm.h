// SPDX-License-Identifier: Apache-2.0
/// \file
/// A hypervisor without a guest: its processors wait for Kick and count their runs.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "tests/fakes/fake_synic.h"
#include "vmm/hypervisor/vm.h"

namespace kvmbus::tests {

class FakeVcpu final : public vmm::Vcpu {
 public:
  void Run(vmm::ExitHandler&) override {
    ++runs;
    kicked_.wait(false);
    kicked_.store(false);
  }
  void Kick() override {
    kicked_.store(true);
    kicked_.notify_all();
  }
  vmm::Result<void> SetBootState(const vmm::BootState& state) override {
    boot = state;
    return {};
  }
  std::atomic<int> runs{0};
  vmm::BootState boot;

 private:
  std::atomic<bool> kicked_{false};
};

class FakeLine final : public vmm::InterruptLine {
 public:
  void Set(bool asserted) override {
    if (asserted && !level) ++rises;
    level = asserted;
  }
  std::atomic<bool> level{false};
  std::atomic<int> rises{0};
};

/// What the test adds to `written` is what the guest wrote.
class FakeDirtyTracker final : public vmm::DirtyTracker {
 public:
  vmm::Result<void> StartTracking() override {
    tracking = true;
    written.clear();
    return {};
  }
  vmm::Result<void> TakeDirtyPages(vmm::PageSet* pages, bool) override {
    if (before_take) before_take();
    for (const uint64_t page : written) pages->Add(page);
    written.clear();
    return {};
  }
  void StopTracking() override { tracking = false; }

  bool tracking = false;
  std::vector<uint64_t> written;
  std::function<void()> before_take;
};

class FakeVm final : public vmm::Vm {
 public:
  explicit FakeVm(uint32_t count) : vcpus(count) { fake_synic.vps = count; }
  uint32_t vcpu_count() const override { return static_cast<uint32_t>(vcpus.size()); }
  vmm::Vcpu& vcpu(uint32_t index) override { return vcpus[index]; }
  vmm::SynicPorts& synic() override { return fake_synic; }
  vmm::DirtyTracker& dirty_tracker() override { return tracker; }
  vmm::InterruptLine& interrupt_line(uint32_t) override { return line; }
  std::string_view unit_name() const override { return "hypervisor"; }
  void Reset() override { ++resets; }
  vmm::Result<std::string> Save() override { return std::string("fake"); }
  vmm::Result<void> Restore(uint32_t, std::string_view state) override {
    if (state != "fake") return vmm::Error(vmm::Code::kDataLoss, "not a fake's state");
    return {};
  }

  std::vector<FakeVcpu> vcpus;
  FakeSynic fake_synic;
  FakeDirtyTracker tracker;
  FakeLine line;
  int resets = 0;
};

}  // namespace kvmbus::tests
