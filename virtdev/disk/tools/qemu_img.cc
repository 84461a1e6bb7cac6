// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/tools/qemu_img.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "vmm/os/fd.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

struct Child {
  pid_t pid;
  vmm::Fd output;  ///< what it writes to standard error
};

Result<Child> Spawn(std::vector<std::string> arguments) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) < 0) return Error::FromErrno(errno, "a pipe for qemu-img");
  vmm::Fd output(ends[0]);
  const vmm::Fd input(ends[1]);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, input.get(), STDERR_FILENO);
  pid_t pid = 0;
  const int status = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (status == ENOENT)
    return Error(Code::kFailedPrecondition,
                 "qemu-img, which reads this format, is not installed; install qemu-utils");
  if (status != 0) return Error::FromErrno(status, "running qemu-img");
  return Child{pid, std::move(output)};
}

/// What it said, up to a few kilobytes, until it closed its end; false if it was told to stop.
bool Collect(const Child& child, const std::function<bool()>& go_on, std::string* text) {
  constexpr size_t kLimit = 4096;
  constexpr int kPollMs = 100;
  for (;;) {
    if (!go_on()) return false;
    pollfd wait = {child.output.get(), POLLIN, 0};
    const int ready = ::poll(&wait, 1, kPollMs);
    if (ready <= 0) continue;
    std::array<char, 512> buffer;
    const ssize_t n = ::read(child.output.get(), buffer.data(), buffer.size());
    if (n <= 0) return true;
    if (text->size() < kLimit) text->append(buffer.data(), static_cast<size_t>(n));
  }
}

std::string LastLine(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

}  // namespace

Result<void> ReadByQemuImg(const std::string& format, const std::string& source,
                           const std::string& raw, const std::function<bool()>& go_on) {
  const Child child =
      TRY(Spawn({"qemu-img", "convert", "-f", format, "-O", "raw", "--", "file:" + source, raw}));
  std::string text;
  const bool stopped = !Collect(child, go_on, &text);
  if (stopped) ::kill(child.pid, SIGTERM);
  int status = 0;
  while (::waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (stopped) return Error(Code::kCancelled, "cancelled");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return MakeError(Code::kInvalidArgument, "qemu-img cannot read '{}': {}", source,
                   LastLine(std::move(text)));
}

Result<std::string> ForeignFormatOf(const std::string& path) {
  struct Signature {
    std::string_view bytes;
    size_t offset;
    const char* format;
  };
  static constexpr Signature kSignatures[] = {{{"QFI\xfb", 4}, 0, "qcow2"},
                                              {"KDMV", 0, "vmdk"},
                                              {"# Disk DescriptorFile", 0, "vmdk"},
                                              {{"\x7f\x10\xda\xbe", 4}, 64, "vdi"},
                                              {{"QED\0", 4}, 0, "qed"}};
  auto file = TRY(OpenBlockFile(path, true));
  std::vector<uint8_t> head(std::min<uint64_t>(TRY(file->Size()), 512));
  TRY_VOID_CTX(file->Read(head, 0), "'{}'", path);
  const auto holds = [](const std::vector<uint8_t>& bytes, const Signature& signature) {
    return bytes.size() >= signature.offset + signature.bytes.size() &&
           std::equal(signature.bytes.begin(), signature.bytes.end(),
                      bytes.begin() + static_cast<ptrdiff_t>(signature.offset),
                      [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; });
  };
  for (const Signature& signature : kSignatures) {
    if (holds(head, signature)) return std::string(signature.format);
  }
  return std::string();
}

}  // namespace kvmbus::virtdev
