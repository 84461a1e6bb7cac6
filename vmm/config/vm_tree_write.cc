// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "vmm/config/limits.h"
#include "vmm/config/vm_files.h"
#include "vmm/config/vm_tree.h"
#include "vmm/config/vm_tree_keys.h"
#include "vmm/guid/guid.h"

namespace kvmbus::vmm {
namespace {

using namespace vm_tree;  // NOLINT: this file is a part of it

KeyBytes LittleEndian(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> 8 * i));
  return {bytes};
}

std::string ToHex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  return text;
}

class Writer {
 public:
  Writer(const config::Vm& vm, uint64_t now, Key* tree)
      : vm_(vm),
        now_(now),
        is_new_(tree->Find("configuration/properties") == nullptr),
        is_ours_(is_new_ || tree->Find("configuration/kvmbus") != nullptr),
        top_(&tree->Make("configuration")) {}

  void Run() {
    Properties();
    Settings();
    GlobalSettings();
    if (is_new_) FirstDevices();
    Smbios();
    IntegrationServices();
    ScsiControllers();
    SavedState();
    Own();
  }

 private:
  void Put(std::string_view path, Key::Value value) { Set(top_, path, std::move(value)); }
  /// What we neither have nor ask for: as a new machine of Windows has it, and left alone then.
  void Once(std::string_view path, Key::Value value) { SetIfMissing(top_, path, std::move(value)); }

  void Properties() {
    const bool is_checkpoint = vm_.has_checkpoint();
    const config::Checkpoint& checkpoint = vm_.checkpoint();
    Once("properties/creation_time",
         LittleEndian(is_checkpoint ? checkpoint.created_filetime() : now_));
    if (is_checkpoint) Put("properties/creation_time", LittleEndian(checkpoint.created_filetime()));
    Put("properties/global_id", is_checkpoint ? checkpoint.id() : vm_.id());
    Once("properties/highly_available", false);
    Once("properties/last_powered_off_time", int64_t{0});
    Once("properties/last_powered_on_time", int64_t{0});
    Once("properties/last_state_change_time", static_cast<int64_t>(now_));
    Put("properties/name", is_checkpoint ? checkpoint.name() : vm_.name());
    Put("properties/notes", vm_.notes());
    const std::string& parent = is_checkpoint ? checkpoint.parent() : vm_.parent_checkpoint();
    if (!parent.empty() || top_->Find("properties/parent_id") != nullptr)
      Put("properties/parent_id", parent);
    Put("properties/subtype", int64_t{vm_.generation() == 1 ? 0 : 1});
    Put("properties/type_id", is_checkpoint ? "Snapshots" : "Virtual Machines");
    Put("properties/version", int64_t{VersionNumber(vm_.version())});
  }

  void Settings() {
    const auto mebibytes = static_cast<int64_t>(vm_.memory_bytes() >> 20);
    Put("settings/global/logical_id", vm_.id());
    Once("settings/memory/bank/dynamic_memory_enabled", false);
    Once("settings/memory/bank/limit", int64_t{1048576});
    Once("settings/memory/bank/priority", int64_t{5000});
    Once("settings/memory/bank/reservation", int64_t{512});
    Put("settings/memory/bank/size", mebibytes);
    Once("settings/memory/bank/target_memory_buffer", int64_t{20});
    Once("settings/memory/vnuma/max_size_per_node", mebibytes);
    Put("settings/processors/count", int64_t{vm_.vcpu_count()});
    Once("settings/processors/features/limit", false);
    Once("settings/processors/limit", int64_t{100000});
    Once("settings/processors/limit_cpuid", false);
    Once("settings/processors/reservation", int64_t{0});
    Once("settings/processors/vnuma/count_per_node/max", int64_t{vm_.vcpu_count()});
    Once("settings/processors/vnuma/node_per_socket/max", int64_t{1});
    Once("settings/processors/weight", int64_t{100});
    Once("settings/stopped_at_host_shutdown", false);
    Once("settings/topology/low_mmio_gap_mb", int64_t{128});
    Once("settings/vnuma/enabled", true);
  }

  void GlobalSettings() {
    Once("global_settings/devices/allow_reduced_fc_redundancy", false);
    Put("global_settings/devices/generation_id", ToHex(vm_.generation_id()));
    Once("global_settings/devices/storage_allow_full_scsi_command_set", false);
    const bool merge_pending = vm_.unneeded_disks_size() != 0 || vm_.has_merging();
    if (is_ours_)
      Put("global_settings/disk_merge_pending", merge_pending);
    else
      Once("global_settings/disk_merge_pending", merge_pending);
    if (is_new_) Metrics();
    Once("global_settings/owner/sid", "S-1-5-32-544");  // the administrators
    // Nothing, off, nothing: what happens to machines of ours.
    Once("global_settings/power/host_shutdown/action", int64_t{0});
    Once("global_settings/power/host_startup/action", int64_t{0});
    Once("global_settings/snapshots/list/size", int64_t{0});
    Once("global_settings/unexpected_termination/action", int64_t{0});
    Once("global_settings/vhd_path_acled", false);
  }

