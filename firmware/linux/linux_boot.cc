// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/linux_boot.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "firmware/linux/boot_file.h"
#include "firmware/linux/bzimage.h"
#include "firmware/linux/elf_loader.h"
#include "firmware/linux/handover.h"
#include "firmware/linux/kernel_payload.h"
#include "firmware/linux/low_memory.h"
#include "firmware/linux/scratch.h"
#include "vmm/os/log.h"

namespace kvmbus::firmware {
namespace {

using vmm::BootState;
using vmm::Code;
using vmm::GuestMemory;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kLong64EntryOffset = 0x200;  // of the 64-bit entry in the protected-mode part
constexpr size_t kReadBytes = 256 << 10;

/// A kernel that stands in guest RAM.
struct LoadedKernel {
  uint64_t entry = 0;
  std::optional<uint32_t> pvh_entry;
  uint64_t end_gpa = 0;
  SetupHeader header;
};

class Loader {
 public:
  Loader(GuestMemory& memory, const vmm::MemoryLayout& layout, const LinuxBootParams& params)
      : memory_(memory), layout_(layout), params_(params) {
    if (!layout.ram.empty() && layout.ram[0].gpa == 0) ram_end_ = layout.ram[0].size;
  }

  Result<BootState> Load();

 private:
  Result<LoadedKernel> LoadKernel(const BootFile& file);
  Result<LoadedKernel> LoadElf(const BootFile& file);
  Result<LoadedKernel> LoadBzImage(const BootFile& file, const BzImage& image);
  Result<LoadedKernel> LoadPayload(const BootFile& file, const BzImage& image);
  Result<LoadedKernel> LoadUnchanged(const BootFile& file, const BzImage& image);
  Result<bool> UsePvh(const LoadedKernel& kernel, bool is_elf) const;
  Result<vmm::MemoryRange> LoadInitrd(const LoadedKernel& kernel);

