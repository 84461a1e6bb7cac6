// SPDX-License-Identifier: Apache-2.0
// A controller with a disk that another process owns (here: another thread).
#include <unistd.h>

#include <cstdlib>

#include "tests/fakes/limited_disk.h"
#include "virtdev/shared_disk/disk_owner.h"
#include "virtdev/synthetic/scsi/scsi_test_guest.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

class SharedController : public ScsiControllerTest {
 protected:
  static constexpr uint8_t kLun = 3;

  SharedController() {
    char name[] = "/tmp/kvmbus-scsi-XXXXXX";
    folder_ = ::mkdtemp(name);
    StartOwner();
  }
  ~SharedController() override {
    controller_.reset();
    if (remote_ != nullptr) {
      EXPECT_TRUE(remote_->Close().ok());
    }
    remote_.reset();
    StopOwner();
    ::unlink((folder_ + "/owner.sock").c_str());
    ::rmdir(folder_.c_str());
  }

  void StartOwner() {
    DiskOwner::Options options;
    options.socket_path = folder_ + "/owner.sock";
    options.disk = owned_;
    options.reservations = std::make_shared<PersistentReservations>();
    thread_->loop().PostAndWait([&] {
      owner_ = *DiskOwner::Listen(std::move(options), thread_->loop(), {&thread_->loop()});
    });
  }
  void StopOwner() {
    thread_->loop().PostAndWait([&] { owner_.reset(); });
  }
  void AttachShared() {
    RemoteDisk::Options options;
    options.socket_path = folder_ + "/owner.sock";
    options.retry_ns = 1'000'000;
    remote_ = *RemoteDisk::Connect(options, *memory_, *main_loop_);
    ASSERT_TRUE(controller_->AttachSharedDisk(kLun, remote_).ok());
  }
  void BuildShared() {
    BuildAndHandshake();
    AttachShared();
    Settle();
    (void)channels_[0].Take();  // the announcement
    options_for_lun_.lun = kLun;
  }
  template <typename Condition>
  bool Await(Condition condition) {
    for (int i = 0; i < 5000; ++i) {
      Settle();
      if (condition()) return true;
      ::usleep(1000);
    }
    return false;
  }
  storvsc::Packet Run(const Bytes& cdb, const Buffer& buffer = {}, bool data_in = true) {
    SrbOptions options = options_for_lun_;
    options.data_in = data_in;
    Push(77, cdb, buffer, options);
    EXPECT_TRUE(Await([&] { return channels_[0].waiting() != 0; }));
    const auto replies = channels_[0].Take();
    return replies.size() == 1 ? ToPacket(replies[0]) : storvsc::Packet{};
  }

  std::string folder_;
  std::shared_ptr<FakeDisk> owned_ = NewDisk();
  std::unique_ptr<vmm::LoopThread> thread_ = *vmm::LoopThread::Start("owner");
  std::unique_ptr<DiskOwner> owner_;
  std::shared_ptr<RemoteDisk> remote_;
  SrbOptions options_for_lun_;
};

TEST_F(SharedController, DataGoesBetweenTheGuestAndTheOwnersDisk) {
  BuildShared();
  const Buffer buffer = NewBuffer(64 << 10, 512);
  const storvsc::Packet read = Run(Cdb10(0x28, 16, 128), buffer);
  EXPECT_EQ(read.srb.srb_status, 1);
  EXPECT_EQ(read.srb.transfer_length, 64u << 10);
  EXPECT_EQ(CopyFromGuest(*memory_, buffer),
            Bytes(owned_->content().begin() + 8192, owned_->content().begin() + 8192 + 65536));
  const Bytes data(4096, 0xd7);
  const Buffer source = NewBuffer(4096);
  CopyToGuest(*memory_, source, data);
  EXPECT_EQ(Run(Cdb10(0x2a, 100, 8), source, false).srb.srb_status, 1);
  EXPECT_EQ(Bytes(owned_->content().begin() + 51200, owned_->content().begin() + 55296), data);
  EXPECT_EQ(Run({0xff, 0, 0, 0, 0, 0}).srb.srb_status, 0x84) << "with its sense";
}

