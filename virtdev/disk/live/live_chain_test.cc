// SPDX-License-Identifier: Apache-2.0
// New children and merges under a guest of several threads, which compares all that it reads.
#include <sys/stat.h>

#include <thread>

#include "virtdev/disk/image_format.h"
#include "virtdev/disk/live/live_test_disk.h"

namespace kvmbus::virtdev {
namespace {

using namespace live_test;
using vmm::Code;
using vmm::Result;

/// By the suffix of image names.
class LiveChainTest : public testing::TestWithParam<const char*> {
 protected:
  LiveChainTest() : files_(MakeHostMergeFiles()) {}

  std::string Path(const std::string& name) { return folder_ / (name + GetParam()); }
  bool is_vhdx() const { return std::string(GetParam()) == ".vhdx"; }
  void Open(const std::string& name) {
    auto disk = OpenDisk(Path(name), {false, true, {}});
    ASSERT_TRUE(disk.ok()) << disk.error().ToString();
    disk_ = std::move(disk).value();
    guest_ = std::make_unique<Guest>(*disk_, seed_++);
    guest_->SetContent(content_);
  }
  /// a, b on a, c on b ..., each with something of its own.
  void MakeChain(const std::vector<std::string>& names) {
    for (size_t i = 0; i < names.size(); ++i) {
      ASSERT_NO_FATAL_FAILURE(MakeImage(Path(names[i]), i == 0 ? "" : Path(names[i - 1])));
      ASSERT_NO_FATAL_FAILURE(Open(names[i]));
      guest_->Start();
      guest_->AwaitRequests(40);
      ASSERT_NO_FATAL_FAILURE(Close(names[i]));
    }
  }
  void Close(const std::string& name) {
    guest_->Stop();
    guest_->ExpectAllRight();
    content_ = guest_->Content(disk_->info().size_bytes);
    guest_.reset();
    ASSERT_TRUE(disk_->Close().ok());
    disk_.reset();
    ASSERT_TRUE(ReadDisk(Path(name)) == content_);
    ASSERT_EQ(Complaints(Path(name)), "");
  }
  Chain& chain() { return disk_->live()->chain(); }
  Result<void> Merge(size_t layer, const Progress& progress = {}) {
    return MergeLiveLayer(*disk_->live(), layer, *files_, progress, {});
  }
  void ExpectMerged(size_t layer) {
    const auto merged = Merge(layer);
    ASSERT_TRUE(merged.ok()) << merged.error().ToString();
  }
  void ExpectChild(const std::string& name) {
    const auto made = CreateLiveChild(*disk_->live(), Path(name), {});
    ASSERT_TRUE(made.ok()) << made.error().ToString();
  }
  bool IsLink(const std::string& name) { return std::filesystem::is_symlink(Path(name)); }
  bool Exists(const std::string& name) {
    struct stat status = {};
    return ::lstat(Path(name).c_str(), &status) == 0;
  }

