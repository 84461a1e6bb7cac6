// SPDX-License-Identifier: Apache-2.0
/// \file
/// Work in a process of its own that is killed at its n-th system call.
#pragma once

#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <string>

namespace kvmbus::tests {

struct Traced {
  bool traced = false;
  bool killed = false;
  bool ended_well = false;
  uint64_t calls = 0;  ///< system calls of all its threads
};

/// Does `work` in a process of its own, which is killed when its threads have begun `limit` system
/// calls: between two of them nothing happens to a file.
template <typename Work>
Traced RunUntil(uint64_t limit, Work work) {
  Traced run;
  const pid_t child = ::fork();
  if (child == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) < 0) ::_exit(2);
    ::raise(SIGSTOP);
    ::_exit(work() ? 0 : 1);
  }
  int status = 0;
  if (::waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return run;
  constexpr long kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;
  run.traced = ::ptrace(PTRACE_SETOPTIONS, child, nullptr, kOptions) == 0;
  std::map<pid_t, bool> inside;
  for (pid_t thread = child;; thread = ::waitpid(-1, &status, __WALL)) {
    if (thread < 0) return run;
    if (!WIFSTOPPED(status)) {
      if (thread != child) continue;
      run.killed = WIFSIGNALED(status);
      run.ended_well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
      return run;
    }
    const int signal = WSTOPSIG(status);
    const bool call = signal == (SIGTRAP | 0x80);
    if (call) inside[thread] = !inside[thread];
    if (call && inside[thread] && ++run.calls == limit) ::kill(child, SIGKILL);
    const bool ours = call || signal == SIGTRAP || signal == SIGSTOP;
    ::ptrace(PTRACE_SYSCALL, thread, nullptr, ours ? 0 : signal);
  }
}

/// Where a flush costs nothing: what counts here is the order of things, not power.
inline std::string NewFastFolder(const std::string& name) {
  for (std::string folder : {"/dev/shm/" + name + "-XXXXXX", "/tmp/" + name + "-XXXXXX"}) {
    if (::mkdtemp(folder.data()) != nullptr) return folder;
  }
  return "";
}

}  // namespace kvmbus::tests