  /// Of processors and memory: measured by nobody.
  void Metrics() {
    Key& metrics = top_->Make("global_settings/metrics");
    AddMetrics(&metrics, "B637F346-6A0E-4DEC-AF52-BD70CB80A21D",
               "B637F347-6A0E-4DEC-AF52-BD70CB80A21D", {"3F6F1051-C8FC-47EF-9821-C07240848748;0"});
    AddMetrics(&metrics, "4764334D-E001-4176-82EE-5594EC9B530E",
               "4764334E-E001-4176-82EE-5594EC9B530E",
               {"394DCE66-458F-4895-AE56-41D7C9602A49", "FF85EA46-9933-4436-BE5D-C96827399966",
                "04BDF59E-580D-4441-8828-FFFE44472D2D"});
  }
  static void AddMetrics(Key* metrics, const char* device, const char* resource,
                         std::initializer_list<const char*> codes) {
    Key& type = metrics->children.emplace_back(Key{"devicetype", {}, {}});
    Set(&type, "deviceinstance/guid", device);
    for (const char* code : codes) {
      Key metric{"metric", {}, {}};
      Set(&metric, "enabled", false);
      Set(&metric, "lastcomputedtime", int64_t{0});
      Set(&metric, "peaktime", int64_t{0});
      Set(&metric, "poolid", "");
      Set(&metric, "resourcetypeid", resource);
      Set(&metric, "starttime", int64_t{0});
      Set(&metric, "typecode", code);
      Set(&metric, "value", int64_t{0});
      type.Find("deviceinstance")->children.push_back(std::move(metric));
    }
    Set(&type, "guid", device);
  }

  void FirstDevices() {
    for (const DeviceClass& device : kAlwaysThere) AddDevice(top_, device, device.guid);
    Once(SectionOf(kAlwaysThere[4].guid) + "/Enabled", false);  // the guest interface
    for (const DeviceClass& device : {kHeartbeat, kShutdown, kTimeSync, kVss})
      AddDevice(top_, device, device.guid);
    const std::string rtc = SectionOf(kRtc.guid), bios = SectionOf(kBios.guid);
    Once(rtc + "/RtcDevice/CmosUtcSkew", int64_t{0});
    Once(rtc + "/VDEVVersion", kRtc.version);
    Once(bios + "/VDEVVersion", kBios.version);
    Once(bios + "/boot/device0", "HardDrive");
    Once(bios + "/boot/device1", "Optical");
    Once(bios + "/boot/device2", "Network");
    Once(bios + "/num_lock", false);
    Once(bios + "/pause_after_boot_failure", false);
    Once(bios + "/pxe_preferred_protocol", int64_t{4});
    Once(bios + "/secure_boot_enabled", false);
  }

  void Smbios() {
    const config::SmbiosIdentity& smbios = vm_.smbios();
    const std::string bios = SectionOf(kBios.guid);
    const std::string& guid = smbios.bios_guid().empty() ? vm_.id() : smbios.bios_guid();
    Put(bios + "/base_board/serial_number", smbios.base_board_serial_number());
    Put(bios + "/bios_guid", "{" + guid + "}");
    Put(bios + "/bios_serial_number", smbios.bios_serial_number());
    Put(bios + "/chassis/asset_tag", smbios.chassis_asset_tag());
    Put(bios + "/chassis/serial_number", smbios.chassis_serial_number());
  }

  void IntegrationServices() {
    const config::IntegrationServices& services = vm_.integration();
    Service(kHeartbeat, services.heartbeat());
    Service(kShutdown, services.shutdown());
    Service(kTimeSync, services.time_synchronization());
    Service(kVss, services.backup());
  }
  void Service(const DeviceClass& device, bool enabled) {
    bool found = false;
    for (const Vdev& vdev : ReadManifest(*top_).devices) {
      if (vdev.device != device.guid) continue;
      found = true;
      const std::string flag = SectionOf(vdev.instance) + "/Enabled";
      if (!enabled || top_->Find(flag) != nullptr) Put(flag, enabled);
    }
    if (enabled && !found) AddDevice(top_, device, device.guid);
  }

  /// As many as there should be. More than we can have are somebody else's and stay.
  void ScsiControllers() {
    uint32_t found = 0;
    for (const Vdev& vdev : ReadManifest(*top_).devices) {
      if (!IsScsi(vdev)) continue;
      if (found < vm_.scsi_controllers())
        scsi_.push_back(vdev.instance);
      else if (found < kMaxScsiControllers)
        RemoveDevice(top_, vdev.instance);
      ++found;
    }
    while (scsi_.size() < vm_.scsi_controllers()) {
      const std::string instance = Guid::Random().ToString();
      AddDevice(top_, kScsi, instance);
      Once(SectionOf(instance) + "/ChannelInstanceGuid", "{" + Guid::Random().ToString() + "}");
      scsi_.push_back(instance);
    }
    for (uint32_t controller = 0; controller < scsi_.size(); ++controller) Disks(controller);
  }

