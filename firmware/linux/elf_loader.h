// SPDX-License-Identifier: Apache-2.0
/// \file
/// ElfLoader: puts an x86-64 ELF kernel into guest RAM while its bytes come by in order, so that a
/// decompressor can feed it and nothing is kept beside the headers and the notes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmm/memory/guest_memory.h"

namespace kvmbus::firmware {

class ElfLoader {
 public:
  struct Kernel {
    uint64_t entry = 0;                 ///< 64-bit entry, physical
    std::optional<uint32_t> pvh_entry;  ///< 32-bit entry of the PVH note
    uint64_t end_gpa = 0;               ///< after the highest byte that the kernel occupies
  };

  /// `file_bytes` is the whole ELF file's length; no byte is placed below 1 MiB or at or after
  /// `ram_end`. `name` starts every message.
  ElfLoader(vmm::GuestMemory& memory, uint64_t file_bytes, uint64_t ram_end, std::string name);

  /// The next bytes of the file.
  vmm::Result<void> Consume(std::span<const uint8_t> piece);
  /// True once no later byte of the file matters.
  bool done() const { return parsed_ && position_ >= needed_bytes_; }
  vmm::Result<Kernel> Finish();

 private:
  struct Segment {
    uint64_t file_offset;
    uint64_t file_bytes;
    uint64_t gpa;
    uint64_t memory_bytes;
  };
  struct Note {
    uint64_t file_offset;
    std::vector<uint8_t> bytes;
  };

  vmm::Result<void> ParseHeaders();
  vmm::Result<void> AddSegment(std::span<const uint8_t> header);
  vmm::Result<void> AddNote(std::span<const uint8_t> header);
  vmm::Result<void> CheckOverlap() const;
  vmm::Result<void> Place(std::span<const uint8_t> piece, uint64_t offset);
  bool InSegment(uint64_t gpa) const;
  std::optional<uint32_t> FindPvhEntry() const;

  vmm::GuestMemory& memory_;
  const uint64_t file_bytes_;
  const uint64_t ram_end_;
  const std::string name_;
  std::vector<uint8_t> head_;  ///< the first bytes, until the headers are parsed
  bool parsed_ = false;
  uint64_t position_ = 0;
  uint64_t needed_bytes_ = 0;
  uint64_t entry_ = 0;
  std::vector<Segment> segments_;
  std::vector<Note> notes_;
};

/// True if the file says that it is an ELF file; `head` may be short.
bool IsElf(std::span<const uint8_t> head);

}  // namespace kvmbus::firmware