  GuestMemory& memory_;
  const vmm::MemoryLayout& layout_;
  const LinuxBootParams& params_;
  uint64_t ram_end_ = 0;  // of the RAM below 4 GiB
  bool is_elf_ = false;
};

Result<BootState> Loader::Load() {
  const BootFile file = TRY(BootFile::Open("kernel", params_.kernel_path, params_.kernel_fd));
  const LoadedKernel kernel = TRY(LoadKernel(file));
  const bool pvh = TRY(UsePvh(kernel, is_elf_));
  Handover handover;
  handover.header = kernel.header;
  handover.memory_map = MakeMemoryMap(layout_);
  handover.command_line_gpa = kCommandLineGpa;
  handover.rsdp_gpa = vmm::kAcpiTablesGpa;
  TRY_VOID(WriteCommandLine(memory_, params_.command_line, kernel.header.cmdline_size()));
  if (!params_.initrd_path.empty() || params_.initrd_fd >= 0) {
    const vmm::MemoryRange initrd = TRY(LoadInitrd(kernel));
    handover.initrd_gpa = initrd.gpa;
    handover.initrd_bytes = initrd.size;
  }
  BootState boot;
  if (pvh) {
    TRY_VOID(WriteProcessorTables(memory_, BootState::Mode::kProtected32, &boot));
    TRY_VOID(WritePvhStartInfo(memory_, handover));
    boot.rip = *kernel.pvh_entry;
    boot.rbx = kPvhStartInfoGpa;
  } else {
    TRY_VOID(WriteProcessorTables(memory_, BootState::Mode::kLong64, &boot));
    TRY_VOID(WriteBootParams(memory_, handover));
    boot.rip = kernel.entry;
    boot.rsi = kBootParamsGpa;
  }
  return boot;
}

Result<LoadedKernel> Loader::LoadKernel(const BootFile& file) {
  std::array<uint8_t, setup::kEnd> bytes;
  const auto head = std::span<uint8_t>(bytes).first(std::min<uint64_t>(bytes.size(), file.size()));
  TRY_VOID(file.Read(head, 0));
  is_elf_ = IsElf(head);
  if (is_elf_) return LoadElf(file);
  if (IsBzImage(head)) return LoadBzImage(file, TRY(ParseBzImage(head, file.size(), file.name())));
  return MakeError(Code::kInvalidArgument, "{} is neither a bzImage nor an ELF file", file.name());
}

LoadedKernel FromElf(const ElfLoader::Kernel& elf) {
  LoadedKernel kernel;
  kernel.entry = elf.entry;
  kernel.pvh_entry = elf.pvh_entry;
  kernel.end_gpa = elf.end_gpa;
  return kernel;
}

Result<LoadedKernel> Loader::LoadElf(const BootFile& file) {
  ElfLoader loader(memory_, file.size(), ram_end_, file.name());
  const Scratch buffer(kReadBytes);
  for (uint64_t at = 0; at < file.size() && !loader.done();) {
    const auto piece = buffer.bytes().first(std::min<uint64_t>(kReadBytes, file.size() - at));
    TRY_VOID(file.Read(piece, at));
    TRY_VOID(loader.Consume(piece));
    at += piece.size();
  }
  return FromElf(TRY(loader.Finish()));
}

Result<LoadedKernel> Loader::LoadBzImage(const BootFile& file, const BzImage& image) {
  const bool must = params_.prefer == LinuxEntry::kPvh;
  if (params_.decompress_on_host || must) {
    auto kernel = LoadPayload(file, image);
    if (kernel.ok() || must) return kernel;
    spdlog::info("{}; the guest decompresses it itself", kernel.error().ToString());
  }
  return LoadUnchanged(file, image);
}

Result<LoadedKernel> Loader::LoadPayload(const BootFile& file, const BzImage& image) {
  const Payload payload =
      TRY(OpenPayload(file, image.payload_offset, image.payload_length, ram_end_));
  ElfLoader loader(memory_, payload.output_bytes, ram_end_, file.name());
  TRY_VOID(Decompress(file, payload,
                      [&loader](std::span<const uint8_t> piece) { return loader.Consume(piece); }));
  LoadedKernel kernel = FromElf(TRY(loader.Finish()));
  kernel.header = SetupHeader(image);
  return kernel;
}

Result<LoadedKernel> Loader::LoadUnchanged(const BootFile& file, const BzImage& image) {
  const uint64_t size = std::max<uint64_t>(image.init_size, image.kernel_bytes);
  if (image.pref_address > ram_end_ || size > ram_end_ - image.pref_address)
    return MakeError(Code::kResourceExhausted,
                     "{}: init_size {:#x} at pref_address {:#x} goes beyond the RAM's end {:#x}; "
                     "give the VM more memory",
                     file.name(), size, image.pref_address, ram_end_);
  // Also when relocatable: below its preferred address such a kernel would move itself there.
  TRY_VOID(
      file.ReadIntoGuest(memory_, image.pref_address, image.kernel_bytes, image.kernel_offset));
  LoadedKernel kernel;
  kernel.entry = image.pref_address + kLong64EntryOffset;
  kernel.end_gpa = image.pref_address + size;
  kernel.header = SetupHeader(image);
  return kernel;
}

Result<bool> Loader::UsePvh(const LoadedKernel& kernel, bool is_elf) const {
  if (params_.prefer == LinuxEntry::kPvh && !kernel.pvh_entry)
    return MakeError(Code::kInvalidArgument,
                     "kernel '{}' has no PVH entry; use one built with CONFIG_PVH, or the 64-bit "
                     "entry",
                     params_.kernel_path);
  if (params_.prefer == LinuxEntry::kAuto) return is_elf && kernel.pvh_entry.has_value();
  return params_.prefer == LinuxEntry::kPvh;
}

Result<vmm::MemoryRange> Loader::LoadInitrd(const LoadedKernel& kernel) {
  const BootFile file = TRY(BootFile::Open("initrd", params_.initrd_path, params_.initrd_fd));
  const uint64_t limit = std::min(ram_end_, uint64_t{kernel.header.initrd_addr_max()} + 1);
  if (kernel.end_gpa > limit || file.size() > limit - kernel.end_gpa)
    return MakeError(Code::kInvalidArgument,
                     "{} does not fit: {} bytes between the kernel's end {:#x} and {:#x}; give the "
                     "VM more memory",
                     file.name(), file.size(), kernel.end_gpa, limit);
  const uint64_t gpa = (limit - file.size()) & ~(vmm::kPageSize - 1);
  if (gpa < kernel.end_gpa)
    return MakeError(Code::kResourceExhausted,
                     "{} does not fit above the kernel's end {:#x}; give the VM more memory",
                     file.name(), kernel.end_gpa);
  if (file.size() != 0) TRY_VOID(file.ReadIntoGuest(memory_, gpa, file.size(), 0));
  return vmm::MemoryRange{gpa, file.size()};
}

}  // namespace

Result<BootState> LoadLinux(GuestMemory& memory, const vmm::MemoryLayout& layout,
                            const LinuxBootParams& params) {
  return Loader(memory, layout, params).Load();
}

}  // namespace kvmbus::firmware
