// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/linux_boot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "firmware/linux/bzimage.h"
#include "firmware/linux/low_memory.h"
#include "firmware/linux/testing/kernel_images.h"

namespace kvmbus::firmware {
namespace {

using testing::Image;
using testing::With;
using vmm::BootState;
using vmm::Code;

vmm::Fd ToFile(const Image& image) {
  vmm::Fd fd(::memfd_create("image", MFD_CLOEXEC));
  EXPECT_TRUE(vmm::PWriteAll(fd.get(), image, 0).ok());
  return fd;
}

class LinuxBootTest : public ::testing::Test {
 protected:
  LinuxBootTest() { UseRam(16 << 20); }

  void UseRam(uint64_t bytes) {
    layout_ = vmm::ComputeMemoryLayout(bytes);
    memory_ = std::move(vmm::GuestMemory::Create(layout_.ram)).value();
  }
  vmm::Result<BootState> Load(const Image& kernel) {
    const vmm::Fd file = ToFile(kernel);
    params_.kernel_fd = file.get();
    params_.kernel_path = "vmlinuz";
    return LoadLinux(*memory_, layout_, params_);
  }
  BootState MustLoad(const Image& kernel) {
    auto boot = Load(kernel);
    EXPECT_TRUE(boot.ok()) << boot.error().ToString();
    return boot.value_or(BootState());
  }
  std::string LoadError(const Image& kernel) {
    const auto boot = Load(kernel);
    return boot.ok() ? "loaded" : boot.error().ToString();
  }
  template <typename T>
  T At(uint64_t gpa) const {
    return memory_->ReadObject<T>(gpa).value();
  }
  Image Bytes(uint64_t gpa, size_t size) const {
    Image bytes(size);
    EXPECT_TRUE(memory_->Read(gpa, bytes.data(), size));
    return bytes;
  }
  /// Where the tables at `cr3` take an address; 2 MiB pages alone.
  std::optional<uint64_t> Translate(uint64_t cr3, uint64_t address) const {
    uint64_t table = cr3;
    for (const unsigned shift : {39, 30, 21}) {
      const auto entry = At<uint64_t>(table + (address >> shift & 511) * 8);
      if ((entry & 1) == 0) return std::nullopt;
      table = entry & 0xffffffffff000;
      if (shift == 21)
        return (entry & 0x80) ? std::optional(table | (address & 0x1fffff)) : std::nullopt;
    }
    return std::nullopt;
  }
  std::vector<MapEntry> E820() const {
    std::vector<MapEntry> map;
    for (uint64_t i = 0; i < At<uint8_t>(kBootParamsGpa + 0x1e8); ++i) {
      const uint64_t at = kBootParamsGpa + 0x2d0 + i * 20;
      map.push_back({At<uint64_t>(at), At<uint64_t>(at + 8),
                     static_cast<MapEntry::Type>(At<uint32_t>(at + 16))});
    }
    return map;
  }
  void ExpectElfInPlace() {
    EXPECT_EQ(Bytes(testing::kElfEntry, testing::kElfSegmentBytes), testing::MakeCode());
    EXPECT_EQ(At<uint8_t>(testing::kElfEntry + testing::kElfMemoryBytes), 0xd5);
  }

  vmm::MemoryLayout layout_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  LinuxBootParams params_;
};

const Image kPlainPayload = {'n', 'o', 't', 'h', 'i', 'n', 'g', ' ', 'k', 'n', 'o', 'w', 'n', '.'};

TEST_F(LinuxBootTest, BzImageWithUnknownCompressionIsEnteredUnchanged) {
  params_.command_line = "console=ttyS0 quiet";
  const Image image = testing::MakeBzImage(kPlainPayload);
  const BootState boot = MustLoad(image);
  EXPECT_EQ(boot.mode, BootState::Mode::kLong64);
  EXPECT_EQ(boot.rip, testing::kBzPrefAddress + 0x200);
  EXPECT_EQ(boot.rsi, kBootParamsGpa);
  EXPECT_EQ(Bytes(testing::kBzPrefAddress, image.size() - 1024),
            Image(image.begin() + 1024, image.end()));
  EXPECT_EQ(At<uint64_t>(kBootParamsGpa + 0x70), vmm::kAcpiTablesGpa);
  EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kMagic), setup::kMagicValue);
  EXPECT_EQ(At<uint8_t>(kBootParamsGpa + setup::kTypeOfLoader), 0xff);
  EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kInitSize), testing::kBzInitSize);
  EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kRamdiskSize), 0u);
  const Image text = Bytes(At<uint32_t>(kBootParamsGpa + setup::kCmdLinePtr), 20);
  EXPECT_STREQ(reinterpret_cast<const char*>(text.data()), "console=ttyS0 quiet");
}

