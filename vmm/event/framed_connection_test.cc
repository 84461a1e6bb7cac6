// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/framed_connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <optional>
#include <vector>

namespace kvmbus::vmm {
namespace {

using testing::ElementsAre;

constexpr uint32_t kLimit = 64u << 10;

std::string Framed(const std::string& frame) {
  const auto header = FrameHeader(static_cast<uint32_t>(frame.size()));
  return std::string(header.begin(), header.end()) + frame;
}

class FramedConnectionTest : public testing::Test {
 protected:
  FramedConnectionTest() : loop_(Loop::Create().value()) {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    peer_ = Fd(pair[1]);
    FramedConnection::Options options;
    options.frame_limit = kLimit;
    FramedConnection::Callbacks callbacks;
    callbacks.frame = [this](std::string_view frame) {
      frames_.emplace_back(frame);
      if (on_frame) on_frame();
    };
    callbacks.closed = [this](const Error& why) {
      EXPECT_FALSE(closed_);
      closed_ = why.code();
      connection_.reset();
    };
    connection_ =
        FramedConnection::Open(*loop_, Fd(pair[0]), options, std::move(callbacks)).value();
  }
  void PeerSends(std::string_view bytes) {
    ASSERT_EQ(::send(peer_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
    Turn();
  }
  void Turn() {
    for (int i = 0; i < 16; ++i) loop_->RunOnce(0);
  }

  const std::unique_ptr<Loop> loop_;
  Fd peer_;
  std::unique_ptr<FramedConnection> connection_;
  std::vector<std::string> frames_;
  std::optional<Code> closed_;
  std::function<void()> on_frame;
};

TEST_F(FramedConnectionTest, AFrameHasItsLengthInFront) {
  EXPECT_TRUE(connection_->Send("ab").ok());
  EXPECT_TRUE(connection_->Send("").ok());
  char got[32];
  EXPECT_EQ(::recv(peer_.get(), got, sizeof(got), 0), 10);
  EXPECT_EQ(std::string(got, 10), std::string("\x02\0\0\0ab\0\0\0\0", 10));
}

TEST_F(FramedConnectionTest, SeveralFramesInOneReadComeInOrder) {
  PeerSends(Framed("one") + Framed("") + Framed("three"));
  EXPECT_THAT(frames_, ElementsAre("one", "", "three"));
}

TEST_F(FramedConnectionTest, AFrameMayComeInPieces) {
  for (const char byte : Framed("piecemeal")) PeerSends({&byte, 1});
  const std::string large(kLimit, 'x');  // several reads
  PeerSends(Framed(large));
  EXPECT_THAT(frames_, ElementsAre("piecemeal", large));
}

TEST_F(FramedConnectionTest, TheFramesBeforeOneThatIsTooLongAreHeard) {
  PeerSends(Framed("one") + Framed(std::string(kLimit + 1, 'x')).substr(0, kFrameHeaderBytes));
  EXPECT_THAT(frames_, ElementsAre("one"));
  EXPECT_EQ(closed_, Code::kOutOfRange);
  char byte;
  EXPECT_EQ(::recv(peer_.get(), &byte, 1, 0), 0);
}

TEST_F(FramedConnectionTest, APeerMayHangUpInTheMiddleOfAFrame) {
  PeerSends(Framed("one") + Framed("two").substr(0, 5));
  peer_.Reset();
  Turn();
  EXPECT_THAT(frames_, ElementsAre("one"));
  EXPECT_EQ(closed_, Code::kUnavailable);
}

TEST_F(FramedConnectionTest, ItMayBeDestroyedByAFrame) {
  on_frame = [this] { connection_.reset(); };
  PeerSends(Framed("one") + Framed("two"));
  EXPECT_THAT(frames_, ElementsAre("one"));
  EXPECT_FALSE(closed_);
}

TEST_F(FramedConnectionTest, AFailedAnswerEndsTheFrames) {
  on_frame = [this] {
    peer_.Reset();
    EXPECT_FALSE(connection_->Send("answer").ok());
  };
  PeerSends(Framed("one") + Framed("two"));
  EXPECT_THAT(frames_, ElementsAre("one"));
  EXPECT_FALSE(closed_);
}

}  // namespace
}  // namespace kvmbus::vmm
