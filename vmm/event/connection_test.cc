// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/connection.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <optional>
#include <thread>

namespace kvmbus::vmm {
namespace {

/// More than a socket holds.
constexpr size_t kMuch = 4u << 20;

class ConnectionTest : public testing::Test {
 protected:
  ConnectionTest() : loop_(Loop::Create().value()) {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    ours_ = Fd(pair[0]);
    peer_ = Fd(pair[1]);
  }
  void Open(const Connection::Options& options = {}) {
    Connection::Callbacks callbacks;
    callbacks.received = [this](std::string_view bytes) {
      received_ += bytes;
      if (on_received) on_received();
    };
    callbacks.closed = [this](const Error& why) {
      EXPECT_FALSE(closed_);
      closed_ = why.code();
      connection_.reset();
    };
    connection_ = Connection::Open(*loop_, std::move(ours_), options, std::move(callbacks)).value();
  }
  void Turn(int turns = 8) {
    for (int i = 0; i < turns; ++i) loop_->RunOnce(0);
  }
  void PeerSends(std::string_view bytes) {
    ASSERT_EQ(::send(peer_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  /// All that there is, while the loop turns.
  std::string PeerReads() {
    std::string got;
    char buffer[65536];
    for (int idle = 0; idle < 3;) {
      const ssize_t n = ::recv(peer_.get(), buffer, sizeof(buffer), 0);
      if (n > 0) got.append(buffer, static_cast<size_t>(n));
      idle = n > 0 ? 0 : idle + 1;
      Turn(1);
    }
    return got;
  }

  const std::unique_ptr<Loop> loop_;
  Fd ours_, peer_;
  std::unique_ptr<Connection> connection_;
  std::string received_;
  std::optional<Code> closed_;
  std::function<void()> on_received;
};

TEST_F(ConnectionTest, BytesGoBothWays) {
  Open();
  PeerSends("hello");
  Turn();
  EXPECT_EQ(received_, "hello");
  EXPECT_TRUE(connection_->Send({"good ", "", "day"}).ok());
  EXPECT_EQ(PeerReads(), "good day");
  EXPECT_FALSE(closed_);
}

TEST_F(ConnectionTest, WhatThePeerHasNoRoomForIsSentLater) {
  Open();
  std::string much(kMuch, '\0');
  for (size_t i = 0; i < much.size(); ++i) much[i] = static_cast<char>(i % 251);
  EXPECT_TRUE(connection_->Send({much}).ok());
  EXPECT_TRUE(connection_->Send({"the end"}).ok());
  EXPECT_TRUE(PeerReads() == much + "the end");
  // Room is watched for while something waits, not longer.
  const uint64_t before = loop_->turn();
  std::thread later([this] { loop_->Post([] {}); });
  loop_->RunOnce(-1);
  later.join();
  EXPECT_EQ(loop_->turn(), before + 1);
}

TEST_F(ConnectionTest, APeerThatDoesNotReadIsGivenUp) {
  Connection::Options options;
  options.backlog_limit = 1000;
  Open(options);
  EXPECT_TRUE(connection_->Send({std::string(1000, 'x')}).ok());  // the kernel took it
  Result<void> sent;
  for (size_t total = 0; sent.ok() && total < kMuch; total += 1000)
    sent = connection_->Send({std::string(1000, 'x')});
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().code(), Code::kResourceExhausted);
  EXPECT_FALSE(connection_->is_open());
  EXPECT_EQ(connection_->Send({"x"}).error().code(), Code::kUnavailable);
  Turn();
  EXPECT_FALSE(closed_);
}

TEST_F(ConnectionTest, TheLimitHoldsForWhatIsSentAtOnce) {
  Connection::Options options;
  options.backlog_limit = 4;
  Open(options);
  EXPECT_TRUE(connection_->Send({"four"}).ok());
  EXPECT_EQ(connection_->Send({"fi", "ve!"}).error().code(), Code::kResourceExhausted);
}

TEST_F(ConnectionTest, TheOldestMayBeLost) {
  Connection::Options options;
  options.backlog_limit = 1000;
  options.when_full = Connection::WhenFull::kLoseOldest;
  Open(options);
  EXPECT_TRUE(connection_->Send({std::string(kMuch, 'a') + std::string(1000, 'b')}).ok());
  EXPECT_EQ(PeerReads(), std::string(1000, 'b'));
  for (size_t total = 0; total < kMuch; total += 1000)
    EXPECT_TRUE(connection_->Send({std::string(1000, 'c')}).ok());
  EXPECT_TRUE(connection_->Send({"end"}).ok());
  const std::string got = PeerReads();
  EXPECT_EQ(got.substr(got.size() - 1000), std::string(997, 'c') + "end");
  EXPECT_LT(got.size(), kMuch);
}

TEST_F(ConnectionTest, APeerThatHangsUpIsHeardToTheEnd) {
  Open();
  PeerSends(std::string(3 * Connection::kReadBytes, 'x'));
  peer_.Reset();
  Turn();
  EXPECT_EQ(received_.size(), 3 * Connection::kReadBytes);
  EXPECT_EQ(closed_, Code::kUnavailable);
}

TEST_F(ConnectionTest, SendingToAPeerThatHungUpCloses) {
  Open();
  PeerSends("last words");
  peer_.Reset();
  EXPECT_EQ(connection_->Send({"x"}).error().code(), Code::kUnavailable);
  Turn();
  EXPECT_EQ(received_, "");
  EXPECT_FALSE(closed_);
}

TEST_F(ConnectionTest, APeerThatHangsUpWithMuchToReadCloses) {
  Open();
  EXPECT_TRUE(connection_->Send({std::string(kMuch, 'x')}).ok());
  peer_.Reset();
  Turn();
  EXPECT_EQ(closed_, Code::kUnavailable);
}

TEST_F(ConnectionTest, ReadingMayGoOnWhenThePeerHasGone) {
  Connection::Options options;
  options.when_gone = Connection::WhenGone::kReadOn;
  Open(options);
  EXPECT_TRUE(connection_->Send({std::string(kMuch, 'x')}).ok());
  PeerSends("last words");
  peer_.Reset();
  EXPECT_TRUE(connection_->Send({"x"}).ok());
  EXPECT_FALSE(closed_);
  Turn();
  EXPECT_EQ(received_, "last words");
  EXPECT_EQ(closed_, Code::kUnavailable);
}

TEST_F(ConnectionTest, NobodyWaitsForRoomWhereAPeerWillNotRead) {
  Connection::Options options;
  options.when_gone = Connection::WhenGone::kReadOn;
  Open(options);
  EXPECT_TRUE(connection_->Send({std::string(kMuch, 'x')}).ok());
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_RD), 0);
  Turn();
  int turns = 0;
  for (const uint64_t end = loop_->clock().MonotonicNs() + 20'000'000;
       loop_->clock().MonotonicNs() < end; ++turns)
    loop_->RunOnce(5);
  EXPECT_LT(turns, 100);
  PeerSends("still here");
  Turn();
  EXPECT_EQ(received_, "still here");
  EXPECT_FALSE(closed_);
}

TEST_F(ConnectionTest, ItMayBeDestroyedByWhatItCalls) {
  Open();
  on_received = [this] { connection_.reset(); };
  PeerSends("bye");
  Turn();
  EXPECT_EQ(received_, "bye");
  char byte;
  EXPECT_EQ(::recv(peer_.get(), &byte, 1, 0), 0);
  EXPECT_FALSE(closed_);
}

TEST_F(ConnectionTest, NothingIsCalledOnceItIsClosed) {
  Open();
  PeerSends("unheard");
  connection_->Close();
  connection_->Close();
  Turn();
  EXPECT_EQ(received_, "");
  EXPECT_FALSE(closed_);
}

TEST_F(ConnectionTest, DrainWaitsForThePeer) {
  Open();
  EXPECT_TRUE(connection_->Send({std::string(kMuch, 'x')}).ok());
  size_t got = 0;
  std::thread reader([&] {
    char buffer[65536];
    while (got < kMuch) {
      const ssize_t n = ::recv(peer_.get(), buffer, sizeof(buffer), 0);
      if (n > 0) got += static_cast<size_t>(n);
    }
  });
  connection_->Drain(10'000);
  reader.join();
  EXPECT_EQ(got, kMuch);
}

TEST_F(ConnectionTest, DrainDoesNotWaitForEver) {
  Open();
  EXPECT_TRUE(connection_->Send({std::string(kMuch, 'x')}).ok());
  connection_->Drain(10);
  peer_.Reset();
  connection_->Drain(10'000);  // it has gone: no wait
}

}  // namespace
}  // namespace kvmbus::vmm
