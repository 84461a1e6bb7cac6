// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <charconv>
#include <optional>
#include <set>

#include "vmm/config/limits.h"
#include "vmm/config/vm_tree.h"
#include "vmm/config/vm_tree_keys.h"
#include "vmm/guid/guid.h"
#include "vmm/text/letter_case.h"
#include "vmm/text/utf8.h"

namespace kvmbus::vmm {
namespace {

using namespace vm_tree;  // NOLINT: this file is a part of it

constexpr size_t kMaxIncompatibilities = 200;

std::optional<std::string> FromHex(const std::string& text) {
  if (text.size() % 2 != 0) return std::nullopt;
  std::string bytes;
  for (size_t at = 0; at < text.size(); at += 2) {
    const int high = internal::HexValue(text[at]), low = internal::HexValue(text[at + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(high << 4 | low));
  }
  return bytes;
}

/// N of "driveN".
std::optional<uint32_t> NumberOf(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  if (name.size() > 1 && name[0] == '0') return std::nullopt;
  uint32_t number = 0;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), number);
  if (name.empty() || parsed.ec != std::errc() || parsed.ptr != name.data() + name.size())
    return std::nullopt;
  return number;
}

/// The eight bytes of a FILETIME; 0 for anything else.
uint64_t FileTimeIn(const Key* key) {
  const auto* bytes = key == nullptr ? nullptr : std::get_if<KeyBytes>(&key->value);
  if (bytes == nullptr || bytes->bytes.size() != 8) return 0;
  uint64_t time = 0;
  for (size_t i = 8; i-- > 0;) time = time << 8 | static_cast<uint8_t>(bytes->bytes[i]);
  return time;
}

class Reader {
 public:
  explicit Reader(const Key& top) : top_(top), own_(top.Find("kvmbus")) {}

  Result<VmOfTree> Run() {
    TRY_VOID(Properties());
    TRY_VOID(Settings());
    UnusualSettings();
    AutomaticActions();
    Devices();
    TRY_VOID(ScsiDisks());
    LegacyDevices();
    Bios();
    Own();
    return std::move(out_);
  }

 private:
  template <typename... Args>
  void Cannot(std::string_view fix, fmt::format_string<Args...> what, Args&&... args) {
    if (out_.incompatibilities.size() < kMaxIncompatibilities)
      out_.incompatibilities.push_back(
          {Printable(fmt::format(what, std::forward<Args>(args)...)), std::string(fix)});
  }
  /// A number that has to be there and within bounds.
  Result<uint64_t> Number(std::string_view path, int64_t least, int64_t most) const {
    const Key* key = top_.Find(path);
    const auto* value = key == nullptr ? nullptr : std::get_if<int64_t>(&key->value);
    if (value == nullptr) return MakeError(Code::kDataLoss, "there is no number '{}'", path);
    if (*value < least || *value > most)
      return MakeError(Code::kDataLoss, "'{}' is {}; {} to {} make sense", path, *value, least,
                       most);
    return static_cast<uint64_t>(*value);
  }
  Result<std::string> Id(std::string_view path) const {
    const std::string id = UpperCase(top_.StringOr(path, ""));
    if (!Guid::Parse(id) || id.front() == '{')
      return MakeError(Code::kDataLoss, "'{}' is no GUID", path);
    return id;
  }

  /// The id of a checkpoint, or "".
  std::string Parent(const Key& top, std::string_view path) {
    const std::string id = UpperCase(top.StringOr(path, ""));
    if (id.empty() || (Guid::Parse(id) && id.front() != '{')) return id;
    Cannot("it has none", "parent checkpoint '{}'", id.substr(0, 40));
    return "";
  }

