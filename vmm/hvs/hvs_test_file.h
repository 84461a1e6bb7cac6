// SPDX-License-Identifier: Apache-2.0
/// \file
/// For the tests of containers: files in memory, and changes of them that keep checksums right.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "vmm/hvs/hvs_check.h"
#include "vmm/hvs/hvs_format.h"
#include "vmm/hvs/hvs_reader.h"
#include "vmm/hvs/hvs_writer.h"
#include "vmm/os/fd.h"

namespace kvmbus::vmm {

inline Key Leaf(std::string name, Key::Value value) {
  return {std::move(name), std::move(value), {}};
}
inline Key Node(std::string name, std::vector<Key> children) {
  return {std::move(name), {}, std::move(children)};
}

class HvsTestFile {
 public:
  HvsTestFile() : fd_(::memfd_create("hvs", MFD_CLOEXEC)) {}
  explicit HvsTestFile(const Key& root) : HvsTestFile() {
    const auto written = HvsWriter(fd()).Finish(root);
    EXPECT_TRUE(written.ok()) << written.error().ToString();
  }

  int fd() const { return fd_.get(); }
  uint64_t size() const { return static_cast<uint64_t>(::lseek(fd(), 0, SEEK_END)); }
  std::string Get(uint64_t offset, size_t bytes) const {
    std::string content(bytes, '\0');
    EXPECT_EQ(::pread(fd(), content.data(), bytes, static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes));
    return content;
  }
  void Put(uint64_t offset, std::string_view bytes) {
    EXPECT_EQ(::pwrite(fd(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
  }
  template <typename T>
  T Read(uint64_t offset) const {
    return hvs::Load<T>(Get(offset, sizeof(T)), 0);
  }
  template <typename T>
  void Write(uint64_t offset, const T& value) {
    Put(offset, hvs::BytesOf(value));
  }
  /// Changes a structure and makes its checksum right again.
  template <typename T, typename Change>
  void Edit(uint64_t offset, Change change) {
    T structure = Read<T>(offset);
    change(structure);
    structure.checksum = hvs::ChecksumOf(structure);
    Write(offset, structure);
  }
  /// A key's entry, whose checksum covers `covered` bytes.
  template <typename Change>
  void EditKey(uint64_t offset, size_t covered, Change change) {
    auto entry = Read<hvs::KeyEntry>(offset);
    change(entry);
    entry.checksum = 0;
    Write(offset, entry);
    entry.checksum = hvs::Crc32(Get(offset, covered));
    Write(offset, entry);
  }

  uint64_t ObjectEntryAt(uint32_t index) const {
    return hvs::kRootTableOffset + sizeof(hvs::ObjectTableHeader) +
           index * sizeof(hvs::ObjectEntry);
  }
  /// Where the first key table's first entry is; tables come first in the object table.
  uint64_t FirstKey() const {
    return Read<hvs::ObjectEntry>(ObjectEntryAt(0)).offset + sizeof(hvs::KeyTableHeader);
  }

  Result<HvsReader> Open(const HvsReader::Limits& limits = {}) const {
    return HvsReader::Open(fd(), limits);
  }
  /// What the reader says, or "" if it takes the file.
  std::string Refusal() const {
    const auto reader = Open();
    if (reader.ok()) return "";
    EXPECT_EQ(reader.error().ToString().find('\n'), std::string::npos);
    return reader.error().ToString();
  }
  std::string Findings() const {
    std::string all;
    for (const std::string& finding : CheckHvs(fd())) all += finding + "\n";
    return all;
  }

 private:
  Fd fd_;
};

}  // namespace kvmbus::vmm
