// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/vm_tree.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <regex>
#include <sstream>

#include "vmm/config/limits.h"
#include "vmm/config/vm_tree_keys.h"
#include "vmm/config/xml_tree.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kNow = 0x01d0000000000000;

config::Vm Sample(const std::string& version) {
  config::Vm vm;
  vm.set_name("web");
  vm.set_version(version);
  vm.set_vcpu_count(4);
  vm.set_memory_bytes(uint64_t{2} << 30);
  vm.set_scsi_controllers(2);
  vm.set_notes("first line\nsecond");
  ApplyDefaults(&vm);
  vm.set_generation_id("0123456789abcdef");
  vm.mutable_firmware()->set_kernel("/boot/vmlinuz");
  vm.mutable_firmware()->set_initrd("/boot/initrd");
  vm.mutable_firmware()->set_command_line("console=ttyS0 quiet");
  vm.mutable_serial()->set_com1("console");
  vm.mutable_integration()->set_heartbeat(true);
  vm.mutable_integration()->set_backup(true);
  vm.set_huge_pages(true);
  vm.set_saved(true);
  vm.set_checkpoint_policy(config::STANDARD);
  vm.set_automatic_checkpoints(true);
  vm.set_parent_checkpoint("11111111-2222-3333-4444-555555555555");
  vm.add_unneeded_disks("/disks/old.avhdx");
  vm.add_unneeded_disks("/disks/older.avhdx");
  vm.mutable_merging()->set_file("/disks/old.avhdx");
  vm.mutable_merging()->set_into("/disks/a.vhdx");
  vm.mutable_merging()->add_children("/disks/a2.avhdx");
  config::Disk* disk = vm.add_disks();
  disk->set_path("/disks/a.vhdx");
  disk->set_caching(config::BUFFERED);
  disk->mutable_qos()->set_min_iops(10);
  disk->mutable_qos()->set_max_iops(1000);
  disk->mutable_qos()->set_max_bytes_per_second(1 << 20);
  disk->set_next("/disks/a2.avhdx");
  disk = vm.add_disks();
  disk->set_path("/disks/b.vhdx");
  disk->set_controller(1);
  disk->set_lun(63);
  disk->set_read_only(true);
  disk = vm.add_disks();
  disk->set_path("/disks/c.vhdx");
  disk->set_controller(1);
  disk->set_lun(5);
  disk->set_shared(true);
  disk = vm.add_disks();
  disk->set_kind(config::DVD);
  disk->set_controller(1);
  disk->set_lun(6);
  config::SmbiosIdentity& smbios = *vm.mutable_smbios();
  smbios.set_bios_guid("7FFEE066-9755-4950-9A16-4C94AC67AD00");
  smbios.set_bios_serial_number("1");
  smbios.set_base_board_serial_number("2");
  smbios.set_chassis_serial_number("3");
  smbios.set_chassis_asset_tag("4");
  return vm;
}

/// Disks come back by their places.
std::string Text(config::Vm vm) {
  std::sort(vm.mutable_disks()->begin(), vm.mutable_disks()->end(),
            [](const config::Disk& a, const config::Disk& b) {
              return std::pair(a.controller(), a.lun()) < std::pair(b.controller(), b.lun());
            });
  for (config::Disk& disk : *vm.mutable_disks()) disk.mutable_qos();
  vm.mutable_integration();
  vm.mutable_serial();
  vm.mutable_firmware();
  return vm.SerializeAsString();
}

Key TreeOf(const config::Vm& vm) {
  Key tree;
  WriteVmTree(vm, kNow, &tree);
  return tree;
}

std::string Findings(const VmOfTree& read) {
  std::string all;
  for (const auto& [what, fix] : read.incompatibilities) {
    EXPECT_FALSE(fix.empty()) << what;
    all += what + "; ";
  }
  return all;
}

Key RealTree() {
  return ParseXmlTree(ReadWholeFile(KVMBUS_CONFIG_TESTDATA "/hyperv-2012r2-gen1.xml").value())
      .value();
}

