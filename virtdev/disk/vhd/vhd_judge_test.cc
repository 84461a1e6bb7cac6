// SPDX-License-Identifier: Apache-2.0
// VHD files before independent judges, as far as they are installed.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/vhd/vhd_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd_test;

bool Installed(const char* command) {
  return std::system(fmt::format("command -v {} >/dev/null 2>&1", command).c_str()) == 0;
}
int Shell(const std::string& command) {
  return std::system(("(" + command + ") >/dev/null 2>&1").c_str());
}
/// 0 if the judge is not installed.
int ShellIf(const char* judge, const std::string& command) {
  return Installed(judge) ? Shell(command) : 0;
}

class VhdJudgeTest : public testing::Test {
 protected:
  VhdJudgeTest() {
    char folder[] = "/tmp/vhd-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
  }
  ~VhdJudgeTest() override { std::filesystem::remove_all(folder_); }

  /// 24 MiB, most of it zero.
  std::string RawFile() const {
    const std::string raw = folder_ + "/source.raw";
    std::ofstream file(raw, std::ios::binary);
    std::mt19937 random(9);
    for (int i = 0; i < 24 << 8; ++i) {
      std::string page(4096, '\0');
      if (random() % 40 == 0 && i / 512 % 3 != 1) {
        for (char& c : page) c = static_cast<char>(random());
      }
      file << page;
    }
    return raw;
  }

  /// Notes are for what others make: their geometry, say.
  void ExpectSound(const std::string& path, bool notes = false) {
    const auto findings = CheckDisk(path);
    ASSERT_TRUE(findings.ok());
    for (const Finding& finding : *findings)
      EXPECT_TRUE(notes && finding.severity == Finding::Severity::kNote) << finding.text;
    EXPECT_EQ(ShellIf("7zz", "7zz t -tvhd " + path), 0);
    EXPECT_EQ(ShellIf("vhdiinfo", "vhdiinfo " + path), 0);
  }

  void Convert(const std::string& source, const std::string& target, bool fixed = false) {
    CreateDiskOptions options;
    options.format = FormatOfName(target);
    options.fixed = fixed;
    const auto converted = ConvertDisk(source, target, options, nullptr);
    ASSERT_TRUE(converted.ok()) << converted.error().ToString();
  }

  std::string folder_;
};

TEST_F(VhdJudgeTest, TheyReadWhatWeWrite) {
  if (!Installed("qemu-img")) GTEST_SKIP() << "qemu-img is not installed";
  const std::string raw = RawFile();
  for (const bool fixed : {false, true}) {
    const std::string path = folder_ + (fixed ? "/fixed.vhd" : "/dynamic.vhd");
    Convert(raw, path, fixed);
    ExpectSound(path);
    EXPECT_EQ(Shell("qemu-img compare -f raw -F vpc " + raw + " " + path), 0);
    EXPECT_EQ(ShellIf("7zz", "7zz x -so -tvhd " + path + " | cmp - " + raw), 0);
    const auto size = std::filesystem::file_size(path);
    EXPECT_EQ(size < (20u << 20), !fixed) << "blocks of zeroes are left out";
  }
  // Through the other format of ours and back.
  Convert(folder_ + "/dynamic.vhd", folder_ + "/there.vhdx");
  EXPECT_EQ(Shell("qemu-img compare -f raw -F vhdx " + raw + " " + folder_ + "/there.vhdx"), 0);
  Convert(folder_ + "/there.vhdx", folder_ + "/back.vhd");
  Convert(folder_ + "/back.vhd", folder_ + "/back.raw");
  EXPECT_EQ(Shell("cmp " + raw + " " + folder_ + "/back.raw"), 0);
}

