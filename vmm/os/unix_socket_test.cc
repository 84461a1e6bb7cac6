// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/unix_socket.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <vector>

namespace kvmbus::vmm {
namespace {

class UnixSocketTest : public ::testing::Test {
 protected:
  UnixSocketTest() {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    one_ = Fd(pair[0]);
    two_ = Fd(pair[1]);
  }

  static ino_t InodeOf(int fd) {
    struct stat status = {};
    EXPECT_EQ(::fstat(fd, &status), 0);
    return status.st_ino;
  }

  Fd one_, two_;
};

TEST_F(UnixSocketTest, FramesComeWithTheirDescriptors) {
  std::array<uint8_t, 100> frame;
  frame.fill(7);
  const int sent[] = {one_.get(), two_.get()};
  ASSERT_TRUE(SendFrame(one_.get(), frame, sent).ok());
  std::array<uint8_t, 100> got{};
  std::vector<Fd> fds;
  const auto bytes = ReceiveSome(two_.get(), got, &fds, 4);
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(*bytes, 100u);
  EXPECT_EQ(got, frame);
  ASSERT_EQ(fds.size(), 2u);
  EXPECT_EQ(InodeOf(fds[0].get()), InodeOf(one_.get()));
  EXPECT_EQ(InodeOf(fds[1].get()), InodeOf(two_.get()));
  EXPECT_EQ(*ReceiveSome(two_.get(), got), 0u) << "nothing more";
}

TEST_F(UnixSocketTest, DescriptorsThatNobodyWantsAreClosed) {
  const uint8_t byte = 1;
  const int sent[] = {one_.get(), one_.get(), one_.get()};
  ASSERT_TRUE(SendFrame(one_.get(), {&byte, 1}, sent).ok());
  std::array<uint8_t, 8> got{};
  std::vector<Fd> fds;
  ASSERT_TRUE(ReceiveSome(two_.get(), got, &fds, 1).ok());
  EXPECT_EQ(fds.size(), 1u);
  fds.clear();
  ASSERT_TRUE(SendFrame(one_.get(), {&byte, 1}, sent).ok());
  ASSERT_TRUE(ReceiveSome(two_.get(), got).ok());
  one_.Reset();  // the last of it, or the other side would not see its end
  EXPECT_EQ(ReceiveSome(two_.get(), got).error().code(), Code::kUnavailable);
}

TEST_F(UnixSocketTest, WaitingHasAnEnd) {
  std::array<uint8_t, 8> got{};
  EXPECT_EQ(ReceiveFrame(two_.get(), got, 10).error().code(), Code::kDeadlineExceeded);
  const std::array<uint8_t, 4> half{1, 2, 3, 4};
  ASSERT_TRUE(SendFrame(one_.get(), half).ok());
  EXPECT_EQ(ReceiveFrame(two_.get(), got, 10).error().code(), Code::kDeadlineExceeded);
  ASSERT_TRUE(SendFrame(one_.get(), half).ok());
  ASSERT_TRUE(SendFrame(one_.get(), half).ok());
  ASSERT_TRUE(ReceiveFrame(two_.get(), got, 10).ok());
  EXPECT_EQ(got, (std::array<uint8_t, 8>{1, 2, 3, 4, 1, 2, 3, 4}));
}

TEST_F(UnixSocketTest, APeerThatDoesNotReadDoesNotHoldUs) {
  const std::vector<uint8_t> frame(60000);
  Result<void> sent;
  for (int i = 0; i < 1000 && sent.ok(); ++i) sent = SendFrame(one_.get(), frame);
  EXPECT_EQ(sent.error().code(), Code::kUnavailable);
  two_.Reset();
  EXPECT_EQ(SendFrame(one_.get(), frame).error().code(), Code::kUnavailable);
}

}  // namespace
}  // namespace kvmbus::vmm