TEST_F(LinuxBootTest, EveryCompressionIsUndoneOnTheHost) {
  for (const auto compression : {Compression::kNone, Compression::kXz, Compression::kLz4Legacy,
                                 Compression::kZstd, Compression::kGzip}) {
    UseRam(16 << 20);
    const Image image = testing::MakeBzImage(testing::Compress(compression, testing::MakeElf()));
    const BootState boot = MustLoad(image);
    EXPECT_EQ(boot.rip, testing::kElfEntry) << static_cast<int>(compression);
    EXPECT_EQ(boot.mode, BootState::Mode::kLong64);
    EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kInitSize), testing::kBzInitSize);
    ExpectElfInPlace();
    params_.decompress_on_host = false;
    EXPECT_EQ(MustLoad(image).rip, testing::kBzPrefAddress + 0x200);
    params_.decompress_on_host = true;
  }
}

TEST_F(LinuxBootTest, APayloadThatIsOddIsLeftToTheGuest) {
  const Image elf = testing::MakeElf();
  for (const auto compression :
       {Compression::kXz, Compression::kLz4Legacy, Compression::kZstd, Compression::kGzip}) {
    const Image good = testing::Compress(compression, elf);
    const uint64_t inside_guest = testing::kBzPrefAddress + 0x200;
    std::vector<Image> odd = {
        With<uint32_t>(good, good.size() - 4, 0xffffffff),
        With<uint32_t>(good, good.size() - 4, static_cast<uint32_t>(elf.size() - 1)),
        With<uint32_t>(good, good.size() - 4, static_cast<uint32_t>(elf.size() + 1)),
        Image(good.begin(), good.begin() + static_cast<long>(good.size() / 2))};
    // These have a checksum of the content.
    if (compression == Compression::kXz || compression == Compression::kGzip)
      odd.push_back(With<uint8_t>(good, good.size() / 2, good[good.size() / 2] ^ 0x55));
    for (const Image& payload : odd)
      EXPECT_EQ(MustLoad(testing::MakeBzImage(payload)).rip, inside_guest);
  }
  // Compressed well, but no kernel.
  const Image text = testing::Compress(Compression::kXz, Image(9000, 'x'));
  EXPECT_EQ(MustLoad(testing::MakeBzImage(text)).rip, testing::kBzPrefAddress + 0x200);
}

TEST_F(LinuxBootTest, ElfWithThePvhNoteStartsIn32Bits) {
  params_.command_line = "quiet";
  const BootState boot = MustLoad(testing::MakeElf());
  EXPECT_EQ(boot.mode, BootState::Mode::kProtected32);
  EXPECT_EQ(boot.rip, testing::kElfPvhEntry);
  EXPECT_EQ(boot.rbx, kPvhStartInfoGpa);
  ExpectElfInPlace();
  EXPECT_EQ(At<uint32_t>(kPvhStartInfoGpa), 0x336ec578u);
  EXPECT_EQ(At<uint32_t>(kPvhStartInfoGpa + 12), 0u);  // modules
  EXPECT_EQ(At<uint64_t>(kPvhStartInfoGpa + 24), kCommandLineGpa);
  EXPECT_EQ(At<uint64_t>(kPvhStartInfoGpa + 32), vmm::kAcpiTablesGpa);
  const auto map = At<uint64_t>(kPvhStartInfoGpa + 40);
  const auto expected = MakeMemoryMap(layout_);
  ASSERT_EQ(At<uint32_t>(kPvhStartInfoGpa + 48), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(At<uint64_t>(map + i * 24), expected[i].gpa);
    EXPECT_EQ(At<uint64_t>(map + i * 24 + 8), expected[i].size);
    EXPECT_EQ(At<uint32_t>(map + i * 24 + 16), expected[i].type);
  }
}

