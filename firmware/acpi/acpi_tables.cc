// SPDX-License-Identifier: Apache-2.0
#include "firmware/acpi/acpi_tables.h"

#include <numeric>
#include <string_view>

#include "firmware/acpi/dsdt.h"
#include "vmm/machine/layout.h"

namespace kvmbus::firmware {
namespace {

using vmm::Code;
using vmm::GuestMemory;
using vmm::MakeError;
using vmm::Result;

using Bytes = std::vector<uint8_t>;

// The names that Hyper-V's own tables carry.
constexpr std::string_view kOemId = "VRTUAL";
constexpr std::string_view kOemTableId = "MICROSFT";
constexpr std::string_view kDsdtOemId = "MSFTVM";
constexpr std::string_view kDsdtOemTableId = "DSDT01  ";
constexpr std::string_view kCreatorId = "MSFT";
constexpr std::string_view kHypervisorId = "MsHyperV";

constexpr uint64_t kTableAlignment = 64;  // a FACS's; good for all
constexpr size_t kHeaderBytes = 36;
constexpr size_t kLengthAt = 4, kChecksumAt = 9;
constexpr size_t kFacsBytes = 64;

template <typename T>
void Put(Bytes* to, std::type_identity_t<T> value) {
  for (size_t i = 0; i < sizeof(T); ++i)
    to->push_back(static_cast<uint8_t>(uint64_t{value} >> (8 * i)));
}

void PutText(Bytes* to, std::string_view text) { to->insert(to->end(), text.begin(), text.end()); }

/// What to put at `checksum_at` (0 so far) for a sum of 0.
void SetChecksum(Bytes* bytes, size_t size, size_t checksum_at) {
  const uint8_t sum = std::accumulate(bytes->begin(), bytes->begin() + size, uint8_t{0});
  (*bytes)[checksum_at] = static_cast<uint8_t>(-sum);
}

Bytes StartTable(std::string_view signature, uint8_t revision, std::string_view oem_id = kOemId,
                 std::string_view oem_table_id = kOemTableId) {
  Bytes table;
  PutText(&table, signature);
  Put<uint32_t>(&table, 0);  // length
  table.push_back(revision);
  table.push_back(0);  // checksum
  PutText(&table, oem_id);
  PutText(&table, oem_table_id);
  Put<uint32_t>(&table, 1);  // OEM revision
  PutText(&table, kCreatorId);
  Put<uint32_t>(&table, 1);  // creator's revision
  KVMBUS_ASSERT(table.size() == kHeaderBytes);
  return table;
}

Bytes FinishTable(Bytes table) {
  for (size_t i = 0; i < 4; ++i)
    table[kLengthAt + i] = static_cast<uint8_t>(table.size() >> (8 * i));
  SetChecksum(&table, table.size(), kChecksumAt);
  return table;
}

/// A generic address in I/O space; `bits` 0: no such register.
void PutPort(Bytes* to, uint16_t port, uint8_t bits, uint8_t access) {
  constexpr uint8_t kSystemIo = 1;
  if (bits == 0) {
    to->insert(to->end(), 12, 0);
    return;
  }
  to->push_back(kSystemIo);
  to->push_back(bits);
  to->push_back(0);  // bit offset
  to->push_back(access);
  Put<uint64_t>(to, port);
}

// Registers of the fixed hardware
constexpr uint16_t kPm1Event = vmm::kPowerPort + vmm::kPm1StatusOffset;
constexpr uint16_t kPm1Control = vmm::kPowerPort + vmm::kPm1ControlOffset;
constexpr uint16_t kPmTimer = vmm::kPowerPort + vmm::kPmTimerOffset;
constexpr uint16_t kGpe0 = vmm::kPowerPort + vmm::kGpe0StatusOffset;
constexpr uint8_t kByteAccess = 1, kWordAccess = 2, kDWordAccess = 3;
static_assert(vmm::kPm1EnableOffset == vmm::kPm1StatusOffset + 2);
static_assert(vmm::kGpe0EnableOffset == vmm::kGpe0StatusOffset + 2);

// FADT's fixed feature flags
constexpr uint32_t kWbinvd = 1u << 0, kProcC1 = 1u << 2, kNoFixedSleepButton = 1u << 5,
                   kNoFixedRtcWake = 1u << 6, kTimerIs32Bits = 1u << 8,
                   kHasResetRegister = 1u << 10;
constexpr uint16_t kNoVga = 1u << 2;  // of the boot architecture's flags

/// ACPI mode from the start: without an SMI command port there is nothing to switch. The power
/// button is the fixed one (its flag is clear). No 8042, no VGA; the RTC is there.
Bytes MakeFadt(uint32_t facs_gpa, uint64_t dsdt_gpa) {
  Bytes t = StartTable("FACP", 6);
  Put<uint32_t>(&t, facs_gpa);
  Put<uint32_t>(&t, static_cast<uint32_t>(dsdt_gpa));
  t.push_back(0);                   // reserved
  t.push_back(4);                   // preferred profile: enterprise server
  Put<uint16_t>(&t, vmm::kSciIrq);  // SCI_INT
  Put<uint32_t>(&t, 0);             // SMI_CMD
  Put<uint32_t>(&t, 0);             // ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT
  Put<uint32_t>(&t, kPm1Event);     // PM1a_EVT_BLK
  Put<uint32_t>(&t, 0);             // PM1b_EVT_BLK
  Put<uint32_t>(&t, kPm1Control);   // PM1a_CNT_BLK
  Put<uint32_t>(&t, 0);             // PM1b_CNT_BLK
  Put<uint32_t>(&t, 0);             // PM2_CNT_BLK
  Put<uint32_t>(&t, kPmTimer);      // PM_TMR_BLK
  Put<uint32_t>(&t, kGpe0);         // GPE0_BLK
  Put<uint32_t>(&t, 0);             // GPE1_BLK
  for (const uint8_t length : {4, 2, 0, 4, 4, 0, 0, 0})  // PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR,
    t.push_back(length);                                 // GPE0, GPE1, GPE1_BASE, CST_CNT
  Put<uint16_t>(&t, 0xffff);                             // P_LVL2_LAT: not supported
  Put<uint16_t>(&t, 0xffff);                             // P_LVL3_LAT
  Put<uint32_t>(&t, 0);                                  // FLUSH_SIZE, FLUSH_STRIDE
  for (const uint8_t value : {0, 0, 0, 0, 0x32})  // DUTY_OFFSET, DUTY_WIDTH, DAY_ALRM, MON_ALRM,
    t.push_back(value);                           // CENTURY
  Put<uint16_t>(&t, kNoVga);                      // IAPC_BOOT_ARCH
  t.push_back(0);                                 // reserved
  Put<uint32_t>(&t, kWbinvd | kProcC1 | kNoFixedSleepButton | kNoFixedRtcWake | kTimerIs32Bits |
                        kHasResetRegister);
  PutPort(&t, vmm::kPowerPort + vmm::kResetOffset, 8, kByteAccess);
  t.push_back(vmm::kResetValue);
  Put<uint16_t>(&t, 0);  // ARM_BOOT_ARCH
  t.push_back(3);        // minor version: ACPI 6.3
  Put<uint64_t>(&t, 0);  // X_FIRMWARE_CTRL: the 32-bit one is used
  Put<uint64_t>(&t, dsdt_gpa);
  PutPort(&t, kPm1Event, 32, kWordAccess);
  PutPort(&t, 0, 0, 0);
  PutPort(&t, kPm1Control, 16, kWordAccess);
  PutPort(&t, 0, 0, 0);
  PutPort(&t, 0, 0, 0);
  PutPort(&t, kPmTimer, 32, kDWordAccess);
  PutPort(&t, kGpe0, 32, kByteAccess);
  for (int unused = 0; unused < 3; ++unused) PutPort(&t, 0, 0, 0);  // GPE1, sleep control, status
  PutText(&t, kHypervisorId);
  KVMBUS_ASSERT(t.size() == 276);
  return FinishTable(std::move(t));
}

void PutSourceOverride(Bytes* to, uint8_t irq, uint32_t gsi, uint16_t flags) {
  to->insert(to->end(), {2, 10, 0 /* ISA */, irq});
  Put<uint32_t>(to, gsi);
  Put<uint16_t>(to, flags);
}

Bytes MakeMadt(const AcpiParams& params) {
  constexpr uint32_t kHasPic = 1, kEnabled = 1;
  constexpr uint16_t kBusDefault = 0, kActiveHighLevel = 0x0d;
  constexpr uint8_t kNmiPin = 1;
  Bytes t = StartTable("APIC", 4);
  Put<uint32_t>(&t, static_cast<uint32_t>(vmm::kLocalApicGpa));
  Put<uint32_t>(&t, kHasPic);
  bool x2apic = false;
  for (uint32_t i = 0; i < params.cpu_count; ++i) {
    const uint32_t id = params.apic_ids.empty() ? i : params.apic_ids[i];
    if (id < 255 && i < 255) {
      t.insert(t.end(), {0, 8, static_cast<uint8_t>(i), static_cast<uint8_t>(id)});
      Put<uint32_t>(&t, kEnabled);
    } else {
      x2apic = true;
      t.insert(t.end(), {9, 16, 0, 0});
      Put<uint32_t>(&t, id);
      Put<uint32_t>(&t, kEnabled);
      Put<uint32_t>(&t, i);
    }
  }
  t.insert(t.end(), {1, 12, 0 /* id */, 0});
  Put<uint32_t>(&t, static_cast<uint32_t>(vmm::kIoApicGpa));
  Put<uint32_t>(&t, 0);  // first GSI
  PutSourceOverride(&t, 0, 2, kBusDefault);
  PutSourceOverride(&t, vmm::kSciIrq, vmm::kSciIrq, kActiveHighLevel);
  t.insert(t.end(), {4, 6, 0xff /* every CPU */, 0, 0, kNmiPin});
  if (x2apic) {
    t.insert(t.end(), {10, 12, 0, 0});
    Put<uint32_t>(&t, 0xffffffff);
    t.insert(t.end(), {kNmiPin, 0, 0, 0});
  }
  return FinishTable(std::move(t));
}

Bytes MakeDsdt(const AcpiParams& params) {
  Bytes table = StartTable("DSDT", 2, kDsdtOemId, kDsdtOemTableId);
  const Bytes body = MakeDsdtBody(params);
  table.insert(table.end(), body.begin(), body.end());
  return FinishTable(std::move(table));
}

Bytes MakeFacs() {
  Bytes table;
  PutText(&table, "FACS");
  Put<uint32_t>(&table, kFacsBytes);
  table.resize(kFacsBytes);
  table[32] = 2;  // version
  return table;
}

Bytes MakeXsdt(std::initializer_list<uint64_t> tables) {
  Bytes table = StartTable("XSDT", 1);
  for (const uint64_t gpa : tables) Put<uint64_t>(&table, gpa);
  return FinishTable(std::move(table));
}

Bytes MakeRsdp(uint64_t xsdt_gpa) {
  constexpr size_t kFirstPart = 20, kAll = 36, kChecksum1 = 8, kChecksum2 = 32;
  Bytes rsdp;
  PutText(&rsdp, "RSD PTR ");
  rsdp.push_back(0);  // checksum of the first part
  PutText(&rsdp, kOemId);
  rsdp.push_back(2);        // revision
  Put<uint32_t>(&rsdp, 0);  // no RSDT
  Put<uint32_t>(&rsdp, kAll);
  Put<uint64_t>(&rsdp, xsdt_gpa);
  rsdp.resize(kAll);
  SetChecksum(&rsdp, kFirstPart, kChecksum1);
  SetChecksum(&rsdp, kAll, kChecksum2);
  return rsdp;
}

/// Places tables one after another.
class Placer {
 public:
  explicit Placer(GuestMemory& memory) : memory_(memory) {}

