// SPDX-License-Identifier: Apache-2.0
#include "firmware/smbios/smbios.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <vector>

#include "vmm/machine/layout.h"

namespace kvmbus::firmware {
namespace {

struct Structure {
  uint8_t type;
  uint16_t handle;
  std::vector<uint8_t> formatted;
  std::vector<std::string> strings;
};

class SmbiosTest : public testing::Test {
 protected:
  SmbiosTest() {
    const vmm::MemoryRange ranges[] = {{0, 2 << 20}};
    memory_ = std::move(vmm::GuestMemory::Create(ranges)).value();
    params_.uuid = vmm::MakeGuid("57164f39-9115-4e78-ab55-382f3bd5422d");
    params_.bios_serial = "1234-5678";
    params_.cpu_count = 5;
    params_.sockets = 2;
    params_.ram_bytes = 6ull << 30;
  }

  void Write() {
    const auto result = WriteSmbios(*memory_, params_);
    ASSERT_TRUE(result.ok()) << result.error().ToString();
  }
  template <typename T>
  T At(uint64_t offset) const {
    return memory_->ReadObject<T>(vmm::kSmbiosGpa + offset).value();
  }
  std::vector<uint8_t> Bytes(uint64_t gpa, size_t size) const {
    std::vector<uint8_t> bytes(size);
    EXPECT_TRUE(memory_->Read(gpa, bytes.data(), size));
    return bytes;
  }
  std::vector<Structure> Parse() const {
    const auto table = Bytes(At<uint64_t>(16), At<uint32_t>(12));
    std::vector<Structure> all;
    for (size_t at = 0; at + 4 <= table.size();) {
      Structure s;
      s.type = table[at];
      s.handle = static_cast<uint16_t>(table[at + 2] | table[at + 3] << 8);
      s.formatted.assign(table.begin() + at, table.begin() + at + table[at + 1]);
      at += table[at + 1];
      while (table[at] != 0) {
        s.strings.emplace_back(reinterpret_cast<const char*>(&table[at]));
        at += s.strings.back().size() + 1;
      }
      at += s.strings.empty() ? 2 : 1;
      all.push_back(s);
    }
    return all;
  }

  std::unique_ptr<vmm::GuestMemory> memory_;
  SmbiosParams params_;
};

uint8_t Sum(const std::vector<uint8_t>& bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), uint8_t{0});
}

TEST_F(SmbiosTest, BothEntryPointsLeadToTheSameTable) {
  Write();
  const auto entry64 = Bytes(vmm::kSmbiosGpa, 24);
  EXPECT_EQ(std::memcmp(entry64.data(), "_SM3_", 5), 0);
  EXPECT_EQ(Sum(entry64), 0);
  const auto entry32 = Bytes(vmm::kSmbiosGpa + 0x20, 31);
  EXPECT_EQ(std::memcmp(entry32.data(), "_SM_", 4), 0);
  EXPECT_EQ(std::memcmp(entry32.data() + 16, "_DMI_", 5), 0);
  EXPECT_EQ(Sum(entry32), 0);
  EXPECT_EQ(Sum({entry32.begin() + 16, entry32.end()}), 0);
  EXPECT_EQ(At<uint32_t>(0x20 + 24), At<uint64_t>(16));
  EXPECT_EQ(At<uint16_t>(0x20 + 22), At<uint32_t>(12));
  EXPECT_EQ(At<uint16_t>(0x20 + 28), Parse().size());
}

TEST_F(SmbiosTest, StructuresAreThoseAskedFor) {
  Write();
  std::vector<int> types;
  std::vector<uint16_t> handles;
  for (const Structure& s : Parse()) {
    types.push_back(s.type);
    handles.push_back(s.handle);
  }
  EXPECT_EQ(types, (std::vector<int>{0, 1, 2, 3, 4, 4, 11, 16, 17, 19, 19, 32, 127}));
  std::sort(handles.begin(), handles.end());
  EXPECT_EQ(std::adjacent_find(handles.begin(), handles.end()), handles.end());
}

