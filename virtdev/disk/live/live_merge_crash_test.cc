// SPDX-License-Identifier: Apache-2.0
// The power cut at any moment of a merge under a guest that writes: the chain opens, holds what was
// flushed and nothing that was never written, and can be merged again.
#include <optional>

#include "tests/fakes/acceptable_content.h"
#include "virtdev/disk/live/live_disk.h"
#include "virtdev/disk/vhd/vhd_test_image.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;
using tests::AcceptableContent;
using vmm::Result;

constexpr uint64_t kBytes = 3u << 20;
constexpr uint64_t kUnits = kBytes / kUnit;

/// What the files are, the base among them.
enum class Format { kVhdx, kVhd, kFixedVhd };

/// A folder of media, and what a merge does to their names.
class Media final : public MergeFiles {
 public:
  explicit Media(Format of) : format(of) {}
  Result<std::unique_ptr<BlockFile>> Reopen(const std::string& path, BlockFile&) override {
    return std::unique_ptr<BlockFile>(std::make_unique<CrashFile>(media.at(path)));
  }
  void Share(BlockFile&, BlockFile&) override {}
  Result<void> CheckNextTop(const Chain&) override { return {}; }
  Result<std::vector<ParentReference::Path>> PathsTo(const std::string&,
                                                     const std::string& parent) override {
    return std::vector<ParentReference::Path>{
        {ParentReference::Path::Kind::kRelative, ".\\" + parent}};
  }
  Result<void> Redirect(const std::string& path, const std::string& to) override {
    on_event();
    EXPECT_EQ(path, top);
    top = to;
    return {};
  }
  Result<void> Remove(const std::string& path) override {
    on_event();
    removed = path;
    return {};
  }

  /// Opens the top, and what it names below it.
  std::unique_ptr<Chain> Open() {
    std::vector<std::unique_ptr<Image>> layers;
    std::vector<std::string> names = {top};
    for (;;) {
      EXPECT_NE(names.back(), removed);
      layers.push_back(OpenOne(names.back(), !layers.empty()));
      if (layers.back() == nullptr) return nullptr;
      if (layers.size() > 1) {
        const auto& linkage = layers[layers.size() - 2]->parent()->linkage;
        EXPECT_NE(std::find(linkage.begin(), linkage.end(), layers.back()->identity()),
                  linkage.end())
            << names.back();
      }
      if (layers.back()->parent() == nullptr) break;
      names.push_back(layers.back()->parent()->paths.front().text.substr(2));
    }
    return std::make_unique<Chain>(std::move(layers), std::move(names));
  }

  std::unique_ptr<Image> OpenOne(const std::string& name, bool read_only) {
    return format == Format::kVhdx ? vhdx_test::Open(media.at(name), read_only)
                                   : vhd_test::Open(media.at(name), read_only);
  }
  std::string ComplaintsOf(const std::string& name) {
    return format == Format::kVhdx ? vhdx_test::Complaints(media.at(name))
                                   : vhd_test::Complaints(media.at(name));
  }
  /// An empty image on `below`; "": a base.
  Result<void> Make(const std::string& name, const std::string& below) {
    CreateDiskOptions options = SmallDisk();
    options.size_bytes = kBytes;
    CrashFile file(media[name]);
    const vmm::Guid parent = below.empty() ? vmm::Guid() : OpenOne(below, true)->identity();
    const std::string path = ".\\" + below;
    if (format == Format::kVhdx) {
      const ParentReference reference = {{{ParentReference::Path::Kind::kRelative, path}},
                                         {parent}};
      return FormatVhdx(file, options, vmm::Guid::Random(), below.empty() ? nullptr : &reference);
    }
    if (!below.empty()) return FormatVhdChild(file, {parent, kBytes, 0, path, ""});
    options.block_bytes = 512u << 10;
    options.fixed = format == Format::kFixedVhd;
    return FormatVhd(file, options, vmm::Guid::Random());
  }

  const Format format;
  std::map<std::string, CrashMedium> media;
  std::string top, removed;
  std::function<void()> on_event = [] {};
};

class Live final : public LiveChain {
 public:
  explicit Live(Chain& chain) : chain_(chain) {}
  Chain& chain() override { return chain_; }
  Result<void> Hold(const std::function<Result<void>()>& change) override { return change(); }
  void SetWriteLog(std::shared_ptr<WriteLog> log) override { log_ = std::move(log); }
  void TellResized() override {}
  void Mark(uint64_t offset, uint64_t length) {
    if (log_ != nullptr) log_->Mark(offset, length);
  }

 private:
  Chain& chain_;
  std::shared_ptr<WriteLog> log_;
};

/// The guest's next request, and what may be found of it after a crash.
class Writer {
 public:
  Writer(std::mt19937_64& random, AcceptableContent& content)
      : random_(random), content_(content) {}
  void Step(Live& live, const bool& cut) {
    Image& top = live.chain().top();
    const uint64_t first = random_() % kUnits, count = std::min(1 + random_() % 40, kUnits - first);
    const uint64_t what = random_() % 8;
    if (what == 0) {
      ASSERT_TRUE(top.Flush().ok());
      if (!cut) content_.Flushed();
      return;
    }
    const auto value = static_cast<uint8_t>(what <= 2 ? 0 : 1 + random_() % 255);
    if (!cut) content_.WroteRange(first, count, value);
    const uint64_t offset = first * kUnit, length = count * kUnit;
    if (what == 1 && top.info().unmapped_reads_zero) {
      ASSERT_TRUE(top.Unmap(offset, length).ok());
    } else if (what <= 2) {
      ASSERT_TRUE(top.WriteZeroes(offset, length).ok());
    } else {
      Write(top, offset, Bytes(length, value));
    }
    live.Mark(offset, length);
  }