  Result<uint64_t> Place(const Bytes& table) {
    if (table.size() > vmm::kSmbiosGpa - next_)
      return MakeError(Code::kInvalidArgument, "the ACPI tables do not fit below {:#x}",
                       vmm::kSmbiosGpa);
    if (!memory_.Write(next_, table.data(), table.size()))
      return MakeError(Code::kInvalidArgument, "the VM has no RAM at {:#x} for its ACPI tables",
                       next_);
    const uint64_t gpa = next_;
    next_ = (next_ + table.size() + kTableAlignment - 1) & ~(kTableAlignment - 1);
    return gpa;
  }

 private:
  GuestMemory& memory_;
  uint64_t next_ = vmm::kAcpiTablesGpa + kTableAlignment;  // behind the RSDP
};

Result<void> CheckParams(const AcpiParams& params) {
  if (params.cpu_count == 0 || params.cpu_count > kMaxAcpiCpus)
    return MakeError(Code::kInvalidArgument, "{} CPUs are not 1 to {}", params.cpu_count,
                     kMaxAcpiCpus);
  if (!params.apic_ids.empty() && params.apic_ids.size() != params.cpu_count)
    return MakeError(Code::kInvalidArgument, "{} APIC ids were given for {} CPUs",
                     params.apic_ids.size(), params.cpu_count);
  if (params.low_mmio.gpa + params.low_mmio.size > vmm::kHighRamGpa)
    return MakeError(Code::kInvalidArgument, "the low MMIO window ends above 4 GiB");
  return {};
}

}  // namespace

Result<void> WriteAcpiTables(GuestMemory& memory, const AcpiParams& params) {
  TRY_VOID(CheckParams(params));
  Placer placer(memory);
  const uint64_t facs = TRY(placer.Place(MakeFacs()));
  const uint64_t dsdt = TRY(placer.Place(MakeDsdt(params)));
  const uint64_t fadt = TRY(placer.Place(MakeFadt(static_cast<uint32_t>(facs), dsdt)));
  const uint64_t madt = TRY(placer.Place(MakeMadt(params)));
  const uint64_t xsdt = TRY(placer.Place(MakeXsdt({fadt, madt})));
  const Bytes rsdp = MakeRsdp(xsdt);
  if (!memory.Write(vmm::kAcpiTablesGpa, rsdp.data(), rsdp.size()))
    return MakeError(Code::kInvalidArgument, "the VM has no RAM at {:#x} for its ACPI tables",
                     vmm::kAcpiTablesGpa);
  return {};
}

}  // namespace kvmbus::firmware
