// SPDX-License-Identifier: Apache-2.0
#include "firmware/acpi/dsdt.h"

#include <fmt/format.h>

#include "firmware/acpi/aml.h"
#include "vmm/machine/layout.h"

namespace kvmbus::firmware {
namespace {

using namespace aml;  // the functions below read as the language that they write

Bytes SoftOff() {
  const Bytes type = Integer(vmm::kSleepTypeS5);
  return Name("\\_S5", Package({type, type, Integer(0), Integer(0)}));
}

/// Ports and interrupt of an ISA device, which are where they always were.
Bytes IsaDevice(std::string_view name, std::string_view id, uint64_t uid, const Bytes& resources) {
  return Device(
      name, Join({Name("_HID", EisaId(id)), Name("_UID", Integer(uid)), Name("_CRS", resources)}));
}

/// The bus's device. Linux takes it by the compatible id, and MMIO for its devices from the nearest
/// ancestor that has any.
Bytes VmBus() {
  const Bytes state = Path("STA");
  return Device("VMBS",
                Join({Name("STA", Integer(0xf)), Name("_DDN", String("VMBUS")),
                      Name("_HID", String("MSFT1000")), Name("_CID", String("VMBus")),
                      Name("_UID", Integer(0)), Method("_DIS", 0, And(state, Integer(0xd), state)),
                      Method("_PS0", 0, Or(state, Integer(0xf), state)), Method("_PS3", 0, {}),
                      Method("_STA", 0, Return(state)), Name("_CRS", ResourceTemplate({}))}));
}

Bytes VmBusModule(const AcpiParams& params) {
  Bytes low, high;
  if (params.low_mmio.size != 0)
    low = DWordMemoryProducer(static_cast<uint32_t>(params.low_mmio.gpa),
                              static_cast<uint32_t>(params.low_mmio.size));
  if (params.high_mmio.size != 0)
    high = QWordMemoryProducer(params.high_mmio.gpa, params.high_mmio.size);
  return Device("VMOD", Join({Name("_HID", String("ACPI0004")), Name("_UID", Integer(0)),
                              Name("_CRS", ResourceTemplate({low, high})), VmBus()}));
}

/// Linux matches VMGENCTR, Windows VM_Gen_Counter.
Bytes GenerationCounter() {
  const Bytes ids =
      Package({String("VM_Gen_Counter"), String("VMGENCTR"), String("Hyper_V_Gen_Counter_V1")});
  const Bytes address =
      Package({Integer(vmm::kGenerationIdGpa & 0xffffffff), Integer(vmm::kGenerationIdGpa >> 32)});
  return Device("GENC",
                Join({Name("_HID", String("MSFT1002")), Name("_CID", ids), Name("_UID", Integer(0)),
                      Name("_DDN", String("VM_Gen_Counter")), Name("ADDR", address)}));
}

Bytes Processors(const AcpiParams& params) {
  Bytes all;
  for (uint32_t i = 0; i < params.cpu_count; ++i)
    Append(&all, Device(fmt::format("C{:03X}", i),
                        Join({Name("_HID", String("ACPI0007")), Name("_UID", Integer(i))})));
  return all;
}

Bytes GeneralEvents() {
  static_assert(vmm::kGenerationIdGpe == 0);
  return Scope("\\_GPE", Method("_E00", 0, Notify(Path("\\_SB.GENC"), 0x80)));
}

}  // namespace

std::vector<uint8_t> MakeDsdtBody(const AcpiParams& params) {
  Bytes devices = VmBusModule(params);
  Append(&devices, GenerationCounter());
  Append(&devices, IsaDevice("RTC", "PNP0B00", 0,
                             ResourceTemplate({IoPorts(vmm::kRtcPort, 2), Irq(vmm::kRtcIrq)})));
  if (params.com1)
    Append(&devices, IsaDevice("COM1", "PNP0501", 1,
                               ResourceTemplate({IoPorts(vmm::kCom1Port, 8), Irq(vmm::kCom1Irq)})));
  Append(&devices, Processors(params));
  return Join({SoftOff(), Scope("\\_SB", devices), GeneralEvents()});
}

}  // namespace kvmbus::firmware
