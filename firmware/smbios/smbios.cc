// SPDX-License-Identifier: Apache-2.0
#include "firmware/smbios/smbios.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <vector>

#include "firmware/smbios/structure.h"
#include "vmm/machine/layout.h"

namespace kvmbus::firmware {
namespace {

using vmm::Code;
using vmm::GuestMemory;
using vmm::MakeError;
using vmm::Result;

constexpr std::string_view kManufacturer = "Microsoft Corporation";
constexpr std::string_view kProduct = "Virtual Machine";
constexpr std::string_view kOemString =
    "[MS_VM_CERT/SHA1/9b80ca0d5dd061ec9da4e494f4c3fd1196270c22]";

constexpr uint32_t kMaxSockets = 64;
constexpr uint16_t kMemoryArrayHandle = 0x1000;
constexpr uint16_t kUnknownHandle = 0xfffe, kNoHandle = 0xffff;

struct BiosNames {
  std::string_view vendor, version, date, system_version;
};

BiosNames NamesOf(unsigned generation) {
  if (generation == 1) return {"American Megatrends Inc.", "090008", "12/07/2018", "7.0"};
  return {kManufacturer, "Hyper-V UEFI Release v4.1", "05/09/2022", "Hyper-V UEFI Release v4.1"};
}

/// The structures, in the order of their types.
class Table {
 public:
  explicit Table(const SmbiosParams& params) : params_(params), names_(NamesOf(params.generation)) {
    AddBios();
    AddSystem();
    AddBoard();
    AddChassis();
    for (uint32_t socket = 0; socket < params.sockets; ++socket) AddProcessor(socket);
    AddOemStrings();
    AddMemoryArray();
    AddMemoryDevice();
    AddMemoryMapping();
    AddBootStatus();
    AddEnd();
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  uint16_t count() const { return count_; }
  uint16_t largest() const { return largest_; }

 private:
  void Finish(SmbiosStructure& structure, size_t formatted_size) {
    const size_t start = bytes_.size();
    structure.Finish(formatted_size, &bytes_);
    largest_ = std::max(largest_, static_cast<uint16_t>(bytes_.size() - start));
    ++count_;
  }

  void AddBios() {
    constexpr uint64_t kCharacteristicsNotSupported = 1u << 3;
    constexpr uint8_t kAcpi = 1, kVirtualMachine = 1u << 4;
    SmbiosStructure s(0, 0);
    s.PutString(names_.vendor).PutString(names_.version);
    s.Put<uint16_t>(0xf000).PutString(names_.date).Put<uint8_t>(0);  // segment, date, 64 KiB
    s.Put<uint64_t>(kCharacteristicsNotSupported).Put<uint8_t>(kAcpi).Put<uint8_t>(kVirtualMachine);
    s.Put<uint8_t>(params_.generation == 1 ? 0xff : 4);  // major and minor release
    s.Put<uint8_t>(params_.generation == 1 ? 0xff : 1);
    s.Put<uint8_t>(0xff).Put<uint8_t>(0xff).Put<uint16_t>(0);  // no embedded controller
    Finish(s, 0x1a);
  }

  void AddSystem() {
    constexpr uint8_t kPowerSwitch = 6;
    SmbiosStructure s(1, 0x100);
    s.PutString(kManufacturer).PutString(kProduct).PutString(names_.system_version);
    s.PutString(params_.bios_serial);
    s.PutBytes(params_.uuid.bytes.data(), params_.uuid.bytes.size());  // the same mixed-endian form
    s.Put<uint8_t>(kPowerSwitch).PutString("None").PutString(kProduct);
    Finish(s, 0x1b);
  }

  void AddBoard() {
    constexpr uint8_t kHostingBoard = 1, kMotherboard = 0x0a;
    SmbiosStructure s(2, 0x200);
    s.PutString(kManufacturer).PutString(kProduct).PutString(names_.system_version);
    s.PutString(params_.board_serial).PutString("None");
    s.Put<uint8_t>(kHostingBoard).PutString(kProduct).Put<uint16_t>(0x300);
    s.Put<uint8_t>(kMotherboard).Put<uint8_t>(0);
    Finish(s, 0x0f);
  }

  void AddChassis() {
    constexpr uint8_t kDesktop = 3, kSafe = 3, kSecurityUnknown = 2;
    SmbiosStructure s(3, 0x300);
    s.PutString(kManufacturer).Put<uint8_t>(kDesktop).PutString(names_.system_version);
    s.PutString(params_.chassis_serial).PutString(params_.chassis_asset_tag);
    s.Put<uint8_t>(kSafe).Put<uint8_t>(kSafe).Put<uint8_t>(kSafe).Put<uint8_t>(kSecurityUnknown);
    s.Put<uint32_t>(0).Put<uint8_t>(0).Put<uint8_t>(1);  // OEM, height, power cords
    s.Put<uint8_t>(0).Put<uint8_t>(0).PutString("");     // no contained elements, no SKU
    Finish(s, 0x16);
  }

  void AddProcessor(uint32_t socket) {
    constexpr uint8_t kCentral = 3, kOther = 1, kUpgradeNone = 6, kPopulatedEnabled = 0x41;
    constexpr uint8_t kFamilyUnknown = 2;
    constexpr uint16_t k64Bit = 1u << 2;
    // The first sockets take what does not divide evenly.
    const uint32_t cpus = params_.cpu_count / params_.sockets +
                          (socket < params_.cpu_count % params_.sockets ? 1 : 0);
    const auto count8 = static_cast<uint8_t>(std::min(cpus, 0xffu));
    SmbiosStructure s(4, static_cast<uint16_t>(0x400 + socket));
    s.PutString(fmt::format("CPU {}", socket)).Put<uint8_t>(kCentral).Put<uint8_t>(kFamilyUnknown);
    s.PutString(kManufacturer).Put<uint64_t>(0).PutString("None");            // id: CPUID tells it
    s.Put<uint8_t>(0x80).Put<uint16_t>(0).Put<uint16_t>(0).Put<uint16_t>(0);  // voltage, clocks
    s.Put<uint8_t>(kPopulatedEnabled).Put<uint8_t>(kUpgradeNone);
    s.Put<uint16_t>(kNoHandle).Put<uint16_t>(kNoHandle).Put<uint16_t>(kNoHandle);  // caches
    s.PutString("None").PutString("None").PutString("None");           // serial, asset tag, part
    s.Put<uint8_t>(count8).Put<uint8_t>(count8).Put<uint8_t>(count8);  // cores, enabled, threads
    s.Put<uint16_t>(k64Bit).Put<uint16_t>(kOther);
    for (int i = 0; i < 3; ++i) s.Put<uint16_t>(static_cast<uint16_t>(cpus));
    Finish(s, 0x30);
  }

  void AddOemStrings() {
    SmbiosStructure s(11, 0xb00);
    s.PutString(kOemString);  // its number is also the field's value, the count of strings
    Finish(s, 0x05);
  }

  void AddMemoryArray() {
    constexpr uint8_t kSystemBoard = 3, kSystemMemory = 3, kNoCorrection = 3;
    SmbiosStructure s(16, kMemoryArrayHandle);
    s.Put<uint8_t>(kSystemBoard).Put<uint8_t>(kSystemMemory).Put<uint8_t>(kNoCorrection);
    constexpr uint64_t kSeeExtended = 0x80000000;
    const uint64_t kibibytes = params_.ram_bytes >> 10;
    s.Put<uint32_t>(static_cast<uint32_t>(std::min(kibibytes, kSeeExtended)));
    s.Put<uint16_t>(kUnknownHandle).Put<uint16_t>(1);
    s.Put<uint64_t>(kibibytes < kSeeExtended ? 0 : params_.ram_bytes);
    Finish(s, 0x17);
  }

  void AddMemoryDevice() {
    constexpr uint8_t kFormUnknown = 2, kTypeUnknown = 2;
    constexpr uint16_t kDetailUnknown = 1u << 2, kSizeIsExtended = 0x7fff;
    const uint64_t mebibytes = params_.ram_bytes >> 20;
    SmbiosStructure s(17, 0x1100);
    s.Put<uint16_t>(kMemoryArrayHandle).Put<uint16_t>(kUnknownHandle);
    s.Put<uint16_t>(0xffff).Put<uint16_t>(0xffff);  // widths: unknown
    s.Put<uint16_t>(static_cast<uint16_t>(std::min<uint64_t>(mebibytes, kSizeIsExtended)));
    s.Put<uint8_t>(kFormUnknown).Put<uint8_t>(0).PutString("M0001").PutString("None");
    s.Put<uint8_t>(kTypeUnknown).Put<uint16_t>(kDetailUnknown).Put<uint16_t>(0);  // speed
    s.PutString(kManufacturer).PutString("None").PutString("None").PutString("None");
    s.Put<uint8_t>(0);  // ranks
    s.Put<uint32_t>(mebibytes < kSizeIsExtended ? 0 : static_cast<uint32_t>(mebibytes));
    s.PutZeros(8);  // configured speed, voltages
    Finish(s, 0x28);
  }

  void AddMemoryMapping() {
    constexpr uint32_t kSeeExtended = 0xffffffff;
    uint16_t handle = 0x1300;
    for (const vmm::MemoryRange& range : vmm::ComputeMemoryLayout(params_.ram_bytes).ram) {
      SmbiosStructure s(19, handle++);
      const uint64_t last = range.gpa + range.size - 1;
      const bool extended = last >> 10 >= kSeeExtended;
      s.Put<uint32_t>(extended ? kSeeExtended : static_cast<uint32_t>(range.gpa >> 10));
      s.Put<uint32_t>(extended ? kSeeExtended : static_cast<uint32_t>(last >> 10));
      s.Put<uint16_t>(kMemoryArrayHandle).Put<uint8_t>(1);
      s.Put<uint64_t>(extended ? range.gpa : 0).Put<uint64_t>(extended ? last : 0);
      Finish(s, 0x1f);
    }
  }

  void AddBootStatus() {
    SmbiosStructure s(32, 0x2000);
    s.PutZeros(7);  // reserved; no errors
    Finish(s, 0x0b);
  }

  void AddEnd() {
    SmbiosStructure s(127, 0x7f00);
    Finish(s, 0x04);
  }

  const SmbiosParams& params_;
  const BiosNames names_;
  std::vector<uint8_t> bytes_;
  uint16_t count_ = 0;
  uint16_t largest_ = 0;
};

constexpr uint8_t kMajor = 3, kMinor = 2;
constexpr uint64_t kOldEntryOffset = 0x20;
constexpr uint64_t kTableOffset = 0x40;

template <typename T>
void Put(std::vector<uint8_t>* to, std::type_identity_t<T> value) {
  for (size_t i = 0; i < sizeof(T); ++i)
    to->push_back(static_cast<uint8_t>(uint64_t{value} >> (8 * i)));
}

/// Makes bytes [first, end) sum up to 0.
void SetChecksum(std::vector<uint8_t>* bytes, size_t first, size_t at) {
  const uint8_t sum = std::accumulate(bytes->begin() + first, bytes->end(), uint8_t{0});
  (*bytes)[at] = static_cast<uint8_t>(-sum);
}

std::vector<uint8_t> MakeEntry64(const Table& table) {
  std::vector<uint8_t> entry = {'_', 'S', 'M', '3', '_', 0, 24, kMajor, kMinor, 0, 1, 0};
  Put<uint32_t>(&entry, static_cast<uint32_t>(table.bytes().size()));
  Put<uint64_t>(&entry, vmm::kSmbiosGpa + kTableOffset);
  SetChecksum(&entry, 0, 5);
  return entry;
}

std::vector<uint8_t> MakeEntry32(const Table& table) {
  std::vector<uint8_t> entry = {'_', 'S', 'M', '_', 0, 31, kMajor, kMinor};
  Put<uint16_t>(&entry, table.largest());
  entry.insert(entry.end(), {0, 0, 0, 0, 0, 0, '_', 'D', 'M', 'I', '_', 0});
  Put<uint16_t>(&entry, static_cast<uint16_t>(table.bytes().size()));
  Put<uint32_t>(&entry, static_cast<uint32_t>(vmm::kSmbiosGpa + kTableOffset));
  Put<uint16_t>(&entry, table.count());
  entry.push_back(kMajor << 4 | kMinor);
  constexpr size_t kIntermediate = 16;
  SetChecksum(&entry, kIntermediate, kIntermediate + 5);
  SetChecksum(&entry, 0, 4);
  return entry;
}

}  // namespace

Result<void> WriteSmbios(GuestMemory& memory, const SmbiosParams& params) {
  if (params.generation != 1 && params.generation != 2)
    return MakeError(Code::kInvalidArgument, "generation {} is neither 1 nor 2", params.generation);
  if (params.sockets == 0 || params.sockets > kMaxSockets || params.cpu_count < params.sockets)
    return MakeError(Code::kInvalidArgument, "{} CPUs cannot be spread over {} sockets (1 to {})",
                     params.cpu_count, params.sockets, kMaxSockets);
  const Table table(params);
  const auto write = [&memory](uint64_t offset, const std::vector<uint8_t>& bytes) {
    return memory.Write(vmm::kSmbiosGpa + offset, bytes.data(), bytes.size());
  };
  if (!write(0, MakeEntry64(table)) || !write(kOldEntryOffset, MakeEntry32(table)) ||
      !write(kTableOffset, table.bytes()))
    return MakeError(Code::kInvalidArgument, "the VM has no RAM at {:#x} for SMBIOS",
                     vmm::kSmbiosGpa);
  return {};
}

}  // namespace kvmbus::firmware