TEST_F(VhdJudgeTest, WeReadWhatTheyWrite) {
  if (!Installed("qemu-img")) GTEST_SKIP() << "qemu-img is not installed";
  const std::string raw = RawFile();
  for (const char* subformat : {"fixed", "dynamic"}) {
    for (const char* size : {"on", "off"}) {
      const std::string name = fmt::format("{}/{}-{}", folder_, subformat, size);
      ASSERT_EQ(Shell(fmt::format("qemu-img convert -f raw -O vpc -o subformat={},force_size={} {} "
                                  "{}.vhd",
                                  subformat, size, raw, name)),
                0);
      ExpectSound(name + ".vhd", true);
      Convert(name + ".vhd", name + ".raw");
      EXPECT_EQ(Shell(fmt::format("qemu-img compare -f raw -F raw {} {}.raw", raw, name)), 0);
    }
  }
}

// Both write into one image in turn, and both find it all. Its blocks and bitmaps are where the
// other has put them.
TEST_F(VhdJudgeTest, BothWriteInTurn) {
  if (!Installed("qemu-io")) GTEST_SKIP() << "qemu-io is not installed";
  for (const char* maker : {"qemu", "kvmbus"}) {
    for (const bool fixed : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", maker, fixed));
      const std::string path = fmt::format("{}/{}-{}.vhd", folder_, maker, fixed);
      if (std::string(maker) == "qemu") {
        ASSERT_EQ(Shell(fmt::format("qemu-img create -f vpc -o subformat={},force_size=on {} 16M",
                                    fixed ? "fixed" : "dynamic", path)),
                  0);
      } else {
        CreateDiskOptions options;
        options.format = "vhd";
        options.size_bytes = 16u << 20;
        options.fixed = fixed;
        ASSERT_TRUE(CreateDisk(path, options).ok());
      }
      std::string reads;
      for (uint64_t i = 0; i < 6; ++i) {
        const uint64_t ours = i * (5u << 19) + 512, theirs = ours + (1u << 20);
        {
          auto image = OpenImage(path, false);
          ASSERT_TRUE(image.ok()) << image.error().ToString();
          Write(**image, ours, Bytes(20 << 10, static_cast<uint8_t>(0x10 + i)));
          ASSERT_TRUE((*image)->Close().ok());
        }
        ASSERT_EQ(
            Shell(fmt::format("qemu-io -f vpc -c 'write -P {} {} 9k' {}", 0x80 + i, theirs, path)),
            0);
        reads += fmt::format(" -c 'read -P {} {} 20k' -c 'read -P {} {} 9k'", 0x10 + i, ours,
                             0x80 + i, theirs);
        auto image = OpenImage(path, true);
        ASSERT_TRUE(image.ok()) << image.error().ToString();
        EXPECT_EQ(Read(**image, ours, 20 << 10), Bytes(20 << 10, static_cast<uint8_t>(0x10 + i)));
        EXPECT_EQ(Read(**image, theirs, 9 << 10), Bytes(9 << 10, static_cast<uint8_t>(0x80 + i)));
      }
      // qemu-io says it in words alone.
      EXPECT_NE(
          Shell(fmt::format("qemu-io -f vpc {} {} 2>&1 | grep -i -E 'fail|error'", reads, path)),
          0);
      ExpectSound(path, std::string(maker) == "qemu");
    }
  }
}

