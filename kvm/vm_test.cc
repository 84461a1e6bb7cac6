// SPDX-License-Identifier: Apache-2.0
// Tiny guests on the real /dev/kvm; skipped where the host cannot run VMs. The guest tests run it
// in the software host.
#include "kvm/vm.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstdlib>
#include <thread>

#include "kvm/cpu/hyperv_leaves.h"
#include "kvm/host_check.h"
#include "kvm/testing/guest_code.h"
#include "state/hypervisor.pb.h"

namespace kvmbus::kvm {
namespace {

constexpr uint64_t kCodeGpa = 0x10000;
constexpr uint32_t kPage = 0x20000;
constexpr uint16_t kPort = 0x80;

class Recorder : public vmm::ExitHandler {
 public:
  uint64_t PortRead(uint16_t, unsigned) override { return input; }
  void PortWrite(uint16_t port, unsigned, uint64_t value) override {
    std::lock_guard lock(mutex);
    if (port == kPort) output.push_back(static_cast<uint8_t>(value));
    changed.notify_all();
  }
  uint64_t MmioRead(uint64_t, unsigned) override { return ~uint64_t{0}; }
  void MmioWrite(uint64_t, unsigned, uint64_t) override {}
  void OnGuestCrash(const vmm::GuestCrashReport& report) override {
    std::lock_guard lock(mutex);
    crashes.push_back(report);
    changed.notify_all();
  }
  void OnResetRequest(std::string_view why) override {
    std::lock_guard lock(mutex);
    resets.emplace_back(why);
    changed.notify_all();
  }
  void OnVcpuFailure(uint32_t, vmm::Error error) override {
    std::lock_guard lock(mutex);
    failures.push_back(error.ToString());
    changed.notify_all();
  }
  template <typename Predicate>
  bool WaitFor(Predicate done) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(20), [&] {
      return done() || !failures.empty();
    }) && failures.empty();
  }

  std::mutex mutex;
  std::condition_variable changed;
  uint8_t input = 0x41;
  std::vector<uint8_t> output;
  std::vector<vmm::GuestCrashReport> crashes;
  std::vector<std::string> resets;
  std::vector<std::string> failures;
};

class KvmVmTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto host = RequireHost(false);
    const bool required = std::getenv("KVMBUS_REQUIRE_KVM") != nullptr;  // the guest tests set it
    if (!host.ok() && !required) GTEST_SKIP() << host.error().ToString();
    ASSERT_TRUE(host.ok()) << host.error().ToString();
    loop_ = vmm::Loop::Create().value();
    const vmm::MemoryRange ram[] = {{0, 2 << 20}};
    memory_ = vmm::GuestMemory::Create(ram).value();
    auto vm = KvmVm::Create({2, false}, *memory_, *loop_);
    ASSERT_TRUE(vm.ok()) << vm.error().ToString();
    vm_ = std::move(vm).value();
  }
  void TearDown() override { Park(); }

  void Boot(const GuestCode& code) {
    ASSERT_TRUE(memory_->Write(kCodeGpa, code.code().data(), code.code().size()));
    vmm::BootState boot;
    boot.mode = vmm::BootState::Mode::kProtected32;
    boot.rip = kCodeGpa;
    ASSERT_TRUE(vm_->vcpu(0).SetBootState(boot).ok());
    Run();
  }
  void Run() {
    thread_ = std::thread([this] { vm_->vcpu(0).Run(recorder_); });
  }
  void Park() {
    if (!thread_.joinable()) return;
    vm_->vcpu(0).Kick();
    thread_.join();
  }

  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::unique_ptr<KvmVm> vm_;
  Recorder recorder_;
  std::thread thread_;
};

TEST_F(KvmVmTest, PortAccessesReachTheHandlerAndComeBack) {
  Boot(GuestCode().InAl(kPort).IncAl().OutAl(kPort).SpinForEver());
  ASSERT_TRUE(recorder_.WaitFor([&] { return recorder_.output.size() == 1; }));
  EXPECT_EQ(recorder_.output[0], 0x42);
}

