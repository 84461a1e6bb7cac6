// SPDX-License-Identifier: Apache-2.0
// vmmd is killed in the middle of an export or an import: the next one finds all of it or nothing,
// and the machine that was there as it was.
#include <gtest/gtest.h>

#include "cmd/vmmd/checkpoints_test_host.h"
#include "tests/fakes/killed_process.h"

namespace kvmbus::cmd {
namespace {

namespace fs = std::filesystem;

std::string TextOf(const TestHost& host, const std::string& name) {
  const config::Vm vm = host.Named(name);
  if (vm.id().empty()) return "none";
  std::string text = fmt::format("{} '{}'", TestHost::ContentOf(vm), host.MemoryOf(vm));
  for (const auto& [id, checkpoint] : host.inventory->Checkpoints(vm.id()))
    text += fmt::format("; {} '{}'", TestHost::ContentOf(checkpoint), host.MemoryOf(checkpoint));
  return text;
}

class TransfersKillTest : public testing::Test {
 protected:
  TransfersKillTest() : folder_(tests::NewFastFolder("transfers-kill-test")) {
    TestHost host(work());
    fs::create_directories(work() + "/out");
    fs::create_directories(work() + "/in");
    host.MakeVm("m1");
    host.Write(0, 'a');
    EXPECT_TRUE(host.Create("one").ok());
    host.SaveWith("m2");
    host.Write(1, 'b');
  }
  ~TransfersKillTest() override { fs::remove_all(folder_); }

  /// Paths are in the files: it is always the same folder that is worked in.
  std::string work() const { return folder_ + "/host"; }
  vmm::ImportOptions FromExport(const TestHost& host) const {
    vmm::ImportOptions options;
    options.file = work() + "/out/t/Virtual Machines/" + host.Named("t").id() + ".vmcx";
    options.mode = vmm::ImportMode::kCopy;
    options.name = "copy";
    options.destination = work() + "/in";
    return options;
  }

  using Work = std::function<bool(TestHost&)>;
  /// What `look` says after each kill: `before` and `after` both, and nothing else.
  void KillAtEachMoment(const Work& operation, const std::string& before, const std::string& after,
                        const std::function<std::string(TestHost&)>& look) {
    fs::copy(work(), folder_ + "/kept", fs::copy_options::recursive);
    const auto once = [&] {
      TestHost host(work());
      return operation(host);
    };
    const auto renew = [&] {
      fs::remove_all(work());
      fs::copy(folder_ + "/kept", work(), fs::copy_options::recursive);
    };
    const auto found = [&] {
      TestHost next(work());
      EXPECT_TRUE(next.Settle());
      EXPECT_EQ(TextOf(next, "t"), "ab.. 'm2'; a... 'm1'");
      return look(next);
    };
    ASSERT_EQ(found(), before);
    renew();
    const tests::Traced whole = tests::RunUntil(~uint64_t{0}, once);
    if (!whole.traced) GTEST_SKIP() << "processes cannot be traced here";
    ASSERT_TRUE(whole.ended_well);
    ASSERT_EQ(found(), after);
    int old_ones = 0, new_ones = 0;
    const uint64_t stride = std::max<uint64_t>(1, whole.calls / 60);
    for (uint64_t limit = 1; limit <= whole.calls; limit += stride) {
      renew();
      const tests::Traced run = tests::RunUntil(limit, once);
      const std::string now = found();
      now == before ? ++old_ones : ++new_ones;
      ASSERT_TRUE(now == before || now == after)
          << "killed at call " << limit << " of " << whole.calls << ": " << now;
      if (!run.killed) break;  // it ends a little earlier or later each time
    }
    EXPECT_GT(old_ones, 0);
    EXPECT_GT(new_ones, 0);
  }

  const std::string folder_;
};

TEST_F(TransfersKillTest, AnExportIsThereOrNothingIs) {
  const auto look = [this](TestHost& host) -> std::string {
    if (fs::is_empty(work() + "/out")) return "nothing";
    const auto imported = host.Import(FromExport(host));
    return imported.ok() ? TextOf(host, "copy") : imported.error().ToString();
  };
  KillAtEachMoment([this](TestHost& host) { return host.Export(work() + "/out").ok(); }, "nothing",
                   "ab.. 'm2'; a... 'm1'", look);
}

TEST_F(TransfersKillTest, AnImportedCopyIsAMachineOrNothingIsLeft) {
  {
    TestHost host(work());
    ASSERT_TRUE(host.Export(work() + "/out").ok());
  }
  const auto look = [this](TestHost& host) -> std::string {
    const std::string copy = TextOf(host, "copy");
    const bool is_empty = fs::is_empty(work() + "/in");
    return is_empty == (copy == "none") ? copy : "litter beside " + copy;
  };
  KillAtEachMoment([this](TestHost& host) { return host.Import(FromExport(host)).ok(); }, "none",
                   "ab.. 'm2'; a... 'm1'", look);
}

}  // namespace
}  // namespace kvmbus::cmd