/// The channel reuses its requests, whichever unit they were of.
TEST_F(SharedController, ItsRequestsLeaveNothingBehindForALocalDisk) {
  auto local = std::make_shared<tests::LimitedDisk>(FakeDisk::DefaultInfo(kDiskBytes));
  disk_ = local;
  BuildShared();
  EXPECT_EQ(Run({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);  // no limit is for this one
  options_for_lun_.lun = 0;
  const Buffer buffer = NewBuffer(4096);
  EXPECT_EQ(Run(Cdb10(0x28, 0, 8), buffer).srb.srb_status, 1);
  EXPECT_EQ(local->qos()->Statistics().bytes_read, 4096u) << "limits and statistics cover it";
  options_for_lun_.lun = kLun;
  owned_->InjectError(DiskRequest::Op::kRead, EIO);
  EXPECT_EQ(Run(Cdb10(0x28, 0, 8), buffer).srb.srb_status, 0x84);
  options_for_lun_.lun = 0;
  EXPECT_EQ(Run(Cdb10(0x28, 0, 8), buffer).srb.srb_status, 1);
  EXPECT_EQ(local->qos()->Statistics().errors, 0u) << "the other disk's";
}

TEST_F(SharedController, IsSavedAndRestored) {
  BuildShared();
  EXPECT_EQ(Run({0xff, 0, 0, 0, 0, 0}).srb.srb_status, 0x84);  // leaves sense behind
  controller_->Stop();
  const auto saved = controller_->Save();
  ASSERT_TRUE(saved.ok());
  controller_->Close(0);
  controller_->Reset();
  EXPECT_NE(*controller_->Save(), *saved);
  std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
  endpoints.emplace_back(0, channels_[0].Endpoint());
  ASSERT_TRUE(controller_->Restore(*saved, std::move(endpoints)).ok());
  EXPECT_EQ(*controller_->Save(), *saved);
  controller_->Start();
  const Buffer sense = NewBuffer(18);
  EXPECT_EQ(Run({0x03, 0, 0, 0, 18, 0}, sense).srb.srb_status, 1);
  EXPECT_EQ(CopyFromGuest(*memory_, sense)[12], 0x20);
  StopOwner();
  ASSERT_TRUE(Await([&] { return remote_->link().state != RemoteDisk::Link::State::kUp; }));
  controller_->Stop();
  EXPECT_EQ(controller_->Save().error().code(), vmm::Code::kUnavailable);
}

TEST_F(SharedController, StopsWithoutAnOwner) {
  BuildShared();
  owned_->set_timing(Timing::kHeld);
  Push(5, Cdb10(0x28, 0, 1), NewBuffer(512), options_for_lun_);
  ASSERT_TRUE(Await([&] { return owned_->held() == 1; }));
  StopOwner();
  Settle();
  EXPECT_EQ(channels_[0].waiting(), 0u) << "it waits for another owner";
  controller_->Stop();
  const auto replies = channels_[0].Take();
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(ToPacket(replies[0]).srb.scsi_status, 8) << "the guest sends it again";
}

TEST_F(SharedController, IsTakenOut) {
  BuildShared();
  EXPECT_EQ(Run({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
  EXPECT_FALSE(controller_->AttachSharedDisk(kLun, remote_).ok());
  std::shared_ptr<DiskIo> returned;
  ASSERT_TRUE(
      controller_->DetachDisk(kLun, [&](std::shared_ptr<DiskIo> disk) { returned = disk; }).ok());
  ASSERT_TRUE(Await([&] { return returned != nullptr; }));
  EXPECT_EQ(returned, remote_);
  EXPECT_TRUE(returned->Close().ok());
  EXPECT_TRUE(Await([&] { return owned_->open_queues() == 0; }));
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