// A child over its parent: 7-Zip and libvhdi find the parent by the locator and its id.
TEST_F(VhdJudgeTest, AChildIsReadWithItsParent) {
  if (!Installed("7zz")) GTEST_SKIP() << "7zz is not installed";
  const std::string raw = RawFile(), base = folder_ + "/base.vhd", child = folder_ + "/top.avhd";
  Convert(raw, base);
  Bytes model(24u << 20);
  std::ifstream(raw, std::ios::binary)
      .read(reinterpret_cast<char*>(model.data()), static_cast<std::streamsize>(model.size()));
  VhdParent parent = SomeParent(24u << 20);
  parent.identity = OpenImage(base, true).value()->identity();
  parent.absolute_path.clear();
  {
    auto file = NewFile::Create(child);
    ASSERT_TRUE(file.ok() && FormatVhdChild(file->file(), parent).ok() && file->Publish().ok());
  }
  {
    auto image = OpenImage(child, false).value();
    std::mt19937_64 random(3);
    for (int i = 0; i < 40; ++i) {
      const uint64_t length = (1 + random() % 30) * 512;
      const uint64_t offset = random() % ((24u << 20) / 512 - 30) * 512;
      Write(*image, offset, Bytes(length, static_cast<uint8_t>(i)));
      std::fill_n(model.begin() + static_cast<ptrdiff_t>(offset), length, static_cast<uint8_t>(i));
    }
    ASSERT_TRUE(image->Close().ok());
  }
  const std::string expected = folder_ + "/expected.raw";
  std::ofstream(expected, std::ios::binary)
      .write(reinterpret_cast<const char*>(model.data()),
             static_cast<std::streamsize>(model.size()));
  std::vector<std::unique_ptr<Image>> layers;
  layers.push_back(OpenImage(child, true).value());
  layers.push_back(OpenImage(base, true).value());
  Chain chain(std::move(layers));
  Bytes ours(model.size(), 0);
  uint64_t done = 0;
  for (const ImageExtent& extent : chain.MapForRead(0, ours.size())) {
    if (extent.kind == ImageExtent::Kind::kData) {
      ASSERT_TRUE(
          extent.file->Read(std::span(ours).subspan(done, extent.length), extent.file_offset).ok());
    }
    done += extent.length;
  }
  EXPECT_TRUE(ours == model);
  EXPECT_EQ(Shell("7zz t -tvhd " + child), 0);
  EXPECT_EQ(Shell("7zz x -so -tvhd " + child + " | cmp - " + expected), 0);
  EXPECT_EQ(ShellIf("vhdiinfo", "vhdiinfo " + child + " | grep -i differential"), 0);
}

// What the offline operations leave is the same disk to them: resized, compacted, and then the sum
// of a chain whose parent went somewhere else meanwhile.
TEST_F(VhdJudgeTest, TheyReadWhatWasResizedAndCompacted) {
  if (!Installed("qemu-img")) GTEST_SKIP() << "qemu-img is not installed";
  const std::string raw = RawFile();
  for (const bool fixed : {false, true}) {
    const std::string path = folder_ + (fixed ? "/fixed.vhd" : "/dynamic.vhd");
    Convert(raw, path, fixed);
    for (const uint64_t mib : {20u, 4000u, 22u}) {
      SCOPED_TRACE(mib);
      if (fixed && mib > 1000) continue;
      ASSERT_TRUE(ResizeDisk(path, mib << 20, true).ok());
      if (!fixed) {
        ASSERT_TRUE(CompactDisk(path, false, {}).ok());
      }
      std::filesystem::resize_file(raw, std::min<uintmax_t>(mib << 20, 20u << 20));
      std::filesystem::resize_file(raw, mib << 20);
      ExpectSound(path, true);
      EXPECT_EQ(Shell("qemu-img compare -f raw -F vpc " + raw + " " + path), 0);
      EXPECT_EQ(DescribeDisk(path)->size_bytes, mib << 20);
    }
  }
}

TEST_F(VhdJudgeTest, AChainIsRelinkedAndMerged) {
  const std::string raw = RawFile(), base = folder_ + "/base.vhd", moved = folder_ + "/moved.vhd";
  const std::string child = folder_ + "/child.avhd", other = folder_ + "/other.vhd";
  Convert(raw, base);
  Convert(raw, other);
  CreateDiskOptions options;
  options.format = "vhd";
  options.parent = base;
  ASSERT_TRUE(CreateDisk(child, options).ok());
  {
    auto image = OpenImage(child, false).value();
    Write(*image, 3u << 20, Bytes(5u << 20, 0x3c));
    ASSERT_TRUE(image->Close().ok());
  }
  std::filesystem::rename(base, moved);
  EXPECT_FALSE(OpenChain(child, true).ok());
  const auto refused = ReparentDisk(child, other, false);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().ToString().find("--ignore-id-mismatch"), std::string::npos);
  ASSERT_TRUE(ReparentDisk(child, moved, false).ok());
  ExpectSound(child, true);
  EXPECT_EQ(ShellIf("7zz", "7zz x -so -tvhd " + child + " >" + folder_ + "/whole.raw"), 0);
  ASSERT_TRUE(ReparentDisk(child, other, true).ok());
  ASSERT_TRUE(CompactDisk(child, false, {}).ok());
  ASSERT_TRUE(MergeDisk(child, {}).ok());
  EXPECT_FALSE(std::filesystem::exists(child));
  ExpectSound(other);
  Convert(other, folder_ + "/merged.raw");
  if (Installed("7zz")) {
    EXPECT_EQ(Shell("cmp " + folder_ + "/whole.raw " + folder_ + "/merged.raw"), 0);
  }
  EXPECT_EQ(MergeDisk(other, {}).error().code(), vmm::Code::kInvalidArgument);
}