TEST(VmTree, AMachineComesBackWhole) {
  for (const char* version : {"5.0", "6.2"}) {
    const config::Vm vm = Sample(version);
    const auto read = ReadVmTree(TreeOf(vm));
    ASSERT_TRUE(read.ok()) << read.error().ToString();
    EXPECT_EQ(Text(read->vm), Text(vm));
    EXPECT_EQ(Findings(*read), "");
    const auto from_xml = ParseXmlTree(FormatXmlTree(TreeOf(vm)).value());
    EXPECT_EQ(Text(ReadVmTree(*from_xml)->vm), Text(vm)) << "sorted, as XML is";
  }
}

/// Whoever adds a field to the schema adds it to the tree and to Sample(), or a restart loses it.
TEST(VmTree, EveryFieldOfTheSchemaIsKnown) {
  const std::map<std::string, int> kKnown = {
      {"Disk", 9},          {"DiskQos", 3},    {"Firmware", 3},  {"IntegrationServices", 4},
      {"Vm", 23},           {"Checkpoint", 6}, {"DiskMerge", 3}, {"SerialPort", 1},
      {"SmbiosIdentity", 5}};
  std::istringstream schema(
      ReadWholeFile(KVMBUS_CONFIG_TESTDATA "/../../../proto/config/vm.proto").value());
  std::map<std::string, int> fields;
  std::string line, message;
  for (std::smatch match; std::getline(schema, line);) {
    if (std::regex_search(line, match, std::regex("^message (\\w+) \\{")))
      message = match[1];
    else if (std::regex_search(line, std::regex("^  [\\w ]+ \\w+ = \\d+;")))
      ++fields[message];
    else if (line == "}")
      message.clear();
  }
  for (const auto& [name, count] : kKnown) EXPECT_EQ(fields[name], count) << name;
}

TEST(VmTree, ACheckpointComesBackWhole) {
  config::Vm vm = Sample("6.2");
  config::Checkpoint& checkpoint = *vm.mutable_checkpoint();
  checkpoint.set_id("AAAAAAAA-2222-3333-4444-555555555555");
  checkpoint.set_name("before the update");
  checkpoint.set_parent("BBBBBBBB-2222-3333-4444-555555555555");
  checkpoint.set_created_filetime(kNow + 1);
  checkpoint.set_production(true);
  checkpoint.set_automatic(true);
  const Key tree = TreeOf(vm);
  EXPECT_EQ(tree.StringOr("configuration/properties/type_id", ""), "Snapshots");
  EXPECT_EQ(tree.StringOr("configuration/properties/global_id", ""), checkpoint.id());
  EXPECT_EQ(tree.StringOr("configuration/properties/name", ""), "before the update");
  EXPECT_EQ(tree.StringOr("configuration/properties/parent_id", ""), checkpoint.parent());
  EXPECT_EQ(tree.StringOr("configuration/settings/global/logical_id", ""), vm.id());
  const auto read = ReadVmTree(tree);
  ASSERT_TRUE(read.ok()) << read.error().ToString();
  EXPECT_EQ(Text(read->vm), Text(vm));
}

/// As a real one has them: every name of the sample's that is not of a device of its own.
TEST(VmTree, ANewTreeHasTheKeysOfARealOne) {
  const Key real = RealTree(), ours = TreeOf(Sample("5.0"));
  const std::function<void(const Key&, const Key&, const std::string&)> compare =
      [&](const Key& a, const Key& b, const std::string& path) {
        for (const Key& key : a.children) {
          if (key.name.starts_with("vdev")) continue;
          const Key* other = b.Find(key.name);
          EXPECT_NE(other, nullptr) << path << key.name;
          if (other == nullptr) continue;
          EXPECT_EQ(key.value.index(), other->value.index()) << path << key.name;
          compare(key, *other, path + key.name + "/");
        }
      };
  for (const char* part : {"properties", "settings", "global_settings", "manifest"})
    compare(*real.Find("configuration")->Find(part), *ours.Find("configuration")->Find(part),
            std::string(part) + "/");
  const Key& top = *ours.Find("configuration");
  const auto manifest = vm_tree::ReadManifest(top).devices;
  EXPECT_EQ(top.IntOr("manifest/size", 0), static_cast<int64_t>(manifest.size()));
  EXPECT_EQ(manifest.size(), 13u);
  for (size_t i = 0; i < manifest.size(); ++i) {
    EXPECT_NE(top.Find(fmt::format("manifest/vdev{:03}", i + 1)), nullptr);
    const bool has_section = top.Find(vm_tree::SectionOf(manifest[i].instance)) != nullptr;
    const Key* in_real = real.Find("configuration/" + vm_tree::SectionOf(manifest[i].instance));
    EXPECT_TRUE(has_section || in_real == nullptr) << manifest[i].name;
    if (manifest[i].device == vm_tree::kScsi.guid) {
      EXPECT_TRUE(has_section);
    }
  }
  EXPECT_TRUE(std::holds_alternative<int64_t>(top.Find("properties/version")->value));
  EXPECT_EQ(top.IntOr("properties/version", 0), 0x500);
  EXPECT_EQ(TreeOf(Sample("6.2")).IntOr("configuration/properties/version", 0), 0x602);
}

