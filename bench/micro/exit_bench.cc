// SPDX-License-Identifier: Apache-2.0
// What the guest's ways out and in cost, on tiny guests: exits to the VMM, a doorbell that KVM
// answers alone, and the wake-up of a halted processor. Exits with 77 where no VM can run.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <mutex>
#include <thread>

#include "kvm/cpu/hyperv_leaves.h"
#include "kvm/host_check.h"
#include "kvm/testing/guest_code.h"
#include "kvm/vm.h"
#include "vmm/bus/io_bus.h"

namespace kvmbus::kvm {
namespace {

constexpr uint64_t kGdtGpa = 0x8000;
constexpr uint64_t kIdtGpa = 0x9000;
constexpr uint64_t kIdtPointerGpa = 0xa000;
constexpr uint64_t kStackTop = 0xf000;
constexpr uint64_t kCodeGpa = 0x10000;
constexpr uint64_t kHandlerGpa = 0x11000;
constexpr uint32_t kCounter = 0x20000;
constexpr uint32_t kHypercallPage = 0x21000;
constexpr uint32_t kEventPage = 0x22000;
constexpr uint16_t kPort = 0x80;
constexpr uint32_t kMmio = 0xd0000000;
constexpr uint32_t kApicSpurious = 0xfee000f0;
constexpr uint16_t kCodeSelector = 0x10;  // BootState's
constexpr uint8_t kVector = 0x40;
constexpr uint32_t kConnection = 0x10001;
constexpr uint32_t kSignalEventFast = 0x1005d;  // HvCallSignalEvent, its input in registers
constexpr uint32_t kMsrEoi = 0x40000070;
constexpr uint64_t kBatch = 1000;  // of guest's accesses an iteration

/// Counts the accesses of a register on a bus, and stops the processor after every kBatch.
class Register final : public vmm::IoHandler {
 public:
  uint64_t IoRead(uint64_t, unsigned) override { return 0; }
  void IoWrite(uint64_t, unsigned, uint64_t) override {
    if (++count % batch == 0) vcpu->Kick();
  }
  std::mutex lock;
  vmm::Vcpu* vcpu = nullptr;
  uint64_t batch = kBatch;
  uint64_t count = 0;
};

class Exits final : public vmm::ExitHandler {
 public:
  explicit Exits(Register& device) : device_(device) {
    KVMBUS_ASSERT(ports_.Add(kPort, 1, "bench", device, device.lock).ok());
    KVMBUS_ASSERT(mmio_.Add(kMmio, 4, "bench", device, device.lock).ok());
  }
  uint64_t PortRead(uint16_t port, unsigned size) override { return ports_.Read(port, size); }
  void PortWrite(uint16_t port, unsigned size, uint64_t value) override {
    ports_.Write(port, size, value);
  }
  uint64_t MmioRead(uint64_t gpa, unsigned size) override { return mmio_.Read(gpa, size); }
  void MmioWrite(uint64_t gpa, unsigned size, uint64_t value) override {
    mmio_.Write(gpa, size, value);
  }
  void OnGuestCrash(const vmm::GuestCrashReport&) override { Fail("the guest crashed"); }
  void OnResetRequest(std::string_view why) override { Fail(std::string(why)); }
  void OnVcpuFailure(uint32_t, vmm::Error error) override { Fail(error.ToString()); }

  bool failed() const { return failed_.load(std::memory_order_acquire); }
  const std::string& failure() const { return failure_; }  ///< if failed()

 private:
  void Fail(const std::string& why) {
    if (!failed()) failure_ = why;
    failed_.store(true, std::memory_order_release);
    device_.vcpu->Kick();
  }

