// SPDX-License-Identifier: Apache-2.0
// Another parent for a differencing VHDX, and the power cut at every moment of it.
#include "virtdev/disk/vhdx/vhdx_relink.h"

#include <optional>

#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;

ParentReference ParentAt(const std::string& path, const vmm::Guid& id) {
  ParentReference parent;
  parent.paths = {{ParentReference::Path::Kind::kRelative, path}};
  parent.linkage = {id};
  return parent;
}

CrashMedium NewChild(const ParentReference& parent) {
  CrashMedium medium;
  CrashFile file(medium);
  const auto made = FormatVhdx(file, SmallDisk(), vmm::Guid::Random(), &parent);
  EXPECT_TRUE(made.ok());
  Settle(medium);
  return medium;
}

vmm::Result<void> Relink(CrashMedium& medium, const ParentReference& parent) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<CrashFile>(medium), false));
  return vhdx::ReplaceParentLocator(vhdx, parent);
}

std::string ParentOf(CrashMedium& medium) {
  const auto image = Open(medium, true);
  return image && image->parent() != nullptr ? image->parent()->paths.at(0).text : "";
}

TEST(VhdxRelinkTest, TheNewParentIsNamedAndNothingElseChanges) {
  CrashMedium medium = NewChild(ParentAt(".\\old.vhdx", vmm::Guid::Random()));
  const vmm::Guid identity = Open(medium, true)->identity();
  const vmm::Guid disk_id = Open(medium, true)->info().disk_id;
  const vmm::Guid linkage = vmm::Guid::Random();
  for (int round = 0; round < 40; ++round) {  // its room in the region does not run out
    const std::string path =
        fmt::format(".\\{}.vhdx", std::string(static_cast<size_t>(1 + round * 60), 'n'));
    const auto done = Relink(medium, ParentAt(path, linkage));
    ASSERT_TRUE(done.ok()) << done.error().ToString();
    ASSERT_EQ(ParentOf(medium), path);
  }
  const auto image = Open(medium, true);
  EXPECT_EQ(image->parent()->linkage.at(0), linkage);
  EXPECT_EQ(image->identity(), identity) << "children of this image stay linked to it";
  EXPECT_EQ(image->info().disk_id, disk_id);
  EXPECT_EQ(Complaints(medium), "");
}

TEST(VhdxRelinkTest, ADiskWithoutParentIsRefused) {
  CrashMedium medium = NewMedium();
  EXPECT_FALSE(Relink(medium, ParentAt(".\\new.vhdx", vmm::Guid::Random())).ok());
  EXPECT_EQ(Complaints(medium), "");
}

TEST(VhdxRelinkTest, AnyMomentLeavesTheOldParentOrTheNew) {
  uint64_t events = 0;
  bool old_seen = false, new_seen = false;
  for (uint64_t cut_at = 0; cut_at <= events && !HasFailure(); ++cut_at) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      SCOPED_TRACE(fmt::format("cut at {}, seed {}", cut_at, seed));
      CrashMedium medium = NewChild(ParentAt(".\\old.vhdx", vmm::Guid::Random()));
      std::mt19937_64 random(cut_at * 8 + seed);
      std::optional<SparseBytes> cut;
      uint64_t event = 0;
      medium.on_event = [&] {
        if (event++ == cut_at) cut = medium.Crash(random);
      };
      ASSERT_TRUE(Relink(medium, ParentAt(".\\new.vhdx", vmm::Guid::Random())).ok());
      medium.on_event = nullptr;
      events = std::max(events, event);
      CrashMedium after(cut ? *cut : medium.now);
      const std::string parent = ParentOf(after);
      old_seen = old_seen || parent == ".\\old.vhdx";
      new_seen = new_seen || parent == ".\\new.vhdx";
      ASSERT_TRUE(parent == ".\\old.vhdx" || parent == ".\\new.vhdx") << parent;
      ASSERT_EQ(Complaints(after), "");
    }
  }
  EXPECT_TRUE(old_seen && new_seen);
  EXPECT_GT(events, 8u);
}

}  // namespace
}  // namespace kvmbus::virtdev
