// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the VHDX tests share: small images on a medium in memory, read and written as a guest
/// would.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/fakes/crash_file.h"
#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhdx/vhdx_format.h"

namespace kvmbus::virtdev::vhdx_test {

using Bytes = std::vector<uint8_t>;
using tests::CrashFile;
using tests::CrashMedium;
using tests::SparseBytes;

inline constexpr uint64_t kDiskBytes = 12u << 20;
inline constexpr uint64_t kBlock = 1u << 20;
inline constexpr uint64_t kUnit = 4096;

// Where FormatVhdx puts things.
inline constexpr uint64_t kLogAt = 1u << 20;
inline constexpr uint64_t kMetadataAt = 2u << 20;
inline constexpr uint64_t kBatAt = 3u << 20;

inline CreateDiskOptions SmallDisk(bool fixed = false) {
  CreateDiskOptions options;
  options.size_bytes = kDiskBytes;
  options.block_bytes = kBlock;
  options.fixed = fixed;
  return options;
}

inline CrashMedium NewMedium(const CreateDiskOptions& options = SmallDisk()) {
  CrashMedium medium;
  CrashFile file(medium);
  const auto made = FormatVhdx(file, options, vmm::Guid::Random());
  EXPECT_TRUE(made.ok()) << made.error().ToString();
  return medium;
}

/// Everything so far is durable.
inline void Settle(CrashMedium& medium) {
  medium.durable = medium.now;
  medium.pending.clear();
}

inline vmm::Result<std::unique_ptr<Image>> TryOpen(CrashMedium& medium, bool read_only = false) {
  return OpenVhdxImage(std::make_unique<CrashFile>(medium), read_only);
}

inline std::unique_ptr<Image> Open(CrashMedium& medium, bool read_only = false) {
  auto image = TryOpen(medium, read_only);
  EXPECT_TRUE(image.ok()) << (image.ok() ? "" : image.error().ToString());
  return image.ok() ? std::move(image).value() : nullptr;
}

/// Why an open fails; "" if it does not.
inline std::string WhyNot(CrashMedium& medium, bool read_only = true) {
  const auto image = TryOpen(medium, read_only);
  return image.ok() ? "" : image.error().ToString();
}

/// What the strict check finds, a line each; notes only if asked for.
inline std::string Complaints(CrashMedium& medium, bool notes = false) {
  CrashFile file(medium);
  const auto findings = CheckVhdx(file);
  if (!findings.ok()) return findings.error().ToString();
  std::string text;
  for (const Finding& finding : *findings) {
    if (notes || finding.severity == Finding::Severity::kError) text += finding.text + "\n";
  }
  return text;
}

inline void Write(Image& image, uint64_t offset, const Bytes& bytes) {
  const uint32_t token = image.gate().Enter();
  const auto extents = image.MapForWrite(offset, bytes.size());
  ASSERT_TRUE(extents.ok()) << extents.error().ToString();
  uint64_t done = 0;
  for (const ImageExtent& extent : *extents) {
    ASSERT_TRUE(
        extent.file->Write(std::span(bytes).subspan(done, extent.length), extent.file_offset).ok());
    done += extent.length;
  }
  image.WriteDone(offset, bytes.size());
  image.gate().Leave(token);
  ASSERT_EQ(done, bytes.size());
}

inline Bytes Read(Image& image, uint64_t offset, uint64_t length) {
  Bytes bytes(length, 0xee);
  uint64_t done = 0;
  std::vector<ImageExtent> extents;
  image.MapLayer(offset, length, &extents);
  for (const ImageExtent& extent : extents) {
    const auto part = std::span(bytes).subspan(done, extent.length);
    EXPECT_NE(extent.kind, ImageExtent::Kind::kParent);
    if (extent.kind != ImageExtent::Kind::kData)
      std::fill(part.begin(), part.end(), 0);
    else
      EXPECT_TRUE(extent.file->Read(part, extent.file_offset).ok());
    done += extent.length;
  }
  EXPECT_EQ(done, length);
  return bytes;
}

inline ParentReference LinkTo(const vmm::Guid& identity) {
  return {{{ParentReference::Path::Kind::kRelative, ".\\base.vhdx"}}, {identity}};
}

/// A differencing image on one that is closed, or whose log is not empty.
inline CrashMedium NewChild(CrashMedium& parent, CreateDiskOptions options = SmallDisk()) {
  const auto below = Open(parent, true);
  options.size_bytes = below->info().size_bytes;
  options.logical_sector = below->info().logical_sector_bytes;
  const ParentReference link = LinkTo(below->identity());
  CrashMedium medium;
  CrashFile file(medium);
  const auto made = FormatVhdx(file, options, below->info().disk_id, &link);
  EXPECT_TRUE(made.ok()) << made.error().ToString();
  return medium;
}

/// Of media in memory, the top first; the others are opened to read.
inline std::unique_ptr<Chain> OpenAsChain(const std::vector<CrashMedium*>& media,
                                          bool read_only = false) {
  std::vector<std::unique_ptr<Image>> layers;
  for (CrashMedium* medium : media) layers.push_back(Open(*medium, read_only || !layers.empty()));
  return std::make_unique<Chain>(std::move(layers));
}

inline Bytes Read(Chain& chain, uint64_t offset, uint64_t length) {
  Bytes bytes(length, 0xee);
  uint64_t done = 0;
  for (const ImageExtent& extent : chain.MapForRead(offset, length)) {
    const auto part = std::span(bytes).subspan(done, extent.length);
    EXPECT_NE(extent.kind, ImageExtent::Kind::kParent);
    if (extent.kind != ImageExtent::Kind::kData)
      std::fill(part.begin(), part.end(), 0);
    else
      EXPECT_TRUE(extent.file->Read(part, extent.file_offset).ok());
    done += extent.length;
  }
  EXPECT_EQ(done, length);
  return bytes;
}

/// Changes a structure whose checksum lies at byte 4, and mends the checksum.
template <typename Change>
void Edit(CrashMedium& medium, uint64_t offset, size_t length, Change change) {
  Bytes bytes = medium.now.Read(offset, length);
  change(std::span<uint8_t>(bytes));
  vhdx::Store(bytes, 4, vhdx::StructureChecksum(bytes));
  medium.now.Write(bytes, offset);
}

template <typename Change>
void EditHeaders(CrashMedium& medium, Change change) {
  for (const uint64_t offset : vhdx::kHeaderOffset) {
    Edit(medium, offset, vhdx::kHeaderBytes, [&](std::span<uint8_t> bytes) {
      auto header = vhdx::Load<vhdx::Header>(bytes, 0);
      change(header);
      vhdx::Store(bytes, 0, header);
    });
  }
}

inline void PokeBat(CrashMedium& medium, uint64_t index, uint64_t entry) {
  Bytes bytes(8);
  vhdx::Store(bytes, 0, entry);
  medium.now.Write(bytes, kBatAt + index * 8);
}
inline uint64_t PeekBat(const CrashMedium& medium, uint64_t index) {
  return vhdx::Load<uint64_t>(medium.now.Read(kBatAt + index * 8, 8), 0);
}

}  // namespace kvmbus::virtdev::vhdx_test
