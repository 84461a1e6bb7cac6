// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/block_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <vector>

#include "vmm/os/file.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

/// What fallocate says where the host's storage cannot do it.
bool IsUnsupported(int error) {
  return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL || error == ENODEV;
}

class PosixBlockFile final : public BlockFile {
 public:
  PosixBlockFile(vmm::Fd fd, bool is_device) : fd_(std::move(fd)), is_device_(is_device) {}
  Result<uint64_t> Size() override { return vmm::FileSize(fd_.get()); }
  Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) override {
    if (!alignment_.is_none()) return DirectRead(fd_.get(), alignment_, buffer, offset);
    return vmm::PReadAll(fd_.get(), buffer, offset);
  }
  Result<void> Write(std::span<const uint8_t> buffer, uint64_t offset) override {
    if (alignment_.is_none()) return vmm::PWriteAll(fd_.get(), buffer, offset);
    // Sectors are the transfers' or the metadata's, so that it has no other writers of their parts.
    std::lock_guard lock(write_mutex_);
    return DirectWrite(fd_.get(), alignment_, buffer, offset);
  }
  Result<void> Flush() override { return vmm::SyncFile(fd_.get()); }
  Result<void> Resize(uint64_t bytes) override {
    if (::ftruncate(fd_.get(), static_cast<off_t>(bytes)) < 0)
      return Error::FromErrno(errno, "resizing the image");
    return {};
  }
  Result<void> Zero(uint64_t offset, uint64_t length, bool keep_space) override {
    if (length == 0) return {};
    if (keep_space && Fallocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length))
      return {};
    // A hole reads as zeroes everywhere; filling it with space again is what some file systems have
    // instead of ZERO_RANGE.
    if (Fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) &&
        (!keep_space || Fallocate(FALLOC_FL_KEEP_SIZE, offset, length)))
      return {};
    if (!IsUnsupported(errno)) return Error::FromErrno(errno, "zeroing a range of the image");
    static const std::vector<uint8_t> zeroes(256u << 10, 0);
    for (uint64_t at = 0; at < length; at += zeroes.size())
      TRY_VOID(Write(std::span(zeroes).first(std::min<uint64_t>(zeroes.size(), length - at)),
                     offset + at));
    return {};
  }
  bool can_release() const override {
    std::call_once(asked_, [this] { can_release_ = is_device_ || CanPunch(); });
    return can_release_;
  }
  bool is_device() const override { return is_device_; }
  int fd() const override { return fd_.get(); }
  const IoAlignment& alignment() const override { return alignment_; }
  Result<void> GoDirect(uint32_t sector_bytes) override {
    alignment_ = TRY(TurnDirect(fd_.get(), sector_bytes));
    return {};
  }

 private:
  /// Whether a file's space can be taken back shows behind its end, where there is none. One that
  /// is open for reading alone does not show it.
  bool CanPunch() const {
    constexpr uint64_t kSomeBytes = 4096;
    const auto size = vmm::FileSize(fd_.get());
    return !size.ok() ||
           Fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (*size + kSomeBytes - 1) / kSomeBytes * kSomeBytes, kSomeBytes) ||
           !IsUnsupported(errno);
  }
  bool Fallocate(int mode, uint64_t offset, uint64_t length) const {
    return ::fallocate(fd_.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(length)) ==
           0;
  }

  const vmm::Fd fd_;
  const bool is_device_;
  // Not asked before it matters: that may change the time of the last write.
  mutable std::once_flag asked_;
  mutable bool can_release_ = false;
  IoAlignment alignment_;   // of direct I/O, once it is on
  std::mutex write_mutex_;  // two parts of one sector are not written at once
};

/// True if this descriptor of a process is the file and holds a lock of it.
bool HoldsLock(const std::string& process, const std::string& number, const struct stat& file) {
  struct stat other = {};
  if (::stat(fmt::format("/proc/{}/fd/{}", process, number).c_str(), &other) < 0 ||
      other.st_dev != file.st_dev || other.st_ino != file.st_ino)
    return false;
  const auto info = vmm::ReadWholeFile(fmt::format("/proc/{}/fdinfo/{}", process, number));
  return info.ok() && info->find("\nlock:") != std::string::npos;
}

/// " (process 123)", or nothing: the kernel names no process for a lock of an open file, but a
/// process that we may look into shows its locks.
std::string HolderOf(int fd) {
  struct stat file = {};
  if (::fstat(fd, &file) < 0) return "";
  std::error_code ignored;
  for (const auto& process : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = process.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    for (const auto& number : std::filesystem::directory_iterator(process.path() / "fd", ignored)) {
      if (HoldsLock(name, number.path().filename().string(), file))
        return fmt::format(" (process {})", name);
    }
  }
  return "";
}

/// O_NONBLOCK is for the opening alone: io_uring would not wait for storage that has to be waited
/// for.
Result<void> MakeBlocking(const vmm::Fd& fd, const std::string& path) {
  if (::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK) < 0)
    return Error::FromErrno(errno, fmt::format("opening '{}'", path));
  return {};
}

