// SPDX-License-Identifier: Apache-2.0
/// \file
/// BorrowedFile: a BlockFile that somebody else owns and has locked.
#pragma once

#include "virtdev/disk/block_file.h"

namespace kvmbus::virtdev {

class BorrowedFile final : public BlockFile {
 public:
  explicit BorrowedFile(BlockFile& file) : file_(file) {}
  vmm::Result<uint64_t> Size() override { return file_.Size(); }
  vmm::Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) override {
    return file_.Read(buffer, offset);
  }
  vmm::Result<void> Write(std::span<const uint8_t> buffer, uint64_t offset) override {
    return file_.Write(buffer, offset);
  }
  vmm::Result<void> Flush() override { return file_.Flush(); }
  vmm::Result<void> Resize(uint64_t bytes) override { return file_.Resize(bytes); }
  vmm::Result<void> Zero(uint64_t offset, uint64_t length, bool keep_space) override {
    return file_.Zero(offset, length, keep_space);
  }

 private:
  BlockFile& file_;
};

}  // namespace kvmbus::virtdev
