// SPDX-License-Identifier: Apache-2.0
// vmmd is killed in the middle of what it does to checkpoints: the next one finds the old state or
// the new, and every checkpoint whole.
#include <gtest/gtest.h>

#include <set>

#include "cmd/vmmd/kill_test_host.h"

namespace kvmbus::cmd {
namespace {

namespace fs = std::filesystem;

/// All that can be seen of a machine and its checkpoints.
struct View {
  std::string now, memory, parent;
  std::map<std::string, std::pair<std::string, std::string>> checkpoints;  // content, memory
};

View Look(const TestHost& host) {
  View view;
  const config::Vm vm = host.Vm();
  view.now = TestHost::ContentOf(vm);
  view.memory = host.MemoryOf(vm);
  const vmm::CheckpointMap all = host.All();
  const auto parent = all.find(vm.parent_checkpoint());
  view.parent = parent == all.end() ? vm.parent_checkpoint() : parent->second.checkpoint().name();
  for (const auto& [id, checkpoint] : all)
    view.checkpoints[checkpoint.checkpoint().name()] = {TestHost::ContentOf(checkpoint),
                                                        host.MemoryOf(checkpoint)};
  return view;
}

std::string Print(const View& view) {
  std::string text = fmt::format("{} '{}' below '{}'", view.now, view.memory, view.parent);
  for (const auto& [name, state] : view.checkpoints)
    text += fmt::format("; {}: {} '{}'", name, state.first, state.second);
  return text;
}

/// Files below configurations, and no others.
void ExpectNoLitter(const TestHost& host) {
  std::set<std::string> needed;
  const auto need = [&](const config::Vm& vm) {
    for (std::string file = TestHost::DiskOf(vm); !file.empty();
         file = virtdev::ParentOfDisk(file).value_or(""))
      needed.insert(file);
  };
  need(host.Vm());
  for (const auto& [id, checkpoint] : host.All()) need(checkpoint);
  for (const std::string& image : host.Images())
    EXPECT_EQ(needed.count(image), 1u) << image << " is needed by nobody";
}

using Operation = vmm::Result<void> (*)(TestHost&);

class CheckpointsKillTest : public KillTest,
                            public testing::WithParamInterface<std::pair<const char*, Operation>> {
 protected:
  CheckpointsKillTest() {
    TestHost host(work());
    host.MakeVm("m1");
    host.Write(0, 'a');
    EXPECT_TRUE(host.Create("one").ok());
    host.SaveWith("m2");
    host.Write(1, 'b');
    EXPECT_TRUE(host.Create("two").ok());
    host.SaveWith("m3");
    host.Write(2, 'c');
    EXPECT_TRUE(host.Create("three").ok());
    host.SaveWith("m4");
    host.Write(3, 'd');
    before_ = Print(Look(host));
  }
  /// What is in the folder after another vmmd has started.
  std::string After() {
    TestHost next(work());
    EXPECT_TRUE(next.Settle());
    ExpectNoLitter(next);
    return Print(Look(next));
  }

  std::string before_;
};

TEST_P(CheckpointsKillTest, AnyMomentLeavesTheOldStateOrTheNew) {
  const auto operation = [](TestHost& host) { return GetParam().second(host).ok(); };
  std::string after;
  KillAtEachMoment(
      operation, 40, before_, [this] { return After(); }, &after);
}

INSTANTIATE_TEST_SUITE_P(
    Operations, CheckpointsKillTest,
    testing::Values(
        std::pair<const char*, Operation>{"Create",
                                          [](TestHost& host) { return host.Create("four"); }},
        std::pair<const char*, Operation>{"Apply",
                                          [](TestHost& host) { return host.Apply("one"); }},
        std::pair<const char*, Operation>{"DeleteInTheMiddle",
                                          [](TestHost& host) { return host.Delete("two", false); }},
        std::pair<const char*, Operation>{"DeleteSubtree",
                                          [](TestHost& host) { return host.Delete("one", true); }}),
    [](const auto& operation) { return operation.param.first; });

}  // namespace
}  // namespace kvmbus::cmd