TEST_F(KvmVmTest, AKickStopsAGuestThatNeverExits) {
  Boot(GuestCode().CountForEver(kPage));
  while (memory_->ReadObject<uint32_t>(kPage) == 0u) std::this_thread::yield();
  Park();
  const auto count = memory_->ReadObject<uint32_t>(kPage);
  EXPECT_EQ(memory_->ReadObject<uint32_t>(kPage), count);
}

TEST_F(KvmVmTest, SavedStateRunsOnAfterAReset) {
  Boot(GuestCode().MovEax(7).CountForEver(kPage));
  while (memory_->ReadObject<uint32_t>(kPage) == 0u) std::this_thread::yield();
  Park();
  const std::string saved = vm_->Save().value();
  vm_->Reset();
  ASSERT_TRUE(vm_->Restore(1, saved).ok());
  const std::string again = vm_->Save().value();
  EXPECT_EQ(saved.size(), again.size());
  const uint32_t before = *memory_->ReadObject<uint32_t>(kPage);
  Run();
  while (memory_->ReadObject<uint32_t>(kPage) == before) std::this_thread::yield();
}

TEST_F(KvmVmTest, DamagedStateIsRefused) {
  const std::string saved = vm_->Save().value();
  EXPECT_FALSE(vm_->Restore(1, std::string_view(saved).substr(0, saved.size() / 2)).ok());
  EXPECT_FALSE(vm_->Restore(1, "").ok());
}

TEST_F(KvmVmTest, WhatIsRefusedChangesNothing) {
  state::Hypervisor saved, before, after;
  ASSERT_TRUE(saved.ParseFromString(vm_->Save().value()));
  for (state::Vcpu& vcpu : *saved.mutable_vcpus()) vcpu.mutable_regs()->assign(sizeof(kvm_regs), 1);
  saved.mutable_vcpus(1)->mutable_synic()->set_simp_gpa(1);
  ASSERT_TRUE(before.ParseFromString(vm_->Save().value()));
  const auto restored = vm_->Restore(1, saved.SerializeAsString());
  ASSERT_FALSE(restored.ok());
  EXPECT_NE(restored.error().ToString().find("vCPU 1"), std::string::npos);
  ASSERT_TRUE(after.ParseFromString(vm_->Save().value()));
  for (int i = 0; i < 2; ++i) EXPECT_EQ(before.vcpus(i).regs(), after.vcpus(i).regs());
}

TEST_F(KvmVmTest, TheGuestsCrashArrivesWithItsMessage) {
  const std::string text = "Kernel panic - not syncing";
  ASSERT_TRUE(memory_->Write(kPage, text.data(), text.size()));
  Boot(GuestCode()
           .Rdmsr(kMsrCrashCtl)
           .Bytes({0xc1, 0xea, 0x18, 0x88, 0xd0})  // shr edx, 24; mov al, dl: bits 63:56
           .OutAl(kPort)
           .Wrmsr(kMsrCrashP0, 0x11)
           .Wrmsr(kMsrCrashP0 + 3, kPage)
           .Wrmsr(kMsrCrashP0 + 4, text.size())
           .Wrmsr(kMsrCrashCtl, kCrashNotify | kCrashMessage)
           .SpinForEver());
  ASSERT_TRUE(recorder_.WaitFor([&] { return recorder_.crashes.size() == 1; }));
  EXPECT_EQ(recorder_.output[0], 0xc0);
  EXPECT_EQ(recorder_.crashes[0].parameters[0], 0x11u);
  EXPECT_EQ(recorder_.crashes[0].message, text);
}

TEST_F(KvmVmTest, ATripleFaultIsAResetRequest) {
  Boot(GuestCode().TripleFault());
  ASSERT_TRUE(recorder_.WaitFor([&] { return recorder_.resets.size() == 1; }));
  EXPECT_EQ(recorder_.resets[0], "triple fault");
}

