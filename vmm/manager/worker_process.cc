// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/worker_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <vector>

#include "vmm/os/file.h"

extern char** environ;

namespace kvmbus::vmm {
namespace {

constexpr int kConfigFd = 3;

Result<Fd> OpenPidfd(pid_t pid) {
  Fd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.valid()) return Error::FromErrno(errno, fmt::format("pidfd_open of process {}", pid));
  return fd;
}

/// The configuration in memory, to be read by offset.
Result<Fd> ConfigFile(const config::Vm& vm) {
  Fd fd(::memfd_create("vm-config", MFD_CLOEXEC));
  if (!fd.valid()) return Error::FromErrno(errno, "memfd_create");
  const std::string bytes = vm.SerializeAsString();
  TRY_VOID(PWriteAll(fd.get(), {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, 0));
  return fd;
}

/// `inherited`, if not -1, is its descriptor kConfigFd.
Result<WorkerProcess> Spawn(const WorkerCommand& command, std::vector<std::string> arguments,
                            int inherited) {
  const Fd log = TRY_CTX(OpenFile(command.log_path, O_WRONLY | O_CREAT | O_APPEND, 0640),
                         "opening the worker's log");
  const Fd null = TRY(OpenFile("/dev/null", O_RDONLY));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, null.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, log.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, log.get(), STDERR_FILENO);
  if (inherited >= 0) posix_spawn_file_actions_adddup2(&actions, inherited, kConfigFd);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  arguments.insert(arguments.begin(), {command.program, "--run-dir", command.run_dir});
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  WorkerProcess process;
  const int error = ::posix_spawn(&process.pid, command.program.c_str(), &actions, &attributes,
                                  pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return Error::FromErrno(error, fmt::format("starting '{}'", command.program));
  process.pidfd = TRY(OpenPidfd(process.pid));
  return process;
}

}  // namespace

Result<WorkerProcess> SpawnWorker(const WorkerCommand& command, const config::Vm& vm) {
  const Fd config = TRY(ConfigFile(vm));
  return Spawn(command, {"--config-fd", std::to_string(kConfigFd)}, config.get());
}

Result<WorkerProcess> SpawnDiskOwner(const WorkerCommand& command, const std::string& image) {
  return Spawn(command, {"--shared-disk", image}, -1);
}

Result<WorkerProcess> AdoptWorker(pid_t pid) {
  WorkerProcess process;
  process.pid = pid;
  process.pidfd = TRY(OpenPidfd(pid));
  return process;
}

std::string ReapWorker(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, WNOHANG) != pid) return "";
  if (WIFSIGNALED(status))
    return fmt::format("killed by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  return fmt::format("exited with status {}", WEXITSTATUS(status));
}

}  // namespace kvmbus::vmm
