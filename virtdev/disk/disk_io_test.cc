// SPDX-License-Identifier: Apache-2.0
// Whole disks on real files: both host engines, locks, and the judges that are installed.
#include "virtdev/disk/disk_io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "tests/fakes/crash_file.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev {
namespace {

class Waiter : public DiskCompletion {
 public:
  void OnDiskComplete(DiskRequest&) override { ++done; }
  int done = 0;
};

class DiskIoTest : public testing::TestWithParam<std::tuple<std::string, bool, DiskCaching>> {
 protected:
  DiskIoTest() {
    char folder[] = "/tmp/disk-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    loop_ = vmm::Loop::Create().value();
  }
  ~DiskIoTest() override { std::filesystem::remove_all(folder_); }

  std::string Create(const std::string& format, uint64_t bytes) {
    const std::string path = folder_ + "/d." + format;
    CreateDiskOptions options;
    options.format = format;
    options.size_bytes = bytes;
    options.block_bytes = format == "vhd" ? 512u << 10 : 1u << 20;
    EXPECT_TRUE(CreateDisk(path, options).ok());
    return path;
  }
  int Do(DiskQueue& queue, DiskRequest::Op op, uint64_t offset, std::vector<uint8_t>* data,
         uint64_t length = 0) {
    Waiter waiter;
    DiskRequest request;
    iovec pieces[2] = {};
    request.op = op;
    request.offset = offset;
    request.length = data != nullptr ? data->size() : length;
    request.completion = &waiter;
    if (data != nullptr) {
      const size_t half = data->size() / 3;  // odd pieces: any alignment must do
      pieces[0] = {data->data(), half};
      pieces[1] = {data->data() + half, data->size() - half};
      request.iov = pieces;
    }
    queue.Submit(request);
    queue.Kick();
    queue.Drain();
    EXPECT_EQ(waiter.done, 1);
    return request.error;
  }

  std::string folder_;
  std::unique_ptr<vmm::Loop> loop_;
};

TEST_P(DiskIoTest, ReadsBackWhatWasWrittenThroughCloseAndOpen) {
  const auto& [format, threads, caching] = GetParam();
  constexpr uint64_t kBytes = 16u << 20;
  const std::string path = Create(format, kBytes);
  std::vector<uint8_t> model(kBytes, 0);
  std::mt19937 random(5);
  for (int session = 0; session < 3; ++session) {
    auto disk = OpenDisk(path, {false, threads, caching});
    ASSERT_TRUE(disk.ok()) << disk.error().ToString();
    auto queue = (*disk)->OpenQueue(*loop_).value();
    for (int i = 0; i < 60; ++i) {
      std::vector<uint8_t> data((1 + random() % 200) * 512, static_cast<uint8_t>(random()));
      const uint64_t offset = random() % ((kBytes - data.size()) / 512) * 512;
      ASSERT_EQ(Do(*queue, DiskRequest::Op::kWrite, offset, &data), 0);
      std::copy(data.begin(), data.end(), model.begin() + static_cast<ptrdiff_t>(offset));
    }
    ASSERT_EQ(Do(*queue, DiskRequest::Op::kFlush, 0, nullptr), 0);
    ASSERT_EQ(Do(*queue, DiskRequest::Op::kUnmap, 4u << 20, nullptr, 2u << 20), 0);
    std::fill_n(model.begin() + (4 << 20), 2 << 20, 0);
    std::vector<uint8_t> all(kBytes);
    ASSERT_EQ(Do(*queue, DiskRequest::Op::kRead, 0, &all), 0);
    ASSERT_EQ(all, model);
    queue.reset();
    ASSERT_TRUE((*disk)->Close().ok());
  }
}

TEST_P(DiskIoTest, BadRequestsAnswerErrno) {
  const auto& [format, threads, caching] = GetParam();
  const std::string path = Create(format, 1u << 20);
  {
    auto disk = OpenDisk(path, {false, threads, caching}).value();
    auto queue = disk->OpenQueue(*loop_).value();
    std::vector<uint8_t> data(4096);
    EXPECT_EQ(Do(*queue, DiskRequest::Op::kRead, 1u << 20, &data), EINVAL);
    EXPECT_EQ(Do(*queue, DiskRequest::Op::kWrite, ~uint64_t{0} - 511, &data), EINVAL);
    EXPECT_EQ(Do(*queue, DiskRequest::Op::kRead, 100, &data), EINVAL);
    queue.reset();
    EXPECT_TRUE(disk->Close().ok());
  }
  auto disk = OpenDisk(path, {true, threads, caching}).value();
  auto queue = disk->OpenQueue(*loop_).value();
  std::vector<uint8_t> data(4096);
  EXPECT_EQ(Do(*queue, DiskRequest::Op::kWrite, 0, &data), EROFS);
}

INSTANTIATE_TEST_SUITE_P(FormatsAndEngines, DiskIoTest,
                         testing::Combine(testing::Values("raw", "vhd", "vhdx"), testing::Bool(),
                                          testing::Values(DiskCaching::kDirect,
                                                          DiskCaching::kBuffered)));

class DiskToolsTest : public DiskIoTest {};

TEST_F(DiskToolsTest, AnImageInUseIsRefusedWithTheRemedy) {
  const std::string path = Create("vhdx", 1u << 20);
  const auto first = OpenDisk(path, {}).value();
  const auto second = OpenDisk(path, {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code(), vmm::Code::kUnavailable);
  EXPECT_NE(second.error().ToString().find("stop the virtual machine"), std::string::npos);
  EXPECT_FALSE(OpenDisk(path, {true, false}).ok()) << "reading beside a writer";
  const auto missing = OpenDisk(folder_ + "/none.vhdx", {});
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code(), vmm::Code::kNotFound);
  EXPECT_NE(missing.error().ToString().find("vmctl disk create"), std::string::npos);
}

TEST_F(DiskToolsTest, CreateNeverOverwrites) {
  const std::string path = Create("raw", 1u << 20);
  CreateDiskOptions options;
  options.format = "raw";
  options.size_bytes = 1u << 20;
  EXPECT_EQ(CreateDisk(path, options).error().code(), vmm::Code::kAlreadyExists);
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++files;
  EXPECT_EQ(files, 1u) << "nothing is left behind";
}

bool Installed(const char* command) {
  return std::system(fmt::format("command -v {} >/dev/null 2>&1", command).c_str()) == 0;
}
int Shell(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str());
}

