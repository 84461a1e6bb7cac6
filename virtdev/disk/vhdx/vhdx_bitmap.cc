// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_bitmap.h"

#include <algorithm>
#include <bit>

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Result;

constexpr uint64_t kAllBits = ~uint64_t{0};

/// Bits are counted from the lowest one of the first byte: on a little-endian host from the lowest
/// one of the first word.
static_assert(std::endian::native == std::endian::little);

/// Calls f(word, mask) for each word that [first, first + count) touches.
template <typename Words, typename F>
void ForEachWord(Words& words, uint64_t first, uint64_t count, F f) {
  while (count != 0) {
    const uint64_t shift = first % 64, bits = std::min(count, 64 - shift);
    if (!f(words[first / 64], (bits == 64 ? kAllBits : (uint64_t{1} << bits) - 1) << shift)) return;
    first += bits;
    count -= bits;
  }
}

/// How many bits from `first` on, of at most `count`, equal the first one.
uint64_t RunLength(const std::vector<uint64_t>& words, uint64_t first, uint64_t count) {
  const bool value = words[first / 64] >> (first % 64) & 1;
  uint64_t length = 0;
  while (length < count) {
    const uint64_t at = first + length;
    const uint64_t word = (value ? ~words[at / 64] : words[at / 64]) >> (at % 64);
    const auto same = static_cast<uint64_t>(std::countr_zero(word));
    if (word != 0) return std::min(count, length + same);
    length += 64 - at % 64;
  }
  return count;
}

/// Calls f(page's offset, first, count) for each page's part of a bitmap's range.
template <typename F>
void ForEachPage(uint64_t bitmap, uint64_t first, uint64_t count, F f) {
  while (count != 0) {
    const uint64_t in_page = first % SectorBitmaps::kBitsAPage;
    const uint64_t bits = std::min(count, SectorBitmaps::kBitsAPage - in_page);
    f(bitmap + first / SectorBitmaps::kBitsAPage * kLogSector, in_page, bits);
    first += bits;
    count -= bits;
  }
}

std::span<uint8_t> AsBytes(std::vector<uint64_t>& words) {
  return {reinterpret_cast<uint8_t*>(words.data()), words.size() * 8};
}

void AppendRun(std::vector<SectorBitmaps::Run>* runs, SectorBitmaps::Run run) {
  if (!runs->empty() && runs->back().presence == run.presence)
    runs->back().bits += run.bits;
  else
    runs->push_back(run);
}

}  // namespace

void SectorBitmaps::GetRuns(uint64_t bitmap, uint64_t first, uint64_t count,
                            std::vector<Run>* runs) {
  std::lock_guard lock(mutex_);
  ForEachPage(bitmap, first, count, [&](uint64_t offset, uint64_t at, uint64_t left) {
    Page& page = Get(offset);
    const bool known = LoadPage(page).ok();
    while (left != 0) {
      const uint64_t bits = RunLength(page.bits, at, left);
      const bool here = page.bits[at / 64] >> (at % 64) & 1;
      const Presence otherwise = known ? Presence::kParent : Presence::kUnreadable;
      AppendRun(runs, {here ? Presence::kHere : otherwise, bits});
      at += bits;
      left -= bits;
    }
  });
  Shrink();
}

bool SectorBitmaps::Set(uint64_t bitmap, uint64_t first, uint64_t count) {
  std::lock_guard lock(mutex_);
  bool news = false;
  ForEachPage(bitmap, first, count, [&](uint64_t offset, uint64_t at, uint64_t bits) {
    Page& page = Get(offset);
    bool changed = false;
    ForEachWord(page.bits, at, bits, [&changed](uint64_t& word, uint64_t mask) {
      changed = changed || (word & mask) != mask;
      word |= mask;
      return true;
    });
    if (changed) MakeDirty(page);
    news = news || changed;
  });
  Shrink();
  return news;
}

