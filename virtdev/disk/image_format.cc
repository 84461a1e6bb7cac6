// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/image_format.h"

#include <algorithm>
#include <filesystem>

#include "virtdev/disk/vhd/vhd_file.h"
#include "virtdev/disk/vhdx/vhdx_format.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::virtdev {
namespace {

std::string SuffixOf(const std::string& path) {
  return vmm::LowerCase(std::filesystem::path(path).extension().string());
}

/// What the content has of the two formats that a name must tell.
struct Signatures {
  bool vhdx = false, vhd = false;
};

vmm::Result<Signatures> SignaturesOf(BlockFile& file) {
  uint64_t first = 0;
  if (TRY(file.Size()) >= sizeof(first))
    TRY_VOID(file.Read({reinterpret_cast<uint8_t*>(&first), sizeof(first)}, 0));
  return Signatures{first == vhdx::kFileSignature, TRY(vhd::HasVhdFooter(file))};
}

vmm::Error WrongName(const std::string& path, const char* format, const char* suffix) {
  return vmm::MakeError(vmm::Code::kInvalidArgument,
                        "'{}' has a {} file's signature and not its name: rename it to {} if it is "
                        "one",
                        path, format, suffix);
}

vmm::Error WrongContent(const std::string& path, const char* format) {
  return vmm::MakeError(vmm::Code::kDataLoss,
                        "'{}' has the name of a {} file and not its signature: it is damaged, or "
                        "another format with a wrong name",
                        path, format);
}

}  // namespace

bool IsVhdxName(const std::string& path) {
  const std::string suffix = SuffixOf(path);
  return suffix == ".vhdx" || suffix == ".avhdx";
}

bool IsVhdName(const std::string& path) {
  const std::string suffix = SuffixOf(path);
  return suffix == ".vhd" || suffix == ".avhd";
}

std::string FormatOfName(const std::string& path) {
  if (IsVhdName(path)) return "vhd";
  const std::string suffix = SuffixOf(path);
  return suffix == ".raw" || suffix == ".img" ? "raw" : "vhdx";
}

ImageFormat FormatNamed(std::string_view name) {
  return name == "raw" ? ImageFormat::kRaw : name == "vhd" ? ImageFormat::kVhd : ImageFormat::kVhdx;
}

bool IsForeignName(const std::string& path) {
  const std::string suffix = SuffixOf(path);
  for (const char* foreign : {".qcow2", ".qcow", ".vmdk", ".vdi", ".qed"}) {
    if (suffix == foreign) return true;
  }
  return false;
}

vmm::Result<ImageFormat> FormatOf(BlockFile& file, const std::string& path) {
  if (file.is_device()) return ImageFormat::kRaw;
  const Signatures found = TRY_CTX(SignaturesOf(file), "'{}'", path);
  if (IsVhdxName(path)) {
    if (found.vhdx) return ImageFormat::kVhdx;
    return WrongContent(path, "VHDX");
  }
  if (IsVhdName(path)) {
    if (found.vhd) return ImageFormat::kVhd;
    return WrongContent(path, "VHD");
  }
  if (found.vhdx) return WrongName(path, "VHDX", ".vhdx");
  if (found.vhd) return WrongName(path, "VHD", ".vhd");
  if (IsForeignName(path))
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "'{}' is named as a format that is not used directly: make a VHDX of it "
                          "with 'vmctl disk convert'",
                          path);
  return ImageFormat::kRaw;
}

}  // namespace kvmbus::virtdev