  Result<void> Properties() {
    const auto version = static_cast<uint32_t>(TRY(Number("properties/version", 0, 0xffff)));
    if (version < kVersionNumber50 || version > kNewestVersionNumber)
      return MakeError(Code::kUnimplemented, "its version is {}; {} and {} run, up to {} are read",
                       VersionName(version), kVersion50, kVersion62, kNewestReadVersion);
    vm_.set_version(VersionName(version));
    if (version != kVersionNumber50 && version != kVersionNumber62)
      Cannot("a copy of it gets version 6.2 (--copy or --restore)", "configuration version {}",
             vm_.version());
    const std::string type = top_.StringOr("properties/type_id", "");
    if (type != "Virtual Machines" && type != "Snapshots")
      return MakeError(Code::kDataLoss,
                       "its type_id '{}' is neither a machine's nor a checkpoint's",
                       Printable(type.substr(0, 40)));
    vm_.set_notes(top_.StringOr("properties/notes", ""));
    vm_.set_generation(TRY(Number("properties/subtype", 0, 1)) == 0 ? 1 : 2);
    if (type == "Snapshots") return CheckpointProperties();
    vm_.set_id(TRY(Id("properties/global_id")));
    vm_.set_name(top_.StringOr("properties/name", ""));
    vm_.set_parent_checkpoint(Parent(top_, "properties/parent_id"));
    return {};
  }

  Result<void> CheckpointProperties() {
    config::Checkpoint& checkpoint = *vm_.mutable_checkpoint();
    vm_.set_id(TRY(Id("settings/global/logical_id")));
    checkpoint.set_id(TRY(Id("properties/global_id")));
    checkpoint.set_name(top_.StringOr("properties/name", ""));
    checkpoint.set_parent(Parent(top_, "properties/parent_id"));
    checkpoint.set_created_filetime(FileTimeIn(top_.Find("properties/creation_time")));
    vm_.set_parent_checkpoint(checkpoint.parent());
    return {};
  }

  Result<void> Settings() {
    vm_.set_vcpu_count(static_cast<uint32_t>(TRY(Number("settings/processors/count", 1, 4096))));
    constexpr int64_t kMostMebibytes = int64_t{1} << 30;
    vm_.set_memory_bytes(TRY(Number("settings/memory/bank/size", 1, kMostMebibytes)) << 20);
    const std::string id = top_.StringOr("global_settings/devices/generation_id", "");
    const auto bytes = FromHex(id);
    if (bytes && bytes->size() == 16)
      vm_.set_generation_id(*bytes);
    else if (!id.empty())
      Cannot("it gets a new one", "VM generation id '{}'", id.substr(0, 40));
    return {};
  }

  void UnusualSettings() {
    if (top_.BoolOr("settings/memory/bank/dynamic_memory_enabled", false))
      Cannot("it has its startup memory all the time", "dynamic memory");
    const struct {
      const char* path;
      int64_t usual;
      const char* what;
    } kNumbers[] = {{"settings/processors/limit", 100000, "a limit of processor time"},
                    {"settings/processors/reservation", 0, "reserved processor time"},
                    {"settings/processors/weight", 100, "a processor weight"}};
    for (const auto& number : kNumbers) {
      if (top_.IntOr(number.path, number.usual) != number.usual)
        Cannot("use the host's means for it (systemd)", "{}", number.what);
    }
    const struct {
      const char* path;
      const char* what;
      const char* fix;
    } kFlags[] = {
        {"settings/processors/features/limit", "processor compatibility", "it sees the host's"},
        {"settings/processors/limit_cpuid", "CPUID limited for old systems", "it sees all of it"},
        {"settings/processors/nested_virtualization/enabled", "nested virtualization",
         "it runs without"},
        {"global_settings/devices/storage_allow_full_scsi_command_set",
         "the full SCSI command set passed through", "disks answer what they know"},
        {"properties/highly_available", "high availability in a cluster", "it runs on this host"}};
    if (own_ == nullptr && top_.BoolOr("global_settings/disk_merge_pending", false))
      Cannot("merge them with 'vmctl disk merge'", "a merge of its disks that is not done");
    for (const auto& flag : kFlags) {
      if (top_.BoolOr(flag.path, false)) Cannot(flag.fix, "{}", flag.what);
    }
    const int64_t node = top_.IntOr("settings/memory/vnuma/max_size_per_node", 0);
    const auto size = static_cast<int64_t>(vm_.memory_bytes() >> 20);
    if (top_.BoolOr("settings/vnuma/enabled", false) && node > 0 && size > node)
      Cannot("its memory is one node", "virtual NUMA nodes of {} MiB", node);
  }