 private:
  std::mt19937_64& random_;
  AcceptableContent& content_;
};

/// c on b on a, each with something of its own.
void MakeMedia(Media& media, std::mt19937_64& random, AcceptableContent& content) {
  const bool cut = false;
  Writer writer(random, content);
  std::string below;
  for (const std::string name : {"a", "b", "c"}) {
    ASSERT_TRUE(media.Make(name, below).ok());
    media.top = below = name;
    auto chain = media.Open();
    Live live(*chain);
    for (int i = 0; i < 12; ++i) writer.Step(live, cut);
    ASSERT_TRUE(chain->Close().ok());
    content.Flushed();
  }
  for (auto& [name, medium] : media.media) Settle(medium);
}

void ExpectAllowed(Media& media, AcceptableContent& content) {
  auto chain = media.Open();
  ASSERT_TRUE(chain);
  const Bytes bytes = Read(*chain, 0, kBytes);
  for (uint64_t unit = 0; unit < kUnits; ++unit)
    ASSERT_TRUE(content.Allows(unit, bytes.data() + unit * kUnit)) << unit;
  content.Found(bytes);
  for (const std::string& name : chain->paths()) ASSERT_EQ(media.ComplaintsOf(name), "");
}

/// What is left after a cut is merged to the end, and is the same disk.
void ExpectCanBeMerged(Media& media, AcceptableContent& content) {
  for (;;) {
    auto chain = media.Open();
    ASSERT_TRUE(chain);
    if (chain->layers().size() == 1) break;
    Live live(*chain);
    const auto merged = MergeLiveLayer(live, chain->layers().size() - 2, media, {}, {});
    ASSERT_TRUE(merged.ok()) << merged.error().ToString();
    ASSERT_TRUE(chain->Close().ok());
    ASSERT_NO_FATAL_FAILURE(ExpectAllowed(media, content));
  }
}

void CutPowerEverywhere(Format format, size_t layer) {
  uint64_t events = 1;
  int cuts = 0;
  for (uint64_t cut_at = 0; cut_at < events && !testing::Test::HasFailure();
       cut_at += 1 + events / 150) {
    SCOPED_TRACE(fmt::format("layer {}: cut at {} of {}", layer, cut_at, events));
    std::mt19937_64 random(cut_at);
    AcceptableContent content(kUnits, kUnit, [](uint64_t) { return uint8_t{0}; });
    Media media(format), after(format);
    ASSERT_NO_FATAL_FAILURE(MakeMedia(media, random, content));
    auto chain = media.Open();
    Live live(*chain);
    Writer writer(random, content);
    bool cut = false;
    uint64_t event = 0;
    const auto on_event = [&] {
      if (event++ != cut_at) return;
      cut = true;
      for (auto& [name, medium] : media.media)
        after.media[name] = CrashMedium(medium.Crash(random));
      after.top = media.top;
      after.removed = media.removed;
    };
    for (auto& [name, medium] : media.media) medium.on_event = on_event;
    media.on_event = on_event;
    const auto merged = MergeLiveLayer(live, layer, media,
                                       [&](uint64_t, uint64_t) {
                                         for (int i = 0; i < 4; ++i) writer.Step(live, cut);
                                         return true;
                                       },
                                       {});
    ASSERT_TRUE(merged.ok()) << merged.error().ToString();
    for (int i = 0; i < 6; ++i) writer.Step(live, cut);  // on what is the top now
    ASSERT_TRUE(chain->Close().ok());
    for (auto& [name, medium] : media.media) medium.on_event = nullptr;
    media.on_event = [] {};
    events = std::max(events, event);
    if (!cut) {
      content.Flushed();
      ASSERT_NO_FATAL_FAILURE(ExpectAllowed(media, content));
      continue;
    }
    ++cuts;
    ASSERT_NO_FATAL_FAILURE(ExpectAllowed(after, content));
    ASSERT_NO_FATAL_FAILURE(ExpectCanBeMerged(after, content));
  }
  EXPECT_GT(cuts, 80);
}

class LiveMergeCrashTest : public testing::TestWithParam<Format> {};

TEST_P(LiveMergeCrashTest, TheTop) { CutPowerEverywhere(GetParam(), 0); }
TEST_P(LiveMergeCrashTest, ALayerBelow) { CutPowerEverywhere(GetParam(), 1); }

std::string NameOf(const testing::TestParamInfo<Format>& test) {
  constexpr const char* kNames[] = {"Vhdx", "Vhd", "FixedVhd"};
  return kNames[static_cast<int>(test.param)];
}
INSTANTIATE_TEST_SUITE_P(Formats, LiveMergeCrashTest,
                         testing::Values(Format::kVhdx, Format::kVhd, Format::kFixedVhd), NameOf);

}  // namespace
}  // namespace kvmbus::virtdev
