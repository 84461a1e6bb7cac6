// SPDX-License-Identifier: Apache-2.0
#include "vmm/memory/guest_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

namespace kvmbus::vmm {
namespace {

class GuestMemoryTest : public testing::Test {
 protected:
  GuestMemoryTest() {
    const MemoryRange ranges[] = {{0, 1 << 20}, {0x100000000, 1 << 20}};
    auto memory = GuestMemory::Create(ranges);
    EXPECT_TRUE(memory.ok());
    memory_ = std::move(memory).value();
  }
  std::unique_ptr<GuestMemory> memory_;
};

TEST_F(GuestMemoryTest, AccessOutsideRamIsRefusedWithoutSideEffect) {
  uint64_t value = 7;
  EXPECT_FALSE(memory_->Read((1 << 20) - 4, &value, 8));
  EXPECT_FALSE(memory_->Write(~uint64_t{0} - 3, &value, 8));
  EXPECT_FALSE(memory_->Read(0x80000000, &value, 1));
  EXPECT_EQ(value, 7u);
  EXPECT_TRUE(memory_->Write(0x100000000, &value, 8));
  EXPECT_EQ(memory_->ReadObject<uint64_t>(0x100000000), 7u);
}

TEST_F(GuestMemoryTest, OnlyWhatWasTouchedIsBacked) {
  EXPECT_FALSE(memory_->NextBacked(0, 1 << 20));
  const uint64_t value = 7;
  ASSERT_TRUE(memory_->Write(5 * kPageSize + 8, &value, 8));
  ASSERT_TRUE(memory_->Write(0x100000000 + 3 * kPageSize, &value, 8));
  auto backed = memory_->NextBacked(0, 1 << 20);
  ASSERT_TRUE(backed);
  EXPECT_LE(backed->gpa, 5 * kPageSize);
  EXPECT_GE(backed->gpa + backed->size, 6 * kPageSize);
  EXPECT_LE(backed->gpa + backed->size, 1u << 20) << "it ends with the range asked for";
  backed = memory_->NextBacked(0x100000000 + 3 * kPageSize, kPageSize);
  ASSERT_TRUE(backed);
  EXPECT_EQ(backed->gpa, 0x100000000 + 3 * kPageSize);
  EXPECT_EQ(backed->size, kPageSize);
}

TEST_F(GuestMemoryTest, PagesMappedTwiceAreTheSameBytes) {
  const uint64_t pfns[] = {5, 9, 10, 9, 10};
  auto mapping = memory_->MapPages(pfns);
  ASSERT_TRUE(mapping.ok());
  const std::span<uint8_t> bytes = mapping->Piece(0, mapping->size());
  ASSERT_EQ(bytes.size(), mapping->size());
  bytes[4096 + 100] = 0x5a;
  EXPECT_EQ(bytes[3 * 4096 + 100], 0x5a);
  EXPECT_EQ(memory_->ReadObject<uint8_t>(9 * 4096 + 100), 0x5a);
}

TEST_F(GuestMemoryTest, PagesThatAreNotMappedAreFoundPieceByPiece) {
  const uint64_t pfns[] = {5, 0x100009, 0x10000a, 5};
  auto found = memory_->FindPages(pfns);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->size(), 4 * kPageSize);
  const auto piece = found->Piece(kPageSize + 4000, kPageSize);
  EXPECT_EQ(piece.size(), 96u) << "to the end of a page";
  piece[95] = 0x5a;
  EXPECT_EQ(memory_->ReadObject<uint8_t>(0x10000a000 - 1), 0x5a);
  EXPECT_EQ(found->Piece(0, 1).data(), found->Piece(3 * kPageSize, 1).data());
  memory_->StartDirtyTracking();
  found->MarkDirty(2 * kPageSize - 1, 2);
  EXPECT_EQ(memory_->TakeDirtyPages(), (std::vector<uint64_t>{0x100009, 0x10000a}));
  PageSet mapped(memory_->ram_pages());
  memory_->AddMappedPages(&mapped);
  EXPECT_EQ(mapped.Count(), 0u) << "accesses to them are accesses at base()";
  const uint64_t no_ram[] = {5, 0x80000};
  EXPECT_FALSE(memory_->FindPages(no_ram).ok());
}

TEST_F(GuestMemoryTest, MappingAPageThatIsNotRamFails) {
  const uint64_t pfns[] = {5, 0x80000};
  EXPECT_FALSE(memory_->MapPages(pfns).ok());
  const uint64_t huge[] = {~uint64_t{0}};
  EXPECT_FALSE(memory_->MapPages(huge).ok());
}

TEST_F(GuestMemoryTest, TheHostsWritesAreTracked) {
  const uint64_t pfns[] = {5, 9};
  auto mapping = memory_->MapPages(pfns);
  memory_->StartDirtyTracking();
  EXPECT_TRUE(memory_->Zero(0x100000ff0, 32));
  mapping->MarkDirty(4090, 10);
  EXPECT_EQ(memory_->TakeDirtyPages(), (std::vector<uint64_t>{5, 9, 0x100000, 0x100001}));
  EXPECT_TRUE(memory_->TakeDirtyPages().empty());
}

TEST_F(GuestMemoryTest, AnotherProcessHasTheSameRam) {
  std::vector<MemoryRange> ranges;
  for (const auto& region : memory_->regions()) ranges.push_back({region.gpa, region.size});
  auto other = GuestMemory::Adopt(ranges, Fd(::dup(memory_->fd())));
  ASSERT_TRUE(other.ok()) << other.error().ToString();
  ASSERT_TRUE((*other)->WriteObject<uint64_t>(0x100000ff0, 42));
  EXPECT_EQ(memory_->ReadObject<uint64_t>(0x100000ff0), 42u);
  EXPECT_FALSE((*other)->Contains(ranges[0].gpa + ranges[0].size, 1));
  ranges.pop_back();
  EXPECT_FALSE(GuestMemory::Adopt(ranges, Fd(::dup(memory_->fd()))).ok()) << "not its size";
  EXPECT_LT(::ftruncate(memory_->fd(), 4096), 0) << "it cannot shrink under the other";
}

TEST_F(GuestMemoryTest, HugePagesAreSetAsideOrRefused) {
  const MemoryRange ranges[] = {{0, 4 * kHugePageSize}}, too_much[] = {{0, uint64_t{1} << 46}};
  const auto refused = GuestMemory::Create(too_much, {.huge_pages = true});
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().ToString().find("vm.nr_hugepages"), std::string::npos);
  const auto memory = GuestMemory::Create(ranges, {.huge_pages = true});
  if (!memory.ok()) GTEST_SKIP() << memory.error().ToString();
  const auto other = GuestMemory::Adopt(ranges, Fd(::dup((*memory)->fd())));
  ASSERT_TRUE(other.ok()) << other.error().ToString();
  EXPECT_EQ((*other)->host_page_bytes(), (*memory)->host_page_bytes());
  const uint64_t pfns[] = {600, 3, 700};
  ASSERT_TRUE((*other)->MapPages(pfns).ok());
  (*other)->MapPages(pfns)->Piece(kPageSize, 1)[0] = 7;
  EXPECT_EQ((*memory)->ReadObject<uint8_t>(3 * kPageSize), 7);
}

}  // namespace
}  // namespace kvmbus::vmm