  void AutomaticActions() {
    std::string actions;
    const std::pair<const char*, const char*> kActions[] = {
        {"host_startup", "start with the host"}, {"host_shutdown", "stop with the host"}};
    for (const auto& [key, name] : kActions) {
      if (top_.IntOr(fmt::format("global_settings/power/{}/action", key), 0) != 0)
        actions += (actions.empty() ? "" : ", ") + std::string(name);
    }
    if (top_.IntOr("global_settings/unexpected_termination/action", 0) != 0)
      actions += (actions.empty() ? "" : ", ") + std::string("start again after a failure");
    if (!actions.empty()) Cannot("do it with systemd units", "automatic actions: {}", actions);
  }

  void Devices() {
    config::IntegrationServices& services = *vm_.mutable_integration();
    const Manifest manifest = ReadManifest(top_);
    for (const Vdev& vdev : manifest.repeated)
      Cannot("the first one counts", "device '{}' {} a second time", vdev.name, vdev.instance);
    for (const Vdev& vdev : manifest.devices) {
      const bool enabled = top_.BoolOr(SectionOf(vdev.instance) + "/Enabled", true);
      if (IsScsi(vdev))
        Controller(vdev);
      else if (vdev.device == kHeartbeat.guid)
        services.set_heartbeat(enabled);
      else if (vdev.device == kShutdown.guid)
        services.set_shutdown(enabled);
      else if (vdev.device == kTimeSync.guid)
        services.set_time_synchronization(enabled);
      else if (vdev.device == kVss.guid)
        services.set_backup(enabled);
      else if (vdev.device == kNetwork.guid)
        Network(vdev);
      else if (enabled && !(own_ != nullptr && IsAlwaysThere(vdev)))
        Cannot("it runs without", "device '{}' ({})", vdev.name, vdev.device);
    }
    vm_.set_scsi_controllers(static_cast<uint32_t>(scsi_.size()));
  }

  /// In a tree of ours these are there for Windows.
  static bool IsAlwaysThere(const Vdev& vdev) {
    return std::any_of(std::begin(kAlwaysThere), std::end(kAlwaysThere),
                       [&](const DeviceClass& device) { return device.guid == vdev.device; });
  }

  void Controller(const Vdev& vdev) {
    if (scsi_.size() < kMaxScsiControllers)
      scsi_.push_back(vdev.instance);
    else
      Cannot("attach its disks to another one", "more than {} SCSI controllers: {}",
             kMaxScsiControllers, vdev.instance);
  }

  void Network(const Vdev& vdev) {
    const std::string section = SectionOf(vdev.instance);
    const std::string network = top_.StringOr(section + "/Connection/AltSwitchName", "");
    Cannot("it has no network until there are adapters", "network adapter '{}' ({}){}",
           top_.StringOr(section + "/FriendlyName", vdev.name),
           top_.StringOr(section + "/MacAddress", "no address"),
           network.empty() ? "" : " on switch '" + network + "'");
  }

  Result<void> ScsiDisks() {
    for (uint32_t controller = 0; controller < scsi_.size(); ++controller) {
      const Key* section = top_.Find(SectionOf(scsi_[controller]));
      if (section == nullptr) continue;
      for (const Key& key : section->children) {
        if (!key.name.starts_with("controller")) continue;
        if (&key != section->Find("controller0"))
          Cannot("attach them to another place", "disks at '{}' of SCSI controller {}", key.name,
                 controller);
        else
          TRY_VOID(Drives(controller, key));
      }
    }
    return {};
  }