TEST(VmTree, TheRealMachineIsReadAndWhatItCannotHaveIsListed) {
  const auto read = ReadVmTree(RealTree());
  ASSERT_TRUE(read.ok()) << read.error().ToString();
  const config::Vm& vm = read->vm;
  EXPECT_EQ(vm.id(), "0AA394FA-7C4A-4070-BA32-773D43B28A68");
  EXPECT_EQ(vm.name(), "2012R2");
  EXPECT_EQ(vm.version(), "5.0");
  EXPECT_EQ(vm.generation(), 1u);
  EXPECT_EQ(vm.vcpu_count(), 1u);
  EXPECT_EQ(vm.memory_bytes(), uint64_t{1} << 30);
  EXPECT_EQ(vm.scsi_controllers(), 1u);
  EXPECT_EQ(vm.generation_id().size(), 16u);
  EXPECT_TRUE(vm.integration().heartbeat() && vm.integration().backup());
  EXPECT_EQ(vm.disks_size(), 0) << "its disk is an IDE one";
  const std::string findings = Findings(*read);
  for (const char* expected :
       {"generation 1", "disk.vhd' at controller0 drive0 of 'Microsoft Emulated IDE",
        "network adapter 'Network Adapter' (00-15-5D-01-07-DC) on switch 'Virtual External Switch'",
        "Microsoft Synthetic Video", "Key-Value Pair", "automatic actions: start with the host",
        "booting from its disks"})
    EXPECT_NE(findings.find(expected), std::string::npos) << expected << "\n" << findings;
  EXPECT_EQ(vm.smbios().bios_guid(), "7FFEE066-9755-4950-9A16-4C94AC67AD00");
  EXPECT_EQ(vm.smbios().bios_serial_number(), "1981-9952-3234-1295-3674-7651-98");
  EXPECT_EQ(vm.smbios().base_board_serial_number(), "1981-9952-3234-1295-3674-7651-98");
  EXPECT_EQ(vm.smbios().chassis_serial_number(), "1981-9952-3234-1295-3674-7651-98");
  EXPECT_EQ(vm.smbios().chassis_asset_tag(), "1981-9952-3234-1295-3674-7651-98");
  EXPECT_EQ(findings.find("Guest Interface"), std::string::npos) << "it is not enabled";
  EXPECT_EQ(findings.find("Heartbeat"), std::string::npos);
}

TEST(VmTree, AChangeLeavesEverythingElseAlone) {
  Key tree = RealTree();
  config::Vm vm = ReadVmTree(tree)->vm;
  vm.set_name("renamed");
  vm.set_memory_bytes(uint64_t{3} << 30);
  config::Disk* disk = vm.add_disks();
  disk->set_path("/new.vhdx");
  disk->set_lun(2);
  WriteVmTree(vm, kNow, &tree);
  EXPECT_EQ(Text(ReadVmTree(tree)->vm), Text(vm));

  Key expected = RealTree();
  Key& top = *expected.Find("configuration");
  vm_tree::Set(&top, "properties/name", "renamed");
  vm_tree::Set(&top, "settings/memory/bank/size", int64_t{3072});
  ASSERT_TRUE(tree.Find("configuration")->Remove("kvmbus"));
  ASSERT_TRUE(tree.Remove("configuration/_d7a36e9b-9256-4f0d-be2c-3a13887f7b03_/controller0"));
  EXPECT_EQ(FormatXmlTree(tree).value(), FormatXmlTree(expected).value());
}