TEST_F(SmbiosTest, TheSystemCarriesTheVmsIdentity) {
  Write();
  const auto all = Parse();
  EXPECT_EQ(all[1].strings[0], "Microsoft Corporation");
  EXPECT_EQ(all[1].strings[1], "Virtual Machine");
  EXPECT_EQ(all[1].strings[2], "Hyper-V UEFI Release v4.1");
  EXPECT_EQ(all[1].strings[3], "1234-5678");
  EXPECT_EQ(std::memcmp(&all[1].formatted[8], params_.uuid.bytes.data(), 16), 0);
  params_.generation = 1;
  Write();
  EXPECT_EQ(Parse()[1].strings[2], "7.0");
  EXPECT_EQ(Parse()[0].strings[0], "American Megatrends Inc.");
}

TEST_F(SmbiosTest, CpusAreSpreadOverTheSockets) {
  Write();
  const auto all = Parse();
  EXPECT_EQ(all[4].formatted[0x23], 3);
  EXPECT_EQ(all[5].formatted[0x23], 2);
  params_.cpu_count = 0;
  EXPECT_FALSE(WriteSmbios(*memory_, params_).ok());
  params_.cpu_count = 1000;
  params_.sockets = 65;
  EXPECT_FALSE(WriteSmbios(*memory_, params_).ok());
  params_.sockets = 64;
  Write();
  EXPECT_EQ(Parse().back().type, 127);
}

TEST_F(SmbiosTest, HostileSerialNumbersStayStrings) {
  params_.bios_serial = std::string("a\0b\n", 4) + std::string(500, 'x');
  Write();
  EXPECT_EQ(Parse()[1].strings[3], "a?b?" + std::string(60, 'x'));
  EXPECT_EQ(Parse().back().type, 127);
}

TEST_F(SmbiosTest, WithoutRamThereIsAnErrorNotACrash) {
  const vmm::MemoryRange ranges[] = {{0, 64 << 10}};
  auto small = std::move(vmm::GuestMemory::Create(ranges)).value();
  EXPECT_FALSE(WriteSmbios(*small, params_).ok());
}

/// dmidecode's own dump format is the entry point, then the table at 0x20.
TEST_F(SmbiosTest, DmidecodeReadsIt) {
  if (std::system("dmidecode --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "no dmidecode";
  for (const uint64_t ram : {uint64_t{256} << 20, uint64_t{6} << 30, uint64_t{12} << 40}) {
    params_.ram_bytes = ram;
    Write();
    auto dump = Bytes(vmm::kSmbiosGpa, 24);
    const auto table = Bytes(At<uint64_t>(16), At<uint32_t>(12));
    dump[5] = static_cast<uint8_t>(dump[5] + Sum({dump.begin() + 16, dump.end()}) - 0x20);
    const uint64_t place = 0x20;
    std::memcpy(&dump[16], &place, sizeof(place));
    dump.resize(place);
    dump.insert(dump.end(), table.begin(), table.end());
    const std::string path = testing::TempDir() + "kvmbus_smbios.bin";
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(dump.data()), static_cast<long>(dump.size()));
    FILE* pipe = ::popen(("dmidecode --from-dump " + path + " 2>&1").c_str(), "r");
    std::string text;
    char line[256];
    while (std::fgets(line, sizeof(line), pipe) != nullptr) text += line;
    EXPECT_EQ(::pclose(pipe), 0);
    std::filesystem::remove(path);
    EXPECT_NE(text.find("UUID: 57164f39-9115-4e78-ab55-382f3bd5422d"), text.npos) << text;
    EXPECT_NE(text.find("String 1: [MS_VM_CERT/SHA1/9b80"), text.npos) << text;
    EXPECT_NE(text.find("End Of Table"), text.npos) << text;
    const std::string size = ram < 1u << 30 ? "256 MB" : ram >> 40 != 0 ? "12 TB" : "6 GB";
    EXPECT_NE(text.find("Maximum Capacity: " + size), text.npos) << text;
    EXPECT_NE(text.find("\tSize: " + size), text.npos) << text;
    for (const char* bad : {"<BAD", "<OUT OF SPEC>", "Wrong", "Invalid", "broken"})
      EXPECT_EQ(text.find(bad), text.npos) << text;
  }
}

}  // namespace
}  // namespace kvmbus::firmware