TEST_F(LinuxBootTest, TheEntryCanBeChosen) {
  params_.prefer = LinuxEntry::kLong64;
  const BootState boot = MustLoad(testing::MakeElf());
  EXPECT_EQ(boot.mode, BootState::Mode::kLong64);
  EXPECT_EQ(boot.rip, testing::kElfEntry);
  EXPECT_EQ(At<uint16_t>(kBootParamsGpa + setup::kBootFlag), setup::kBootFlagValue);
  EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kMagic), setup::kMagicValue);
  params_.prefer = LinuxEntry::kPvh;
  EXPECT_THAT(LoadError(testing::MakeElf(false)), ::testing::HasSubstr("no PVH entry"));
  EXPECT_EQ(
      MustLoad(testing::MakeBzImage(testing::Compress(Compression::kXz, testing::MakeElf()))).rip,
      testing::kElfPvhEntry);
  EXPECT_THAT(LoadError(testing::MakeBzImage(kPlainPayload)), ::testing::HasSubstr("compressed"));
  params_.prefer = LinuxEntry::kAuto;
  EXPECT_EQ(MustLoad(testing::MakeElf(false)).mode, BootState::Mode::kLong64);
}

TEST_F(LinuxBootTest, MemoryBehindASegmentsBytesIsZeroed) {
  ASSERT_TRUE(memory_->WriteObject<uint64_t>(testing::kElfEntry + testing::kElfMemoryBytes - 8,
                                             ~uint64_t{0}));
  MustLoad(testing::MakeElf());
  EXPECT_EQ(At<uint64_t>(testing::kElfEntry + testing::kElfMemoryBytes - 8), 0u);
}

TEST_F(LinuxBootTest, PageTablesMapTheFirst4GiBToThemselves) {
  const BootState boot = MustLoad(testing::MakeBzImage(kPlainPayload));
  for (const uint64_t address : {uint64_t{0}, boot.rip, boot.rsi, uint64_t{0x3fffffff},
                                 uint64_t{0x40000000}, uint64_t{0xfee00000}, uint64_t{0xffffffff}})
    EXPECT_EQ(Translate(boot.cr3, address), address) << address;
  EXPECT_EQ(Translate(boot.cr3, 0x100000000), std::nullopt);
  EXPECT_EQ(boot.gdt_limit, 31);
  EXPECT_EQ(At<uint64_t>(boot.gdt_base + boot.cs_selector), 0x00af9b000000ffffu);
  EXPECT_EQ(At<uint64_t>(boot.gdt_base + boot.ds_selector), 0x00cf93000000ffffu);
}

TEST_F(LinuxBootTest, TheMemoryMapIsSortedAndKeepsTablesReserved) {
  for (const uint64_t ram : {uint64_t{16} << 20, uint64_t{3968} << 20, uint64_t{5} << 30}) {
    const auto layout = vmm::ComputeMemoryLayout(ram);
    const auto map = MakeMemoryMap(layout);
    uint64_t end = 0, usable = 0;
    for (const MapEntry& entry : map) {
      EXPECT_GE(entry.gpa, end);
      EXPECT_NE(entry.size, 0u);
      end = entry.gpa + entry.size;
      if (entry.type == MapEntry::kRam) usable += entry.size;
    }
    EXPECT_EQ(usable, ram - (1 << 20) + vmm::kGenerationIdGpa);
    const auto type_of = [&map](uint64_t gpa) {
      for (const MapEntry& entry : map)
        if (gpa >= entry.gpa && gpa - entry.gpa < entry.size) return entry.type;
      return MapEntry::Type{};
    };
    EXPECT_EQ(type_of(vmm::kGenerationIdGpa), MapEntry::kReserved);
    EXPECT_EQ(type_of(0xa0000), MapEntry::Type{}) << "nothing is said of the video hole";
    EXPECT_EQ(type_of(vmm::kAcpiTablesGpa), MapEntry::kReserved);
    EXPECT_EQ(type_of(0xfffff), MapEntry::kReserved);
    EXPECT_EQ(type_of(0x100000), MapEntry::kRam);
  }
  MustLoad(testing::MakeBzImage(kPlainPayload));
  EXPECT_EQ(E820(), MakeMemoryMap(layout_));
}

