// SPDX-License-Identifier: Apache-2.0
// Requests that a limit holds back do not hold up whatever stops, closes or takes out their disk.
#include <set>

#include "tests/fakes/limited_disk.h"
#include "virtdev/synthetic/scsi/scsi_test_guest.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

/// A disk that may do 64 KiB a second, and a guest that asks for ten seconds' worth at once.
class ControllerQos : public ScsiControllerTest {
 protected:
  ControllerQos() {
    auto disk = std::make_shared<tests::LimitedDisk>(FakeDisk::DefaultInfo(kDiskBytes));
    qos_ = disk->qos();
    disk_ = std::move(disk);
  }
  void PushTenSeconds() {
    BuildAndHandshake();
    qos_->SetLimits({0, 8, 0});
    for (uint64_t id = 1; id <= 80; ++id) Push(id, Cdb10(0x28, 0, 16), NewBuffer(8192));
    Settle();
    answered_ = channels_[0].Take().size();
    EXPECT_LT(answered_, 10u) << "the others wait";
  }
  /// Those that were answered since; each of them GOOD.
  size_t TakeAnswered() {
    std::set<uint64_t> ids;
    for (const auto& sent : channels_[0].Take()) {
      if (sent.type != PacketType::kCompletion) continue;
      EXPECT_TRUE(ids.insert(sent.transaction_id).second) << "answered twice";
      EXPECT_EQ(ToPacket(sent).srb.srb_status, 1);
    }
    return ids.size();
  }

  DiskQos* qos_ = nullptr;
  size_t answered_ = 0;
};

TEST_F(ControllerQos, StopAnswersThemAll) {
  PushTenSeconds();
  controller_->Stop();
  EXPECT_EQ(TakeAnswered(), 80 - answered_);
  EXPECT_TRUE(controller_->Save().ok());
  controller_->Start();
  Push(100, Cdb10(0x28, 0, 16), NewBuffer(8192));
  Settle();
  EXPECT_EQ(TakeAnswered(), 0u) << "what went past the limit is paid for afterwards";
  EXPECT_EQ(qos_->Statistics().latency[DiskStatistics::kRead].count, 80u);
}

TEST_F(ControllerQos, CloseDoesNotWait) {
  PushTenSeconds();
  controller_->Close(0);
  EXPECT_EQ(disk_->open_queues(), 0u);
  EXPECT_EQ(qos_->Statistics().latency[DiskStatistics::kRead].count, 80u);
}

TEST_F(ControllerQos, DetachDoesNotWait) {
  PushTenSeconds();
  std::shared_ptr<DiskIo> returned;
  ASSERT_TRUE(
      controller_->DetachDisk(0, [&](std::shared_ptr<DiskIo> disk) { returned = std::move(disk); })
          .ok());
  Settle();
  EXPECT_EQ(TakeAnswered(), 80 - answered_);
  EXPECT_EQ(returned, disk_);
  EXPECT_EQ(disk_->open_queues(), 0u);
}

TEST_F(ControllerQos, ALimitIsLiftedForThoseThatWait) {
  PushTenSeconds();
  qos_->SetLimits({});
  Settle();
  EXPECT_EQ(TakeAnswered(), 80 - answered_);
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
