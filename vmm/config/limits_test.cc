// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/limits.h"

#include <gtest/gtest.h>

#include <functional>

namespace kvmbus::vmm {
namespace {

config::Vm Good() {
  config::Vm vm;
  vm.set_name("web");
  vm.set_memory_bytes(512ull << 20);
  vm.mutable_firmware()->set_kernel("/boot/vmlinuz");
  ApplyDefaults(&vm);
  return vm;
}

TEST(LimitsTest, ADefaultMachineIsValid) {
  const config::Vm vm = Good();
  EXPECT_TRUE(ValidateConfig(vm).ok());
  EXPECT_EQ(vm.generation(), 2u);
  EXPECT_EQ(vm.id().size(), 36u);
  EXPECT_EQ(vm.version(), "6.2");
  EXPECT_EQ(vm.generation_id().size(), 16u);
  EXPECT_NE(vm.generation_id(), Good().generation_id());
}

TEST(LimitsTest, EachLimitIsNamed) {
  struct Case {
    std::function<void(config::Vm*)> spoil;
    Code code;
    const char* text;
  };
  const Case cases[] = {
      {[](auto* vm) { vm->set_generation(1), vm->set_vcpu_count(65); }, Code::kOutOfRange,
       "65 virtual processors; generation 1 allows 1 to 64"},
      {[](auto* vm) { vm->set_vcpu_count(241); }, Code::kOutOfRange,
       "generation 2 allows 1 to 240"},
      {[](auto* vm) { vm->set_version("9.0"); }, Code::kInvalidArgument, "vmctl host versions"},
      {[](auto* vm) { vm->set_folder("vms"); }, Code::kInvalidArgument, "folder 'vms'"},
      {[](auto* vm) { vm->set_folder("/vms/../etc"); }, Code::kInvalidArgument, "shortest form"},
      {[](auto* vm) { vm->set_generation_id("short"); }, Code::kInvalidArgument, "5 bytes"},
      {[](auto* vm) { vm->set_memory_bytes(16 << 20); }, Code::kOutOfRange, "16384 KiB of memory"},
      {[](auto* vm) { vm->set_memory_bytes((512 << 20) + 4096); }, Code::kOutOfRange,
       "steps of 2 MiB"},
      {[](auto* vm) { vm->set_generation(3); }, Code::kInvalidArgument, "there are 1 and 2"},
      {[](auto* vm) { vm->set_name("a/b"); }, Code::kInvalidArgument, "no '/'"},
      {[](auto* vm) { vm->set_scsi_controllers(5); }, Code::kOutOfRange, "5 SCSI controllers"},
      {[](auto* vm) { vm->add_disks()->set_path("relative.vhdx"); }, Code::kInvalidArgument,
       "not absolute"},
      {[](auto* vm) { vm->add_disks()->set_path("/a.VHD"); }, Code::kInvalidArgument,
       "vmctl disk convert"},
      {[](auto* vm) { vm->add_disks()->set_path("/a"), vm->add_disks()->set_path("/b"); },
       Code::kAlreadyExists, "has disk '/"},
      {[](auto* vm) { vm->add_disks()->set_kind(config::DVD), vm->add_disks()->set_path("/b"); },
       Code::kAlreadyExists, "SCSI controller 0 location 0"},
      {[](auto* vm) {
         vm->add_disks()->set_kind(config::DVD);
         vm->mutable_disks(0)->set_path("disc.iso");
       },
       Code::kInvalidArgument, "not absolute"},
      {[](auto* vm) { vm->add_disks()->set_path(""); }, Code::kInvalidArgument, "not absolute"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a");
         vm->mutable_disks(0)->set_kind(static_cast<config::DiskKind>(7));
       },
       Code::kInvalidArgument, "unknown kind"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a");
         vm->mutable_disks(0)->mutable_qos()->set_max_iops(7);
       },
       Code::kOutOfRange, "8 to 1000000000 are allowed, or 0"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a");
         vm->mutable_disks(0)->mutable_qos()->set_max_bytes_per_second(65535);
       },
       Code::kOutOfRange, "64K to 1T are allowed, or 0"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a");
         vm->mutable_disks(0)->mutable_qos()->set_min_iops(1'000'000'001);
       },
       Code::kOutOfRange, "a minimum of 1000000001"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a");
         vm->mutable_disks(0)->mutable_qos()->set_min_iops(101);
         vm->mutable_disks(0)->mutable_qos()->set_max_iops(100);
       },
       Code::kInvalidArgument,
       "minimum of 101 I/O operations a second is above the maximum of 100"},
      {[](auto* vm) {
         vm->add_disks()->set_kind(config::DVD);
         vm->mutable_disks(0)->mutable_qos()->set_max_iops(100);
       },
       Code::kInvalidArgument, "a DVD drive has no limits"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a.avhdx");
         vm->mutable_disks(0)->set_shared(true);
       },
       Code::kInvalidArgument, "a shared disk is a fixed or dynamic VHDX or a raw image"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a.vhdx");
         vm->mutable_disks(0)->set_shared(true);
         vm->mutable_disks(0)->set_read_only(true);
       },
       Code::kInvalidArgument, "both shared and read-only"},
      {[](auto* vm) {
         vm->add_disks()->set_path("/a.vhdx");
         vm->mutable_disks(0)->set_shared(true);
         vm->mutable_disks(0)->set_caching(config::BUFFERED);
       },
       Code::kInvalidArgument, "direct, not buffered"},
      {[](auto* vm) {
         vm->add_disks()->set_kind(config::DVD);
         vm->mutable_disks(0)->set_shared(true);
       },
       Code::kInvalidArgument, "a DVD drive cannot be shared"},
      {[](auto* vm) { vm->mutable_firmware()->clear_kernel(); }, Code::kInvalidArgument,
       "--kernel"},
      {[](auto* vm) { vm->mutable_serial()->set_com1("tty"); }, Code::kInvalidArgument, "COM1"},
      {[](auto* vm) {
         vm->mutable_serial()->set_com1("file:/a.vhdx");
         vm->add_disks()->set_path("/a.vhdx");
       },
       Code::kInvalidArgument, "name another file"},
  };
  for (const Case& test : cases) {
    config::Vm vm = Good();
    test.spoil(&vm);
    const auto result = ValidateConfig(vm);
    ASSERT_FALSE(result.ok()) << test.text;
    EXPECT_EQ(result.error().code(), test.code) << test.text;
    EXPECT_NE(result.error().ToString().find(test.text), std::string::npos)
        << result.error().ToString();
    EXPECT_EQ(result.error().ToString().find('\n'), std::string::npos);
  }
}

