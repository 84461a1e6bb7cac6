// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>

#include "vmm/os/fd.h"

namespace kvmbus::vmm {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

/// Standard error is a pipe, which stands for the journal's stream.
class LogTest : public ::testing::Test {
 protected:
  LogTest() : before_(::dup(STDERR_FILENO)), logger_(spdlog::default_logger()) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    reader_ = Fd(ends[0]);
    writer_ = Fd(ends[1]);
    std::fflush(stderr);
    ::dup2(writer_.get(), STDERR_FILENO);
    ::unsetenv("JOURNAL_STREAM");
  }
  ~LogTest() override {
    spdlog::set_default_logger(logger_);
    std::fflush(stderr);
    ::dup2(before_.get(), STDERR_FILENO);
    ::unsetenv("JOURNAL_STREAM");
  }

  static void SetStream(const std::string& stream) {
    ::setenv("JOURNAL_STREAM", stream.c_str(), 1);
  }

  std::string Written() {
    std::fflush(stderr);
    std::array<char, 4096> buffer;
    const ssize_t got = ::read(reader_.get(), buffer.data(), buffer.size());
    return got > 0 ? std::string(buffer.data(), static_cast<size_t>(got)) : "";
  }

  Fd before_, reader_, writer_;
  std::shared_ptr<spdlog::logger> logger_;
};

TEST_F(LogTest, TheJournalGetsEachLevelAsItsPriority) {
  SetStream(JournalStreamOf(STDERR_FILENO));
  EXPECT_TRUE(LogsToJournal());
  SetUpLogging("vmm web", true);
  spdlog::critical("one");
  spdlog::error("two {}", 2);
  spdlog::warn("three");
  spdlog::info("four");
  spdlog::debug("five");
  EXPECT_EQ(Written(), "<2>one\n<3>two 2\n<4>three\n<6>four\n<7>five\n");
}

TEST_F(LogTest, NoLineOfATextChoosesItsOwnPriority) {
  SetStream(JournalStreamOf(STDERR_FILENO));
  SetUpLogging("vmm web", false);
  spdlog::warn("the guest says:\n<0>panic\n");
  EXPECT_EQ(Written(), "<4>the guest says:\n<4><0>panic\n<4>\n");
}

TEST_F(LogTest, WithoutTheVariableLinesHaveTimeNameAndLevel) {
  EXPECT_FALSE(LogsToJournal());
  SetUpLogging("vmm web", false);
  spdlog::error("text");
  const std::string line = Written();
  EXPECT_THAT(line, HasSubstr("vmm web: error: text\n"));
  EXPECT_THAT(line, ContainsRegex("^[0-9]+-[0-9]+-[0-9]+ [0-9]+:[0-9]+:"));
}

TEST_F(LogTest, AnInheritedVariableDoesNotMakeAFileTheJournal) {
  SetStream(JournalStreamOf(STDERR_FILENO));
  const Fd file(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(file.valid());
  ::dup2(file.get(), STDERR_FILENO);
  EXPECT_FALSE(LogsToJournal());
  SetUpLogging("vmm web", false);
  spdlog::error("text");
  std::array<char, 200> buffer{};
  ASSERT_GT(::pread(file.get(), buffer.data(), buffer.size() - 1, 0), 0);
  EXPECT_THAT(buffer.data(), HasSubstr("vmm web: error: text\n"));
  EXPECT_THAT(buffer.data(), Not(HasSubstr("<3>")));
}

TEST_F(LogTest, WhatIsNoDeviceAndInodeIsNotTheJournal) {
  for (const char* stream : {"", ":", "8", "8:", "-1:-1", "8:1x", "0:0"}) {
    SetStream(stream);
    EXPECT_FALSE(LogsToJournal()) << stream;
  }
}

TEST_F(LogTest, StandardErrorThatIsClosedIsNotTheJournal) {
  ::close(STDERR_FILENO);
  SetStream("0:0");
  EXPECT_EQ(JournalStreamOf(STDERR_FILENO), "");
  EXPECT_FALSE(LogsToJournal());
}

}  // namespace
}  // namespace kvmbus::vmm