TEST_F(KvmVmTest, TheResetRegisterIsAResetRequest) {
  Boot(GuestCode().Wrmsr(kMsrGuestOsId, 0x8100000000000000).Wrmsr(0x40000003, 1).SpinForEver());
  ASSERT_TRUE(recorder_.WaitFor([&] { return recorder_.resets.size() == 1; }));
}

TEST_F(KvmVmTest, MessagesWaitForTheGuestsSlotAndKeepTheirOrder) {
  constexpr uint32_t kSlot = kPage + 2 * 256;  // SINT 2
  constexpr uint32_t kBeneath = 0x55aa55aa;
  ASSERT_TRUE(memory_->WriteObject<uint32_t>(kSlot, kBeneath));  // what the overlay hides
  GuestCode code;
  code.Wrmsr(kMsrSint0 + 2, 0x40).Wrmsr(kMsrSimp, kPage | 1);
  for (int i = 0; i < 3; ++i) {
    code.WaitNonZero(kSlot).LoadAl(kSlot + 16).OutAl(kPort).Store(kSlot, 0);
    code.Wrmsr(0x40000084, 0);  // EOM
  }
  code.Wrmsr(kMsrSimp, 0).MovEax(0xff).OutAl(kPort).SpinForEver();
  std::thread loop([this] { loop_->Run(); });
  Boot(code);
  for (uint8_t i = 1; i <= 3; ++i) EXPECT_TRUE(vm_->synic().PostMessage(0, 2, {&i, 1}));
  EXPECT_TRUE(recorder_.WaitFor([&] { return recorder_.output.size() == 4; }));
  Park();
  loop_->Stop();
  loop.join();
  EXPECT_EQ(recorder_.output, (std::vector<uint8_t>{1, 2, 3, 0xff}));
  EXPECT_EQ(memory_->ReadObject<uint32_t>(kSlot), kBeneath)
      << "the RAM beneath the page comes back";
  EXPECT_EQ(vm_->synic().PendingMessages(), 0u);
}

TEST_F(KvmVmTest, AFullQueueRefusesAndEventsWithoutAPageAreDropped) {
  const uint8_t byte = 0;
  size_t taken = 0;
  while (taken < 10000 && vm_->synic().PostMessage(1, 2, {&byte, 1})) ++taken;
  EXPECT_EQ(taken, KvmSynic::kQueueLimit);
  vm_->synic().SignalEvent(1, 2, 5);
  vm_->synic().DiscardMessages();
  EXPECT_EQ(vm_->synic().PendingMessages(), 0u);
}

TEST_F(KvmVmTest, EventFlagsAreSetOnce) {
  constexpr uint32_t kWord = kPage + 2 * 256 + 4;  // flags 32..63 of SINT 2
  Boot(GuestCode()
           .Wrmsr(kMsrSint0 + 2, 0x40)
           .Wrmsr(kMsrSiefp, kPage | 1)
           .OutAl(kPort)
           .WaitNonZero(kWord)
           .OutAl(kPort)
           .SpinForEver());
  ASSERT_TRUE(recorder_.WaitFor([&] { return recorder_.output.size() == 1; }));
  vm_->synic().SignalEvent(0, 2, 37);
  vm_->synic().SignalEvent(0, 2, 37);
  ASSERT_TRUE(recorder_.WaitFor([&] { return recorder_.output.size() == 2; }));
  EXPECT_EQ(memory_->ReadObject<uint32_t>(kWord), 1u << 5);
  uint64_t sent = 0;
  vm_->VisitCounters([&](std::string_view name, const vmm::Counter& counter) {
    if (name == "synic_events_sent") sent = counter.value();
  });
  EXPECT_EQ(sent, 1u) << "no second interrupt for a flag that is set";
}

}  // namespace
}  // namespace kvmbus::kvm