  vmm::IoBus ports_{"ports"}, mmio_{"MMIO"};
  Register& device_;
  std::string failure_;
  std::atomic<bool> failed_{false};
};

/// A VM with a flat GDT, a stack and one processor in 32-bit mode.
class TinyVm {
 public:
  TinyVm() {
    loop_ = vmm::Loop::Create().value();
    const vmm::MemoryRange ram[] = {{0, 2 << 20}};
    memory_ = vmm::GuestMemory::Create(ram).value();
    vm_ = KvmVm::Create({1, false}, *memory_, *loop_).value();
    device_.vcpu = &vm_->vcpu(0);
    const uint64_t gdt[] = {0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    Put(kGdtGpa, gdt, sizeof(gdt));
  }

  void Boot(const GuestCode& code) {
    Put(kCodeGpa, code.code().data(), code.code().size());
    vmm::BootState boot;
    boot.mode = vmm::BootState::Mode::kProtected32;
    boot.rip = kCodeGpa;
    boot.rsp = kStackTop;
    boot.gdt_base = kGdtGpa;
    boot.gdt_limit = 4 * 8 - 1;
    KVMBUS_ASSERT(vm_->vcpu(0).SetBootState(boot).ok());
  }
  void Put(uint64_t gpa, const void* data, size_t size) {
    KVMBUS_ASSERT(memory_->Write(gpa, data, size));
  }
  /// On this thread, until the register stops it.
  bool Run() {
    vm_->vcpu(0).Run(exits_);
    return !exits_.failed();
  }
  uint32_t Counter() const { return memory_->ReadObject<uint32_t>(kCounter).value(); }
  KvmVm& vm() { return *vm_; }
  Register& device() { return device_; }
  const Exits& exits() const { return exits_; }

 private:
  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::unique_ptr<KvmVm> vm_;
  Register device_;
  Exits exits_{device_};
};

/// Each iteration runs the guest for one batch of accesses.
void RunBatches(benchmark::State& state, TinyVm& machine, uint64_t batch) {
  const uint64_t before = machine.device().count;
  for (auto _ : state) {
    if (!machine.Run()) return state.SkipWithError(machine.exits().failure().c_str());
  }
  if (machine.device().count - before != static_cast<uint64_t>(state.iterations()) * batch)
    return state.SkipWithError("accesses are missing");
}

/// out dx, al; back to it.
void BM_PortWrite(benchmark::State& state) {
  TinyVm machine;
  machine.Boot(GuestCode().OutAl(kPort).Bytes({0xeb, 0xfd}));
  RunBatches(state, machine, kBatch);
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBatch));
}
BENCHMARK(BM_PortWrite)->UseRealTime();

/// mov dword [kMmio], 1; back to it.
void BM_MmioWrite(benchmark::State& state) {
  TinyVm machine;
  machine.Boot(GuestCode().Store(kMmio, 1).Bytes({0xeb, 0xf4}));
  RunBatches(state, machine, kBatch);
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBatch));
}
BENCHMARK(BM_MmioWrite)->UseRealTime();

/// HvSignalEvent on a connection that is bound to an eventfd: kBatch calls, then one port write.
void BM_SignalEvent(benchmark::State& state) {
  TinyVm machine;
  const vmm::Fd event = vmm::CreateEventFd().value();
  KVMBUS_ASSERT(machine.vm().synic().BindDoorbell(kConnection, event.get()).ok());
  machine.device().batch = 1;
  GuestCode code;
  const auto back_to = [&code](size_t target) {
    return static_cast<uint8_t>(target - (code.code().size() + 1));
  };
  code.Wrmsr(kMsrGuestOsId, 0x8100000000000000).Wrmsr(kMsrHypercall, kHypercallPage | 1);
  const size_t batch = code.code().size();
  code.Bytes({0xbd, kBatch & 0xff, kBatch >> 8, 0, 0});  // mov ebp, kBatch
  const size_t call = code.code().size();
  code.MovEdx(0).MovEax(kSignalEventFast).MovEcx(kConnection);
  code.Bytes({0x31, 0xdb, 0x31, 0xf6, 0x31, 0xff});  // xor ebx, ebx; xor esi, esi; xor edi, edi
  const auto next = static_cast<uint32_t>(kCodeGpa + code.code().size() + 5);
  const uint32_t distance = kHypercallPage - next;
  code.Bytes({0xe8, static_cast<uint8_t>(distance), static_cast<uint8_t>(distance >> 8),
              static_cast<uint8_t>(distance >> 16), static_cast<uint8_t>(distance >> 24)});
  code.Bytes({0x4d, 0x75});  // dec ebp; jnz call
  code.Bytes({back_to(call)});
  code.OutAl(kPort).Bytes({0xeb});  // jmp batch
  code.Bytes({back_to(batch)});
  machine.Boot(code);
  uint64_t signals = 0;
  for (auto _ : state) {
    uint64_t value = 0;
    if (!machine.Run()) return state.SkipWithError(machine.exits().failure().c_str());
    if (::read(event.get(), &value, sizeof(value)) == sizeof(value)) signals += value;
  }
  machine.vm().synic().UnbindDoorbell(kConnection);
  if (signals != static_cast<uint64_t>(state.iterations()) * kBatch)
    return state.SkipWithError("signals are missing");
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBatch));
}
BENCHMARK(BM_SignalEvent)->UseRealTime();

