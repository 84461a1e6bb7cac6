// SPDX-License-Identifier: Apache-2.0
// Jobs whose files cannot be written: what the next service makes of them.
#include "vmm/manager/jobs.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "vmm/os/clock.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

namespace fs = std::filesystem;

class JobsTest : public testing::Test {
 protected:
  JobsTest() {
    spdlog::set_level(spdlog::level::off);
    char folder[] = "/tmp/jobs-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    jobs_ = Jobs::Open(folder_ + "/jobs", SystemClock()).value();
  }
  ~JobsTest() override { fs::remove_all(folder_); }

  config::Job Begin(const std::string& request = "") {
    config::Job job;
    job.set_request_id(request);
    return jobs_->Begin(std::move(job)).value();
  }
  std::string PathOf(const config::Job& job) const {
    return folder_ + "/jobs/" + job.id() + ".job";
  }
  /// What the next service has to end.
  size_t LeftForTheNext() {
    return Jobs::Open(folder_ + "/jobs", SystemClock()).value()->Unfinished().size();
  }

  std::string folder_;
  std::unique_ptr<Jobs> jobs_;
};

TEST_F(JobsTest, AnEndThatCannotBeStoredIsNoReasonToDoTheJobAgain) {
  config::Job job = Begin();
  job.set_committed(true);
  ASSERT_TRUE(jobs_->Store(job).ok());
  const std::string temporary = TemporaryName(PathOf(job));
  ASSERT_TRUE(MakeFolders(temporary + "/in the way").ok());
  EXPECT_TRUE(jobs_->End(job.id(), {}));
  EXPECT_EQ(jobs_->Get(job.id())->state(), config::JOB_DONE);
  fs::remove_all(temporary);
  EXPECT_EQ(LeftForTheNext(), 0u);
}

TEST_F(JobsTest, AnEndThatCannotBeKeptAtAllIsTriedAgain) {
  config::Job job = Begin();
  const std::string path = PathOf(job), aside = folder_ + "/aside";
  // What is a folder is neither replaced nor removed as a file.
  fs::rename(path, aside);
  fs::create_directory(path);
  EXPECT_FALSE(jobs_->End(job.id(), {}));
  EXPECT_EQ(jobs_->Get(job.id())->state(), config::JOB_DONE);
  fs::remove(path);
  fs::rename(aside, path);
  EXPECT_EQ(LeftForTheNext(), 1u);
  EXPECT_TRUE(jobs_->End(Begin().id(), {}));
  EXPECT_EQ(LeftForTheNext(), 0u);
}

TEST_F(JobsTest, OneThatCannotBeBegunIsNotThere) {
  fs::rename(folder_ + "/jobs", folder_ + "/aside");
  config::Job job;
  job.set_request_id("r1");
  EXPECT_FALSE(jobs_->Begin(job).ok());
  EXPECT_EQ(jobs_->FindRequest("r1"), nullptr) << "who asks again would wait for ever";
  EXPECT_TRUE(jobs_->List().empty());
  fs::rename(folder_ + "/aside", folder_ + "/jobs");
  EXPECT_TRUE(jobs_->Begin(job).ok());
  EXPECT_EQ(LeftForTheNext(), 1u);
}

TEST_F(JobsTest, WhatLinksAMissingFileIsNotCommitted) {
  config::Job job = Begin();
  config::FileLink* link = job.mutable_change()->add_links();
  link->set_from(folder_ + "/state");
  link->set_to(folder_ + "/to");
  job.mutable_change()->add_links()->set_to(folder_ + "/to be removed");
  ASSERT_TRUE(jobs_->Store(job).ok());
  job.set_committed(true);
  EXPECT_EQ(jobs_->Store(job).error().code(), Code::kNotFound);
  EXPECT_FALSE(jobs_->Get(job.id())->committed());
  ASSERT_TRUE(ReplaceFile(folder_ + "/state", "memory").ok());
  EXPECT_TRUE(jobs_->Store(job).ok());
  // It may be half made: there is no way back.
  ASSERT_TRUE(RemoveFile(folder_ + "/state").ok());
  EXPECT_TRUE(jobs_->Store(job).ok());
}

}  // namespace
}  // namespace kvmbus::vmm