TEST(VmTree, DisksComeAndGoAndStrangersStay) {
  config::Vm vm = Sample("6.2");
  Key tree = TreeOf(vm);
  Key& top = *tree.Find("configuration");
  const auto manifest = vm_tree::ReadManifest(top).devices;
  const std::string drives = vm_tree::SectionOf(manifest.back().instance) + "/controller0/";
  vm_tree::Set(&top, drives + "drive9/type", "PHYSICAL");
  vm_tree::Set(&top, drives + "drive9/pathname", "disk 2");
  vm_tree::Set(&top, drives + "drive5/pool_id", "a pool");
  const auto read = ReadVmTree(tree);
  EXPECT_EQ(Text(read->vm), Text(vm));
  EXPECT_NE(Findings(*read).find("'drive9' of type 'PHYSICAL'"), std::string::npos);
  vm.mutable_disks()->erase(vm.disks().begin() + 1);  // location 63
  WriteVmTree(vm, kNow, &tree);
  EXPECT_EQ(Text(ReadVmTree(tree)->vm), Text(vm));
  EXPECT_EQ(top.Find(drives + "drive63"), nullptr);
  EXPECT_EQ(top.StringOr(drives + "drive9/type", ""), "PHYSICAL");
  EXPECT_EQ(top.StringOr(drives + "drive5/pool_id", ""), "a pool");
}

TEST(VmTree, ControllersAndServicesComeAndGo) {
  config::Vm vm = Sample("6.2");
  Key tree = TreeOf(vm);
  vm.clear_disks();
  for (const uint32_t count : {4u, 1u, 3u}) {
    vm.set_scsi_controllers(count);
    vm.mutable_integration()->set_backup(count == 1);
    vm.mutable_integration()->set_time_synchronization(count != 1);
    WriteVmTree(vm, kNow, &tree);
    const auto read = ReadVmTree(tree);
    EXPECT_EQ(Text(read->vm), Text(vm)) << count;
    const Key& manifest = *tree.Find("configuration/manifest");
    EXPECT_EQ(manifest.IntOr("size", 0), 11 + int64_t{count});
    EXPECT_NE(manifest.Find(fmt::format("vdev{:03}", 11 + count)), nullptr);
    EXPECT_EQ(manifest.Find(fmt::format("vdev{:03}", 12 + count)), nullptr);
  }
  // A service that somebody took away comes back.
  vm_tree::RemoveDevice(tree.Find("configuration"), vm_tree::kHeartbeat.guid);
  EXPECT_FALSE(ReadVmTree(tree)->vm.integration().heartbeat());
  WriteVmTree(vm, kNow, &tree);
  EXPECT_TRUE(ReadVmTree(tree)->vm.integration().heartbeat());
}

TEST(VmTree, ASavedMachineOf50SaysWhereItsStateIs) {
  config::Vm vm = Sample("5.0");
  vm.set_folder("/vms");
  Key tree = TreeOf(vm);
  EXPECT_EQ(tree.StringOr("configuration/savedstate/memlocation", ""),
            "/vms/Virtual Machines/" + vm.id() + "/" + vm.id() + ".bin");
  vm.set_saved(false);
  WriteVmTree(vm, kNow, &tree);
  EXPECT_EQ(tree.Find("configuration/savedstate"), nullptr);
  tree.Find("configuration")->Remove("kvmbus");
  vm_tree::Set(&tree, "configuration/savedstate/type", "Normal");
  EXPECT_FALSE(ReadVmTree(tree)->vm.saved());
  EXPECT_NE(Findings(*ReadVmTree(tree)).find("a saved state of Windows"), std::string::npos);
}

