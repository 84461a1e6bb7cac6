// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/elf_loader.h"

#include <elf.h>

#include <algorithm>
#include <cstring>

#include "firmware/linux/little_endian.h"

namespace kvmbus::firmware {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

constexpr size_t kHeadBytes = 4096;  // the headers of every kernel seen end below 1 KiB
constexpr size_t kMaxSegments = 32;
constexpr size_t kMaxNotes = 8;
constexpr uint64_t kMaxNoteBytes = 64 << 10;
constexpr uint64_t kLowestAddress = 1u << 20;
constexpr uint32_t kXenPhys32Entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY

template <typename T>
T LoadObject(std::span<const uint8_t> bytes, size_t offset) {
  KVMBUS_ASSERT(offset <= bytes.size() && sizeof(T) <= bytes.size() - offset);
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

bool Inside(uint64_t offset, uint64_t size, uint64_t limit) {
  return offset <= limit && size <= limit - offset;
}

/// The 32-bit entry in one PT_NOTE's bytes.
std::optional<uint32_t> FindEntryInNotes(std::span<const uint8_t> notes) {
  constexpr auto align4 = [](uint64_t size) { return (size + 3) & ~uint64_t{3}; };
  uint64_t at = 0;
  while (Inside(at, sizeof(Elf64_Nhdr), notes.size())) {
    const auto note = LoadObject<Elf64_Nhdr>(notes, at);
    at += sizeof(Elf64_Nhdr);
    const uint64_t name_at = at;
    const uint64_t value_at = name_at + align4(note.n_namesz);
    at = value_at + align4(note.n_descsz);
    if (!Inside(name_at, note.n_namesz, notes.size()) ||
        !Inside(value_at, note.n_descsz, notes.size()))
      return std::nullopt;
    const bool xen = note.n_namesz == 4 && std::memcmp(notes.data() + name_at, "Xen", 4) == 0;
    if (!xen || note.n_type != kXenPhys32Entry) continue;
    if (note.n_descsz == 4) return LoadField<uint32_t>(notes, value_at);
    if (note.n_descsz != 8) return std::nullopt;
    const auto entry = LoadField<uint64_t>(notes, value_at);
    if (entry >> 32 != 0) return std::nullopt;
    return static_cast<uint32_t>(entry);
  }
  return std::nullopt;
}

}  // namespace

bool IsElf(std::span<const uint8_t> head) {
  return head.size() >= SELFMAG && std::memcmp(head.data(), ELFMAG, SELFMAG) == 0;
}

ElfLoader::ElfLoader(vmm::GuestMemory& memory, uint64_t file_bytes, uint64_t ram_end,
                     std::string name)
    : memory_(memory), file_bytes_(file_bytes), ram_end_(ram_end), name_(std::move(name)) {}

Result<void> ElfLoader::Consume(std::span<const uint8_t> piece) {
  if (piece.size() > file_bytes_ - position_)
    return MakeError(Code::kDataLoss, "{} is longer than the {} bytes that it promises", name_,
                     file_bytes_);
  const uint64_t offset = position_;
  position_ += piece.size();
  if (parsed_) return Place(piece, offset);
  const size_t head_bytes = std::min<uint64_t>(kHeadBytes, file_bytes_);
  const size_t taken = std::min(head_bytes - head_.size(), piece.size());
  head_.insert(head_.end(), piece.begin(), piece.begin() + taken);
  if (head_.size() < head_bytes) return {};
  TRY_VOID(ParseHeaders());
  parsed_ = true;
  TRY_VOID(Place(head_, 0));
  head_ = {};
  return Place(piece.subspan(taken), offset + taken);
}

Result<void> ElfLoader::ParseHeaders() {
  if (head_.size() < sizeof(Elf64_Ehdr))
    return MakeError(Code::kDataLoss, "{} is truncated within its ELF header", name_);
  const auto header = LoadObject<Elf64_Ehdr>(head_, 0);
  if (!IsElf(head_) || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_machine != EM_X86_64 ||
      header.e_type != ET_EXEC)
    return MakeError(Code::kInvalidArgument, "{} is no executable ELF file for x86-64", name_);
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
      header.e_phnum > kMaxSegments)
    return MakeError(Code::kInvalidArgument,
                     "{}: e_phnum {} and e_phentsize {} are not 1 to {} headers of {} bytes", name_,
                     header.e_phnum, header.e_phentsize, kMaxSegments, sizeof(Elf64_Phdr));
  if (!Inside(header.e_phoff, header.e_phnum * sizeof(Elf64_Phdr), head_.size()))
    return MakeError(Code::kInvalidArgument,
                     "{}: e_phoff {:#x}: the program headers are not within the first {} bytes",
                     name_, header.e_phoff, head_.size());
  for (size_t i = 0; i < header.e_phnum; ++i) {
    const auto bytes = std::span<const uint8_t>(head_).subspan(
        header.e_phoff + i * sizeof(Elf64_Phdr), sizeof(Elf64_Phdr));
    const auto type = LoadObject<Elf64_Phdr>(bytes, 0).p_type;
    if (type == PT_LOAD) TRY_VOID(AddSegment(bytes));
    if (type == PT_NOTE) TRY_VOID(AddNote(bytes));
  }
  TRY_VOID(CheckOverlap());
  entry_ = header.e_entry;
  if (!InSegment(entry_))
    return MakeError(Code::kInvalidArgument, "{}: e_entry {:#x} is in no loaded segment", name_,
                     entry_);
  return {};
}

