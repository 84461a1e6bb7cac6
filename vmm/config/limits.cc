// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/limits.h"

#include <algorithm>

#include "vmm/config/disk_qos.h"
#include "vmm/config/versions.h"
#include "vmm/config/vm_files.h"
#include "vmm/guid/guid.h"
#include "vmm/os/file.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm {
namespace {

bool NameIsValid(const std::string& name) {
  if (name.empty() || name.size() > kMaxNameBytes) return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return c >= ' ' && c != 0x7f && c != '/'; });
}

bool EndsWithoutCase(const std::string& text, std::string_view suffix) {
  return LowerCase(text).ends_with(suffix);
}

bool IsAbsolute(const std::string& path) { return !path.empty() && path.front() == '/'; }

/// What the image itself says is checked when its owner opens it.
Result<void> ValidateShared(const config::Vm& vm, const config::Disk& disk) {
  if (disk.kind() == config::DVD)
    return MakeError(Code::kInvalidArgument,
                     "'{}': a DVD drive cannot be shared; several drives may have the same image",
                     vm.name());
  if (disk.read_only())
    return MakeError(Code::kInvalidArgument,
                     "'{}': disk '{}' cannot be both shared and read-only; read-only disks may be "
                     "attached several times as they are",
                     vm.name(), disk.path());
  if (disk.caching() == config::BUFFERED)
    return MakeError(Code::kInvalidArgument,
                     "'{}': disk '{}' is shared; such disks are direct, not buffered", vm.name(),
                     disk.path());
  if (EndsWithoutCase(disk.path(), ".avhdx") || EndsWithoutCase(disk.path(), ".vhd") ||
      EndsWithoutCase(disk.path(), ".avhd"))
    return MakeError(
        Code::kInvalidArgument,
        "'{}': disk '{}' cannot be shared; a shared disk is a fixed or dynamic VHDX or "
        "a raw image: make one with 'vmctl disk convert'",
        vm.name(), disk.path());
  return {};
}

/// What its files are, and where.
Result<void> ValidateFiles(const config::Vm& vm) {
  if (std::find(std::begin(kRunningVersions), std::end(kRunningVersions), vm.version()) ==
      std::end(kRunningVersions))
    return MakeError(Code::kInvalidArgument,
                     "'{}': configuration version '{}'; there are 5.0 (Windows Server 2012 R2) and "
                     "6.2, see 'vmctl host versions'",
                     vm.name(), vm.version());
  if (!vm.folder().empty() &&
      (!IsAbsolute(vm.folder()) || vm.folder() != NormalFolder(vm.folder())))
    return MakeError(Code::kInvalidArgument,
                     "'{}': folder '{}' is not absolute, or not in its shortest form", vm.name(),
                     vm.folder());
  if (!vm.generation_id().empty() && vm.generation_id().size() != sizeof(Guid))
    return MakeError(Code::kInvalidArgument, "'{}': its generation id has {} bytes; 16 are needed",
                     vm.name(), vm.generation_id().size());
  if (!vm.smbios().bios_guid().empty() && !Guid::Parse(vm.smbios().bios_guid()))
    return MakeError(Code::kInvalidArgument, "'{}': its BIOS GUID '{}' is no GUID", vm.name(),
                     vm.smbios().bios_guid());
  return {};
}

}  // namespace

GenerationLimits LimitsOf(uint32_t generation) {
  return generation == 1 ? GenerationLimits{64, 1ull << 40} : GenerationLimits{240, 12ull << 40};
}

namespace {

/// As Hyper-V makes them up: 1981-9952-3234-1295-3674-7651-98.
std::string RandomSerialNumber() {
  std::string number;
  while (number.size() < 32) {
    for (const uint8_t byte : Guid::Random().bytes) {
      if (number.size() % 5 == 4) number.push_back('-');
      number.push_back(static_cast<char>('0' + byte % 10));
      if (number.size() == 32) break;
    }
  }
  return number;
}

config::SmbiosIdentity NewSmbiosIdentity() {
  config::SmbiosIdentity smbios;
  smbios.set_bios_serial_number(RandomSerialNumber());
  smbios.set_base_board_serial_number(smbios.bios_serial_number());
  smbios.set_chassis_serial_number(smbios.bios_serial_number());
  smbios.set_chassis_asset_tag(RandomSerialNumber());
  return smbios;
}

/// What the guest says there is appended to the file.
bool IsWrittenByCom1(const config::Vm& vm, const config::Disk& disk) {
  constexpr std::string_view kFile = "file:";
  const std::string& com1 = vm.serial().com1();
  if (disk.path().empty() || !com1.starts_with(kFile)) return false;
  const std::string file = com1.substr(kFile.size());
  return RealPath(file).value_or(file) == RealPath(disk.path()).value_or(disk.path());
}

}  // namespace

void ApplyDefaults(config::Vm* vm) {
  if (vm->id().empty()) vm->set_id(UpperCase(Guid::Random().ToString()));
  if (vm->generation() == 0) vm->set_generation(2);
  if (vm->vcpu_count() == 0) vm->set_vcpu_count(1);
  if (vm->scsi_controllers() == 0) vm->set_scsi_controllers(1);
  if (vm->version().empty()) vm->set_version(kDefaultVersion);
  if (vm->generation_id().empty()) vm->set_generation_id(Guid::Random().ToBytes());
  if (!vm->has_smbios()) *vm->mutable_smbios() = NewSmbiosIdentity();
}

