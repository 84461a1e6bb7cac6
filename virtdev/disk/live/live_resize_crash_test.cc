// SPDX-License-Identifier: Apache-2.0
// The power cut at any moment while an open VHDX grows between writes: the old size or the new,
// what was flushed, and nothing that was never written.
#include <optional>

#include "tests/fakes/acceptable_content.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;
using tests::AcceptableContent;

constexpr uint64_t kOld = (3u << 20) - 3 * kUnit;  // the last block is not whole
constexpr uint64_t kNear = 5u << 20;
constexpr uint64_t kFar = uint64_t{200} << 30;  // its BAT does not fit into the region
constexpr uint64_t kUnits = kNear / kUnit;      // what the test looks at

class GrowingDisk {
 public:
  GrowingDisk(CrashMedium& medium, uint64_t seed, bool fixed)
      : random_(seed), fixed_(fixed), content_(kUnits, kUnit, [](uint64_t) { return uint8_t{0}; }) {
    image_ = Open(medium);
  }

  void Live(uint64_t new_bytes) {
    for (int i = 0; i < 12; ++i) Step(kOld);
    const auto grown = image_->Grow(new_bytes);
    ASSERT_TRUE(grown.ok()) << grown.error().ToString();
    if (!cut) durable_bytes = new_bytes;
    for (int i = 0; i < 12; ++i) Step(std::min<uint64_t>(new_bytes, kNear));
    ASSERT_TRUE(image_->Close().ok());
  }
  AcceptableContent& content() { return content_; }
  std::mt19937_64& random() { return random_; }

  std::optional<SparseBytes> cut;
  uint64_t durable_bytes = kOld;  ///< at least so large after a cut

 private:
  void Step(uint64_t bytes) {
    const uint64_t units = bytes / kUnit, first = random_() % units;
    const uint64_t count = std::min(1 + random_() % 60, units - first);
    const uint64_t what = random_() % 6;
    if (what == 0) {
      ASSERT_TRUE(image_->Flush().ok());
      if (!cut) content_.Flushed();
      return;
    }
    if (what == 1 && fixed_) return;  // which ignores an unmap
    const auto value = static_cast<uint8_t>(what == 1 ? 0 : 1 + random_() % 255);
    if (!cut) content_.WroteRange(first, count, value);
    if (what == 1)
      ASSERT_TRUE(image_->Unmap(first * kUnit, count * kUnit).ok());
    else
      Write(*image_, first * kUnit, Bytes(count * kUnit, value));
  }

  std::mt19937_64 random_;
  const bool fixed_;
  AcceptableContent content_;
  std::unique_ptr<Image> image_;
};

void CutPowerEverywhere(uint64_t new_bytes, bool fixed, uint64_t cuts = 300) {
  uint64_t events = 1;
  bool old_seen = false, new_seen = false;
  for (uint64_t cut_at = 0; cut_at < events && !testing::Test::HasFailure();
       cut_at += 1 + events / cuts) {
    SCOPED_TRACE(fmt::format("{}: cut at {} of {}", new_bytes, cut_at, events));
    CreateDiskOptions options = SmallDisk(fixed);
    options.size_bytes = kOld;
    CrashMedium medium = NewMedium(options);
    Settle(medium);
    GrowingDisk disk(medium, cut_at, fixed);
    uint64_t event = 0;
    medium.on_event = [&] {
      if (event++ == cut_at) disk.cut = medium.Crash(disk.random());
    };
    ASSERT_NO_FATAL_FAILURE(disk.Live(new_bytes));
    medium.on_event = nullptr;
    events = std::max(events, event);
    if (!disk.cut) continue;
    CrashMedium after(*disk.cut);
    ASSERT_EQ(Complaints(after), "");
    const auto image = Open(after, true);
    const uint64_t found = image->info().size_bytes;
    ASSERT_TRUE(found == new_bytes || found == kOld) << found;
    ASSERT_GE(found, disk.durable_bytes);
    (found == kOld ? old_seen : new_seen) = true;
    const uint64_t bytes = std::min<uint64_t>(found, kNear);
    const Bytes content = Read(*image, 0, bytes);
    for (uint64_t unit = 0; unit < bytes / kUnit; ++unit)
      ASSERT_TRUE(disk.content().Allows(unit, content.data() + unit * kUnit)) << unit;
  }
  EXPECT_TRUE(old_seen && new_seen);
}

TEST(LiveResizeCrashTest, WithinTheBatsRegion) { CutPowerEverywhere(kNear, false); }
TEST(LiveResizeCrashTest, PastTheBatsRegion) { CutPowerEverywhere(kFar, false); }
TEST(LiveResizeCrashTest, FixedWithinTheBatsRegion) { CutPowerEverywhere(kNear, true); }
TEST(LiveResizeCrashTest, FixedPastTheBatsRegion) { CutPowerEverywhere(kFar, true, 120); }

}  // namespace
}  // namespace kvmbus::virtdev
