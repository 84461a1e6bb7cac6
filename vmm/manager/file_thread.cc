// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/file_thread.h"

namespace kvmbus::vmm {

FileThread::FileThread(Loop& loop, const std::string& name) : loop_(loop) {
  auto thread = LoopThread::Start(name);
  KVMBUS_ASSERT(thread.ok());
  thread_ = std::move(thread).value();
}

FileThread::~FileThread() {
  *alive_ = false;
  thread_.reset();
}

void FileThread::Do(Work work, Done done) {
  thread_->loop().Post(
      [this, alive = alive_, work = std::move(work), done = std::move(done)]() mutable {
        auto result = work();
        loop_.Post([alive, result = std::move(result), done = std::move(done)] {
          if (*alive) done(result);
        });
      });
}

}  // namespace kvmbus::vmm