Result<void> ValidateDisk(const config::Vm& vm, const config::Disk& disk) {
  const bool empty_drive = disk.kind() == config::DVD && disk.path().empty();
  if (!empty_drive && !IsAbsolute(disk.path()))
    return MakeError(Code::kInvalidArgument, "'{}': disk path '{}' is not absolute", vm.name(),
                     disk.path());
  if (!disk.next().empty())
    return MakeError(Code::kInvalidArgument, "'{}': disk '{}' has 'next', which is vmmd's own",
                     vm.name(), disk.path());
  if (disk.controller() >= vm.scsi_controllers())
    return MakeError(Code::kOutOfRange,
                     "'{}': disk '{}' is on SCSI controller {}, the virtual machine has 0 to {}",
                     vm.name(), disk.path(), disk.controller(), vm.scsi_controllers() - 1);
  if (disk.lun() >= kMaxLuns)
    return MakeError(Code::kOutOfRange,
                     "'{}': disk '{}' has location {}, a SCSI controller has 0 to {}", vm.name(),
                     disk.path(), disk.lun(), kMaxLuns - 1);
  if (disk.kind() != config::HARD_DISK && disk.kind() != config::DVD)
    return MakeError(Code::kInvalidArgument, "'{}': location {} has a drive of an unknown kind",
                     vm.name(), disk.lun());
  TRY_VOID(ValidateDiskQos(vm, disk));
  if (disk.kind() == config::DVD && EndsWithoutCase(disk.path(), ".vhd"))
    return MakeError(Code::kInvalidArgument, "'{}': a DVD drive takes ISO images, not '{}'",
                     vm.name(), disk.path());
  if (vm.generation() == 2 && EndsWithoutCase(disk.path(), ".vhd"))
    return MakeError(
        Code::kInvalidArgument,
        "'{}': generation 2 does not take VHD disks; convert '{}' with 'vmctl disk convert'",
        vm.name(), disk.path());
  if (IsWrittenByCom1(vm, disk))
    return MakeError(Code::kInvalidArgument,
                     "'{}': COM1 would write to '{}', which is one of its disks: name another file "
                     "for it",
                     vm.name(), disk.path());
  if (disk.shared()) TRY_VOID(ValidateShared(vm, disk));
  for (const config::Disk& other : vm.disks()) {
    if (&other == &disk) continue;
    if (other.controller() == disk.controller() && other.lun() == disk.lun())
      return MakeError(Code::kAlreadyExists,
                       "'{}': SCSI controller {} location {} has {} '{}' already", vm.name(),
                       disk.controller(), disk.lun(),
                       other.kind() == config::DVD ? "a DVD drive with" : "disk", other.path());
    // A disc is read alone, so several drives may have it.
    const bool both_discs = other.kind() == config::DVD && disk.kind() == config::DVD;
    if (!both_discs && other.path() == disk.path())
      return MakeError(Code::kAlreadyExists, "'{}': disk '{}' is attached already", vm.name(),
                       disk.path());
  }
  return {};
}

Result<void> ValidateConfig(const config::Vm& vm) {
  if (!NameIsValid(vm.name()))
    return MakeError(Code::kInvalidArgument, "a name has 1 to {} printable characters and no '/'",
                     kMaxNameBytes);
  if (!Guid::Parse(vm.id()) || vm.id() != UpperCase(vm.id()))
    return MakeError(Code::kInvalidArgument, "'{}': id '{}' is no upper-case GUID", vm.name(),
                     vm.id());
  TRY_VOID(ValidateFiles(vm));
  if (vm.generation() != 1 && vm.generation() != 2)
    return MakeError(Code::kInvalidArgument, "'{}': generation {}; there are 1 and 2", vm.name(),
                     vm.generation());
  const GenerationLimits limits = LimitsOf(vm.generation());
  if (vm.vcpu_count() < 1 || vm.vcpu_count() > limits.max_vcpus)
    return MakeError(Code::kOutOfRange, "'{}': {} virtual processors; generation {} allows 1 to {}",
                     vm.name(), vm.vcpu_count(), vm.generation(), limits.max_vcpus);
  if (vm.memory_bytes() < kMinMemoryBytes || vm.memory_bytes() > limits.max_memory_bytes ||
      vm.memory_bytes() % kMemoryStepBytes != 0)
    return MakeError(
        Code::kOutOfRange,
        "'{}': {} KiB of memory; generation {} allows {} MiB to {} GiB in steps of 2 MiB",
        vm.name(), vm.memory_bytes() >> 10, vm.generation(), kMinMemoryBytes >> 20,
        limits.max_memory_bytes >> 30);
  if (vm.scsi_controllers() < 1 || vm.scsi_controllers() > kMaxScsiControllers)
    return MakeError(Code::kOutOfRange, "'{}': {} SCSI controllers; 1 to {} are allowed", vm.name(),
                     vm.scsi_controllers(), kMaxScsiControllers);
  for (const config::Disk& disk : vm.disks()) TRY_VOID(ValidateDisk(vm, disk));
  if (vm.firmware().command_line().size() > kMaxCommandLineBytes)
    return MakeError(Code::kOutOfRange, "'{}': its kernel's command line has {} bytes; {} fit",
                     vm.name(), vm.firmware().command_line().size(), kMaxCommandLineBytes);
  if (!IsAbsolute(vm.firmware().kernel()))
    return MakeError(Code::kInvalidArgument,
                     "'{}': a kernel is needed (--kernel /path): this version boots Linux directly",
                     vm.name());
  if (!vm.firmware().initrd().empty() && !IsAbsolute(vm.firmware().initrd()))
    return MakeError(Code::kInvalidArgument, "'{}': initrd path '{}' is not absolute", vm.name(),
                     vm.firmware().initrd());
  const std::string& com1 = vm.serial().com1();
  if (!com1.empty() && com1 != "console" && !com1.starts_with("file:/"))
    return MakeError(Code::kInvalidArgument, "'{}': COM1 '{}'; it may be 'console' or 'file:/PATH'",
                     vm.name(), com1);
  return {};
}

}  // namespace kvmbus::vmm
