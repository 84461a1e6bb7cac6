// SPDX-License-Identifier: Apache-2.0
#include "vmm/memory/userfault.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "vmm/memory/guest_memory.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kRam = 2u << 20;

class UserfaultTest : public testing::Test {
 protected:
  void SetUp() override {
    auto created = Userfault::Create(kPageSize);
    if (!created.ok()) GTEST_SKIP() << created.error().ToString();
    faults_ = std::make_unique<Userfault>(std::move(created).value());
    const MemoryRange ranges[] = {{0, kRam}};
    memory_ = std::move(GuestMemory::Create(ranges)).value();
    base_ = reinterpret_cast<uint64_t>(memory_->base());
    stop_ = std::move(CreateEventFd()).value();
  }
  std::unique_ptr<Userfault> faults_;
  std::unique_ptr<GuestMemory> memory_;
  uint64_t base_ = 0;
  Fd stop_;
};

TEST_F(UserfaultTest, AMissingPageIsAskedForAndFilled) {
  ASSERT_TRUE(faults_->Register(base_, kRam, Userfault::Kind::kMissing).ok());
  std::thread guest([&] { EXPECT_EQ(memory_->ReadObject<uint8_t>(5 * kPageSize + 7), 0x5a); });
  const auto fault = faults_->Wait(stop_.get());
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->address, base_ + 5 * kPageSize);
  EXPECT_EQ(fault->kind, Userfault::Kind::kMissing);
  const std::vector<uint8_t> page(kPageSize, 0x5a);
  EXPECT_TRUE(faults_->Fill(fault->address, page).ok());
  guest.join();
}

TEST_F(UserfaultTest, PagesThatAreThereStayWhenTheRestIsFilled) {
  ASSERT_TRUE(memory_->WriteObject<uint8_t>(kPageSize, 1));
  ASSERT_TRUE(faults_->Register(base_, kRam, Userfault::Kind::kMissing).ok());
  const std::vector<uint8_t> pages(3 * kPageSize, 2);
  ASSERT_TRUE(faults_->Fill(base_, pages).ok());
  EXPECT_EQ(memory_->ReadObject<uint8_t>(0), 2);
  EXPECT_EQ(memory_->ReadObject<uint8_t>(kPageSize), 1);
  EXPECT_EQ(memory_->ReadObject<uint8_t>(2 * kPageSize), 2);
  ASSERT_TRUE(faults_->FillZero(base_ + 3 * kPageSize, kPageSize).ok());
  EXPECT_EQ(memory_->ReadObject<uint8_t>(3 * kPageSize), 0);
}

TEST_F(UserfaultTest, AProtectedPageIsReadAndItsWriterWaits) {
  ASSERT_TRUE(memory_->WriteObject<uint8_t>(kPageSize, 1));
  ASSERT_TRUE(faults_->Register(base_, kRam, Userfault::Kind::kWriteProtect).ok());
  ASSERT_TRUE(faults_->WriteProtect(base_, kRam).ok());
  EXPECT_EQ(memory_->ReadObject<uint8_t>(kPageSize), 1);
  std::thread guest([&] { ASSERT_TRUE(memory_->WriteObject<uint8_t>(kPageSize, 3)); });
  const auto fault = faults_->Wait(stop_.get());
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->address, base_ + kPageSize);
  EXPECT_EQ(fault->kind, Userfault::Kind::kWriteProtect);
  EXPECT_EQ(memory_->ReadObject<uint8_t>(kPageSize), 1);
  EXPECT_TRUE(faults_->Unprotect(fault->address, kPageSize).ok());
  guest.join();
  EXPECT_EQ(memory_->ReadObject<uint8_t>(kPageSize), 3);
}

TEST_F(UserfaultTest, APageThatWasNeverTouchedIsProtectedToo) {
  ASSERT_TRUE(faults_->Register(base_, kRam, Userfault::Kind::kWriteProtect).ok());
  ASSERT_TRUE(faults_->WriteProtect(base_, kRam).ok());
  std::thread guest([&] { ASSERT_TRUE(memory_->WriteObject<uint8_t>(9 * kPageSize, 3)); });
  const auto fault = faults_->Wait(stop_.get());
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->address, base_ + 9 * kPageSize);
  EXPECT_TRUE(faults_->Unregister(base_, kRam).ok());
  guest.join();
}

TEST_F(UserfaultTest, AStopEndsTheWait) {
  SignalEventFd(stop_.get());
  EXPECT_FALSE(faults_->Wait(stop_.get()).has_value());
}

}  // namespace
}  // namespace kvmbus::vmm
