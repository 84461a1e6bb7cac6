// SPDX-License-Identifier: Apache-2.0
// The order that survives a crash: whatever the larger disk needs is made where nothing leads to:
// the space of a fixed disk's new blocks and a BAT that moves at the file's end, new entries behind
// those that the disk has, where they have no meaning. It is flushed; then one log entry has the
// size, the BAT's place, and the page in which the old entries end and the new ones begin.
#include "virtdev/disk/vhdx/vhdx_grow.h"

#include <algorithm>

#include "virtdev/disk/vhdx/vhdx_journal.h"
#include "virtdev/disk/vhdx/vhdx_metadata_edit.h"
#include "virtdev/disk/vhdx/vhdx_space.h"

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;
using Pages = std::vector<Journal::Page>;

}  // namespace

Result<void> CheckNewSize(const DiskMetadata& disk, uint64_t bytes) {
  if (bytes % disk.logical_sector != 0)
    return MakeError(Code::kInvalidArgument, "a disk of {} bytes: a multiple of {} is needed",
                     bytes, disk.logical_sector);
  if (bytes < disk.disk_bytes)
    return MakeError(Code::kInvalidArgument,
                     "the disk has {} bytes already: while it is in use it can grow, not shrink",
                     disk.disk_bytes);
  if (bytes > kMaxDiskBytes)
    return MakeError(Code::kOutOfRange, "a disk of {} TiB; 64 TiB are allowed", bytes >> 40);
  return {};
}

namespace {

uint64_t WholeMiB(uint64_t bytes) { return (bytes + kMiB - 1) / kMiB * kMiB; }

/// Entries that a dynamic disk did not have so far must say "not present"; a fixed one's are
/// written.
Result<bool> FitsItsRegion(const VhdxFile& vhdx, uint64_t old_bytes, uint64_t new_bytes) {
  const Region& bat = vhdx.regions.bat;
  if (new_bytes > bat.length) return false;
  if (vhdx.disk.fixed) return true;
  std::vector<uint8_t> rest(new_bytes - old_bytes);
  TRY_VOID_CTX(vhdx.file->Read(rest, bat.offset + old_bytes), "reading the BAT");
  return IsZero(rest);
}

/// The BAT at the file's end; its place there.
Result<Region> CopyBat(const VhdxFile& vhdx, uint64_t old_bytes, uint64_t new_bytes) {
  BlockFile& file = *vhdx.file;
  Region to;
  to.offset = WholeMiB(TRY(file.Size()));
  to.length = static_cast<uint32_t>(WholeMiB(new_bytes));
  if (to.offset > kMaxFileBytes - to.length)
    return MakeError(Code::kOutOfRange, "its file would have more than {} TiB",
                     kMaxFileBytes >> 40);
  TRY_VOID_CTX(file.Resize(to.offset + to.length), "adding a BAT of {} MiB", to.length / kMiB);
  std::vector<uint8_t> piece(kMiB);
  for (uint64_t at = 0; at < old_bytes; at += kMiB) {
    const auto part = std::span(piece).first(std::min(kMiB, old_bytes - at));
    TRY_VOID_CTX(file.Read(part, vhdx.regions.bat.offset + at), "reading the BAT");
    TRY_VOID_CTX(file.Write(part, to.offset + at), "writing the BAT");
  }
  return to;
}

/// Both copies of the region table, with another place of the BAT.
Result<Pages> RegionPages(const VhdxFile& vhdx, const Region& bat) {
  std::vector<uint8_t> table = vhdx.regions.repair;
  if (table.empty()) {
    table.resize(kRegionTableBytes);
    TRY_VOID_CTX(vhdx.file->Read(table, kRegionTableOffset[0]), "reading the region table");
  }
  const auto head = Load<RegionTableHeader>(table, 0);
  for (size_t i = 0; i < head.entry_count; ++i) {
    const size_t place = sizeof(head) + i * sizeof(RegionTableEntry);
    auto entry = Load<RegionTableEntry>(table, place);
    if (entry.guid != kBatRegion) continue;
    entry.file_offset = bat.offset;
    entry.length = bat.length;
    Store(table, place, entry);
  }
  Store(table, 4, uint32_t{0});
  Store(table, 4, StructureChecksum(table));
  Pages pages;
  for (const uint64_t copy : kRegionTableOffset) Journal::AppendPages(copy, table, &pages);
  return pages;
}

/// Space for all blocks from `first` on, at the file's end: it is allocated and reads as zeroes.
Result<void> AddBlocks(BlockFile& file, const DiskMetadata& grown, uint64_t first,
                       BlockTable* table) {
  const uint64_t start = WholeMiB(TRY(file.Size()));
  const uint64_t length = (grown.blocks() - first) * grown.block_bytes;
  if (length > kMaxFileBytes || start > kMaxFileBytes - length)
    return MakeError(Code::kOutOfRange, "its file would have {} TiB; this version takes 512",
                     (start + length) >> 40);
  TRY_VOID_CTX(file.Resize(start + length), "adding {} MiB of blocks", length / kMiB);
  TRY_VOID_CTX(file.Zero(start, length, true), "allocating {} MiB of blocks", length / kMiB);
  for (uint64_t block = first; block < grown.blocks(); ++block)
    table->Set(block, {kFullyPresent, start + (block - first) * grown.block_bytes});
  return {};
}

/// Writes the pages of new entries; the first one, in which older entries may be, is the log's.
Result<Journal::Page> WriteNewEntries(BlockFile& file, const Region& bat, const BlockTable& table,
                                      uint64_t old_bytes, uint64_t new_bytes) {
  const uint64_t first = old_bytes / kLogSector;
  for (uint64_t page = first + 1; page * kLogSector < new_bytes; ++page)
    TRY_VOID_CTX(file.Write(table.CopyPage(page), bat.offset + page * kLogSector),
                 "writing the BAT");
  return Journal::Page{bat.offset + first * kLogSector, table.CopyPage(first)};
}

Result<Growth> Prepare(const VhdxFile& vhdx, const BlockTable& table, const DiskMetadata& grown) {
  BlockFile& file = *vhdx.file;
  const uint64_t old_bytes = vhdx.disk.bat_entries() * 8, new_bytes = grown.bat_entries() * 8;
  Growth growth{{}, vhdx.regions.bat, TRY(table.Grown(grown)), false};
  growth.flush_first = TRY(ZeroPastEnd(vhdx, table, vhdx.disk.disk_bytes));
  if (!TRY(FitsItsRegion(vhdx, old_bytes, new_bytes))) {
    growth.flush_first = true;
    growth.bat = TRY(CopyBat(vhdx, old_bytes, new_bytes));
    growth.pages = TRY(RegionPages(vhdx, growth.bat));
  }
  if (vhdx.disk.fixed && grown.blocks() != vhdx.disk.blocks()) {
    growth.flush_first = true;
    TRY_VOID(AddBlocks(file, grown, vhdx.disk.blocks(), &growth.table));
    growth.pages.push_back(
        TRY(WriteNewEntries(file, growth.bat, growth.table, old_bytes, new_bytes)));
  }
  growth.pages.push_back(TRY(DiskSizePage(vhdx, grown.disk_bytes)));
  return growth;
}

}  // namespace