  Folder folder_;
  std::unique_ptr<MergeFiles> files_;
  uint64_t seed_ = 1;
  std::unique_ptr<DiskIo> disk_;
  std::unique_ptr<Guest> guest_;
  Bytes content_ = Bytes(kDiskBytes, 0);
};

TEST_P(LiveChainTest, ANewChildTakesWhatIsWritten) {
  MakeChain({"a"});
  Open("a");
  guest_->Start();
  guest_->AwaitRequests(50);
  ExpectChild("b");
  const Bytes base = ReadDisk(Path("a"));  // shared from now on, and still
  guest_->AwaitRequests(50);
  ExpectChild("c");
  guest_->AwaitRequests(50);
  EXPECT_EQ(disk_->live()->chain().layers().size(), 3u);
  EXPECT_TRUE(ReadDisk(Path("a")) == base);
  Close("c");
}

TEST_P(LiveChainTest, APreparedChildIsOfTheTopThatThereIsAtTheSwitch) {
  MakeChain({"a"});
  Open("a");
  // The first write of the guest gives the parent another identity.
  auto prepared = PrepareLiveChild(*disk_->live(), Path("b"));
  ASSERT_TRUE(prepared.ok()) << prepared.error().ToString();
  guest_->Start();
  guest_->AwaitRequests(50);
  EXPECT_FALSE(Exists("b"));
  ASSERT_TRUE(SwitchToLiveChild(*disk_->live(), std::move(*prepared), {}).ok());
  guest_->AwaitRequests(50);
  EXPECT_TRUE(PrepareLiveChild(*disk_->live(), Path("c")).ok());
  EXPECT_FALSE(Exists("c")) << "nothing came of it";
  guest_->AwaitRequests(20);
  EXPECT_EQ(chain().layers().size(), 2u);
  Close("b");
}

TEST_P(LiveChainTest, AChildThatCannotBeChangesNothing) {
  MakeChain({"a"});
  Open("a");
  guest_->Start();
  guest_->AwaitRequests(20);
  MakeImage(Path("other"));
  EXPECT_EQ(CreateLiveChild(*disk_->live(), Path("other"), {}).error().code(),
            Code::kAlreadyExists);
  EXPECT_FALSE(CreateLiveChild(*disk_->live(), Path("no/where"), {}).ok());
  EXPECT_FALSE(CreateLiveChild(*disk_->live(), folder_ / "child.raw", {}).ok());
  // As far as it goes: the top was closed, and is written on.
  for (int i = 0; i < 8; ++i) {
    const auto refused = CreateLiveChild(*disk_->live(), Path("b"), [](const std::string&) {
      return Result<void>(vmm::Error(Code::kInternal, "no"));
    });
    EXPECT_FALSE(refused.ok());
    EXPECT_FALSE(Exists("b"));
    guest_->AwaitRequests(30);
  }
  Close("a");
}

TEST_P(LiveChainTest, TheTopIsMergedUnderLoad) {
  MakeChain({"a", "b", "c"});
  Open("c");
  guest_->Start();
  guest_->AwaitRequests(30);
  ExpectMerged(0);
  EXPECT_TRUE(IsLink("c"));
  guest_->AwaitRequests(30);
  ExpectMerged(0);
  guest_->AwaitRequests(30);
  EXPECT_EQ(chain().layers().size(), 1u);
  EXPECT_TRUE(IsLink("b"));
  Close("c");  // by its old name
  EXPECT_TRUE(ReadDisk(Path("a")) == content_);
}

TEST_P(LiveChainTest, LayersBelowAreMergedUnderLoad) {
  MakeChain({"a", "b", "c", "d"});
  Open("d");
  guest_->Start();
  guest_->AwaitRequests(20);
  ExpectMerged(2);  // b into a
  EXPECT_FALSE(Exists("b"));
  guest_->AwaitRequests(20);
  ExpectMerged(1);  // c into a
  EXPECT_FALSE(Exists("c"));
  guest_->AwaitRequests(20);
  EXPECT_EQ(chain().layers().size(), 2u);
  Close("d");
}

TEST_P(LiveChainTest, ACancelLosesNothing) {
  MakeChain({"a", "b", "c"});
  Open("c");
  guest_->Start();
  for (const size_t layer : {0, 1}) {
    const auto cancelled = Merge(layer, [](uint64_t done, uint64_t) { return done < 3 * kStrip; });
    ASSERT_FALSE(cancelled.ok());
    EXPECT_EQ(cancelled.error().code(), Code::kCancelled);
    EXPECT_EQ(chain().layers().size(), 3u);
    guest_->AwaitRequests(20);
  }
  Close("c");
  Open("c");
  guest_->Start();
  ExpectMerged(1);
  ExpectMerged(0);
  Close("c");
}

TEST_P(LiveChainTest, ALargerChildMakesItsParentLarger) {
  if (!is_vhdx()) GTEST_SKIP() << "none is larger than its parent";
  MakeChain({"a", "b"});
  Open("b");
  guest_->Start();
  ASSERT_TRUE(ResizeLiveDisk(*disk_->live(), kDiskBytes + 2 * kStrip).ok());
  guest_->hammer(0).AddStrip(kDiskBytes / kStrip);
  guest_->hammer(1).AddStrip(kDiskBytes / kStrip + 1);
  guest_->AwaitRequests(50);
  ExpectMerged(0);
  EXPECT_EQ(disk_->info().size_bytes, kDiskBytes + 2 * kStrip);
  guest_->AwaitRequests(30);
  Close("b");
}

TEST_P(LiveChainTest, WhatOthersUseIsRefused) {
  MakeChain({"a", "b", "c"});
  const auto other = OpenChain(Path("a"), true);
  ASSERT_TRUE(other.ok());
  Open("c");
  guest_->Start();
  const auto refused = Merge(1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Code::kUnavailable);
  EXPECT_NE(refused.error().ToString().find("others use it"), std::string::npos);
  EXPECT_FALSE(OpenBlockFile(Path("b"), false).ok()) << "its lock is there";
  ExpectMerged(0);  // into b, which nobody else has
  EXPECT_EQ(Merge(1).error().code(), Code::kInvalidArgument) << "a base";
  Close("c");
}

TEST_P(LiveChainTest, AFileThatIsNotTheOneThatIsOpenIsRefused) {
  MakeChain({"a", "b"});
  Open("b");
  std::filesystem::rename(Path("a"), Path("kept"));
  std::filesystem::copy(Path("kept"), Path("a"));
  EXPECT_EQ(Merge(0).error().code(), Code::kFailedPrecondition);
  std::filesystem::rename(Path("kept"), Path("a"));
  guest_->Start();
  ExpectMerged(0);
  Close("b");
}

TEST_P(LiveChainTest, AnythingInAnyOrder) {
  std::mt19937_64 random(11);
  MakeChain({"a", "b"});
  Open("b");
  guest_->Start();
  int children = 0;
  std::string name = "b";
  for (int step = 0; step < 24 && !HasFailure(); ++step) {
    SCOPED_TRACE(step);
    guest_->AwaitRequests(10);
    const size_t layers = chain().layers().size();
    const uint64_t what = random() % 4;
    if (what == 0 && layers < 6) {
      name = fmt::format("child{}", ++children);
      ASSERT_NO_FATAL_FAILURE(ExpectChild(name));
    } else if (what == 1 && is_vhdx()) {
      ASSERT_TRUE(ResizeLiveDisk(*disk_->live(), disk_->info().size_bytes + kStrip).ok());
    } else if (layers > 1) {
      ASSERT_NO_FATAL_FAILURE(ExpectMerged(random() % (layers - 1)));
    }
  }
  guest_->AwaitRequests(20);
  Close(name);
}

// A machine was killed: the log of its disk is not empty, and it is a parent now.
TEST_P(LiveChainTest, AParentWithALogIsMergedInto) {
  if (!is_vhdx()) GTEST_SKIP() << "a VHD has none";
  MakeChain({"a"});
  Open("a");
  guest_->Start();
  guest_->AwaitRequests(50);
  guest_->Stop();
  content_ = guest_->Content(kDiskBytes);
  ASSERT_TRUE(chain().top().Flush().ok());
  for (const char* name : {"base", "kept"}) std::filesystem::copy(Path("a"), Path(name));
  guest_.reset();
  ASSERT_TRUE(disk_->Close().ok());
  disk_.reset();
  MakeImage(Path("b"), Path("base"));
  // However the child was made: the log of its parent is as it was.
  std::filesystem::rename(Path("kept"), Path("base"));
  Open("b");
  ASSERT_EQ(chain().layers()[1]->file().fd() < 0, is_vhdx()) << "only a VHDX has a log";
  guest_->Start();
  guest_->AwaitRequests(30);
  ExpectMerged(0);
  guest_->AwaitRequests(30);
  EXPECT_EQ(chain().layers().size(), 1u);
  EXPECT_GE(chain().top().file().fd(), 0);
  Close("b");
  EXPECT_TRUE(files_->Remove(Path("nowhere")).ok()) << "it is gone, which is all that is wanted";
}

const auto kName = [](const auto& test) { return std::string(test.param + 1); };
INSTANTIATE_TEST_SUITE_P(Formats, LiveChainTest, testing::Values(".vhdx", ".vhd"), kName);

int64_t WrittenLast(const std::string& path) {
  struct stat status = {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return status.st_mtime;
}

/// Windows compares the two.
void ExpectKnowsItsParent(const Image& child, const std::string& parent) {
  EXPECT_EQ(child.parent()->modified, WrittenLast(parent));
  EXPECT_EQ(child.parent()->linkage.front(), OpenImage(parent, true).value()->identity());
}

TEST(LiveVhdTest, AChildKnowsWhenItsParentWasWrittenLast) {
  Folder folder;
  const std::string a = folder / "a.vhd", b = folder / "b.avhd", c = folder / "c.avhd";
  MakeImage(a);
  auto disk = OpenDisk(a, {false, true, {}}).value();
  const vmm::Guid id = disk->info().disk_id;
  Guest guest(*disk);
  guest.Start();
  auto prepared = PrepareLiveChild(*disk->live(), b);
  ASSERT_TRUE(prepared.ok()) << prepared.error().ToString();
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  guest.AwaitRequests(20);
  ASSERT_TRUE(SwitchToLiveChild(*disk->live(), std::move(*prepared), {}).ok());
  Chain& chain = disk->live()->chain();
  ExpectKnowsItsParent(chain.top(), a);
  guest.AwaitRequests(20);
  ASSERT_TRUE(CreateLiveChild(*disk->live(), c, {}).ok());
  ExpectKnowsItsParent(chain.top(), b);
  EXPECT_EQ(disk->info().disk_id, id) << "the guest would see another disk";
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  const auto files = MakeHostMergeFiles();
  ASSERT_TRUE(MergeLiveLayer(*disk->live(), 1, *files, {}, {}).ok());
  guest.Stop();
  guest.ExpectAllRight();
  ASSERT_TRUE(disk->Close().ok());
  disk.reset();
  ExpectKnowsItsParent(*OpenImage(c, true).value(), a);
  EXPECT_EQ(OpenDisk(c, {true, true, {}}).value()->info().disk_id, id);
}

TEST(LiveVhdTest, AFixedBaseGetsAChildAndTakesItsContent) {
  Folder folder;
  const std::string a = folder / "a.vhd", b = folder / "b.avhd";
  CreateDiskOptions options;
  options.format = "vhd";
  options.fixed = true;
  options.size_bytes = kDiskBytes;
  ASSERT_TRUE(CreateDisk(a, options).ok());
  auto disk = OpenDisk(a, {false, true, {}}).value();
  Guest guest(*disk);
  guest.Start();
  guest.AwaitRequests(30);
  ASSERT_TRUE(CreateLiveChild(*disk->live(), b, {}).ok());
  guest.AwaitRequests(60);
  const auto files = MakeHostMergeFiles();
  ASSERT_TRUE(MergeLiveLayer(*disk->live(), 0, *files, {}, {}).ok());
  guest.AwaitRequests(30);
  guest.Stop();
  guest.ExpectAllRight();
  ASSERT_TRUE(disk->Close().ok());
  disk.reset();
  EXPECT_TRUE(ReadDisk(a) == guest.Content());
  EXPECT_EQ(Complaints(a), "");
}

TEST(LiveRawTest, ARawDiskGetsNoChildAndTheErrorSaysWhatToDo) {
  Folder folder;
  MakeImage(folder / "a.raw");
  auto disk = OpenDisk(folder / "a.raw", {false, true, {}}).value();
  const auto refused = CreateLiveChild(*disk->live(), folder / "b.avhdx", {});
  EXPECT_EQ(refused.error().code(), Code::kUnimplemented);
  EXPECT_NE(refused.error().ToString().find("vmctl disk convert"), std::string::npos);
  ASSERT_TRUE(disk->Close().ok());
}

}  // namespace
}  // namespace kvmbus::virtdev
