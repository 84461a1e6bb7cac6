// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx_grow.h"

#include <algorithm>

#include "virtdev/disk/vhdx_journal.h"
#include "virtdev/disk/vhdx_metadata_edit.h"

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
  if (disk.fixed)
    return vmm::Error(Code::kUnimplemented,
                      "a fixed disk does not grow: make a dynamic one of it with 'vmctl disk "
                      "convert'");
  return {};
}

namespace {

/// Entries that the disk did not have so far must say "not present".
Result<bool> FitsItsRegion(const VhdxFile& vhdx, uint64_t old_bytes, uint64_t new_bytes) {
  const Region& bat = vhdx.regions.bat;
  if (new_bytes > bat.length) return false;
  std::vector<uint8_t> rest(new_bytes - old_bytes);
  TRY_VOID_CTX(vhdx.file->Read(rest, bat.offset + old_bytes), "reading the BAT");
  return IsZero(rest);
}

/// The BAT at the file's end; its place there.
Result<Region> CopyBat(const VhdxFile& vhdx, uint64_t old_bytes, uint64_t new_bytes) {
  BlockFile& file = *vhdx.file;
  const auto whole = [](uint64_t bytes) { return (bytes + kMiB - 1) / kMiB * kMiB; };
  Region to;
  to.offset = whole(TRY(file.Size()));
  to.length = static_cast<uint32_t>(whole(new_bytes));
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

}  // namespace

Result<Growth> PlanGrowth(const VhdxFile& vhdx, const BlockTable& table, uint64_t disk_bytes) {
  DiskMetadata grown = vhdx.disk;
  grown.disk_bytes = disk_bytes;
  const uint64_t old_bytes = vhdx.disk.bat_entries() * 8, new_bytes = grown.bat_entries() * 8;
  Growth growth{{}, vhdx.regions.bat, TRY(ZeroPastEnd(vhdx, table, vhdx.disk.disk_bytes))};
  if (!TRY(FitsItsRegion(vhdx, old_bytes, new_bytes))) {
    growth.flush_first = true;
    growth.bat = TRY(CopyBat(vhdx, old_bytes, new_bytes));
    growth.pages = TRY(RegionPages(vhdx, growth.bat));
  }
  growth.pages.push_back(TRY(DiskSizePage(vhdx, disk_bytes)));
  return growth;
}

Result<void> GrowDisk(const VhdxFile& vhdx, uint64_t disk_bytes) {
  TRY_VOID(CheckNewSize(vhdx.disk, disk_bytes));
  if (disk_bytes == vhdx.disk.disk_bytes) return {};
  std::vector<FileRange> used;
  const BlockTable table = TRY(ReadBlockTable(vhdx, &used));
  Journal journal(*vhdx.file, vhdx.header);
  TRY_VOID(journal.Open(true));
  const Growth growth = TRY(PlanGrowth(vhdx, table, disk_bytes));
  TRY_VOID(journal.Commit(growth.pages, growth.flush_first));
  return journal.Close();
}

}  // namespace kvmbus::virtdev::vhdx