/// A guest that sleeps until an event of SINT 2 comes, counts it and sleeps on.
void BootSleeper(TinyVm& machine) {
  GuestCode handler;
  handler.Store(kEventPage + 2 * 256, 0).Wrmsr(kMsrEoi, 0);
  handler.Bytes({0xff, 0x05, 0x00, 0x00, 0x02, 0x00, 0xcf});  // inc dword [kCounter]; iret
  machine.Put(kHandlerGpa, handler.code().data(), handler.code().size());
  const uint64_t gate = (kHandlerGpa & 0xffff) | uint64_t{kCodeSelector} << 16 |
                        uint64_t{0x8e00} << 32 | (kHandlerGpa >> 16) << 48;
  machine.Put(kIdtGpa + kVector * sizeof(gate), &gate, sizeof(gate));
  const uint8_t pointer[] = {0xff, 0x07, kIdtGpa & 0xff, kIdtGpa >> 8, 0, 0};
  machine.Put(kIdtPointerGpa, pointer, sizeof(pointer));
  machine.Boot(GuestCode()
                   .Bytes({0x0f, 0x01, 0x1d, kIdtPointerGpa & 0xff, kIdtPointerGpa >> 8, 0, 0})
                   .Store(kApicSpurious, 0x1ff)  // software-enabled
                   .Wrmsr(kMsrGuestOsId, 0x8100000000000000)
                   .Wrmsr(kMsrSint0 + 2, kVector)
                   .Wrmsr(kMsrSiefp, kEventPage | 1)
                   .Store(kCounter, 1)
                   .Bytes({0xfb, 0xf4, 0xeb, 0xfc}));  // sti; hlt; jmp back
}

/// False if the guest has not counted to `target` within some seconds.
bool WaitForCount(const TinyVm& machine, uint32_t target) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (machine.Counter() != target) {
    if (std::chrono::steady_clock::now() > end || machine.exits().failed()) return false;
    std::this_thread::yield();
  }
  return true;
}

/// From the irqfd to the guest's interrupt handler. Argument: microseconds that the processor has
/// been halted for; KVM polls for a while (halt_poll_ns) before it lets the thread sleep.
void BM_WakeHalted(benchmark::State& state) {
  TinyVm machine;
  BootSleeper(machine);
  std::thread vcpu([&machine] { machine.Run(); });
  uint32_t count = 1;
  bool ok = WaitForCount(machine, count);
  while (ok && state.KeepRunning()) {
    std::this_thread::sleep_for(std::chrono::microseconds(state.range(0)));
    const auto start = std::chrono::steady_clock::now();
    machine.vm().synic().SignalEvent(0, 2, 5);
    ok = WaitForCount(machine, ++count);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    state.SetIterationTime(took.count());
  }
  machine.vm().vcpu(0).Kick();
  vcpu.join();
  if (!ok)
    state.SkipWithError(machine.exits().failed() ? machine.exits().failure().c_str()
                                                 : "the guest did not wake up");
}
BENCHMARK(BM_WakeHalted)->Arg(50)->Arg(1000)->UseManualTime()->Iterations(1000);

}  // namespace
}  // namespace kvmbus::kvm

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  if (const auto host = kvmbus::kvm::RequireHost(false); !host.ok()) {
    fmt::print("exit_bench: skipped, for no VM can run here: {}\n", host.error().ToString());
    return kSkipped;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