  void Disks(uint32_t controller) {
    const std::string drives = SectionOf(scsi_[controller]) + "/controller0";
    std::set<std::string> wanted;
    for (const config::Disk& disk : vm_.disks()) {
      if (disk.controller() != controller) continue;
      const std::string drive = fmt::format("drive{}", disk.lun());
      wanted.insert(drive);
      Disk(disk, drives + "/" + drive);
    }
    Key* there = top_->Find(drives);
    if (there == nullptr) return;
    std::erase_if(there->children, [&](const Key& key) {
      const std::string type = key.StringOr("type", "");
      return wanted.count(key.name) == 0 && (type == "VHD" || type == "ISO");
    });
  }

  void Disk(const config::Disk& disk, const std::string& drive) {
    const bool is_disk = disk.kind() == config::HARD_DISK;
    Put(drive + "/pathname", disk.path());
    Put(drive + "/type", is_disk ? "VHD" : "ISO");
    if (!is_disk) return;
    Put(drive + "/iops_limit", static_cast<int64_t>(disk.qos().max_iops()));
    Put(drive + "/iops_reservation", static_cast<int64_t>(disk.qos().min_iops()));
    Put(drive + "/persistent_reservations_supported", disk.shared());
    Once(drive + "/weight", int64_t{100});
  }

  /// 5.0 says here where memory and devices of a saved machine are.
  void SavedState() {
    if (!vm_.saved() || vm_.version() != kVersion50) {
      top_->Remove("savedstate");
      return;
    }
    Put("savedstate/in_progress", false);
    Put("savedstate/memlocation", MemoryFileOf(vm_));
    Put("savedstate/type", "Normal");
    Put("savedstate/vsvlocation", StateFileOf(vm_));
  }

  void Own() {
    std::erase_if(top_->children, [](const Key& key) { return key.name == "kvmbus"; });
    Key& own = top_->Make("kvmbus");
    Set(&own, "firmware/kernel", vm_.firmware().kernel());
    Set(&own, "firmware/initrd", vm_.firmware().initrd());
    Set(&own, "firmware/command_line", vm_.firmware().command_line());
    Set(&own, "com1", vm_.serial().com1());
    Set(&own, "huge_pages", vm_.huge_pages());
    Set(&own, "saved", vm_.saved());
    Set(&own, "checkpoint_policy", int64_t{vm_.checkpoint_policy()});
    Set(&own, "automatic_checkpoints", vm_.automatic_checkpoints());
    if (vm_.has_checkpoint()) {
      Set(&own, "vm_name", vm_.name());
      Set(&own, "parent_checkpoint", vm_.parent_checkpoint());
      Set(&own, "checkpoint/production", vm_.checkpoint().production());
      Set(&own, "checkpoint/automatic", vm_.checkpoint().automatic());
    }
    AddList("unneeded_disks", "disk", vm_.unneeded_disks(), &own);
    if (vm_.has_merging()) {
      Set(&own, "merging/file", vm_.merging().file());
      Set(&own, "merging/into", vm_.merging().into());
      AddList("merging/children", "child", vm_.merging().children(), &own);
    }
    for (const config::Disk& disk : vm_.disks())
      OwnDisk(disk, &own.Make(fmt::format("disks/scsi{}_{}", disk.controller(), disk.lun())));
  }
  static void AddList(const char* path, const char* name,
                      const google::protobuf::RepeatedPtrField<std::string>& texts, Key* own) {
    if (texts.empty()) return;
    Key& list = own->Make(path);
    for (const std::string& text : texts) list.children.push_back({name, text, {}});
  }
  static void OwnDisk(const config::Disk& disk, Key* own) {
    Set(own, "buffered", disk.caching() == config::BUFFERED);
    Set(own, "max_bytes_per_second", static_cast<int64_t>(disk.qos().max_bytes_per_second()));
    Set(own, "next", disk.next());
    Set(own, "read_only", disk.read_only());
  }

  const config::Vm& vm_;
  const uint64_t now_;
  const bool is_new_;
  const bool is_ours_;
  Key* const top_;
  std::vector<std::string> scsi_;  ///< instances, by number
};

}  // namespace

void WriteVmTree(const config::Vm& vm, uint64_t now, Key* tree) { Writer(vm, now, tree).Run(); }

std::string VersionName(uint32_t version) {
  return fmt::format("{}.{}", version >> 8, version & 0xff);
}

uint32_t VersionNumber(const std::string& name) {
  return name == kVersion50 ? kVersionNumber50 : kVersionNumber62;
}

}  // namespace kvmbus::vmm