  Result<void> Drives(uint32_t controller, const Key& drives) {
    std::set<uint32_t> seen;
    for (const Key& drive : drives.children) {
      const std::string type = drive.StringOr("type", "NONE");
      const std::string path = drive.StringOr("pathname", "");
      const auto lun = NumberOf(drive.name, "drive");
      if (type == "NONE") continue;
      if (!lun || *lun >= kMaxLuns || !seen.insert(*lun).second ||
          (type != "VHD" && type != "ISO")) {
        Cannot("convert it to a VHDX at locations 0 to 63",
               "'{}' of type '{}' on SCSI controller "
               "{}: '{}'",
               drive.name, type, controller, path);
        continue;
      }
      config::Disk& disk = *vm_.add_disks();
      disk.set_path(path);
      disk.set_controller(controller);
      disk.set_lun(*lun);
      disk.set_kind(type == "ISO" ? config::DVD : config::HARD_DISK);
      TRY_VOID_CTX(HardDisk(drive, &disk), "'{}'", path);
    }
    return {};
  }

  Result<void> HardDisk(const Key& drive, config::Disk* disk) {
    const int64_t most = drive.IntOr("iops_limit", 0), least = drive.IntOr("iops_reservation", 0);
    if (most < 0 || least < 0)
      return MakeError(Code::kDataLoss, "its Storage QoS is {} to {}", least, most);
    if (most != 0) disk->mutable_qos()->set_max_iops(static_cast<uint64_t>(most));
    if (least != 0) disk->mutable_qos()->set_min_iops(static_cast<uint64_t>(least));
    disk->set_shared(drive.BoolOr("persistent_reservations_supported", false));
    if (drive.IntOr("weight", 100) != 100)
      Cannot("use 'vmctl disk qos'", "a weight of I/O of disk '{}'", disk->path());
    return {};
  }

  void LegacyDevices() {
    if (vm_.generation() == 1)
      Cannot("it boots Linux directly on a board like generation 2's",
             "generation 1's firmware and emulated devices");
    for (const DeviceClass& device : {kIde, kFloppy}) {
      const Key* section = top_.Find(SectionOf(device.guid));
      if (section == nullptr) continue;
      for (const Key& controller : section->children) {
        for (const Key& drive : controller.children) LegacyDrive(device, controller.name, drive);
      }
    }
    const Key* serial = top_.Find(SectionOf(kSerial.guid));
    if (serial == nullptr) return;
    for (const Key& port : serial->children) {
      const std::string pipe = port.StringOr("connection", "");
      if (!pipe.empty()) Cannot("give it --com1", "serial port '{}' on '{}'", port.name, pipe);
    }
  }
  void LegacyDrive(const DeviceClass& device, const std::string& controller, const Key& drive) {
    const std::string path = drive.StringOr("pathname", "");
    if (path.empty()) return;
    Cannot(device.guid == kIde.guid ? "attach it to a SCSI controller, as a VHDX"
                                    : "there are no floppy drives",
           "'{}' at {} {} of '{}'", path, controller, drive.name, device.name);
  }

  void Bios() {
    const std::string bios = SectionOf(kBios.guid);
    if (top_.BoolOr(bios + "/secure_boot_enabled", false))
      Cannot("it boots without", "Secure Boot");
    ReadSmbios(bios);
    if (own_ == nullptr || own_->StringOr("firmware/kernel", "").empty())
      Cannot("give it a kernel (--kernel): this version boots Linux directly",
             "booting from its disks, its network or a disc");
  }

  void ReadSmbios(const std::string& bios) {
    config::SmbiosIdentity& smbios = *vm_.mutable_smbios();
    const std::string text = top_.StringOr(bios + "/bios_guid", "");
    const auto guid = Guid::Parse(text);
    if (!guid && !text.empty())
      Cannot("the guest sees its id", "SMBIOS identity '{}'", text);
    else if (guid && guid != Guid::Parse(vm_.id()))
      smbios.set_bios_guid(UpperCase(guid->ToString()));
    smbios.set_bios_serial_number(top_.StringOr(bios + "/bios_serial_number", ""));
    smbios.set_base_board_serial_number(top_.StringOr(bios + "/base_board/serial_number", ""));
    smbios.set_chassis_serial_number(top_.StringOr(bios + "/chassis/serial_number", ""));
    smbios.set_chassis_asset_tag(top_.StringOr(bios + "/chassis/asset_tag", ""));
  }

