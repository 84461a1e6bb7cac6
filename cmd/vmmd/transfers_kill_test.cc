// SPDX-License-Identifier: Apache-2.0
// vmmd is killed in the middle of an export or an import: the next one finds all of it or nothing,
// and the machine that was there as it was.
#include "cmd/vmmd/kill_test_host.h"

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

class TransfersKillTest : public KillTest {
 protected:
  TransfersKillTest() {
    TestHost host(work());
    fs::create_directories(work() + "/out");
    fs::create_directories(work() + "/in");
    host.MakeVm("m1");
    host.Write(0, 'a');
    EXPECT_TRUE(host.Create("one").ok());
    host.SaveWith("m2");
    host.Write(1, 'b');
  }
  vmm::ImportOptions FromExport(const TestHost& host) const {
    vmm::ImportOptions options;
    options.file = work() + "/out/t/Virtual Machines/" + host.Named("t").id() + ".vmcx";
    options.mode = vmm::ImportMode::kCopy;
    options.name = "copy";
    options.destination = work() + "/in";
    return options;
  }

  /// What `look` says: "none" before, all of the machine afterwards. The original is what it was.
  void ExpectAllOrNothing(const std::function<bool(TestHost&)>& operation,
                          const std::function<std::string(TestHost&)>& look) {
    const auto found = [&] {
      TestHost next(work());
      EXPECT_TRUE(next.Settle());
      EXPECT_EQ(TextOf(next, "t"), kMachine);
      return look(next);
    };
    ASSERT_EQ(found(), "none");
    std::string after;
    KillAtEachMoment(operation, 60, "none", found, &after);
    if (!IsSkipped()) {
      EXPECT_EQ(after, kMachine);
    }
  }

  static constexpr const char* kMachine = "ab.. 'm2'; a... 'm1'";
};

TEST_F(TransfersKillTest, AnExportIsThereOrNothingIs) {
  const auto look = [this](TestHost& host) -> std::string {
    if (fs::is_empty(work() + "/out")) return "none";
    const auto imported = host.Import(FromExport(host));
    return imported.ok() ? TextOf(host, "copy") : imported.error().ToString();
  };
  ExpectAllOrNothing([this](TestHost& host) { return host.Export(work() + "/out").ok(); }, look);
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
  ExpectAllOrNothing([this](TestHost& host) { return host.Import(FromExport(host)).ok(); }, look);
}

}  // namespace
}  // namespace kvmbus::cmd
