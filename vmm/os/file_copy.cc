// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/file_copy.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <vector>

#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kStep = 8u << 20;  ///< between two reports

/// Of one file into another, at the same places.
class Copier {
 public:
  Copier(int from, int to, uint64_t size, const CopyProgress& progress)
      : from_(from), to_(to), size_(size), progress_(progress) {}

  Result<void> Run() {
    if (::ftruncate(to_, static_cast<off_t>(size_)) < 0)
      return Error::FromErrno(errno, "making the copy as long");
    for (uint64_t at = 0; at < size_;) {
      const uint64_t begin = TRY(Seek(at, SEEK_DATA));
      const uint64_t end = begin < size_ ? TRY(Seek(begin, SEEK_HOLE)) : size_;
      for (at = begin; at < end; at += TRY(CopySome(at, std::min(kStep, end - at))))
        TRY_VOID(Report(at));
    }
    return Report(size_);
  }

 private:
  Result<void> Report(uint64_t done) const {
    if (!progress_ || progress_(done, size_)) return {};
    return Error(Code::kCancelled, "cancelled");
  }

  /// Where data or a hole begins, the file's end at the latest.
  Result<uint64_t> Seek(uint64_t at, int what) const {
    const off_t found = ::lseek(from_, static_cast<off_t>(at), what);
    if (found >= 0) return std::min(static_cast<uint64_t>(found), size_);
    if (errno == ENXIO) return size_;  // a hole to the end
    if (errno == EINVAL) return what == SEEK_DATA ? at : size_;
    return Error::FromErrno(errno, "looking for data");
  }

  Result<uint64_t> CopySome(uint64_t at, uint64_t bytes) {
    auto in = static_cast<loff_t>(at), out = in;
    const ssize_t copied = by_host_ ? ::copy_file_range(from_, &in, to_, &out, bytes, 0) : -1;
    if (copied > 0) return static_cast<uint64_t>(copied);
    if (by_host_ && copied < 0 && (errno == ENOSPC || errno == EIO || errno == EDQUOT))
      return Error::FromErrno(errno, "copying");
    by_host_ = false;  // other file systems, or an older host
    buffer_.resize(kStep);
    const ssize_t got = ::pread(from_, buffer_.data(), bytes, static_cast<off_t>(at));
    if (got < 0) return Error::FromErrno(errno, "reading");
    if (got == 0) return Error(Code::kAborted, "it became shorter while it was copied");
    TRY_VOID(PWriteAll(to_, {buffer_.data(), static_cast<size_t>(got)}, at));
    return static_cast<uint64_t>(got);
  }

  const int from_, to_;
  const uint64_t size_;
  const CopyProgress& progress_;
  bool by_host_ = true;
  std::vector<uint8_t> buffer_;
};

Result<void> CopyInto(int from, int to, const CopyProgress& progress) {
  const uint64_t size = TRY(FileSize(from));
  if (::ioctl(to, FICLONE, from) < 0) TRY_VOID(Copier(from, to, size, progress).Run());
  return SyncFile(to);
}

}  // namespace

Result<void> CopyToNewFile(int from, const std::string& to, const CopyProgress& progress) {
  const Fd file = TRY(OpenFile(to, O_RDWR | O_CREAT | O_EXCL, 0640));
  auto copied = CopyInto(from, file.get(), progress);
  if (!copied.ok()) {
    ::unlink(to.c_str());
    return std::move(copied.error()).WithContext(fmt::format("copying to '{}'", to));
  }
  return SyncFolder(FolderOf(to));
}

Result<void> CheckIsAt(int fd, const std::string& path) {
  char at[PATH_MAX];
  const ssize_t length = ::readlink(NameOfFd(fd).c_str(), at, sizeof(at));
  if (length < 0) return Error::FromErrno(errno, "finding where a file is");
  if (std::string_view(at, static_cast<size_t>(length)) == path) return {};
  return MakeError(Code::kFailedPrecondition, "'{}' was replaced by a link, or moved", path);
}

}  // namespace kvmbus::vmm
