// SPDX-License-Identifier: Apache-2.0
// Converting images.
#include <unistd.h>

#include <algorithm>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/chain.h"
#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/new_file.h"
#include "virtdev/disk/qemu_img.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

/// Where the file under an image holds data, so that holes of sparse files need no reading.
bool IsHole(BlockFile& file, uint64_t offset, uint64_t length) {
  if (file.fd() < 0) return false;
  const off_t data = ::lseek(file.fd(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0) return errno == ENXIO;
  return static_cast<uint64_t>(data) >= offset + length;
}

/// False if the piece is all zeroes.
Result<bool> ReadPiece(Chain& from, uint64_t at, std::span<uint8_t> buffer) {
  uint64_t done = 0;
  bool data = false;
  for (const ImageExtent& extent : from.MapForRead(at, buffer.size())) {
    const std::span<uint8_t> part = buffer.subspan(done, extent.length);
    done += extent.length;
    if (extent.kind != ImageExtent::Kind::kData ||
        IsHole(*extent.file, extent.file_offset, extent.length)) {
      std::fill(part.begin(), part.end(), 0);
      continue;
    }
    TRY_VOID(extent.file->Read(part, extent.file_offset));
    data = true;
  }
  return data && !IsZero(buffer);
}

/// A megabyte at a time; what reads as zeroes is not written.
Result<void> CopyImage(Chain& from, Image& to, const Progress& progress) {
  constexpr uint64_t kPiece = 1u << 20;
  const uint64_t total = from.info().size_bytes;
  std::vector<uint8_t> buffer(kPiece);
  for (uint64_t at = 0; at < total; at += kPiece) {
    const uint64_t length = std::min(kPiece, total - at);
    if (TRY(ReadPiece(from, at, std::span(buffer).first(length)))) {
      uint64_t done = 0;
      for (const ImageExtent& extent : TRY(to.MapForWrite(at, length))) {
        TRY_VOID(
            extent.file->Write(std::span(buffer).subspan(done, extent.length), extent.file_offset));
        done += extent.length;
      }
      to.WriteDone(at, length);
    }
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
