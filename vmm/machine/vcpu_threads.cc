// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/vcpu_threads.h"

#include "vmm/os/thread.h"

namespace kvmbus::vmm {

VcpuThreads::VcpuThreads(Vm& vm, ExitHandler& handler) : vm_(vm), handler_(handler) {
  for (uint32_t i = 0; i < vm.vcpu_count(); ++i) threads_.emplace_back([this, i] { Main(i); });
}

VcpuThreads::~VcpuThreads() {
  Park();
  {
    std::lock_guard lock(mutex_);
    quit_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void VcpuThreads::Run() {
  {
    std::lock_guard lock(mutex_);
    if (running_ != 0) return;
    ++generation_;
    running_ = static_cast<uint32_t>(threads_.size());
  }
  changed_.notify_all();
}

void VcpuThreads::Park() {
  std::unique_lock lock(mutex_);
  if (running_ == 0) return;
  // All are told first, then all are waited for: the pause does not grow with their number. A
  // thread that has not yet woken finds its kick waiting.
  for (uint32_t i = 0; i < threads_.size(); ++i) vm_.vcpu(i).Kick();
  changed_.wait(lock, [this] { return running_ == 0; });
}

void VcpuThreads::Main(uint32_t index) {
  NameThisThread(fmt::format("vcpu/{}", index));
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return generation_ != seen || quit_; });
    if (quit_) return;
    seen = generation_;
    lock.unlock();
    vm_.vcpu(index).Run(handler_);
    lock.lock();
    if (--running_ == 0) changed_.notify_all();
  }
}

}  // namespace kvmbus::vmm
