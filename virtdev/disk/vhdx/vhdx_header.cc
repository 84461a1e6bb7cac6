// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_header.h"

#include <optional>
#include <vector>

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

constexpr uint32_t kMaxLogBytes = 1u << 30;

std::optional<Header> ReadOneHeader(BlockFile& file, int slot) {
  std::vector<uint8_t> bytes(kHeaderBytes);
  if (!file.Read(bytes, kHeaderOffset[slot]).ok()) return std::nullopt;
  const auto header = Load<Header>(bytes, 0);
  if (header.signature != kHeaderSignature || header.checksum != StructureChecksum(bytes))
    return std::nullopt;
  return header;
}

Result<void> CheckLogPlace(const Header& header, int slot, uint64_t file_bytes) {
  if (header.log_length == 0) {
    if (header.log_guid.IsZero()) return {};
    return MakeError(Code::kDataLoss, "header {} names a log and gives it no place", slot + 1);
  }
  if (header.log_offset % kMiB != 0 || header.log_length % kMiB != 0 || header.log_offset < kMiB ||
      header.log_length > kMaxLogBytes)
    return MakeError(Code::kDataLoss, "header {}: {:#x}+{:#x} is no place for a log", slot + 1,
                     header.log_offset, header.log_length);
  if (header.log_offset > file_bytes || header.log_length > file_bytes - header.log_offset)
    return MakeError(Code::kDataLoss,
                     "header {}: the log at {:#x}+{:#x} lies past the end of the file ({} bytes)",
                     slot + 1, header.log_offset, header.log_length, file_bytes);
  return {};
}

}  // namespace

Result<ActiveHeader> ReadActiveHeader(BlockFile& file, uint64_t file_bytes) {
  if (file_bytes < kHeaderAreaEnd)
    return MakeError(Code::kDataLoss, "the file has {} bytes; its header area alone takes 1 MiB",
                     file_bytes);
  const auto first = ReadOneHeader(file, 0), second = ReadOneHeader(file, 1);
  if (!first && !second) return Error(Code::kDataLoss, "both headers are damaged");
  const int slot = !second || (first && first->sequence_number >= second->sequence_number) ? 0 : 1;
  const Header header = slot == 0 ? *first : *second;
  if (header.version != 1 || header.log_version != 0)
    return MakeError(Code::kUnimplemented,
                     "format version {} with log version {}; known are 1 and 0", header.version,
                     header.log_version);
  TRY_VOID(CheckLogPlace(header, slot, file_bytes));
  return ActiveHeader{header, slot};
}

Result<void> WriteNextHeader(BlockFile& file, ActiveHeader* active) {
  if (active->header.sequence_number == ~uint64_t{0})
    return Error(Code::kDataLoss, "the header's sequence number has no successor");
  ActiveHeader next = *active;
  next.slot = 1 - active->slot;
  ++next.header.sequence_number;
  next.header.checksum = 0;
  std::vector<uint8_t> bytes(kHeaderBytes, 0);
  Store(bytes, 0, next.header);
  Store(bytes, 4, StructureChecksum(bytes));
  TRY_VOID_CTX(file.Write(bytes, kHeaderOffset[next.slot]), "writing header {}", next.slot + 1);
  TRY_VOID_CTX(file.Flush(), "flushing header {}", next.slot + 1);
  *active = next;
  return {};
}

}  // namespace kvmbus::virtdev::vhdx
