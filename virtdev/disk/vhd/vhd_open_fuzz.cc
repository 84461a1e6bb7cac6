// SPDX-License-Identifier: Apache-2.0
// VHD images made of the fuzzer's bytes: a sound one of each kind, with the input laid over its
// structures. Checksums are mended every other time, so that what lies behind them is reached.
// Opened to read, checked, opened to write; what opens must be sound afterwards.
#include <cstring>

#include "virtdev/disk/image.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhd/vhd_create.h"
#include "virtdev/disk/vhd/vhd_format.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Result;
using Bytes = std::vector<uint8_t>;

/// A small file in memory. A vector's growth is what limits the speed, so that it grows little.
class MemoryFile final : public BlockFile {
 public:
  static constexpr uint64_t kMaxBytes = 1u << 20;

  explicit MemoryFile(Bytes* bytes) : bytes_(*bytes) {}
  Result<uint64_t> Size() override { return bytes_.size(); }
  Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) override {
    if (offset > bytes_.size() || buffer.size() > bytes_.size() - offset)
      return vmm::Error(vmm::Code::kOutOfRange, "reading past the end of the file");
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), buffer.size(), buffer.begin());
    return {};
  }
  Result<void> Write(std::span<const uint8_t> buffer, uint64_t offset) override {
    if (offset > kMaxBytes || buffer.size() > kMaxBytes - offset)
      return vmm::Error(vmm::Code::kResourceExhausted, "the file is full");
    if (bytes_.size() < offset + buffer.size()) bytes_.resize(offset + buffer.size());
    std::ranges::copy(buffer, bytes_.begin() + static_cast<ptrdiff_t>(offset));
    return {};
  }
  Result<void> Flush() override { return {}; }
  Result<void> Resize(uint64_t bytes) override {
    if (bytes > kMaxBytes) return vmm::Error(vmm::Code::kResourceExhausted, "the file is full");
    bytes_.resize(bytes);
    return {};
  }
  Result<void> Zero(uint64_t offset, uint64_t length, bool) override {
    const uint64_t end = std::min<uint64_t>(bytes_.size(), offset + length);
    if (offset < end)
      std::fill(bytes_.begin() + static_cast<ptrdiff_t>(offset),
                bytes_.begin() + static_cast<ptrdiff_t>(end), 0);
    return {};
  }

 private:
  Bytes& bytes_;
};

constexpr uint64_t kDiskBytes = 512u << 10;

/// Fixed, dynamic with a block of 64 KiB (the least, for speed), differencing.
Bytes SoundImage(int kind) {
  Bytes bytes;
  MemoryFile file(&bytes);
  CreateDiskOptions options;
  options.size_bytes = kind == 0 ? 64u << 10 : kDiskBytes;
  options.fixed = kind == 0;
  VhdParent parent;
  parent.size_bytes = kDiskBytes;
  parent.relative_path = ".\\base.vhd";
  parent.absolute_path = "C:\\base.vhd";
  const auto made = kind == 2 ? FormatVhdChild(file, parent) : FormatVhd(file, options, {});
  KVMBUS_ASSERT(made.ok());
  if (kind == 0) return bytes;
  vhd::DynamicHeader header;
  std::memcpy(&header, bytes.data() + vhd::kHeaderOffset, sizeof(header));
  header.block_size = vhd::kMinBlockBytes;
  header.max_table_entries = kDiskBytes / vhd::kMinBlockBytes;
  header.checksum = vhd::ChecksumOf(header);
  std::memcpy(bytes.data() + vhd::kHeaderOffset, &header, sizeof(header));
  auto image = OpenVhdImage(std::make_unique<MemoryFile>(&bytes), false);
  KVMBUS_ASSERT(image.ok() && (*image)->MapForWrite(70000 / 512 * 512, 4096).ok());
  (*image)->WriteDone(70000 / 512 * 512, 4096);
  KVMBUS_ASSERT((*image)->Close().ok());
  return bytes;
}

template <typename T>
void Mend(Bytes& bytes, uint64_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) return;
  T structure;
  std::memcpy(static_cast<void*>(&structure), bytes.data() + offset, sizeof(T));
  structure.checksum = vhd::ChecksumOf(structure);
  std::memcpy(bytes.data() + offset, &structure, sizeof(T));
}

bool HasErrors(Bytes& bytes) {
  MemoryFile file(&bytes);
  const auto findings = CheckVhd(file);
  if (!findings.ok()) return true;
  for (const Finding& finding : *findings)
    if (finding.severity == Finding::Severity::kError) return true;
  return false;
}

void Use(Bytes& bytes) {
  (void)HasErrors(bytes);
  for (const bool read_only : {true, false}) {
    auto image = OpenVhdImage(std::make_unique<MemoryFile>(&bytes), read_only);
    if (!image.ok()) return;
    const uint64_t length = std::min<uint64_t>((*image)->info().size_bytes, 1u << 20);
    std::vector<ImageExtent> extents;
    (*image)->MapLayer(0, length, &extents);
    uint64_t mapped = 0;
    for (const ImageExtent& extent : extents) mapped += extent.length;
    KVMBUS_ASSERT(mapped == length);
    if (read_only) continue;
    if ((*image)->MapForWrite(length - 512, 512).ok()) (*image)->WriteDone(length - 512, 512);
    (void)(*image)->WriteZeroes(0, 512);
    (void)(*image)->Unmap(0, length);
    if (!(*image)->Close().ok()) return;
  }
  KVMBUS_ASSERT(OpenVhdImage(std::make_unique<MemoryFile>(&bytes), true).ok());
}

}  // namespace
}  // namespace kvmbus::virtdev

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus::virtdev;
  static const Bytes images[] = {SoundImage(0), SoundImage(1), SoundImage(2)};
  if (size < 4) return 0;
  Bytes bytes = images[data[0] % 3];
  const bool mend = data[0] & 0x80, truncate = data[0] & 0x40;
  size_t at = 2;
  while (at + 4 <= size) {  // target, offset, length, bytes
    // The footer at the end, or what the image begins with: copy, header, BAT, locators.
    const uint64_t target = data[at] & 1 ? bytes.size() - vhd::kFooterBytes : 0;
    const uint64_t offset = target + (data[at + 1] | (data[at + 2] & 15u) << 8);
    const size_t length = std::min<size_t>(data[at + 3], size - at - 4);
    if (offset + length > bytes.size()) break;
    std::memcpy(bytes.data() + offset, data + at + 4, length);
    at += 4 + length;
  }
  if (mend) {
    Mend<vhd::Footer>(bytes, 0);
    Mend<vhd::DynamicHeader>(bytes, vhd::kHeaderOffset);
    Mend<vhd::Footer>(bytes, bytes.size() - vhd::kFooterBytes);
  }
  if (truncate) bytes.resize(bytes.size() * data[1] / 256);
  Use(bytes);
  return 0;
}
