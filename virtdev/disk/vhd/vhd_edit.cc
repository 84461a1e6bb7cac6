// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhd/vhd_edit.h"

#include <algorithm>

#include "virtdev/disk/borrowed_file.h"

namespace kvmbus::virtdev::vhd {

using vmm::Result;

Result<VhdFile> OpenVhdToEdit(std::unique_ptr<BlockFile> file) {
  TRY(OpenVhdImage(std::make_unique<BorrowedFile>(*file), false));
  return OpenVhdFile(std::move(file));
}

std::vector<Gap> GapsOf(const VhdFile& vhd, const BlockTable& table) {
  std::vector<Gap> owned;
  for (const Structure& part : vhd.parts) owned.push_back({part.offset, part.offset + part.length});
  const uint64_t length = uint64_t{BitmapBytes(vhd.header.block_size)} + vhd.header.block_size;
  for (uint64_t block = 0; block < vhd.header.max_table_entries; ++block) {
    if (const uint64_t place = table.Get(block); place != 0)
      owned.push_back({place, place + length});
  }
  std::ranges::sort(owned, {}, &Gap::offset);
  std::vector<Gap> gaps;
  uint64_t end = 0;
  for (const Gap& part : owned) {
    if (part.offset > end) gaps.push_back({end, part.offset});
    end = part.end;
  }
  return gaps;
}

Result<void> CommitEntries(const VhdFile& vhd, const BlockTable& table,
                           const std::set<uint64_t>& blocks) {
  if (blocks.empty()) return {};
  TRY_VOID(vhd.file->Flush());
  std::set<uint64_t> pages;
  for (const uint64_t block : blocks) pages.insert(table.PageOf(block));
  for (const uint64_t page : pages) {
    const BlockTable::Part part = table.CopyPage(page);
    TRY_VOID_CTX(vhd.file->Write(part.bytes, part.file_offset), "writing the BAT");
  }
  return vhd.file->Flush();
}

Result<void> ForgetPastEnd(const VhdFile& vhd, BlockTable* table, uint64_t blocks) {
  std::set<uint64_t> forgotten;
  for (uint64_t block = blocks; block < vhd.header.max_table_entries; ++block) {
    if (table->Get(block) == 0) continue;
    table->Set(block, 0);
    forgotten.insert(block);
  }
  return CommitEntries(vhd, *table, forgotten);
}

Result<void> ZeroPastEnd(const VhdFile& vhd, const BlockTable& table, uint64_t disk_bytes) {
  const uint64_t block_bytes = vhd.header.block_size, in_block = disk_bytes % block_bytes;
  if (in_block == 0) return {};
  const uint64_t place = table.Get(disk_bytes / block_bytes);
  if (place == 0) return {};
  TRY_VOID_CTX(vhd.file->Zero(place + BitmapBytes(vhd.header.block_size) + in_block,
                              block_bytes - in_block, false),
               "clearing what lies behind the disk's end");
  return vhd.file->Flush();
}

Result<void> CopyBlock(const VhdFile& vhd, uint64_t from, uint64_t to) {
  std::vector<uint8_t> piece(1u << 20);
  const uint64_t length = uint64_t{BitmapBytes(vhd.header.block_size)} + vhd.header.block_size;
  for (uint64_t at = 0; at < length; at += piece.size()) {
    const auto part = std::span(piece).first(std::min<uint64_t>(piece.size(), length - at));
    TRY_VOID_CTX(vhd.file->Read(part, from + at), "reading a block at {:#x}", from);
    TRY_VOID_CTX(vhd.file->Write(part, to + at), "moving a block to {:#x}", to);
  }
  return {};
}

Result<void> WriteHeaderSector(const VhdFile& vhd, DynamicHeader header) {
  header.checksum = ChecksumOf(header);
  TRY_VOID_CTX(vhd.file->Write(BytesOf(header).first(kSector), vhd.footer.data_offset),
               "writing the dynamic header");
  return vhd.file->Flush();
}

Result<void> WriteEndFooter(BlockFile& file, const Footer& footer, uint64_t end) {
  const uint64_t at = RoundUp(end, kSector);
  TRY_VOID_CTX(file.Write(BytesOf(footer), at), "writing the footer");
  if (TRY(file.Size()) != at + kFooterBytes)
    TRY_VOID_CTX(file.Resize(at + kFooterBytes), "cutting off the image's free end");
  return file.Flush();
}

}  // namespace kvmbus::virtdev::vhd