/// All of them find it whole, with the content of the raw file.
void ExpectJudgesContent(const std::string& path, const std::string& raw) {
  EXPECT_EQ(Shell("qemu-img check " + path), 0);
  EXPECT_EQ(Shell("qemu-img compare -f raw -F vhdx " + raw + " " + path), 0);
  if (Installed("7zz")) {
    EXPECT_EQ(Shell("7zz t -tvhdx " + path), 0);
    EXPECT_EQ(Shell("7zz x -so -tvhdx " + path + " | cmp - " + raw), 0);
  }
  const auto findings = CheckDisk(path);
  ASSERT_TRUE(findings.ok());
  EXPECT_TRUE(findings->empty()) << (*findings)[0].text;
}

uint64_t AllocatedBytes(const std::string& path) {
  struct stat status = {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

// qemu-img and 7-Zip judge what we write, and what has grown since; what qemu-img writes is read
// right.
TEST_F(DiskToolsTest, IndependentJudgesAgree) {
  if (!Installed("qemu-img")) GTEST_SKIP() << "qemu-img is not installed";
  const std::string raw = folder_ + "/source.raw";
  {
    std::ofstream file(raw, std::ios::binary);
    std::mt19937 random(9);
    for (int i = 0; i < 24 << 8; ++i) {  // 24 MiB, most of it zero
      std::string page(4096, '\0');
      if (random() % 10 == 0) {
        for (char& c : page) c = static_cast<char>(random());
      }
      file << page;
    }
  }
  for (const bool fixed : {false, true}) {
    const std::string path = folder_ + (fixed ? "/fixed.vhdx" : "/dynamic.vhdx");
    CreateDiskOptions options;
    options.fixed = fixed;
    ASSERT_TRUE(ConvertDisk(raw, path, options, nullptr).ok());
    ExpectJudgesContent(path, raw);
    const std::string longer = folder_ + "/longer.raw";
    std::filesystem::copy_file(raw, longer, std::filesystem::copy_options::overwrite_existing);
    for (const uint64_t size : {(uint64_t{25} << 20) - 4096, uint64_t{50} << 20}) {
      SCOPED_TRACE(fmt::format("{} {}", fixed, size));
      ASSERT_TRUE(ResizeDisk(path, size, false).ok());
      std::filesystem::resize_file(longer, size);
      ExpectJudgesContent(path, longer);
      EXPECT_EQ(DescribeDisk(path)->type, fixed ? "fixed" : "dynamic");
      EXPECT_EQ(AllocatedBytes(path) >= size, fixed);
    }
  }
  const std::string theirs = folder_ + "/theirs.vhdx", back = folder_ + "/back.raw";
  ASSERT_EQ(Shell("qemu-img convert -f raw -O vhdx " + raw + " " + theirs), 0);
  CreateDiskOptions to_raw;
  to_raw.format = "raw";
  const auto converted = ConvertDisk(theirs, back, to_raw, nullptr);
  ASSERT_TRUE(converted.ok()) << converted.error().ToString();
  EXPECT_EQ(Shell("cmp " + raw + " " + back), 0);
}

TEST(RawImageTest, AFailedFlushIsNeverForgotten) {
  tests::CrashMedium medium;
  medium.now.Resize(1u << 20);
  auto image = OpenRawImage(std::make_unique<tests::CrashFile>(medium), false, {}).value();
  medium.fail_flushes = true;
  EXPECT_FALSE(image->Flush().ok());
  medium.fail_flushes = false;
  EXPECT_FALSE(image->Flush().ok()) << "the host may have dropped the data";
  EXPECT_FALSE(image->Close().ok());
}

// With O_NONBLOCK io_uring answers EAGAIN where the file system cannot promise not to wait.
TEST_F(DiskToolsTest, NoOpenFileIsNonblocking) {
  const std::string path = folder_ + "/d.raw";
  CreateDiskOptions options;
  options.format = "raw";
  options.size_bytes = 1u << 20;
  ASSERT_TRUE(CreateDisk(path, options).ok());
  const auto reader = OpenBlockFile(path, true).value();
  EXPECT_EQ(::fcntl(reader->fd(), F_GETFL) & O_NONBLOCK, 0);
  const auto peeker = PeekBlockFile(path).value();
  EXPECT_EQ(::fcntl(peeker->fd(), F_GETFL) & O_NONBLOCK, 0);
  const auto writer = ReopenForWriting(path, *reader).value();
  EXPECT_EQ(::fcntl(writer->fd(), F_GETFL) & O_NONBLOCK, 0);
}

}  // namespace
}  // namespace kvmbus::virtdev
