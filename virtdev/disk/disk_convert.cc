// SPDX-License-Identifier: Apache-2.0
// Converting images.
#include <unistd.h>

#include <algorithm>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/chain.h"
#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/image_io.h"
#include "virtdev/disk/new_file.h"
#include "virtdev/disk/qemu_img.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

/// A megabyte at a time; what reads as zeroes is not written.
Result<void> CopyImage(Chain& from, Image& to, const Progress& progress) {
  constexpr uint64_t kPiece = 1u << 20;
  const uint64_t total = from.info().size_bytes;
  std::vector<uint8_t> buffer(kPiece);
  for (uint64_t at = 0; at < total; at += kPiece) {
    const uint64_t length = std::min(kPiece, total - at);
    const auto piece = std::span(buffer).first(length);
    if (TRY(ReadChain(from, at, piece))) TRY_VOID(WriteImage(to, at, piece));
    if (progress && !progress(at + length, total)) return Error(Code::kCancelled, "cancelled");
  }
  return to.Close();
}

/// A raw file between another program's format and ours; gone with the object.
struct TemporaryFile {
  std::string path;
  ~TemporaryFile() { ::unlink(path.c_str()); }
};

Result<std::unique_ptr<Image>> OpenTarget(const std::string& format, BlockFile& file) {
  auto borrowed = std::make_unique<BorrowedFile>(file);
  if (format == "raw") return OpenRawImage(std::move(borrowed), false, {});
  if (format == "vhd") return OpenVhdImage(std::move(borrowed), false);
  return OpenVhdxImage(std::move(borrowed), false);
}

/// The new disk's id: a VHDX keeps the one that the guest has seen. A VHD's names the file, and a
/// child of the source must not take the copy for its parent.
vmm::Guid IdOfCopy(const Chain& from, const std::string& format) {
  if (format == "vhd" || from.layers().front()->format() == "raw") return vmm::Guid::Random();
  return from.info().disk_id;
}

Result<void> ConvertOwn(const std::string& source, const std::string& target,
                        CreateDiskOptions options, const Progress& progress) {
  auto from = TRY(OpenChain(source, true));
  options.size_bytes = from->info().size_bytes;
  NewFile file = TRY_CTX(NewImageFile(target, options, IdOfCopy(*from, options.format)),
                         "creating '{}'", target);
  auto to = TRY(OpenTarget(options.format, file.file()));
  TRY_VOID_CTX(CopyImage(*from, *to, progress), "converting '{}'", source);
  return file.Publish();
}

}  // namespace

Result<void> ConvertDisk(const std::string& source, const std::string& target,
                         const CreateDiskOptions& options, const Progress& progress) {
  // Names of ours say what the file is: a fixed VHD begins with what its guest has written there.
  const bool own = IsVhdName(source) || IsVhdxName(source);
  const std::string foreign = own ? std::string() : TRY(ForeignFormatOf(source));
  if (foreign.empty()) return ConvertOwn(source, target, options, progress);
  if (::access(target.c_str(), F_OK) == 0)
    return vmm::MakeError(Code::kAlreadyExists,
                          "'{}' exists already; choose another name, or delete it first", target);
  const TemporaryFile raw{fmt::format("{}.{}.raw", target, ::getpid())};
  TRY_VOID(ReadByQemuImg(foreign, source, raw.path,
                         [&progress] { return !progress || progress(0, 1); }));
  return ConvertOwn(raw.path, target, options, progress);
}

}  // namespace kvmbus::virtdev
