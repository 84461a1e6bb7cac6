// SPDX-License-Identifier: Apache-2.0
// The order that survives a crash: one log entry has the new size and takes the entries behind it
// out of the BAT. Where these are too many for it, further ones follow: what an older entry of the
// log has left behind the disk's end has no meaning, and its space no owner.
#include "virtdev/disk/vhdx/vhdx_shrink.h"

#include <set>

#include "virtdev/disk/vhdx/vhdx_journal.h"
#include "virtdev/disk/vhdx/vhdx_metadata_edit.h"
#include "virtdev/disk/vhdx/vhdx_space.h"

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

Result<void> CheckShrink(const VhdxFile& vhdx, uint64_t bytes) {
  const DiskMetadata& disk = vhdx.disk;
  if (bytes == 0 || bytes % disk.logical_sector != 0 || bytes > disk.disk_bytes)
    return MakeError(Code::kInvalidArgument,
                     "a disk of {} bytes: a multiple of {} above 0 is needed, and less than the {} "
                     "that it has",
                     bytes, disk.logical_sector, disk.disk_bytes);
  if (disk.has_parent)
    return Error(Code::kInvalidArgument,
                 "a differencing disk does not shrink: merge it into its parent first");
  if (vhdx.header.header.log_length < kMiB)
    return Error(Code::kUnimplemented, "it has no log, so that it can only be opened for reading");
  return {};
}

/// Takes the blocks from `first` on out of the table; the pages in which they were.
std::set<uint64_t> GiveUpFrom(uint64_t first, const DiskMetadata& disk, BlockTable* table,
                              FreeSpace* free) {
  std::set<uint64_t> pages;
  for (uint64_t block = first; block < disk.blocks(); ++block) {
    const BlockPlace place = table->Get(block);
    if (place.state == kNotPresent && place.file_offset == 0) continue;
    if (place.file_offset != 0) free->Release(place.file_offset / kMiB, disk.block_bytes / kMiB);
    table->Set(block, {kNotPresent, 0});
    pages.insert(table->PageOf(block));
  }
  return pages;
}

}  // namespace

Result<void> ShrinkDisk(const VhdxFile& vhdx, uint64_t disk_bytes) {
  TRY_VOID(CheckShrink(vhdx, disk_bytes));
  if (disk_bytes == vhdx.disk.disk_bytes) return {};
  std::vector<FileRange> used;
  BlockTable table = TRY(ReadBlockTable(vhdx, &used));
  FreeSpace free(vhdx.disk.block_bytes / kMiB, used, vhdx.file_bytes / kMiB);
  Journal journal(*vhdx.file, vhdx.header);
  TRY_VOID(journal.Open(true));
  std::vector<Journal::Page> pages = {TRY(DiskSizePage(vhdx, disk_bytes))};
  const uint64_t first = BlockCount(disk_bytes, vhdx.disk.block_bytes);
  for (const uint64_t page : GiveUpFrom(first, vhdx.disk, &table, &free)) {
    pages.push_back({vhdx.regions.bat.offset + page * kLogSector, table.CopyPage(page)});
    if (pages.size() < LogWriter::kMaxPages) continue;
    TRY_VOID_CTX(journal.Commit(pages, false), "writing the BAT");
    pages.clear();
  }
  if (!pages.empty()) TRY_VOID_CTX(journal.Commit(pages, false), "writing the BAT");
  // The next growth does it too: a crash may come before this.
  TRY(ZeroPastEnd(vhdx, table, disk_bytes));
  TRY_VOID(journal.Close());
  TRY(free.CutFreeEnd(*vhdx.file, vhdx.file_bytes));
  return vhdx.file->Flush();
}

}  // namespace kvmbus::virtdev::vhdx
