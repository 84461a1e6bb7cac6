// SPDX-License-Identifier: Apache-2.0
/// \file
/// vmmd killed in the middle of what it does to a folder, again and again.
#pragma once

#include <functional>
#include <string>

#include "cmd/vmmd/checkpoints_test_host.h"
#include "tests/fakes/killed_process.h"

namespace kvmbus::cmd {

class KillTest : public testing::Test {
 protected:
  KillTest() : folder_(tests::NewFastFolder("kill-test")) {}
  ~KillTest() override { std::filesystem::remove_all(folder_); }

  /// Paths are in the files: it is always the same folder that is worked in.
  std::string work() const { return folder_ + "/host"; }

  /// Does `operation` to what is in the folder now, whole, and then killed at so many `moments`.
  /// `found` says what the next vmmd finds each time: `before`, or what the whole operation makes
  /// of it, which goes to `after`; both, and nothing else.
  void KillAtEachMoment(const std::function<bool(TestHost&)>& operation, int moments,
                        const std::string& before, const std::function<std::string()>& found,
                        std::string* after) {
    std::filesystem::copy(work(), kept(), std::filesystem::copy_options::recursive);
    const auto once = [&] {
      TestHost host(work());
      return operation(host);
    };
    const tests::Traced whole = tests::RunUntil(~uint64_t{0}, once);
    if (!whole.traced) GTEST_SKIP() << "processes cannot be traced here";
    ASSERT_TRUE(whole.ended_well);
    *after = found();
    ASSERT_NE(*after, before);
    int old_ones = 0, new_ones = 0;
    const uint64_t stride = std::max<uint64_t>(1, whole.calls / moments);
    for (uint64_t limit = 1; limit <= whole.calls; limit += stride) {
      Renew();
      const tests::Traced run = tests::RunUntil(limit, once);
      const std::string now = found();
      now == before ? ++old_ones : ++new_ones;
      ASSERT_TRUE(now == before || now == *after)
          << "killed at call " << limit << " of " << whole.calls << ": " << now
          << "\nbefore: " << before << "\nafter: " << *after;
      if (!run.killed) break;  // it ends a little earlier or later each time
    }
    EXPECT_GT(old_ones, 0);
    EXPECT_GT(new_ones, 0);
  }

 private:
  std::string kept() const { return folder_ + "/kept"; }
  void Renew() {
    std::filesystem::remove_all(work());
    std::filesystem::copy(kept(), work(), std::filesystem::copy_options::recursive);
  }

  const std::string folder_;
};

}  // namespace kvmbus::cmd
