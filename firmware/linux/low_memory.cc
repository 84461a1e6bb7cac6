// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/low_memory.h"

#include <array>
#include <string>

namespace kvmbus::firmware {
namespace {

using vmm::BootState;
using vmm::Code;
using vmm::GuestMemory;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kOneMiB = 1u << 20;
constexpr uint64_t kVideoHole = 0xa0000;

constexpr uint64_t kCode64 = 0x00af9b000000ffff;
constexpr uint64_t kCode32 = 0x00cf9b000000ffff;
constexpr uint64_t kData = 0x00cf93000000ffff;

constexpr uint64_t kPresentWritable = 3;
constexpr uint64_t kLargePage = 0x80;
constexpr size_t kEntries = 512;
constexpr size_t kGigabytes = 4;

Result<void> WritePageTables(GuestMemory& memory) {
  // One root, one table of gigabytes, one of 2 MiB pages for each: every processor has these.
  std::array<uint64_t, kEntries> table{};
  const auto write = [&](size_t index) {
    return WriteLow(memory, kPageTablesGpa + index * vmm::kPageSize, table.data(), sizeof(table));
  };
  table[0] = (kPageTablesGpa + vmm::kPageSize) | kPresentWritable;
  TRY_VOID(write(0));
  for (size_t i = 0; i < kGigabytes; ++i)
    table[i] = (kPageTablesGpa + (2 + i) * vmm::kPageSize) | kPresentWritable;
  TRY_VOID(write(1));
  for (size_t i = 0; i < kGigabytes; ++i) {
    for (size_t page = 0; page < kEntries; ++page)
      table[page] = (i * kEntries + page) << 21 | kLargePage | kPresentWritable;
    TRY_VOID(write(2 + i));
  }
  return {};
}

}  // namespace

Result<void> WriteLow(GuestMemory& memory, uint64_t gpa, const void* bytes, size_t size) {
  if (!memory.Write(gpa, bytes, size))
    return MakeError(Code::kResourceExhausted, "the VM has no RAM at {:#x} for its boot tables",
                     gpa);
  return {};
}

std::vector<MapEntry> MakeMemoryMap(const vmm::MemoryLayout& layout) {
  std::vector<MapEntry> map = {
      {0, vmm::kGenerationIdGpa, MapEntry::kRam},
      {vmm::kGenerationIdGpa, kVideoHole - vmm::kGenerationIdGpa, MapEntry::kReserved},
      {vmm::kAcpiTablesGpa, vmm::kSmbiosGpa - vmm::kAcpiTablesGpa, MapEntry::kReserved},
      {vmm::kSmbiosGpa, kOneMiB - vmm::kSmbiosGpa, MapEntry::kReserved},
  };
  for (const vmm::MemoryRange& range : layout.ram) {
    const uint64_t start = range.gpa == 0 ? kOneMiB : range.gpa;
    const uint64_t end = range.gpa + range.size;
    if (start < end) map.push_back({start, end - start, MapEntry::kRam});
  }
  return map;
}

Result<void> WriteProcessorTables(GuestMemory& memory, BootState::Mode mode, BootState* boot) {
  const bool long_mode = mode == BootState::Mode::kLong64;
  const std::array<uint64_t, 4> gdt = {0, 0, long_mode ? kCode64 : kCode32, kData};
  TRY_VOID(WriteLow(memory, kGdtGpa, gdt.data(), sizeof(gdt)));
  boot->mode = mode;
  boot->gdt_base = kGdtGpa;
  boot->gdt_limit = sizeof(gdt) - 1;
  boot->cs_selector = 0x10;
  boot->ds_selector = 0x18;
  boot->rsp = kStackTopGpa;
  if (!long_mode) return {};
  TRY_VOID(WritePageTables(memory));
  boot->cr3 = kPageTablesGpa;
  return {};
}

Result<void> WriteCommandLine(GuestMemory& memory, std::string_view text, uint64_t limit) {
  limit = std::min(limit, kCommandLineRoom - 1);
  if (text.size() > limit)
    return MakeError(Code::kInvalidArgument,
                     "the command line has {} characters, the kernel takes at most {}", text.size(),
                     limit);
  if (text.find('\0') != text.npos)
    return MakeError(Code::kInvalidArgument, "the command line contains a NUL character");
  const std::string terminated(text);
  return WriteLow(memory, kCommandLineGpa, terminated.c_str(), terminated.size() + 1);
}

}  // namespace kvmbus::firmware
