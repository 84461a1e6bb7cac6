// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/worker_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <vector>

#include "vmm/os/file.h"
#include "vmm/os/log.h"

extern char** environ;

namespace kvmbus::vmm {
namespace {

constexpr int kConfigFd = 3;
constexpr uint64_t kLogLimitBytes = 4u << 20;
constexpr std::string_view kJournalVariable = "JOURNAL_STREAM=";

JournalOpener& JournalOfWorkers() {
  static JournalOpener open;
  return open;
}

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

/// Two files at most, so that a process that ends again and again does not fill the run folder,
/// which is memory.
Result<Fd> LogFile(const std::string& path) {
  const int flags = O_WRONLY | O_CREAT | O_APPEND;
  Fd log = TRY_CTX(OpenFile(path, flags, 0640), "opening the worker's log");
  if (const auto size = FileSize(log.get()); !size.ok() || *size < kLogLimitBytes) return log;
  if (std::rename(path.c_str(), (path + ".1").c_str()) < 0) return log;
  return TRY_CTX(OpenFile(path, flags, 0640), "opening the worker's log");
}

/// A name in one line: the journal takes its identifier as such.
std::string IdentifierOf(const config::Vm& vm) {
  std::string identifier = "vmm-" + vm.name();
  for (char& c : identifier) {
    if (static_cast<unsigned char>(c) <= ' ' || c == 0x7f) c = '_';
  }
  return identifier;
}

Result<Fd> WorkerLog(const std::string& path, const config::Vm& vm) {
  if (const JournalOpener& open = JournalOfWorkers()) {
    auto journal = open(IdentifierOf(vm));
    if (journal.ok()) return journal;
    spdlog::warn("'{}' logs to '{}': {}", vm.name(), path, journal.error().ToString());
  }
  return LogFile(path);
}

/// Ours, with JOURNAL_STREAM as the worker's own standard error is.
std::vector<std::string> EnvironmentFor(const Fd& log) {
  std::vector<std::string> environment;
  for (char** at = environ; *at != nullptr; ++at) {
    if (!std::string_view(*at).starts_with(kJournalVariable)) environment.emplace_back(*at);
  }
  struct stat status = {};
  if (::fstat(log.get(), &status) == 0 && S_ISSOCK(status.st_mode))
    environment.push_back(std::string(kJournalVariable) + JournalStreamOf(log.get()));
  return environment;
}

std::vector<char*> PointersTo(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

/// `inherited`, if not -1, is its descriptor kConfigFd.
Result<WorkerProcess> Spawn(const WorkerCommand& command, const Fd& log,
                            std::vector<std::string> arguments, int inherited) {
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
  std::vector<std::string> environment = EnvironmentFor(log);
  WorkerProcess process;
  const int error = ::posix_spawn(&process.pid, command.program.c_str(), &actions, &attributes,
                                  PointersTo(arguments).data(), PointersTo(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return Error::FromErrno(error, fmt::format("starting '{}'", command.program));
  process.pidfd = TRY(OpenPidfd(process.pid));
  return process;
}

}  // namespace

void LogWorkersToJournal(JournalOpener open) { JournalOfWorkers() = std::move(open); }

Result<WorkerProcess> SpawnWorker(const WorkerCommand& command, const config::Vm& vm) {
  const Fd config = TRY(ConfigFile(vm));
  const Fd log = TRY(WorkerLog(command.log_path, vm));
  return Spawn(command, log, {"--config-fd", std::to_string(kConfigFd)}, config.get());
}

Result<WorkerProcess> SpawnDiskOwner(const WorkerCommand& command, const std::string& image) {
  const Fd log = TRY(LogFile(command.log_path));
  return Spawn(command, log, {"--shared-disk", image}, -1);
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
    return fmt::format("was killed by signal {} ({})", WTERMSIG(status),
                       ::strsignal(WTERMSIG(status)));
  return fmt::format("exited with status {}", WEXITSTATUS(status));
}

}  // namespace kvmbus::vmm
