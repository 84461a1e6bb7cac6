// SPDX-License-Identifier: Apache-2.0
// Chains of files: how parents are found and refused, the tools, and the judges that are installed.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhdx/vhdx_format.h"
#include "virtdev/disk/vhdx/vhdx_locator.h"
#include "vmm/os/file.h"

namespace kvmbus::virtdev {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;
using vmm::Code;

constexpr uint64_t kDiskBytes = 6u << 20;
constexpr uint64_t kBlock = 1u << 20;

bool Installed(const char* command) {
  return std::system(fmt::format("command -v {} >/dev/null 2>&1", command).c_str()) == 0;
}
int Shell(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str());
}

class DiskChainTest : public testing::Test {
 protected:
  DiskChainTest() {
    char folder[] = "/tmp/chain-test-XXXXXX";
    top_folder_ = ::mkdtemp(folder);
    folder_ = top_folder_ + "/vm/disks";
    fs::create_directories(folder_);
  }
  ~DiskChainTest() override { fs::remove_all(top_folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  void Create(const std::string& path, const std::string& parent = "") {
    CreateDiskOptions options;
    if (parent.empty()) options.size_bytes = kDiskBytes;
    options.block_bytes = kBlock;
    options.parent = parent;
    const auto made = CreateDisk(path, options);
    ASSERT_TRUE(made.ok()) << made.error().ToString();
  }
  void Write(const std::string& path, uint64_t offset, const Bytes& bytes) {
    auto chain = OpenChain(path, false);
    ASSERT_TRUE(chain.ok()) << chain.error().ToString();
    Image& top = (*chain)->top();
    uint64_t done = 0;
    const auto extents = top.MapForWrite(offset, bytes.size());
    for (const ImageExtent& extent : *extents) {
      ASSERT_TRUE(
          extent.file->Write(std::span(bytes).subspan(done, extent.length), extent.file_offset)
              .ok());
      done += extent.length;
    }
    top.WriteDone(offset, bytes.size());
    ASSERT_TRUE((*chain)->Close().ok());
  }
  Bytes Read(Chain& chain) {
    Bytes bytes(chain.info().size_bytes);
    uint64_t done = 0;
    for (const ImageExtent& extent : chain.MapForRead(0, bytes.size())) {
      if (extent.kind == ImageExtent::Kind::kData) {
        EXPECT_TRUE(
            extent.file->Read(std::span(bytes).subspan(done, extent.length), extent.file_offset)
                .ok());
      }
      done += extent.length;
    }
    return bytes;
  }
  std::string WhyNot(const std::string& path, Code code,
                     const std::vector<std::string>& roots = {}) {
    const auto chain = OpenChain(path, true, roots);
    if (chain.ok()) return "it opens";
    EXPECT_EQ(chain.error().code(), code) << chain.error().ToString();
    return chain.error().ToString();
  }
  /// Replaces what an image says of its parent.
  void Relink(const std::string& path, const ParentReference& parent) {
    auto file = OpenBlockFile(path, false);
    ASSERT_TRUE(file.ok());
    const Bytes item = vhdx::BuildParentLocator(parent).value();
    Bytes table(vhdx::kMetadataTableBytes);
    constexpr uint64_t kMetadata = 2u << 20;
    ASSERT_TRUE((*file)->Read(table, kMetadata).ok());
    for (size_t at = 32; at < 32 * 10; at += 32) {
      auto entry = vhdx::Load<vhdx::MetadataTableEntry>(table, at);
      if (entry.item_id != vhdx::kParentLocatorItem) continue;
      entry.length = static_cast<uint32_t>(item.size());
      vhdx::Store(table, at, entry);
      ASSERT_TRUE((*file)->Write(item, kMetadata + entry.offset).ok());
    }
    ASSERT_TRUE((*file)->Write(table, kMetadata).ok());
  }
  vmm::Guid IdentityOf(const std::string& path) {
    return OpenImage(path, true).value()->identity();
  }
  void RelinkTo(const std::string& path, const std::string& parent,
                ParentReference::Path::Kind kind, const std::string& text) {
    Relink(path, {{{kind, text}}, {IdentityOf(parent)}});
  }
  std::string Errors(const std::string& path) {
    const auto findings = CheckDisk(path);
    if (!findings.ok()) return findings.error().ToString();
    std::string text;
    for (const Finding& finding : *findings)
      text += fs::path(finding.file).filename().string() + ": " + finding.text + "\n";
    return text;
  }

  std::string top_folder_, folder_;
};

using Kind = ParentReference::Path::Kind;
constexpr auto kRelative = Kind::kRelative, kAbsolute = Kind::kAbsolute;

/// base.vhdx, middle.avhdx and top.avhdx, each with something of its own.
class ThreeLayersTest : public DiskChainTest {
 protected:
  ThreeLayersTest() : expected_(kDiskBytes, 1) {
    Create(base());
    Write(base(), 0, expected_);
    Create(middle(), base());
    Write(middle(), kBlock + 512, Bytes(1024, 2));
    Create(top(), middle());
    Write(top(), kBlock + 1024, Bytes(1024, 3));
    std::fill_n(expected_.begin() + kBlock + 512, 512, 2);
    std::fill_n(expected_.begin() + kBlock + 1024, 1024, 3);
  }
  std::string base() const { return Path("base.vhdx"); }
  std::string middle() const { return Path("middle.avhdx"); }
  std::string top() const { return Path("top.avhdx"); }

  Bytes expected_;
};

TEST_F(ThreeLayersTest, AreOpenedAndLocked) {
  const auto chain = OpenChain(top(), false);
  ASSERT_TRUE(chain.ok()) << chain.error().ToString();
  EXPECT_EQ((*chain)->layers().size(), 3u);
  EXPECT_EQ(Read(**chain), expected_);
  EXPECT_EQ((*chain)->layers()[2]->info().disk_id, (*chain)->info().disk_id);
  EXPECT_FALSE(OpenChain(base(), false).ok()) << "a parent in use is not written";
  EXPECT_TRUE(OpenChain(middle(), true).ok()) << "but read";
  EXPECT_FALSE(CheckDisk(top()).ok()) << "not while it is written";
}

TEST_F(ThreeLayersTest, AreDescribedAndChecked) {
  const auto disk = DescribeDisk(top());
  ASSERT_TRUE(disk.ok());
  EXPECT_EQ(disk->type, "differencing");
  EXPECT_EQ(disk->parent, ".\\middle.avhdx");
  EXPECT_EQ(disk->chain, (std::vector<std::string>{middle(), base()}));
  EXPECT_EQ(disk->chain_error, "");
  EXPECT_EQ(disk->allocated_blocks, 1u);
  EXPECT_EQ(Errors(top()), "");
  fs::remove(base());
  EXPECT_NE(DescribeDisk(top())->chain_error.find("does not exist"), std::string::npos);
  EXPECT_EQ(Errors(top()).find("middle.avhdx: parent: "), 0u) << Errors(top());
}

TEST_F(ThreeLayersTest, AreConvertedToOne) {
  CreateDiskOptions options;
  ASSERT_TRUE(ConvertDisk(top(), Path("flat.vhdx"), options, nullptr).ok());
  const auto flat = OpenChain(Path("flat.vhdx"), true).value();
  EXPECT_EQ(flat->layers().size(), 1u);
  EXPECT_EQ(Read(*flat), expected_);
}

TEST_F(ThreeLayersTest, MoveTogether) {
  const std::string other = top_folder_ + "/elsewhere";
  fs::rename(folder_, other);
  EXPECT_EQ(Read(*OpenChain(other + "/top.avhdx", true).value()), expected_);
}

TEST_F(ThreeLayersTest, AParentThatWasWrittenToIsAnother) {
  const std::string before = IdentityOf(base()).ToString();
  Write(base(), 0, Bytes(512, 9));
  const std::string why = WhyNot(top(), Code::kFailedPrecondition);
  for (const std::string& part :
       {middle(), base(), before, IdentityOf(base()).ToString(), std::string("disk reparent")})
    EXPECT_NE(why.find(part), std::string::npos) << why;
  EXPECT_EQ(Errors(top()).find("middle.avhdx: parent: it was made on another image"), 0u);
  EXPECT_EQ(Errors(base()), "");
}

TEST_F(ThreeLayersTest, AParentWhoseLogIsNotEmptyIsReplayedInMemory) {
  {
    auto image = OpenImage(base(), false).value();
    ASSERT_TRUE(image->Unmap(2 * kBlock, kBlock).ok());
    ASSERT_TRUE(image->Flush().ok());
  }
  const std::string before = vmm::ReadWholeFile(base(), 64u << 20).value();
  std::fill_n(expected_.begin() + 2 * kBlock, kBlock, 0);
  RelinkTo(middle(), base(), kRelative, ".\\base.vhdx");
  RelinkTo(top(), middle(), kRelative, ".\\middle.avhdx");
  const auto chain = OpenChain(top(), false);
  ASSERT_TRUE(chain.ok()) << chain.error().ToString();
  EXPECT_EQ(Read(**chain), expected_);
  ASSERT_TRUE((*chain)->Close().ok());
  EXPECT_EQ(vmm::ReadWholeFile(base(), 64u << 20).value(), before);
}

TEST_F(ThreeLayersTest, AMissingParentIsNamed) {
  fs::rename(base(), top_folder_ + "/away.vhdx");
  const std::string why = WhyNot(top(), Code::kNotFound);
  EXPECT_NE(why.find("base.vhdx"), std::string::npos) << why;
  EXPECT_NE(why.find("disk reparent"), std::string::npos) << why;
}

TEST_F(ThreeLayersTest, AWindowsPathIsFoundByItsName) {
  RelinkTo(middle(), base(), kAbsolute, "D:\\VMs\\Disks\\base.vhdx");
  EXPECT_EQ(OpenChain(middle(), true).value()->layers().size(), 2u);
}

TEST_F(ThreeLayersTest, ALocatorOpensNoFileOutsideOfTheRoots) {
  const std::string secret = top_folder_ + "/secret.vhdx";
  fs::copy_file(base(), secret);
  for (const std::string& text : {std::string("..\\..\\secret.vhdx"), secret}) {
    RelinkTo(middle(), base(), text[0] == '/' ? kAbsolute : kRelative, text);
    const std::string why = WhyNot(middle(), Code::kPermissionDenied);
    EXPECT_NE(why.find("outside"), std::string::npos) << why;
    EXPECT_TRUE(OpenChain(middle(), true, {top_folder_}).ok()) << "unless the caller says so";
  }
  // Nor by a symbolic link that lies within.
  fs::create_symlink(secret, Path("link.vhdx"));
  RelinkTo(middle(), base(), kRelative, ".\\link.vhdx");
  EXPECT_NE(WhyNot(middle(), Code::kPermissionDenied).find("outside"), std::string::npos);
  RelinkTo(middle(), base(), kAbsolute, "\\etc\\passwd");
  EXPECT_NE(WhyNot(middle(), Code::kPermissionDenied).find("outside"), std::string::npos);
  // The folder above, and what is below it, is within.
  fs::create_directories(top_folder_ + "/vm/bases");
  fs::rename(base(), top_folder_ + "/vm/bases/b.vhdx");
  RelinkTo(middle(), top_folder_ + "/vm/bases/b.vhdx", kRelative, "..\\bases\\b.vhdx");
  EXPECT_TRUE(OpenChain(middle(), true).ok());
  // Another folder whose name only begins like it is not.
  fs::create_directories(top_folder_ + "/vm2");
  fs::rename(top_folder_ + "/vm/bases/b.vhdx", top_folder_ + "/vm2/b.vhdx");
  RelinkTo(middle(), top_folder_ + "/vm2/b.vhdx", kRelative, "..\\..\\vm2\\b.vhdx");
  EXPECT_NE(WhyNot(middle(), Code::kPermissionDenied).find("outside"), std::string::npos);
}

TEST_F(ThreeLayersTest, RingsAndWhatIsNoFileAreRefused) {
  RelinkTo(middle(), top(), kRelative, ".\\top.avhdx");
  EXPECT_NE(WhyNot(top(), Code::kDataLoss).find("above it"), std::string::npos);
  EXPECT_NE(Errors(top()).find("ring"), std::string::npos);
  RelinkTo(top(), middle(), kRelative, ".\\top.avhdx");
  EXPECT_NE(WhyNot(top(), Code::kDataLoss).find("above it"), std::string::npos);
  fs::create_directories(Path("folder.vhdx"));
  RelinkTo(top(), middle(), kRelative, ".\\folder.vhdx");
  EXPECT_NE(WhyNot(top(), Code::kInvalidArgument).find("not a file"), std::string::npos);
  std::ofstream(Path("raw.img")) << std::string(4096, 'x');
  RelinkTo(top(), middle(), kRelative, ".\\raw.img");
  EXPECT_NE(WhyNot(top(), Code::kFailedPrecondition).find("another image"), std::string::npos);
}

TEST_F(ThreeLayersTest, SectorsMustAgree) {
  CreateDiskOptions options;
  options.size_bytes = kDiskBytes;
  options.logical_sector = 4096;
  ASSERT_TRUE(CreateDisk(Path("4k.vhdx"), options).ok());
  RelinkTo(middle(), Path("4k.vhdx"), kRelative, ".\\4k.vhdx");
  EXPECT_NE(WhyNot(middle(), Code::kDataLoss).find("logical sectors"), std::string::npos);
  EXPECT_NE(Errors(middle()).find("logical sectors"), std::string::npos);
}

// The other format's driver below the same chain.
TEST_F(DiskChainTest, VhdFilesMakeChainsToo) {
  CreateDiskOptions options;
  options.format = "vhd";
  options.size_bytes = kDiskBytes;
  ASSERT_TRUE(CreateDisk(Path("base.vhd"), options).ok());
  Write(Path("base.vhd"), 0, Bytes(kDiskBytes, 1));
  options.size_bytes = 0;
  options.parent = Path("base.vhd");
  const auto made = CreateDisk(Path("top.avhd"), options);
  ASSERT_TRUE(made.ok()) << made.error().ToString();
  Write(Path("top.avhd"), 1024, Bytes(512, 2));
  Bytes expected(kDiskBytes, 1);
  std::fill_n(expected.begin() + 1024, 512, 2);
  EXPECT_EQ(Read(*OpenChain(Path("top.avhd"), true).value()), expected);
  EXPECT_EQ(DescribeDisk(Path("top.avhd"))->chain, std::vector<std::string>{Path("base.vhd")});
  EXPECT_EQ(Errors(Path("top.avhd")).find("error"), std::string::npos);
  options.format = "vhdx";
  EXPECT_NE(CreateDisk(Path("top.avhdx"), options).error().ToString().find("name it .avhd"),
            std::string::npos);
}

TEST_F(DiskChainTest, SixtyFourLayersAreTheLimit) {
  Create(Path("0.vhdx"));
  for (int i = 1; i < 64; ++i)
    Create(Path(fmt::format("{}.avhdx", i)),
           Path(fmt::format("{}.{}", i - 1, i == 1 ? "vhdx" : "avhdx")));
  EXPECT_EQ(OpenChain(Path("63.avhdx"), true).value()->layers().size(), 64u);
  Create(Path("64.avhdx"), Path("63.avhdx"));
  EXPECT_NE(WhyNot(Path("64.avhdx"), Code::kOutOfRange).find("merge"), std::string::npos);
}

TEST_F(DiskChainTest, AChildThatCouldNotBeOpenedIsNotMade) {
  Create(Path("base.vhdx"));
  const auto why = [this](const std::string& path, CreateDiskOptions options) {
    options.parent = options.parent.empty() ? Path("base.vhdx") : options.parent;
    const auto made = CreateDisk(path, options);
    return made.ok() ? "made" : made.error().ToString();
  };
  EXPECT_NE(why(top_folder_ + "/vm/disks/a.vhdx", {.fixed = true}).find("--fixed"),
            std::string::npos);
  EXPECT_NE(why(Path("a.vhdx"), {.size_bytes = 1u << 20}).find("--size"), std::string::npos);
  fs::create_directories(top_folder_ + "/a/b");
  EXPECT_NE(why(top_folder_ + "/a/b/a.vhdx", {}).find("outside"), std::string::npos);
  std::ofstream(Path("raw.img")) << std::string(4096, 'x');
  EXPECT_NE(why(Path("a.vhdx"), {.parent = Path("raw.img")}).find("disk convert"),
            std::string::npos);
  {
    const auto writer = OpenChain(Path("base.vhdx"), false).value();
    EXPECT_NE(why(Path("a.vhdx"), {}).find("in use"), std::string::npos);
  }
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder_)) ++files;
  EXPECT_EQ(files, 2u) << "nothing is left behind";
}

