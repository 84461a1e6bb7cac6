// SPDX-License-Identifier: Apache-2.0
// VHDX images made of the fuzzer's bytes: a sound image, dynamic or differencing, with the input
// laid over its structures. Checksums are mended every other time, so that what lies behind them is
// reached. Opened to read, checked, opened to write with whatever replay it asks for.
#include <algorithm>
#include <cstring>
#include <set>

#include "tests/fakes/crash_file.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhdx/vhdx_format.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

using tests::CrashFile;
using tests::CrashMedium;
using tests::SparseBytes;

/// Where inputs land: headers, region tables, log, metadata, BAT, and of a differencing image the
/// parent locator, the BAT entry of the sector bitmap and what that says.
constexpr uint64_t kBitmapAt = 4u << 20;
constexpr uint64_t kTargets[] = {64 << 10,
                                 128 << 10,
                                 192 << 10,
                                 256 << 10,
                                 1 << 20,
                                 2 << 20,
                                 (2 << 20) + (64 << 10),
                                 3 << 20,
                                 (2 << 20) + (64 << 10) + 40,
                                 (3 << 20) + 4096 * 8,
                                 kBitmapAt};

/// Its log is not empty. Copies share its sectors: what an input does not change costs little.
SparseBytes MakeSoundImage(bool differencing) {
  spdlog::set_level(spdlog::level::off);
  CrashMedium medium;
  CrashFile file(medium);
  CreateDiskOptions options;
  options.size_bytes = 4u << 20;
  options.block_bytes = 1u << 20;
  ParentReference parent;
  parent.linkage = {vhdx::kVhdxParentLocator};
  parent.paths = {{ParentReference::Path::Kind::kRelative, ".\\base.vhdx"}};
  KVMBUS_ASSERT(FormatVhdx(file, options, {}, differencing ? &parent : nullptr).ok());
  auto image = OpenVhdxImage(std::make_unique<CrashFile>(medium), false);
  KVMBUS_ASSERT(image.ok() && (*image)->MapForWrite(0, 4096).ok());
  (*image)->WriteDone(0, 4096);
  KVMBUS_ASSERT((*image)->Flush().ok());
  SparseBytes content;
  content.Resize(medium.now.size());
  for (uint64_t sector = 0; sector * SparseBytes::kSector < medium.now.size(); ++sector) {
    const auto bytes = medium.now.Get(sector);
    if (bytes && std::any_of(bytes->begin(), bytes->end(), [](uint8_t byte) { return byte != 0; }))
      content.Set(sector, bytes, 0);
  }
  return content;
}

const SparseBytes& SoundImage(bool differencing) {
  static const SparseBytes images[2] = {MakeSoundImage(false), MakeSoundImage(true)};
  return images[differencing];
}

void Mend(SparseBytes& image, uint64_t offset, size_t size) {
  std::vector<uint8_t> bytes = image.Read(offset, size);
  vhdx::Store(bytes, 4, vhdx::StructureChecksum(bytes));
  image.Write(std::span(bytes).first(8), offset);
}

/// Of the structures that were touched.
void MendChecksums(SparseBytes& image, const std::set<uint64_t>& targets) {
  for (const uint64_t header : {64 << 10, 128 << 10}) {
    if (targets.count(header) != 0) Mend(image, header, 4096);
  }
  for (const uint64_t table : {192 << 10, 256 << 10}) {
    if (targets.count(table) != 0) Mend(image, table, 64 << 10);
  }
  constexpr uint64_t kLog = 1 << 20, kTouched = 8 * vhdx::kLogSector;
  if (targets.count(kLog) == 0) return;
  for (uint64_t at = kLog; at < kLog + kTouched; at += vhdx::kLogSector) {
    const auto entry =
        vhdx::Load<vhdx::LogEntryHeader>(image.Read(at, sizeof(vhdx::LogEntryHeader)), 0);
    if (entry.signature == vhdx::kLogEntrySignature && entry.entry_length >= 64 &&
        entry.entry_length <= kLog + kLog - at)
      Mend(image, at, entry.entry_length);
  }
}

/// Reads as a guest would, as far as that is cheap.
void UseImage(Image& image, bool read_only) {
  const uint64_t length = std::min<uint64_t>(image.info().size_bytes, 8u << 20);
  std::vector<ImageExtent> extents;
  image.MapLayer(0, length, &extents);
  uint64_t mapped = 0;
  for (const ImageExtent& extent : extents) mapped += extent.length;
  KVMBUS_ASSERT(mapped == length);
  if (read_only) return;
  const uint64_t sector = image.info().logical_sector_bytes;
  const uint64_t some = std::min<uint64_t>(length, 8 * sector);
  if (image.MapForWrite(0, some).ok()) image.WriteDone(0, some);
  (void)image.WriteZeroes(length - some, some);
  (void)image.Unmap(0, length);
  (void)image.Close();
}

}  // namespace
}  // namespace kvmbus::virtdev

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus::virtdev;
  if (size < 4) return 0;
  const bool mend = data[0] & 1, truncate = data[0] & 2, differencing = data[0] & 4;
  SparseBytes content = SoundImage(differencing);
  std::set<uint64_t> targets;
  size_t at = 1;
  while (at + 4 <= size) {  // target, offset, length, bytes
    const uint64_t target = kTargets[data[at] % std::size(kTargets)];
    const uint64_t offset = target + (data[at + 1] | (data[at + 2] & 15u) << 8);
    const size_t length = std::min<size_t>(data[at + 3], size - at - 4);
    if (offset + length > content.size()) break;
    content.Write({data + at + 4, length}, offset);
    targets.insert(target);
    at += 4 + length;
  }
  if (mend) MendChecksums(content, targets);
  if (truncate) content.Resize(content.size() / 256 * data[1]);
  CrashMedium medium(content);
  {
    CrashFile file(medium);
    (void)CheckVhdx(file);
  }
  for (const bool read_only : {true, false}) {
    auto image = OpenVhdxImage(std::make_unique<CrashFile>(medium), read_only);
    if (image.ok()) UseImage(**image, read_only);
  }
  return 0;
}