TEST_F(LinuxBootTest, TheInitrdStandsAsHighAsAllowed) {
  Image initrd(10000);
  for (size_t i = 0; i < initrd.size(); ++i) initrd[i] = static_cast<uint8_t>(i * 3 + 1);
  const vmm::Fd file = ToFile(initrd);
  params_.initrd_fd = file.get();
  params_.initrd_path = "initrd";
  const Image kernel = testing::MakeBzImage(kPlainPayload);
  MustLoad(kernel);
  EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kRamdiskImage), (16u << 20) - 3 * 4096);
  EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kRamdiskSize), initrd.size());
  EXPECT_EQ(Bytes((16 << 20) - 3 * 4096, initrd.size()), initrd);
  MustLoad(With<uint32_t>(kernel, setup::kInitrdAddrMax, (8 << 20) - 1));
  EXPECT_EQ(At<uint32_t>(kBootParamsGpa + setup::kRamdiskImage), (8u << 20) - 3 * 4096);
  EXPECT_THAT(LoadError(With<uint32_t>(kernel, setup::kInitrdAddrMax,
                                       testing::kBzPrefAddress + testing::kBzInitSize + 9000)),
              ::testing::HasSubstr("initrd 'initrd' does not fit"));
  EXPECT_THAT(LoadError(With<uint32_t>(kernel, setup::kInitrdAddrMax, 0)),
              ::testing::HasSubstr("does not fit"));
  MustLoad(testing::MakeElf());
  EXPECT_EQ(At<uint32_t>(kPvhStartInfoGpa + 12), 1u);
  const auto module = At<uint64_t>(kPvhStartInfoGpa + 16);
  EXPECT_EQ(At<uint64_t>(module), (16u << 20) - 3 * 4096);
  EXPECT_EQ(At<uint64_t>(module + 8), initrd.size());
}

TEST_F(LinuxBootTest, TheCommandLineIsBounded) {
  const Image kernel = testing::MakeBzImage(kPlainPayload);
  params_.command_line = std::string(2047, 'x');
  MustLoad(kernel);
  params_.command_line += 'x';
  EXPECT_THAT(LoadError(kernel), ::testing::HasSubstr("2048 characters"));
  EXPECT_THAT(LoadError(testing::MakeElf()), ::testing::HasSubstr("2048 characters"));
  params_.command_line = std::string(100000, 'x');
  EXPECT_THAT(LoadError(With<uint32_t>(kernel, setup::kCmdlineSize, 0xffffffff)),
              ::testing::HasSubstr("at most 65535"));
  params_.command_line = std::string("a\0b", 3);
  EXPECT_THAT(LoadError(kernel), ::testing::HasSubstr("NUL"));
}

TEST_F(LinuxBootTest, AFileCutOffAnywhereIsRefused) {
  const Image images[] = {testing::MakeElf(), testing::MakeBzImage(testing::Compress(
                                                  Compression::kXz, testing::MakeElf()))};
  for (const Image& image : images) {
    // The last paragraph of a bzImage need not be whole.
    for (size_t size = 0; size + 16 < image.size(); size += size < 2100 ? 1 : 13) {
      const auto boot = Load(Image(image.begin(), image.begin() + static_cast<long>(size)));
      ASSERT_FALSE(boot.ok()) << size;
      ASSERT_THAT(boot.error().ToString(), ::testing::HasSubstr("kernel 'vmlinuz'")) << size;
    }
  }
}

TEST_F(LinuxBootTest, EveryBadFieldIsNamed) {
  using ::testing::HasSubstr;
  const Image bz = testing::MakeBzImage(kPlainPayload);
  params_.decompress_on_host = false;
  EXPECT_THAT(LoadError(With<uint16_t>(bz, setup::kVersion, 0x20b)), HasSubstr("protocol version"));
  EXPECT_THAT(LoadError(With<uint16_t>(bz, setup::kXloadflags, 0)), HasSubstr("xloadflags"));
  EXPECT_THAT(LoadError(With<uint8_t>(bz, setup::kLoadflags, 0)), HasSubstr("loadflags"));
  EXPECT_THAT(LoadError(With<uint8_t>(bz, setup::kJump + 1, 0xff)), HasSubstr("setup header"));
  EXPECT_THAT(LoadError(With<uint8_t>(bz, setup::kJump + 1, 0)), HasSubstr("setup header"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kSyssize, 0)), HasSubstr("syssize"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kSyssize, ~0u)), HasSubstr("syssize"));
  EXPECT_THAT(LoadError(With<uint8_t>(bz, setup::kHeader, 0xff)), HasSubstr("setup_sects"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kInitSize, 0)), HasSubstr("init_size"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kInitSize, 15 << 20)), HasSubstr("init_size"));
  EXPECT_THAT(LoadError(With<uint64_t>(bz, setup::kPrefAddress, 0xff000)),
              HasSubstr("pref_address"));
  EXPECT_THAT(LoadError(With<uint64_t>(bz, setup::kPrefAddress, ~uint64_t{0})),
              HasSubstr("pref_address"));
  EXPECT_THAT(LoadError(With<uint64_t>(bz, setup::kPrefAddress, 0xfff00000)),
              HasSubstr("pref_address"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kKernelAlignment, 3)),
              HasSubstr("kernel_alignment"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kPayloadOffset, 0xfffffff0)),
              HasSubstr("payload_offset"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kPayloadLength, 0x7fffffff)),
              HasSubstr("payload_length"));
  EXPECT_THAT(LoadError(With<uint32_t>(bz, setup::kMagic, 0)), HasSubstr("neither"));

  const Image elf = testing::MakeElf();
  constexpr size_t kFirst = 64, kOffset = 8, kPaddr = 24, kFilesz = 32, kMemsz = 40;
  EXPECT_THAT(LoadError(With<uint16_t>(elf, 18, 3)), HasSubstr("x86-64"));
  EXPECT_THAT(LoadError(With<uint16_t>(elf, 56, 0)), HasSubstr("e_phnum"));
  EXPECT_THAT(LoadError(With<uint16_t>(elf, 56, 0xffff)), HasSubstr("e_phnum"));
  EXPECT_THAT(LoadError(With<uint16_t>(elf, 54, 1)), HasSubstr("e_phentsize"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, 32, ~uint64_t{0} - 8)), HasSubstr("e_phoff"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, 24, 0x1000)), HasSubstr("e_entry"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + kOffset, ~uint64_t{0})),
              HasSubstr("p_offset"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + kPaddr, 0x9f000)), HasSubstr("p_paddr"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + kPaddr, ~uint64_t{0} - 100)),
              HasSubstr("p_paddr"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + kFilesz, ~uint64_t{0})),
              HasSubstr("p_filesz"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + kMemsz, 1)), HasSubstr("p_memsz"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + kMemsz, 15 << 20)), HasSubstr("p_memsz"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + 2 * 56 + kPaddr, testing::kElfEntry + 8)),
              HasSubstr("overlap"));
  EXPECT_THAT(LoadError(With<uint64_t>(elf, kFirst + 56 + kFilesz, 1 << 20)), HasSubstr("note"));
}