// A writer that shares no code with us, and nothing but the published format:
// testdata/make_avhdx.py.
TEST_F(DiskChainTest, WhatAnotherWriterWroteIsReadRight) {
  if (!Installed("python3")) GTEST_SKIP() << "python3 is not installed";
  for (int seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    ASSERT_EQ(
        Shell(fmt::format("python3 {}/make_avhdx.py {} {}", KVMBUS_DISK_TESTDATA, folder_, seed)),
        0);
    const std::string expected = vmm::ReadWholeFile(Path("expected.raw")).value();
    for (const bool read_only : {true, false}) {
      const std::string errors = Errors(Path("Top.avhdx"));
      EXPECT_EQ(errors.find("error"), std::string::npos) << errors;
      const auto chain = OpenChain(Path("Top.avhdx"), read_only);
      ASSERT_TRUE(chain.ok()) << chain.error().ToString();
      EXPECT_EQ((*chain)->layers().size(), 3u);
      const Bytes bytes = Read(**chain);
      EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), expected.begin(), expected.end(),
                             [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
      ASSERT_TRUE((*chain)->Close().ok());
    }
  }
}

// libvhdi and 7-Zip judge a chain that we wrote.
class JudgedChainTest : public DiskChainTest {
 protected:
  void WriteChain(const std::vector<std::string>& names) {
    std::mt19937 random(3);
    for (size_t layer = 0; layer < names.size(); ++layer) {
      Create(Path(names[layer]), layer == 0 ? "" : Path(names[layer - 1]));
      for (int i = 0; i < 40; ++i) {
        Bytes bytes((1 + random() % 100) * 512, static_cast<uint8_t>(random() | 1));
        if (i == 0) bytes.resize(kBlock, bytes[0]);
        Write(Path(names[layer]), random() % ((kDiskBytes - bytes.size()) / 512) * 512, bytes);
      }
      auto chain = OpenChain(Path(names[layer]), false).value();
      ASSERT_TRUE(chain->top().WriteZeroes((3 + layer) * kBlock - 512, 1024).ok());
      ASSERT_TRUE(chain->Close().ok());
    }
  }
  /// Our own reading of the top, in ours.raw.
  void Export(const std::string& top) {
    EXPECT_EQ(Errors(Path(top)), "");
    const Bytes bytes = Read(*OpenChain(Path(top), true).value());
    std::ofstream(Path("ours.raw"), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  int InFolder(const std::string& command) { return Shell("cd " + folder_ + " && " + command); }
};

TEST_F(JudgedChainTest, SevenZipAgrees) {
  if (!Installed("7zz")) GTEST_SKIP() << "7zz is not installed";
  WriteChain({"base.vhdx", "middle.avhdx", "top.avhdx"});
  for (const char* name : {"middle.avhdx", "top.avhdx"}) {
    auto chain = OpenChain(Path(name), false).value();
    ASSERT_TRUE(chain->top().Unmap(kBlock, kBlock).ok());
    ASSERT_TRUE(chain->Close().ok());
    chain.reset();
    if (name == std::string("middle.avhdx"))
      RelinkTo(Path("top.avhdx"), Path(name), kRelative, ".\\middle.avhdx");
  }
  Export("top.avhdx");
  EXPECT_EQ(InFolder("7zz t -tvhdx top.avhdx"), 0);
  EXPECT_EQ(InFolder("7zz x -so -tvhdx top.avhdx > 7z.raw && cmp 7z.raw ours.raw"), 0);
}

// No block of it is unmapped: libvhdi shows the parent's content there, which the format forbids.
TEST_F(JudgedChainTest, LibvhdiAgrees) {
  if (Shell("/usr/bin/python3 -c 'import pyvhdi'") != 0)
    GTEST_SKIP() << "python3-libvhdi is not installed";
  WriteChain({"base.vhdx", "middle.avhdx", "top.avhdx"});
  Export("top.avhdx");
  std::ofstream(Path("read.py"))
      << "import pyvhdi, sys\n"
         "files = [pyvhdi.open(name) for name in sys.argv[1:-1]]\n"
         "for child, parent in zip(files, files[1:]): child.set_parent(parent)\n"
         "expected = open(sys.argv[-1], 'rb').read()\n"
         "sys.exit(files[0].read_buffer(len(expected)) != expected)\n";
  EXPECT_EQ(InFolder("/usr/bin/python3 read.py top.avhdx middle.avhdx base.vhdx ours.raw"), 0);
}

TEST_F(DiskChainTest, AMovedParentIsLinkedAgain) {
  Create(Path("base.vhdx"));
  Write(Path("base.vhdx"), 0, Bytes(4096, 7));
  Create(Path("child.avhdx"), Path("base.vhdx"));
  Write(Path("child.avhdx"), kBlock, Bytes(4096, 8));
  fs::create_directories(Path("moved"));
  fs::rename(Path("base.vhdx"), Path("moved/parent.vhdx"));
  EXPECT_FALSE(OpenChain(Path("child.avhdx"), true).ok());
  const auto linked = ReparentDisk(Path("child.avhdx"), Path("moved/parent.vhdx"), false);
  ASSERT_TRUE(linked.ok()) << linked.error().ToString();
  auto chain = OpenChain(Path("child.avhdx"), true);
  ASSERT_TRUE(chain.ok()) << chain.error().ToString();
  const Bytes content = Read(**chain);
  EXPECT_EQ(content[0], 7);
  EXPECT_EQ(content[kBlock], 8);
  chain->reset();
  const auto findings = CheckDisk(Path("child.avhdx"));
  ASSERT_TRUE(findings.ok());
  for (const Finding& finding : *findings)
    EXPECT_NE(finding.severity, Finding::Severity::kError) << finding.text;
}

TEST_F(DiskChainTest, AParentThatDoesNotFitIsRefusedUnlessTheUserInsists) {
  Create(Path("base.vhdx"));
  Create(Path("other.vhdx"));
  Create(Path("child.avhdx"), Path("base.vhdx"));
  Create(Path("grandchild.avhdx"), Path("child.avhdx"));
  const auto refused = ReparentDisk(Path("child.avhdx"), Path("other.vhdx"), false);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().ToString().find("--ignore-id-mismatch"), std::string::npos);
  EXPECT_TRUE(OpenChain(Path("child.avhdx"), true).ok()) << "the old link is untouched";
  EXPECT_TRUE(ReparentDisk(Path("child.avhdx"), Path("other.vhdx"), true).ok());
  const auto chain = OpenChain(Path("child.avhdx"), true);
  ASSERT_TRUE(chain.ok()) << chain.error().ToString();
  EXPECT_EQ((*chain)->paths().back(), fs::canonical(Path("other.vhdx")).string());
  // A circle, itself, an image without a parent, and one of another format.
  EXPECT_FALSE(ReparentDisk(Path("child.avhdx"), Path("grandchild.avhdx"), true).ok());
  EXPECT_FALSE(ReparentDisk(Path("child.avhdx"), Path("child.avhdx"), true).ok());
  EXPECT_FALSE(ReparentDisk(Path("base.vhdx"), Path("other.vhdx"), true).ok());
  std::ofstream(Path("raw.img")) << std::string(4096, 'x');
  EXPECT_FALSE(ReparentDisk(Path("child.avhdx"), Path("raw.img"), true).ok());
}

TEST_F(DiskChainTest, AChildIsMergedIntoItsParent) {
  Create(Path("base.vhdx"));
  Write(Path("base.vhdx"), 0, Bytes(2 * kBlock, 7));
  Create(Path("middle.avhdx"), Path("base.vhdx"));
  Write(Path("middle.avhdx"), kBlock - 512, Bytes(1024, 8));
  Create(Path("top.avhdx"), Path("middle.avhdx"));
  Write(Path("top.avhdx"), kBlock, Bytes(512, 9));
  Write(Path("top.avhdx"), 5 * kBlock, Bytes(kBlock, 10));
  auto before = OpenChain(Path("top.avhdx"), true);
  ASSERT_TRUE(before.ok());
  const Bytes content = Read(**before);
  EXPECT_EQ(MergeDisk(Path("top.avhdx"), {}).error().code(), Code::kUnavailable) << "it is open";
  before->reset();
  for (const char* child : {"top.avhdx", "middle.avhdx"}) {
    const auto merged = MergeDisk(Path(child), {});
    ASSERT_TRUE(merged.ok()) << merged.error().ToString();
    EXPECT_FALSE(fs::exists(Path(child)));
  }
  auto after = OpenChain(Path("base.vhdx"), true);
  ASSERT_TRUE(after.ok());
  EXPECT_TRUE(Read(**after) == content);
  after->reset();
  EXPECT_EQ(MergeDisk(Path("base.vhdx"), {}).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(Shell("qemu-img check -q " + Path("base.vhdx")), 0);
}

TEST_F(DiskChainTest, ADiskGrowsAndTheJudgesSeeIt) {
  Create(Path("disk.vhdx"));
  Write(Path("disk.vhdx"), kBlock, Bytes(4096, 5));
  constexpr uint64_t kSizes[] = {uint64_t{1} << 30, uint64_t{300} << 30};
  for (const uint64_t size : kSizes) {
    const auto grown = ResizeDisk(Path("disk.vhdx"), size, false);
    ASSERT_TRUE(grown.ok()) << grown.error().ToString();
    EXPECT_EQ(DescribeDisk(Path("disk.vhdx"))->size_bytes, size);
    EXPECT_EQ(Shell("qemu-img check -q " + Path("disk.vhdx")), 0);
    EXPECT_EQ(
        Shell(fmt::format("qemu-img info {} | grep -q '({} bytes)'", Path("disk.vhdx"), size)), 0);
    EXPECT_EQ(Shell("out=$(qemu-io -r -f vhdx -c 'read -P 5 1M 4k' -c 'read -P 0 2M 64k' " +
                    Path("disk.vhdx") +
                    ") && ! echo \"$out\" | grep -q failed && echo \"$out\" | grep -q 65536/65536"),
              0);
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
