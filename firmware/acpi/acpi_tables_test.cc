// SPDX-License-Identifier: Apache-2.0
#include "firmware/acpi/acpi_tables.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>

#include "vmm/machine/layout.h"

namespace kvmbus::firmware {
namespace {

using Bytes = std::vector<uint8_t>;

uint8_t Sum(const Bytes& bytes) { return std::accumulate(bytes.begin(), bytes.end(), uint8_t{0}); }

template <typename T>
T At(const Bytes& bytes, size_t offset) {
  T value{};
  if (offset + sizeof(T) > bytes.size()) {
    ADD_FAILURE() << "no byte " << offset;
    return value;
  }
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

class AcpiTest : public testing::Test {
 protected:
  AcpiTest() {
    const vmm::MemoryRange ranges[] = {{0, 2 << 20}};
    memory_ = std::move(vmm::GuestMemory::Create(ranges)).value();
    const auto layout = vmm::ComputeMemoryLayout(6ull << 30);
    params_.cpu_count = 2;
    params_.low_mmio = layout.low_mmio;
    params_.high_mmio = layout.high_mmio;
    params_.com1 = true;
  }

  Bytes Read(uint64_t gpa, size_t size) const {
    Bytes bytes(size);
    EXPECT_TRUE(memory_->Read(gpa, bytes.data(), size));
    return bytes;
  }
  Bytes Table(uint64_t gpa) const {
    return Read(gpa, memory_->ReadObject<uint32_t>(gpa + 4).value());
  }
  /// Writes the tables, then finds them as a guest does.
  std::map<std::string, Bytes> Tables() {
    const auto result = WriteAcpiTables(*memory_, params_);
    EXPECT_TRUE(result.ok()) << result.error().ToString();
    std::map<std::string, Bytes> tables;
    tables["RSDP"] = Read(vmm::kAcpiTablesGpa, 36);
    tables["XSDT"] = Table(At<uint64_t>(tables["RSDP"], 24));
    for (size_t i = 36; i + 8 <= tables["XSDT"].size(); i += 8) {
      const Bytes table = Table(At<uint64_t>(tables["XSDT"], i));
      tables[std::string(table.begin(), table.begin() + 4)] = table;
    }
    tables["DSDT"] = Table(At<uint64_t>(tables["FACP"], 140));
    tables["FACS"] = Table(At<uint32_t>(tables["FACP"], 36));
    return tables;
  }
  /// Types of the MADT's entries.
  std::vector<int> MadtEntries(const Bytes& madt) {
    std::vector<int> types;
    for (size_t at = 44; at + 2 <= madt.size() && madt[at + 1] != 0; at += madt[at + 1])
      types.push_back(madt[at]);
    return types;
  }

  std::unique_ptr<vmm::GuestMemory> memory_;
  AcpiParams params_;
};

TEST_F(AcpiTest, EveryChecksumHolds) {
  auto tables = Tables();
  EXPECT_EQ(tables.size(), 6u);
  EXPECT_EQ(std::memcmp(tables["RSDP"].data(), "RSD PTR ", 8), 0);
  EXPECT_EQ(Sum({tables["RSDP"].begin(), tables["RSDP"].begin() + 20}), 0);
  for (const char* name : {"RSDP", "XSDT", "FACP", "APIC", "DSDT"})
    EXPECT_EQ(Sum(tables[name]), 0) << name;
  EXPECT_EQ(At<uint32_t>(tables["FACP"], 36) % 64, 0u) << "the FACS must be aligned";
  EXPECT_EQ(At<uint32_t>(tables["FACP"], 40), At<uint64_t>(tables["FACP"], 140));
}

TEST_F(AcpiTest, TheFadtNamesTheMachinesRegisters) {
  const Bytes fadt = Tables()["FACP"];
  ASSERT_EQ(fadt.size(), 276u);
  EXPECT_EQ(At<uint16_t>(fadt, 46), 9);
  EXPECT_EQ(At<uint32_t>(fadt, 56), 0x400u);
  EXPECT_EQ(At<uint32_t>(fadt, 64), 0x404u);
  EXPECT_EQ(At<uint32_t>(fadt, 76), 0x408u);
  EXPECT_EQ(At<uint32_t>(fadt, 80), 0x40cu);
  EXPECT_EQ(At<uint64_t>(fadt, 120), 0x433u);  // RESET_REG
  EXPECT_EQ(fadt[128], 1);
  EXPECT_TRUE(At<uint32_t>(fadt, 112) & 1u << 10) << "reset register";
  EXPECT_FALSE(At<uint32_t>(fadt, 112) & 1u << 20) << "hardware-reduced";
}

TEST_F(AcpiTest, TheMadtListsEveryCpu) {
  EXPECT_EQ(MadtEntries(Tables()["APIC"]), (std::vector<int>{0, 0, 1, 2, 2, 4}));
  params_.apic_ids = {4, 300};
  const Bytes madt = Tables()["APIC"];
  EXPECT_EQ(MadtEntries(madt), (std::vector<int>{0, 9, 1, 2, 2, 4, 10}));
  EXPECT_EQ(madt[44 + 3], 4);                       // APIC id of CPU 0
  EXPECT_EQ(At<uint32_t>(madt, 44 + 8 + 4), 300u);  // x2APIC id of CPU 1
  EXPECT_EQ(At<uint32_t>(madt, 44 + 8 + 12), 1u);   // its processor's number
}

TEST_F(AcpiTest, TablesOfManyCpusFit) {
  params_.cpu_count = kMaxAcpiCpus;
  auto tables = Tables();
  EXPECT_EQ(Sum(tables["DSDT"]), 0);
  EXPECT_EQ(MadtEntries(tables["APIC"]).size(), kMaxAcpiCpus + 5u);
  EXPECT_EQ(memory_->ReadObject<uint64_t>(vmm::kSmbiosGpa), 0u) << "wrote beyond its area";
}

TEST_F(AcpiTest, BadParametersAreRefused) {
  params_.cpu_count = 0;
  EXPECT_FALSE(WriteAcpiTables(*memory_, params_).ok());
  params_.cpu_count = kMaxAcpiCpus + 1;
  EXPECT_FALSE(WriteAcpiTables(*memory_, params_).ok());
  params_.cpu_count = 2;
  params_.apic_ids = {0};
  EXPECT_FALSE(WriteAcpiTables(*memory_, params_).ok());
  params_.apic_ids.clear();
  const vmm::MemoryRange ranges[] = {{0, 64 << 10}};
  auto small = std::move(vmm::GuestMemory::Create(ranges)).value();
  EXPECT_FALSE(WriteAcpiTables(*small, params_).ok());
}

/// What a guest sees is ABI: a change here needs a new machine version, not a new number alone.
TEST_F(AcpiTest, BytesAreTheSameForEver) {
  Tables();
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const uint8_t byte : Read(vmm::kAcpiTablesGpa, vmm::kSmbiosGpa - vmm::kAcpiTablesGpa))
    hash = (hash ^ byte) * 0x100000001b3;
  EXPECT_EQ(hash, 0xe85ae37cf698546u);
}

class IaslTest : public AcpiTest {
 protected:
  void SetUp() override {
    if (std::system("iasl -v >/dev/null 2>&1") != 0) GTEST_SKIP() << "no iasl";
    folder_ = testing::TempDir() + "kvmbus_acpi_" + std::to_string(::getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  std::string Run(const std::string& command) {
    FILE* pipe = ::popen(("cd " + folder_ + " && " + command + " 2>&1").c_str(), "r");
    std::string text;
    char line[256];
    while (std::fgets(line, sizeof(line), pipe) != nullptr) text += line;
    EXPECT_EQ(::pclose(pipe), 0) << text;
    return text;
  }
  std::string ReadText(const std::string& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  /// Takes a table apart and puts it together again; returns its source.
  std::string RoundTrip(const std::string& name, const Bytes& table) {
    std::ofstream(folder_ + "/" + name + ".dat", std::ios::binary)
        .write(reinterpret_cast<const char*>(table.data()), static_cast<long>(table.size()));
    const std::string taken_apart = Run("iasl -d " + name + ".dat");
    for (const char* bad : {"rror", "arning", "nvalid"})
      EXPECT_EQ(taken_apart.find(bad), taken_apart.npos) << taken_apart;
    const std::string compiled = Run("iasl -oa -p again_" + name + " " + name + ".dsl");
    EXPECT_NE(compiled.find("0 Errors, 0 Warnings, 0 Remarks"), compiled.npos) << compiled;
    return ReadText(folder_ + "/" + name + ".dsl");
  }

  std::string folder_;
};

TEST_F(IaslTest, EveryTableIsTakenApartAndCompilesAgain) {
  for (const uint32_t cpus : {1u, 2u, 300u}) {
    params_.cpu_count = cpus;
    auto tables = Tables();
    for (const char* name : {"XSDT", "FACP", "FACS", "APIC", "DSDT"}) RoundTrip(name, tables[name]);
    const std::string again = ReadText(folder_ + "/again_DSDT.aml");
    // The same code but for the header's checksum, compiler id and its revision.
    const Bytes& dsdt = tables["DSDT"];
    EXPECT_TRUE(std::equal(dsdt.begin() + 36, dsdt.end(), again.begin() + 36, again.end(),
                           [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
  }
}

TEST_F(IaslTest, DsdtReadsAsItsGoldenText) {
  std::string text = RoundTrip("DSDT", Tables()["DSDT"]);
  text.erase(0, text.find("DefinitionBlock"));
  EXPECT_EQ(text, ReadText(KVMBUS_TESTDATA "/dsdt.dsl"));
}

}  // namespace
}  // namespace kvmbus::firmware