Result<void> SectorBitmaps::Clear(uint64_t bitmap, uint64_t first, uint64_t count) {
  std::lock_guard lock(mutex_);
  Result<void> result;
  ForEachPage(bitmap, first, count, [&](uint64_t offset, uint64_t at, uint64_t bits) {
    Page& page = Get(offset);
    if (result.ok()) result = LoadPage(page);
    if (!result.ok()) return;
    bool changed = false;
    ForEachWord(page.bits, at, bits, [&changed](uint64_t& word, uint64_t mask) {
      changed = changed || (word & mask) != 0;
      word &= ~mask;
      return true;
    });
    if (changed) MakeDirty(page);
  });
  Shrink();
  return result;
}

bool SectorBitmaps::KnowsAllSet(uint64_t bitmap, uint64_t first, uint64_t count) {
  std::lock_guard lock(mutex_);
  bool all = true;
  ForEachPage(bitmap, first, count, [&](uint64_t offset, uint64_t at, uint64_t bits) {
    const auto page = by_offset_.find(offset);
    all = all && page != by_offset_.end();
    if (!all) return;
    ForEachWord(page->second->bits, at, bits, [&all](uint64_t word, uint64_t mask) {
      all = (word & mask) == mask;
      return all;
    });
  });
  return all;
}

Result<void> SectorBitmaps::TakeDirty(std::vector<Journal::Page>* pages) {
  std::lock_guard lock(mutex_);
  std::vector<Page*> chosen;
  for (Page& page : pages_) {
    if (chosen.size() == dirty_) break;
    if (!page.dirty) continue;
    TRY_VOID(LoadPage(page));
    chosen.push_back(&page);
  }
  for (Page* page : chosen) {
    const auto bytes = AsBytes(page->bits);
    pages->push_back({page->offset, std::vector<uint8_t>(bytes.begin(), bytes.end())});
    page->dirty = false;
    --dirty_;
    if (!page->taken) ++taken_;
    page->taken = true;
  }
  return {};
}

Result<void> SectorBitmaps::LoadDirty() {
  std::vector<uint64_t> offsets;
  {
    std::lock_guard lock(mutex_);
    for (const Page& page : pages_) {
      if (page.dirty && !page.loaded) offsets.push_back(page.offset);
    }
  }
  for (const uint64_t offset : offsets) {
    std::lock_guard lock(mutex_);
    TRY_VOID(LoadPage(*by_offset_.at(offset)));
  }
  return {};
}

void SectorBitmaps::Written() {
  std::lock_guard lock(mutex_);
  if (taken_ == 0) return;
  for (Page& page : pages_) page.taken = false;
  taken_ = 0;
  Shrink();
}

void SectorBitmaps::Return(std::span<const Journal::Page> pages) {
  std::lock_guard lock(mutex_);
  for (const Journal::Page& page : pages) MakeDirty(*by_offset_.at(page.file_offset));
}

size_t SectorBitmaps::CountDirty() {
  std::lock_guard lock(mutex_);
  return dirty_;
}

SectorBitmaps::Page& SectorBitmaps::Get(uint64_t offset) {
  const auto at = by_offset_.find(offset);
  if (at != by_offset_.end()) {
    pages_.splice(pages_.begin(), pages_, at->second);
    return pages_.front();
  }
  pages_.emplace_front().offset = offset;
  by_offset_.emplace(offset, pages_.begin());
  return pages_.front();
}

Result<void> SectorBitmaps::LoadPage(Page& page) {
  if (page.loaded) return {};
  std::vector<uint64_t> stored(page.bits.size());
  TRY_VOID_CTX(file_.Read(AsBytes(stored), page.offset), "reading a sector bitmap at {:#x}",
               page.offset);
  for (size_t i = 0; i < stored.size(); ++i) page.bits[i] |= stored[i];
  page.loaded = true;
  return {};
}

void SectorBitmaps::MakeDirty(Page& page) {
  if (!page.dirty) ++dirty_;
  page.dirty = true;
}

/// Forgets the pages that were used longest ago, but those that the file does not have yet.
void SectorBitmaps::Shrink() {
  auto page = pages_.end();
  while (pages_.size() > kMaxClean + dirty_ + taken_ && page != pages_.begin()) {
    --page;
    if (page->dirty || page->taken) continue;
    by_offset_.erase(page->offset);
    page = pages_.erase(page);
  }
}

}  // namespace kvmbus::virtdev::vhdx
