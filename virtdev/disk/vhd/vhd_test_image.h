// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the VHD tests share: small images on a medium in memory, alone or over a parent's content.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/fakes/crash_file.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhd/vhd_create.h"
#include "virtdev/disk/vhd/vhd_format.h"

namespace kvmbus::virtdev::vhd_test {

using Bytes = std::vector<uint8_t>;
using tests::CrashFile;
using tests::CrashMedium;
using tests::SparseBytes;

inline constexpr uint64_t kDiskBytes = 4u << 20;
inline constexpr uint64_t kBlock = 512u << 10;
inline constexpr uint64_t kUnit = 4096;
inline constexpr uint64_t kBatAt = vhd::kTableOffset;

enum class Kind { kFixed, kDynamic, kDifferencing };

inline VhdParent SomeParent(uint64_t bytes = kDiskBytes) {
  VhdParent parent;
  parent.identity = vmm::MakeGuid("57164f39-9115-4e78-ab55-382f3bd5422d");
  parent.size_bytes = bytes;
  parent.modified = 1600000000;
  parent.relative_path = ".\\base.vhd";
  parent.absolute_path = "C:\\vm\\base.vhd";
  return parent;
}

inline CrashMedium NewMedium(Kind kind = Kind::kDynamic, uint64_t bytes = kDiskBytes,
                             uint32_t block = kBlock) {
  CrashMedium medium;
  CrashFile file(medium);
  CreateDiskOptions options;
  options.size_bytes = bytes;
  options.block_bytes = block;
  options.fixed = kind == Kind::kFixed;
  const auto made = kind == Kind::kDifferencing ? FormatVhdChild(file, SomeParent(bytes))
                                                : FormatVhd(file, options, vmm::Guid::Random());
  EXPECT_TRUE(made.ok()) << made.error().ToString();
  return medium;
}

inline vmm::Result<std::unique_ptr<Image>> TryOpen(CrashMedium& medium, bool read_only = false) {
  return OpenVhdImage(std::make_unique<CrashFile>(medium), read_only);
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

/// What the strict check finds, a line each; notes only if asked for, and never that a parent is
/// not looked at.
inline std::string Complaints(CrashMedium& medium, bool notes = false) {
  CrashFile file(medium);
  const auto findings = CheckVhd(file);
  if (!findings.ok()) return findings.error().ToString();
  std::string text;
  for (const Finding& finding : *findings) {
    const bool error = finding.severity == Finding::Severity::kError;
    if (error || (notes && finding.text.find("its parent is not checked") == std::string::npos))
      text += finding.text + "\n";
  }
  return text;
}

inline void Write(Image& image, uint64_t offset, const Bytes& bytes) {
  const auto extents = image.MapForWrite(offset, bytes.size());
  ASSERT_TRUE(extents.ok()) << extents.error().ToString();
  uint64_t done = 0;
  for (const ImageExtent& extent : *extents) {
    ASSERT_TRUE(
        extent.file->Write(std::span(bytes).subspan(done, extent.length), extent.file_offset).ok());
    done += extent.length;
  }
  image.WriteDone(offset, bytes.size());
  ASSERT_EQ(done, bytes.size());
}

/// `parent`: the whole disk as the layer below has it.
inline Bytes Read(Image& image, uint64_t offset, uint64_t length, const Bytes* parent = nullptr) {
  Bytes bytes(length, 0xee);
  uint64_t done = 0;
  std::vector<ImageExtent> extents;
  image.MapLayer(offset, length, &extents);
  for (const ImageExtent& extent : extents) {
    const auto part = std::span(bytes).subspan(done, extent.length);
    if (extent.kind == ImageExtent::Kind::kData) {
      EXPECT_TRUE(extent.file->Read(part, extent.file_offset).ok());
    } else if (extent.kind == ImageExtent::Kind::kZero) {
      EXPECT_EQ(parent, nullptr);
      std::fill(part.begin(), part.end(), 0);
    } else {
      EXPECT_NE(parent, nullptr);
      if (parent != nullptr) std::copy_n(parent->data() + offset + done, part.size(), part.data());
    }
    done += extent.length;
  }
  EXPECT_EQ(done, length);
  return bytes;
}

/// True if this layer has the sector.
inline bool IsHere(Image& image, uint64_t offset) {
  std::vector<ImageExtent> extents;
  image.MapLayer(offset, vhd::kSector, &extents);
  return extents.at(0).kind == ImageExtent::Kind::kData;
}

template <typename T>
T Peek(const CrashMedium& medium, uint64_t offset) {
  T structure;
  const Bytes bytes = medium.now.Read(offset, sizeof(T));
  std::copy(bytes.begin(), bytes.end(), vhd::BytesOf(structure).begin());
  return structure;
}
template <typename T>
void Poke(CrashMedium& medium, uint64_t offset, const T& structure) {
  medium.now.Write(vhd::BytesOf(structure), offset);
}
inline void PokeBat(CrashMedium& medium, uint64_t index, uint32_t sector) {
  Poke(medium, kBatAt + index * 4, vhd::Be32(sector));
}
inline uint32_t PeekBat(const CrashMedium& medium, uint64_t index) {
  return Peek<vhd::Be32>(medium, kBatAt + index * 4);
}

/// Changes a structure and mends its checksum.
template <typename T, typename Change>
void Edit(CrashMedium& medium, uint64_t offset, Change change) {
  T structure = Peek<T>(medium, offset);
  change(structure);
  structure.checksum = vhd::ChecksumOf(structure);
  Poke(medium, offset, structure);
}
inline uint64_t EndFooterAt(const CrashMedium& medium) {
  return medium.now.size() - vhd::kFooterBytes;
}
/// Both footers of a dynamic or differencing image.
template <typename Change>
void EditFooters(CrashMedium& medium, Change change) {
  Edit<vhd::Footer>(medium, 0, change);
  Edit<vhd::Footer>(medium, EndFooterAt(medium), change);
}
template <typename Change>
void EditHeader(CrashMedium& medium, Change change) {
  Edit<vhd::DynamicHeader>(medium, vhd::kHeaderOffset, change);
}

}  // namespace kvmbus::virtdev::vhd_test