TEST(Limits, QosWithinItsBoundsIsValid) {
  config::Vm vm = Good();
  vm.add_disks()->set_path("/a");
  config::DiskQos& qos = *vm.mutable_disks(0)->mutable_qos();
  qos.set_min_iops(500);  // without a maximum
  EXPECT_TRUE(ValidateConfig(vm).ok());
  qos.set_max_iops(500);
  qos.set_max_bytes_per_second(64 << 10);
  EXPECT_TRUE(ValidateConfig(vm).ok()) << ValidateConfig(vm).error().ToString();
}

TEST(Limits, DvdDrives) {
  config::Vm vm = Good();
  for (uint32_t lun = 10; lun < 13; ++lun) {
    config::Disk* drive = vm.add_disks();
    drive->set_kind(config::DVD);
    drive->set_lun(lun);
    if (lun != 10) drive->set_path("/disc.iso");  // two drives may have the same disc
  }
  EXPECT_TRUE(ValidateConfig(vm).ok()) << ValidateConfig(vm).error().ToString();
  config::Disk* disk = vm.add_disks();
  disk->set_path("/disc.iso");
  disk->set_lun(13);
  EXPECT_EQ(ValidateConfig(vm).error().code(), Code::kAlreadyExists) << "a disk may not";
}

}  // namespace
}  // namespace kvmbus::vmm