// Writers of interleaved sectors share blocks and bitmaps; one flushes meanwhile.
TEST_F(VhdJudgeTest, ManyThreadsShareAnImage) {
  constexpr uint64_t kBytes = 16u << 20, kThreads = 3;
  const Bytes below(kBytes, 0x40);
  for (const Kind kind : {Kind::kDynamic, Kind::kDifferencing}) {
    const std::string path = fmt::format("{}/{}.vhd", folder_, static_cast<int>(kind));
    {
      auto file = NewFile::Create(path);
      const CrashMedium medium = NewMedium(kind, kBytes);
      ASSERT_TRUE(file->file().Write(medium.now.Read(0, medium.now.size()), 0).ok());
      ASSERT_TRUE(file->Publish().ok());
    }
    auto image = OpenImage(path, false).value();
    std::vector<std::thread> threads;
    for (uint64_t thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&image, thread] {
        for (uint64_t at = thread * 512; at + 512 <= kBytes; at += kThreads * 512 * 7)
          Write(*image, at, Bytes(512, static_cast<uint8_t>(thread + 1)));
      });
    }
    threads.emplace_back([&image] {
      for (int i = 0; i < 5; ++i) EXPECT_TRUE(image->Flush().ok());
    });
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(image->Close().ok());
    image.reset();
    image = OpenImage(path, true).value();
    Bytes expected = kind == Kind::kDynamic ? Bytes(kBytes, 0) : below;
    for (uint64_t thread = 0; thread < kThreads; ++thread)
      for (uint64_t at = thread * 512; at + 512 <= kBytes; at += kThreads * 512 * 7)
        std::fill_n(expected.begin() + static_cast<ptrdiff_t>(at), 512,
                    static_cast<uint8_t>(thread + 1));
    EXPECT_TRUE(Read(*image, 0, kBytes, kind == Kind::kDynamic ? nullptr : &below) == expected);
    const auto findings = CheckVhd(image->file());  // its parent is in memory alone
    ASSERT_TRUE(findings.ok());
    for (const Finding& finding : *findings)
      EXPECT_NE(finding.severity, Finding::Severity::kError) << finding.text;
  }
}

TEST_F(VhdJudgeTest, NameAndContentMustAgree) {
  CreateDiskOptions options;
  options.format = "vhd";
  options.size_bytes = 4u << 20;
  const std::string path = folder_ + "/a.vhd";
  for (const bool fixed : {false, true}) {
    options.fixed = fixed;
    ASSERT_TRUE(CreateDisk(path, options).ok());
    EXPECT_EQ(DescribeDisk(path)->type, fixed ? "fixed" : "dynamic");
    for (const char* name : {"/a.img", "/a.vhdx"}) {
      std::filesystem::copy_file(path, folder_ + name);
      const auto opened = OpenImage(folder_ + name, true);
      ASSERT_FALSE(opened.ok()) << name;
      EXPECT_NE(opened.error().ToString().find("signature"), std::string::npos);
      std::filesystem::remove(folder_ + name);
    }
    std::filesystem::remove(path);
  }
  options.format = "raw";
  ASSERT_TRUE(CreateDisk(folder_ + "/r.raw", options).ok());
  std::filesystem::rename(folder_ + "/r.raw", folder_ + "/r.vhd");
  EXPECT_EQ(OpenImage(folder_ + "/r.vhd", true).error().code(), vmm::Code::kDataLoss);
  EXPECT_FALSE(CreateDisk(folder_ + "/x.vhd", options).ok()) << "a raw image of that name";
}

}  // namespace
}  // namespace kvmbus::virtdev