TEST_F(LinuxBootTest, FilesAreOpenedByPathAndNamedWhenMissing) {
  params_.kernel_path = "/nonexistent/vmlinuz";
  const auto missing = LoadLinux(*memory_, layout_, params_);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code(), Code::kNotFound);
  EXPECT_THAT(missing.error().ToString(), ::testing::HasSubstr("kernel '/nonexistent/vmlinuz'"));
  const std::string path = ::testing::TempDir() + "kvmbus_vmlinuz_" + std::to_string(::getpid());
  const Image image = testing::MakeElf();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(image.data()), static_cast<long>(image.size()));
  params_.kernel_path = path;
  params_.initrd_path = "/nonexistent/initrd";
  const auto half = LoadLinux(*memory_, layout_, params_);
  ASSERT_FALSE(half.ok());
  EXPECT_THAT(half.error().ToString(), ::testing::HasSubstr("initrd '/nonexistent/initrd'"));
  params_.initrd_path.clear();
  EXPECT_TRUE(LoadLinux(*memory_, layout_, params_).ok());
  std::filesystem::remove(path);
}

/// Kernels of the distribution, if there are any here.
TEST_F(LinuxBootTest, InstalledKernelsLoadInEveryWay) {
  UseRam(256 << 20);
  std::error_code ignored;
  size_t found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/boot", ignored)) {
    if (!entry.path().filename().string().starts_with("vmlinuz-")) continue;
    ++found;
    params_.kernel_path = entry.path();
    params_.decompress_on_host = true;
    params_.prefer = LinuxEntry::kPvh;
    const auto pvh = LoadLinux(*memory_, layout_, params_);
    ASSERT_TRUE(pvh.ok()) << pvh.error().ToString();
    params_.prefer = LinuxEntry::kAuto;
    const auto direct = LoadLinux(*memory_, layout_, params_);
    ASSERT_TRUE(direct.ok()) << direct.error().ToString();
    EXPECT_EQ(direct->rip % (2 << 20), 0u) << "a decompressed kernel starts with its entry";
    const Image kernel = Bytes(direct->rip, 64 << 20);
    constexpr std::string_view kBanner = "Linux version ";
    EXPECT_NE(std::search(kernel.begin(), kernel.end(), kBanner.begin(), kBanner.end()),
              kernel.end());
    params_.decompress_on_host = false;
    const auto unchanged = LoadLinux(*memory_, layout_, params_);
    ASSERT_TRUE(unchanged.ok()) << unchanged.error().ToString();
    EXPECT_EQ(unchanged->rip, direct->rip + 0x200);
  }
  if (found == 0) GTEST_SKIP() << "no /boot/vmlinuz-*";
}

}  // namespace
}  // namespace kvmbus::firmware
