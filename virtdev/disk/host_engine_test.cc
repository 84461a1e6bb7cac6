// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/host_engine.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>

namespace kvmbus::virtdev {
namespace {

/// As container runtimes do it.
bool ForbidUring() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter = {std::size(program), program};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST(HostEngineTest, ThreadsServeWhereIoUringIsForbidden) {
  if (MakeHostEngine(false)->name() != "io_uring") GTEST_SKIP() << "it is forbidden here";
  EXPECT_EXIT(
      {
        if (!ForbidUring()) std::exit(2);
        std::exit(MakeHostEngine(false)->name() == "threads" ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
  EXPECT_EQ(MakeHostEngine(true)->name(), "threads");
}

}  // namespace
}  // namespace kvmbus::virtdev
