// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/description.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

config::Vm Sample() {
  config::Vm vm;
  vm.set_id("6B29FC40-CA47-1067-B31D-00DD010662DA");
  vm.set_generation(2);
  vm.set_vcpu_count(4);
  vm.set_memory_bytes(8ull << 30);
  vm.set_scsi_controllers(2);
  vm.mutable_integration()->set_heartbeat(true);
  vm.mutable_integration()->set_shutdown(true);
  vm.mutable_integration()->set_backup(true);
  vm.mutable_firmware()->set_command_line("console=ttyS0");
  vm.mutable_serial()->set_com1("console");
  return vm;
}

TEST(DescriptionTest, TheTreeSaysWhatTheBoardIs) {
  const MachineDescription machine = CompileMachine(Sample());
  const auto read = FromFdt(ToFdt(machine));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(*read, machine);
}

// A guest binds its devices by these: they never change for a machine of this version.
TEST(DescriptionTest, OffersAndTheirInstancesAreAbi) {
  const MachineDescription machine = CompileMachine(Sample());
  std::string text;
  for (const VmbusOffer& offer : machine.offers)
    text += fmt::format("{} {} {}\n", offer.name, offer.compatible, offer.instance.ToString());
  EXPECT_EQ(text,
            "shutdown kvmbus,shutdown b6650ff7-33bc-4840-8048-e0676786f393\n"
            "heartbeat kvmbus,heartbeat fd149e91-82e0-4a7d-afa6-2a4166cbd7c0\n"
            "backup kvmbus,backup 2450ee40-33bf-4fbd-892e-9fb06e9214cf\n"
            "scsi/0 kvmbus,scsi f8b3781a-1e82-4818-a1c3-63d806ec15bb\n"
            "scsi/1 kvmbus,scsi f8b3781b-1e82-4818-a1c3-63d806ec15bb\n");
}

TEST(DescriptionTest, ACopyGoesOnUnderItsOwnId) {
  const MachineDescription saved = CompileMachine(Sample());
  config::Vm now = Sample();
  now.set_id("00112233-4455-6677-8899-AABBCCDDEEFF");
  EXPECT_TRUE(CanGoOnAs(saved, CompileMachine(now)));
  now.set_vcpu_count(8);
  EXPECT_FALSE(CanGoOnAs(saved, CompileMachine(now)));
}

TEST(DescriptionTest, MemoryMapIsAbi) {
  const MemoryLayout layout = ComputeMemoryLayout(8ull << 30);
  ASSERT_EQ(layout.ram.size(), 2u);
  EXPECT_EQ(layout.ram[0].size, 0xf8000000u);
  EXPECT_EQ(layout.ram[1].gpa, 0x100000000u);
  EXPECT_EQ(layout.ram[0].size + layout.ram[1].size, 8ull << 30);
  EXPECT_EQ(layout.low_mmio.gpa, 0xf8000000u);
  EXPECT_EQ(layout.high_mmio.gpa, 0x240000000u);
}

TEST(DescriptionTest, DamagedTreesAreRefused) {
  const std::string good = ToFdt(CompileMachine(Sample()));
  EXPECT_FALSE(FromFdt("").ok());
  for (size_t size = 0; size < good.size(); size += 7)
    EXPECT_FALSE(FromFdt(std::string_view(good).substr(0, size)).ok());
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0xff);
    (void)FromFdt(bad);  // an error or another machine, but nothing out of bounds
  }
}

}  // namespace
}  // namespace kvmbus::vmm
