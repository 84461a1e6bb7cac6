// SPDX-License-Identifier: Apache-2.0
/// \file
/// VcpuThreads: one named thread a virtual processor, let run and parked together.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "vmm/hypervisor/vm.h"

namespace kvmbus::vmm {

/// Home: the main thread. Parked at first.
class VcpuThreads {
 public:
  VcpuThreads(Vm& vm, ExitHandler& handler);
  ~VcpuThreads();

  void Run();   ///< idempotent
  void Park();  ///< idempotent; when it returns no processor runs guest code and registers are
                ///< consistent

 private:
  void Main(uint32_t index);

  Vm& vm_;
  ExitHandler& handler_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t generation_ = 0;  ///< rises with each Run
  bool quit_ = false;
  uint32_t running_ = 0;  ///< threads that have not parked yet
  std::vector<std::thread> threads_;
};

}  // namespace kvmbus::vmm