Result<void> ElfLoader::AddSegment(std::span<const uint8_t> header) {
  const auto program = LoadObject<Elf64_Phdr>(header, 0);
  if (program.p_memsz == 0) return {};
  if (!Inside(program.p_offset, program.p_filesz, file_bytes_))
    return MakeError(
        Code::kDataLoss,
        "{} is truncated: p_offset {:#x} and p_filesz {:#x} of a segment, file has {:#x}", name_,
        program.p_offset, program.p_filesz, file_bytes_);
  if (program.p_memsz < program.p_filesz)
    return MakeError(Code::kInvalidArgument, "{}: p_memsz {:#x} is less than p_filesz {:#x}", name_,
                     program.p_memsz, program.p_filesz);
  if (program.p_paddr < kLowestAddress)
    return MakeError(Code::kInvalidArgument, "{}: p_paddr {:#x} is below 1 MiB", name_,
                     program.p_paddr);
  if (!Inside(program.p_paddr, program.p_memsz, ram_end_))
    return MakeError(Code::kResourceExhausted,
                     "{}: p_paddr {:#x} and p_memsz {:#x} of a segment go beyond the RAM's end "
                     "{:#x}; give the VM more memory",
                     name_, program.p_paddr, program.p_memsz, ram_end_);
  segments_.push_back({program.p_offset, program.p_filesz, program.p_paddr, program.p_memsz});
  needed_bytes_ = std::max(needed_bytes_, program.p_offset + program.p_filesz);
  return {};
}

Result<void> ElfLoader::AddNote(std::span<const uint8_t> header) {
  const auto program = LoadObject<Elf64_Phdr>(header, 0);
  if (!Inside(program.p_offset, program.p_filesz, file_bytes_))
    return MakeError(Code::kDataLoss,
                     "{} is truncated: p_offset {:#x} and p_filesz {:#x} of a note, file has {:#x}",
                     name_, program.p_offset, program.p_filesz, file_bytes_);
  if (program.p_filesz > kMaxNoteBytes || notes_.size() == kMaxNotes)
    return MakeError(Code::kInvalidArgument, "{}: more notes than {} of {} bytes", name_, kMaxNotes,
                     kMaxNoteBytes);
  notes_.push_back({program.p_offset, std::vector<uint8_t>(program.p_filesz)});
  needed_bytes_ = std::max(needed_bytes_, program.p_offset + program.p_filesz);
  return {};
}

Result<void> ElfLoader::CheckOverlap() const {
  for (const Segment& one : segments_) {
    for (const Segment& other : segments_) {
      if (&one != &other && one.gpa < other.gpa + other.memory_bytes &&
          other.gpa < one.gpa + one.memory_bytes)
        return MakeError(Code::kInvalidArgument, "{}: segments at p_paddr {:#x} and {:#x} overlap",
                         name_, one.gpa, other.gpa);
    }
  }
  return {};
}

Result<void> ElfLoader::Place(std::span<const uint8_t> piece, uint64_t offset) {
  // The part of the piece that falls into [start, start + size) of the file.
  const auto overlap = [&](uint64_t start, uint64_t size) {
    const uint64_t first = std::max(start, offset);
    const uint64_t last = std::min(start + size, offset + piece.size());
    return first < last ? piece.subspan(first - offset, last - first) : piece.first(0);
  };
  for (const Segment& segment : segments_) {
    const auto part = overlap(segment.file_offset, segment.file_bytes);
    if (part.empty()) continue;
    const uint64_t at = offset + static_cast<uint64_t>(part.data() - piece.data());
    const uint64_t gpa = segment.gpa + (at - segment.file_offset);
    if (!memory_.Write(gpa, part.data(), part.size()))
      return MakeError(Code::kResourceExhausted, "{}: {:#x} is not RAM", name_, gpa);
  }
  for (Note& note : notes_) {
    const auto part = overlap(note.file_offset, note.bytes.size());
    if (part.empty()) continue;
    const uint64_t at = offset + static_cast<uint64_t>(part.data() - piece.data());
    std::copy(part.begin(), part.end(), note.bytes.begin() + (at - note.file_offset));
  }
  return {};
}

bool ElfLoader::InSegment(uint64_t gpa) const {
  return std::any_of(segments_.begin(), segments_.end(), [gpa](const Segment& segment) {
    return gpa >= segment.gpa && gpa - segment.gpa < segment.file_bytes;
  });
}

std::optional<uint32_t> ElfLoader::FindPvhEntry() const {
  for (const Note& note : notes_) {
    const auto entry = FindEntryInNotes(note.bytes);
    if (entry && InSegment(*entry)) return entry;
  }
  return std::nullopt;
}

Result<ElfLoader::Kernel> ElfLoader::Finish() {
  if (!done())
    return MakeError(Code::kDataLoss, "{} is truncated after {} bytes", name_, position_);
  Kernel kernel;
  kernel.entry = entry_;
  kernel.pvh_entry = FindPvhEntry();
  for (const Segment& segment : segments_) {
    const uint64_t end = segment.gpa + segment.memory_bytes;
    kernel.end_gpa = std::max(kernel.end_gpa, end);
    if (!memory_.Zero(segment.gpa + segment.file_bytes,
                      segment.memory_bytes - segment.file_bytes) &&
        segment.memory_bytes != segment.file_bytes)
      return MakeError(Code::kResourceExhausted, "{}: {:#x} to {:#x} is not RAM", name_,
                       segment.gpa, end);
  }
  return kernel;
}

}  // namespace kvmbus::firmware