Error CannotOpen(Error error, const std::string& path, bool read_only) {
  switch (error.code()) {
    case Code::kNotFound:
      return vmm::MakeError(Code::kNotFound,
                            "'{}' does not exist; create it with 'vmctl disk create'", path);
    case Code::kPermissionDenied:
      return vmm::MakeError(
          Code::kPermissionDenied,
          "'{}' may not be opened for {}: change its permissions, or attach it read-only", path,
          read_only ? "reading" : "writing");
    default:
      break;
  }
  if (error.sys_errno() == EBUSY)
    return vmm::MakeError(Code::kUnavailable,
                          "'{}' is mounted or otherwise in use by the host: release it there",
                          path);
  return error;
}

}  // namespace

Error EarlierFlushFailed() {
  return Error(Code::kDataLoss,
               "an earlier flush of the image failed: close it, and check its storage");
}

Result<void> StickyFlush::Run(BlockFile& file) {
  if (failed_.load()) return EarlierFlushFailed();
  auto flushed = file.Flush();
  if (flushed.ok()) return {};
  failed_.store(true);
  return std::move(flushed.error()).WithContext("flushing the image");
}

Result<std::unique_ptr<BlockFile>> OpenBlockFile(const std::string& path, bool read_only) {
  struct stat status = {};
  const bool found = ::stat(path.c_str(), &status) == 0;
  if (found && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
    return vmm::MakeError(Code::kInvalidArgument, "'{}' is neither a file nor a block device",
                          path);
  int flags = (read_only ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_NOCTTY;
  // The kernel then refuses a device that is mounted.
  if (found && S_ISBLK(status.st_mode) && !read_only) flags |= O_EXCL;
  auto fd = vmm::OpenFile(path, flags);
  if (!fd.ok()) return CannotOpen(std::move(fd.error()), path, read_only);
  const auto locked =
      vmm::LockFile(fd->get(), read_only ? vmm::LockKind::kShared : vmm::LockKind::kExclusive);
  if (!locked.ok()) {
    if (locked.error().code() != Code::kUnavailable) return locked.error();
    return vmm::MakeError(
        Code::kUnavailable,
        "'{}' is in use by another process{}; stop the virtual machine that uses it, or attach the "
        "disk to all of them as shared (--shared)",
        path, HolderOf(fd->get()));
  }
  TRY_VOID(MakeBlocking(*fd, path));
  return std::unique_ptr<BlockFile>(
      std::make_unique<PosixBlockFile>(std::move(fd).value(), S_ISBLK(status.st_mode)));
}

Result<std::unique_ptr<BlockFile>> PeekBlockFile(const std::string& path) {
  auto fd = vmm::OpenFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!fd.ok()) return CannotOpen(std::move(fd.error()), path, true);
  struct stat status = {};
  if (::fstat(fd->get(), &status) < 0 || !S_ISREG(status.st_mode))
    return vmm::MakeError(Code::kInvalidArgument, "'{}' is not a file", path);
  TRY_VOID(MakeBlocking(*fd, path));
  return std::unique_ptr<BlockFile>(std::make_unique<PosixBlockFile>(std::move(fd).value(), false));
}

Result<std::unique_ptr<BlockFile>> ReopenForWriting(const std::string& path, BlockFile& file) {
  auto fd = vmm::OpenFile(path, O_RDWR | O_NONBLOCK | O_NOCTTY);
  if (!fd.ok()) return CannotOpen(std::move(fd.error()), path, false);
  TRY_VOID(MakeBlocking(*fd, path));
  struct stat here = {}, there = {};
  if (::fstat(file.lock_fd(), &here) < 0 || ::fstat(fd->get(), &there) < 0)
    return Error::FromErrno(errno, fmt::format("'{}'", path));
  if (here.st_dev != there.st_dev || here.st_ino != there.st_ino)
    return vmm::MakeError(Code::kFailedPrecondition,
                          "another file has been put in the place of '{}': put it back", path);
  const auto locked = vmm::HandOverLock(file.lock_fd(), fd->get(), vmm::LockKind::kExclusive);
  if (!locked.ok())
    return vmm::MakeError(locked.error().code(),
                          "'{}' has to be written, and others use it: it has other children, or is "
                          "a disk of another virtual machine; stop these first",
                          path);
  return std::unique_ptr<BlockFile>(std::make_unique<PosixBlockFile>(std::move(fd).value(), false));
}

Result<void> ShareLock(BlockFile& from, BlockFile& to) {
  TRY_VOID(vmm::LockFile(from.lock_fd(), vmm::LockKind::kShared));
  if (&from == &to) return {};
  return vmm::HandOverLock(from.lock_fd(), to.lock_fd(), vmm::LockKind::kShared);
}

int64_t ModifiedOf(const BlockFile& file) {
  struct stat status = {};
  return ::fstat(file.fd(), &status) == 0 ? status.st_mtime : 0;
}

bool IsZero(std::span<const uint8_t> bytes) {
  return bytes.empty() ||
         (bytes[0] == 0 && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace kvmbus::virtdev
