// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhd/vhd_bitmap.h"

#include "virtdev/disk/vhd/vhd_format.h"

namespace kvmbus::virtdev::vhd {

using vmm::Result;

uint64_t SectorBitmap::Run(uint64_t first, uint64_t count, bool value) const {
  if (bits_.empty()) return value ? count : 0;
  const uint8_t whole = value ? 0xff : 0;
  uint64_t run = 0;
  while (run < count) {
    const uint64_t sector = first + run;
    if (sector % 8 == 0 && count - run >= 8 && Byte(sector / 8) == whole)
      run += 8;
    else if (Get(sector) == value)
      ++run;
    else
      break;
  }
  return run;
}

void SectorBitmap::Set(uint64_t first, uint64_t count) {
  if (bits_.empty()) return;
  for (uint64_t sector = first; sector < first + count;) {
    const bool whole = sector % 8 == 0 && first + count - sector >= 8;
    std::atomic_ref<uint8_t>(bits_[sector / 8])
        .fetch_or(whole ? 0xff : Mask(sector), std::memory_order_release);
    sector += whole ? 8 : 1;
  }
}

std::vector<uint8_t> SectorBitmap::Copy() const {
  std::vector<uint8_t> copy(bits_.size());
  for (size_t i = 0; i < copy.size(); ++i) copy[i] = Byte(i);
  return copy;
}

SectorBitmaps::SectorBitmaps(BlockFile& file, uint64_t blocks, uint32_t block_bytes)
    : file_(file),
      bitmap_bytes_(BitmapBytes(block_bytes)),
      block_sectors_(block_bytes / kSector),
      bitmaps_(static_cast<SectorBitmap**>(std::calloc(blocks, sizeof(SectorBitmap*)))) {}

Result<std::unique_ptr<SectorBitmaps>> SectorBitmaps::Create(BlockFile& file, uint64_t blocks,
                                                             uint32_t block_bytes) {
  std::unique_ptr<SectorBitmaps> bitmaps(new SectorBitmaps(file, blocks, block_bytes));
  if (!bitmaps->bitmaps_)
    return vmm::MakeError(vmm::Code::kResourceExhausted,
                          "no memory for the sector bitmaps of {} blocks", blocks);
  return bitmaps;
}

Result<SectorBitmap*> SectorBitmaps::Get(uint64_t block, uint64_t file_offset) {
  if (SectorBitmap* bitmap = Slot(block).load(std::memory_order_acquire)) return bitmap;
  std::vector<uint8_t> bits(bitmap_bytes_);
  TRY_VOID_CTX(file_.Read(bits, file_offset), "reading the sector bitmap of block {} at {:#x}",
               block, file_offset);
  SectorBitmap read(std::move(bits));
  std::lock_guard lock(mutex_);
  if (SectorBitmap* bitmap = Slot(block).load(std::memory_order_acquire)) return bitmap;
  SectorBitmap* bitmap = &all_set_;
  if (!read.AllSet(0, block_sectors_)) bitmap = &owned_.emplace_back(std::move(read));
  Slot(block).store(bitmap, std::memory_order_release);
  return bitmap;
}

void SectorBitmaps::AddNew(uint64_t block, bool all_set) {
  std::lock_guard lock(mutex_);
  SectorBitmap* bitmap = &all_set_;
  if (!all_set) bitmap = &owned_.emplace_back(std::vector<uint8_t>(bitmap_bytes_));
  Slot(block).store(bitmap, std::memory_order_release);
}

}  // namespace kvmbus::virtdev::vhd