  void Own() {
    const bool saved_by_windows = own_ == nullptr && top_.Find("savedstate") != nullptr;
    if (saved_by_windows) Cannot("discard it: it starts anew", "a saved state of Windows");
    config::Firmware& firmware = *vm_.mutable_firmware();
    config::SerialPort& serial = *vm_.mutable_serial();
    if (own_ == nullptr) return;
    firmware.set_kernel(own_->StringOr("firmware/kernel", ""));
    firmware.set_initrd(own_->StringOr("firmware/initrd", ""));
    firmware.set_command_line(own_->StringOr("firmware/command_line", ""));
    serial.set_com1(own_->StringOr("com1", ""));
    vm_.set_huge_pages(own_->BoolOr("huge_pages", false));
    vm_.set_saved(own_->BoolOr("saved", false));
    const int64_t policy = own_->IntOr("checkpoint_policy", 0);
    if (config::CheckpointPolicy_IsValid(static_cast<int>(policy)))
      vm_.set_checkpoint_policy(static_cast<config::CheckpointPolicy>(policy));
    else
      Cannot("it is the usual one", "checkpoint policy {}", policy);
    vm_.set_automatic_checkpoints(own_->BoolOr("automatic_checkpoints", false));
    if (vm_.has_checkpoint()) {
      vm_.set_name(own_->StringOr("vm_name", ""));
      vm_.set_parent_checkpoint(Parent(*own_, "parent_checkpoint"));
      vm_.mutable_checkpoint()->set_production(own_->BoolOr("checkpoint/production", false));
      vm_.mutable_checkpoint()->set_automatic(own_->BoolOr("checkpoint/automatic", false));
    }
    ReadList("unneeded_disks", vm_.mutable_unneeded_disks());
    if (own_->Find("merging") != nullptr) {
      config::DiskMerge& merging = *vm_.mutable_merging();
      merging.set_file(own_->StringOr("merging/file", ""));
      merging.set_into(own_->StringOr("merging/into", ""));
      ReadList("merging/children", merging.mutable_children());
    }
    for (config::Disk& disk : *vm_.mutable_disks()) OwnDisk(&disk);
  }
  void ReadList(const char* path, google::protobuf::RepeatedPtrField<std::string>* texts) const {
    const Key* list = own_->Find(path);
    if (list == nullptr) return;
    for (const Key& key : list->children) {
      if (const auto* text = std::get_if<std::string>(&key.value)) *texts->Add() = *text;
    }
  }
  void OwnDisk(config::Disk* disk) {
    const Key* own = own_->Find(fmt::format("disks/scsi{}_{}", disk->controller(), disk->lun()));
    if (own == nullptr) return;
    if (own->BoolOr("buffered", false)) disk->set_caching(config::BUFFERED);
    const int64_t bytes = own->IntOr("max_bytes_per_second", 0);
    if (bytes > 0) disk->mutable_qos()->set_max_bytes_per_second(static_cast<uint64_t>(bytes));
    disk->set_next(own->StringOr("next", ""));
    disk->set_read_only(own->BoolOr("read_only", false));
  }

  const Key& top_;
  const Key* const own_;
  VmOfTree out_;
  config::Vm& vm_ = out_.vm;
  std::vector<std::string> scsi_;  ///< instances, by number
};

}  // namespace

Result<VmOfTree> ReadVmTree(const Key& tree) {
  const Key* top = tree.Find("configuration");
  if (top == nullptr) return Error(Code::kDataLoss, "it has no 'configuration'");
  return Reader(*top).Run();
}

}  // namespace kvmbus::vmm
