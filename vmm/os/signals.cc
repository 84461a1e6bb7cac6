// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/signals.h"

#include <sys/signalfd.h>

#include <csignal>

namespace kvmbus::vmm {

Fd TakeEndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return Fd(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
}

}  // namespace kvmbus::vmm
