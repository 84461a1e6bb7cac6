// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/engine/host_engine.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

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

class Counter final : public HostCompletion {
 public:
  void OnTransferDone(HostTransfer&, int error) override {
    EXPECT_EQ(error, 0);
    ++done;
  }
  size_t done = 0;
};

/// A file that is there as long as it is open.
class TemporaryFile {
 public:
  explicit TemporaryFile(uint64_t bytes) {
    char path[] = "/tmp/host-engine-test-XXXXXX";
    const vmm::Fd made(::mkstemp(path));
    EXPECT_EQ(::ftruncate(made.get(), static_cast<off_t>(bytes)), 0);
    file = OpenBlockFile(path, false).value();
    ::unlink(path);
  }
  std::unique_ptr<BlockFile> file;
};

/// Eight of a batch keep the disk busy while the rest is prepared, without a Kick.
TEST(HostEngineTest, TheDiskBeginsBeforeABatchIsWhole) {
  auto engine = MakeUringEngine();
  if (engine == nullptr) GTEST_SKIP() << "io_uring is forbidden here";
  const TemporaryFile temporary(1 << 20);
  const auto& file = temporary.file;
  if (!file->GoDirect(4096).ok()) GTEST_SKIP() << "no direct I/O in /tmp";
  const auto loop = vmm::Loop::Create().value();
  const auto queue = engine->OpenQueue(*loop).value();
  AlignedBuffer buffer(4096);
  Counter counter;
  std::vector<HostTransfer> transfers(9);
  for (HostTransfer& transfer : transfers) {
    transfer.file = file.get();
    transfer.iov = {{buffer.span().data(), 4096}};
    transfer.completion = &counter;
  }
  const auto submit = [&](size_t first, size_t count) {
    for (size_t i = first; i < first + count; ++i) queue->Submit(transfers[i]);
  };
  submit(0, 7);
  loop->RunOnce(0);
  EXPECT_EQ(counter.done, 0u) << "a short batch is handed over whole";
  submit(7, 1);
  for (int turns = 0; counter.done != 8 && turns < 50; ++turns) loop->RunOnce(500);
  EXPECT_EQ(counter.done, 8u);
  submit(8, 1);
  loop->RunOnce(0);
  EXPECT_EQ(counter.done, 8u);
  queue->Kick();
  queue->Drain();
  EXPECT_EQ(counter.done, 9u);
}

/// A kernel that never waits for a file that was opened so that it need not.
class ImpatientKernel {
 public:
  ImpatientKernel() { is_on = true; }
  ~ImpatientKernel() { is_on = false; }
  static inline bool is_on = false;
  static inline int answers = 0;
};

TEST(HostEngineTest, AThreadWaitsWhereTheRingDoesNot) {
  auto engine = MakeUringEngine();
  if (engine == nullptr) GTEST_SKIP() << "io_uring is forbidden here";
  const auto file = OpenBlockFile("/proc/self/exe", true).value();
  const auto loop = vmm::Loop::Create().value();
  const auto queue = engine->OpenQueue(*loop).value();
  Counter counter;
  const ImpatientKernel kernel;
  for (const bool drain : {false, true}) {
    std::string text(4, 0);
    HostTransfer transfer;
    transfer.file = file.get();
    transfer.completion = &counter;
    transfer.iov = {{text.data(), text.size()}};
    counter.done = 0;
    ImpatientKernel::answers = 0;
    queue->Submit(transfer);
    queue->Kick();
    for (int turns = 0; !drain && counter.done == 0 && turns < 1000; ++turns) loop->RunOnce(100);
    if (drain) queue->Drain();
    ASSERT_EQ(counter.done, 1u);
    EXPECT_EQ(text,
              "\x7f"
              "ELF");
    EXPECT_GE(ImpatientKernel::answers, 1);
    EXPECT_LE(ImpatientKernel::answers, 3);
  }
}

/// A write to the page cache that the loop has no time for.
TEST(HostEngineTest, AThreadWritesWhereTheRingDoesNot) {
  auto engine = MakeUringEngine();
  if (engine == nullptr) GTEST_SKIP() << "io_uring is forbidden here";
  const TemporaryFile temporary(1 << 20);
  const auto loop = vmm::Loop::Create().value();
  const auto queue = engine->OpenQueue(*loop).value();
  loop->blocking_budget().Took(loop->clock().MonotonicNs(), uint64_t{3600'000'000'000}, 0);
  const ImpatientKernel kernel;
  Counter counter;
  std::string text = "text";
  HostTransfer transfer;
  transfer.file = temporary.file.get();
  transfer.write = true;
  transfer.completion = &counter;
  transfer.iov = {{text.data(), text.size()}};
  ImpatientKernel::answers = 0;
  queue->Submit(transfer);
  queue->Kick();
  for (int turns = 0; counter.done == 0 && turns < 50; ++turns) loop->RunOnce(100);
  EXPECT_EQ(counter.done, 1u);
  EXPECT_GE(ImpatientKernel::answers, 1);
  queue->Drain();
}

/// Each piece of what needs buffers is kicked, wherever the one before it was done.
TEST(HostEngineTest, ABouncedTransferGoesOnAfterAThread) {
  auto engine = MakeUringEngine();
  if (engine == nullptr) GTEST_SKIP() << "io_uring is forbidden here";
  const TemporaryFile temporary(2 << 20);
  if (!temporary.file->GoDirect(4096).ok()) GTEST_SKIP() << "no direct I/O in /tmp";
  const auto loop = vmm::Loop::Create().value();
  const auto queue = engine->OpenQueue(*loop).value();
  const ImpatientKernel kernel;
  Counter counter;
  AlignedBuffer buffer((1 << 20) + 4096);
  HostTransfer transfer;
  transfer.file = temporary.file.get();
  transfer.completion = &counter;
  transfer.iov = {{buffer.span().data() + 1, 1 << 20}};
  queue->Submit(transfer);
  queue->Kick();
  for (int turns = 0; counter.done == 0 && turns < 50; ++turns) loop->RunOnce(100);
  EXPECT_EQ(counter.done, 1u);
  queue->Drain();
}

}  // namespace
}  // namespace kvmbus::virtdev

/// Comes before liburing's own, which it calls.
extern "C" int io_uring_submit(io_uring* ring) {
  static const auto submit =
      reinterpret_cast<int (*)(io_uring*)>(::dlsym(RTLD_NEXT, "io_uring_submit"));
  const int submitted = submit(ring);
  io_uring_cqe* completions[8];
  if (!kvmbus::virtdev::ImpatientKernel::is_on) return submitted;
  // What its own threads do for the ring has an end too.
  if (submitted > 0) ::io_uring_wait_cqe(ring, completions);
  const unsigned count = ::io_uring_peek_batch_cqe(ring, completions, std::size(completions));
  for (unsigned i = 0; i < count; ++i) completions[i]->res = -EAGAIN;
  kvmbus::virtdev::ImpatientKernel::answers += static_cast<int>(count);
  return submitted;
}