TEST(VmTree, NewerVersionsAndUnusualSettingsAreListed) {
  Key tree = TreeOf(Sample("6.2"));
  Key& top = *tree.Find("configuration");
  vm_tree::Set(&top, "properties/version", int64_t{0x900});
  vm_tree::Set(&top, "settings/memory/bank/dynamic_memory_enabled", true);
  vm_tree::Set(&top, "settings/processors/weight", int64_t{200});
  vm_tree::Set(&top, "settings/processors/nested_virtualization/enabled", true);
  vm_tree::Set(&top, vm_tree::SectionOf(vm_tree::kBios.guid) + "/secure_boot_enabled", true);
  vm_tree::AddDevice(&top, {"736e6aa9-a3f8-49c0-9550-a963214d259a", "Microsoft TPM", 256},
                     "736e6aa9-a3f8-49c0-9550-a963214d259a");
  top.Find("kvmbus")->Remove("firmware");
  const auto read = ReadVmTree(tree);
  ASSERT_TRUE(read.ok()) << read.error().ToString();
  EXPECT_EQ(read->vm.version(), "9.0");
  for (const char* expected :
       {"configuration version 9.0", "dynamic memory", "a processor weight",
        "nested virtualization", "Secure Boot", "'Microsoft TPM'", "booting from its disks"})
    EXPECT_NE(Findings(*read).find(expected), std::string::npos) << expected;
}

TEST(VmTree, WhatMakesNoSenseIsRefused) {
  struct Case {
    const char* path;
    Key::Value value;
    const char* text;
    Code code = Code::kDataLoss;
  };
  const Case kCases[] = {
      {"properties/version", int64_t{0x400}, "its version is 4.0", Code::kUnimplemented},
      {"properties/version", int64_t{0xd00}, "its version is 13.0", Code::kUnimplemented},
      {"properties/version", uint64_t{0x602}, "no number 'properties/version'"},
      {"properties/version", int64_t{-1}, "make sense"},
      {"properties/type_id", "Templates", "type_id 'Templates'"},
      {"properties/global_id", "../../etc/passwd", "no GUID"},
      {"properties/global_id", "{0AA394FA-7C4A-4070-BA32-773D43B28A68}", "no GUID"},
      {"properties/subtype", int64_t{2}, "make sense"},
      {"settings/processors/count", int64_t{0}, "make sense"},
      {"settings/processors/count", "four", "no number"},
      {"settings/memory/bank/size", int64_t{-5}, "make sense"},
      {"settings/memory/bank/size", int64_t{1} << 60, "make sense"},
  };
  for (const Case& test : kCases) {
    Key tree = TreeOf(Sample("6.2"));
    vm_tree::Set(tree.Find("configuration"), test.path, test.value);
    const auto read = ReadVmTree(tree);
    ASSERT_FALSE(read.ok()) << test.text;
    EXPECT_EQ(read.error().code(), test.code) << read.error().ToString();
    EXPECT_NE(read.error().ToString().find(test.text), std::string::npos)
        << read.error().ToString();
  }
  EXPECT_EQ(ReadVmTree(Key()).error().code(), Code::kDataLoss);
}

TEST(VmTree, WhatIsListedIsPrintable) {
  Key tree = TreeOf(Sample("6.2"));
  vm_tree::AddDevice(tree.Find("configuration"),
                     {"736e6aa9-a3f8-49c0-9550-a963214d259a", "\x1b[2J\nTPM", 256},
                     "736e6aa9-a3f8-49c0-9550-a963214d259a");
  EXPECT_NE(Findings(*ReadVmTree(tree)).find("device '?[2J?TPM'"), std::string::npos);
}

TEST(VmTree, HostileManifestsAreBounded) {
  Key tree = TreeOf(Sample("6.2"));
  Key& manifest = *tree.Find("configuration/manifest");
  const Key first = manifest.children[0];
  for (int i = 0; i < 5000; ++i) manifest.children.push_back(first);
  config::Vm vm = ReadVmTree(tree)->vm;
  EXPECT_LE(ReadVmTree(tree)->incompatibilities.size(), 200u);
  vm.set_scsi_controllers(3);
  WriteVmTree(vm, kNow, &tree);
  EXPECT_EQ(ReadVmTree(tree)->vm.scsi_controllers(), 3u);
}

}  // namespace
}  // namespace kvmbus::vmm
