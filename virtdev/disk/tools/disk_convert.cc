// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/tools/image_copy.h"
#include "virtdev/disk/tools/new_file.h"
#include "virtdev/disk/tools/qemu_img.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Result;

/// A raw file between another program's format and ours; gone with the object.
struct TemporaryFile {
  std::string path;
  ~TemporaryFile() { ::unlink(path.c_str()); }
};

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
  auto to = TRY(OpenImageFile(std::make_unique<BorrowedFile>(file.file()),
                              FormatNamed(options.format), false));
  TRY_VOID_CTX(CopyDisk(*from, *to, progress), "converting '{}'", source);
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
