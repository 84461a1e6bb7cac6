// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/thread.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

void NameThisThread(const std::string& name) {
  ::pthread_setname_np(::pthread_self(), name.substr(0, 15).c_str());
}

void LetOthersFirst() {
  constexpr int kNice = 10;  // a tenth of what a thread at 0 gets beside it
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNice);
}

void SetThreadStackBytes(size_t bytes) {
  pthread_attr_t attributes;
  KVMBUS_ASSERT(::pthread_attr_init(&attributes) == 0);
  KVMBUS_ASSERT(::pthread_attr_setstacksize(&attributes, bytes) == 0);
  KVMBUS_ASSERT(::pthread_setattr_default_np(&attributes) == 0);
  ::pthread_attr_destroy(&attributes);
}

}  // namespace kvmbus::vmm