Result<Growth> PlanGrowth(const VhdxFile& vhdx, const BlockTable& table, uint64_t disk_bytes) {
  DiskMetadata grown = vhdx.disk;
  grown.disk_bytes = disk_bytes;
  const uint64_t file_bytes = TRY(vhdx.file->Size());
  auto growth = Prepare(vhdx, table, grown);
  // Nothing leads to what was added. Should this fail too, it is free space at the file's end.
  if (!growth.ok()) (void)vhdx.file->Resize(file_bytes);
  return growth;
}

Result<void> GrowDisk(const VhdxFile& vhdx, uint64_t disk_bytes) {
  TRY_VOID(CheckNewSize(vhdx.disk, disk_bytes));
  if (disk_bytes == vhdx.disk.disk_bytes) return {};
  std::vector<FileRange> used;
  const BlockTable table = TRY(ReadBlockTable(vhdx, &used));
  // What a growth that a crash has cut short may have left.
  FreeSpace free(vhdx.disk.block_bytes / kMiB, used, vhdx.file_bytes / kMiB);
  TRY(free.CutFreeEnd(*vhdx.file, vhdx.file_bytes));
  Journal journal(*vhdx.file, vhdx.header);
  TRY_VOID(journal.Open(true));
  const Growth growth = TRY(PlanGrowth(vhdx, table, disk_bytes));
  TRY_VOID(journal.Commit(growth.pages, growth.flush_first));
  return journal.Close();
}

}  // namespace kvmbus::virtdev::vhdx
