// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/description.h"

#include <libfdt.h>

#include <functional>

namespace kvmbus::vmm {
namespace {

constexpr char kCompatible[] = "kvmbus,machine-v1";
constexpr int kFdtBytes = 64 * 1024;
constexpr Guid kHeartbeat = MakeGuid("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0");
constexpr Guid kShutdown = MakeGuid("b6650ff7-33bc-4840-8048-e0676786f393");
constexpr Guid kTimeSync = MakeGuid("2dd1ce17-079e-403c-b352-a1921ee207ee");
constexpr Guid kBackup = MakeGuid("2450ee40-33bf-4fbd-892e-9fb06e9214cf");

/// Controllers have the instance ids that Azure's have: f8b3781a-..., f8b3781b-..., and on.
Guid ScsiInstance(uint32_t controller) {
  Guid guid = MakeGuid("f8b3781a-1e82-4818-a1c3-63d806ec15bb");
  guid.bytes[0] = static_cast<uint8_t>(guid.bytes[0] + controller);  // Data1's low byte
  return guid;
}

/// Writes a tree; running out of the buffer is a programmer's error, its size being bounded by the
/// limits.
class FdtWriter {
 public:
  FdtWriter() : buffer_(kFdtBytes, '\0') {
    Check(fdt_create(buffer_.data(), kFdtBytes));
    Check(fdt_finish_reservemap(buffer_.data()));
  }
  void Node(const std::string& name, const std::function<void()>& content) {
    Check(fdt_begin_node(buffer_.data(), name.c_str()));
    content();
    Check(fdt_end_node(buffer_.data()));
  }
  void Cell(const char* name, uint32_t value) {
    Check(fdt_property_u32(buffer_.data(), name, value));
  }
  void Cells64(const char* name, std::initializer_list<uint64_t> values) {
    std::vector<fdt64_t> cells;
    for (const uint64_t value : values) cells.push_back(cpu_to_fdt64(value));
    Check(fdt_property(buffer_.data(), name, cells.data(),
                       static_cast<int>(cells.size() * sizeof(fdt64_t))));
  }
  void Text(const char* name, const std::string& value) {
    Check(fdt_property_string(buffer_.data(), name, value.c_str()));
  }
  std::string Finish() {
    Check(fdt_finish(buffer_.data()));
    buffer_.resize(fdt_totalsize(buffer_.data()));
    return std::move(buffer_);
  }

 private:
  static void Check(int status) { KVMBUS_ASSERT(status == 0); }
  std::string buffer_;
};

/// Reads with every absence remembered, so that one check at the end suffices.
class FdtReader {
 public:
  explicit FdtReader(std::string_view fdt) : fdt_(fdt) {}
  bool valid() const { return valid_; }
  int Node(int parent, const char* name) {
    const int node = fdt_subnode_offset(fdt_.data(), parent, name);
    valid_ = valid_ && node >= 0;
    return node;
  }
  std::string Text(int node, const char* name) {
    int size = 0;
    const auto* value =
        node < 0 ? nullptr : static_cast<const char*>(fdt_getprop(fdt_.data(), node, name, &size));
    if (value == nullptr || size < 1 || value[size - 1] != '\0') {
      valid_ = false;
      return "";
    }
    return value;
  }
  uint32_t Cell(int node, const char* name) {
    int size = 0;
    const void* value = node < 0 ? nullptr : fdt_getprop(fdt_.data(), node, name, &size);
    if (value == nullptr || size != 4) {
      valid_ = false;
      return 0;
    }
    return fdt32_ld(static_cast<const fdt32_t*>(value));
  }
  uint64_t Cell64(int node, const char* name) {
    int size = 0;
    const void* value = node < 0 ? nullptr : fdt_getprop(fdt_.data(), node, name, &size);
    if (value == nullptr || size != 8) {
      valid_ = false;
      return 0;
    }
    return fdt64_ld(static_cast<const fdt64_t*>(value));
  }

 private:
  std::string_view fdt_;
  bool valid_ = true;
};

}  // namespace

MachineDescription CompileMachine(const config::Vm& vm) {
  MachineDescription machine;
  machine.vm_id = vm.id();
  machine.generation = vm.generation();
  machine.vcpu_count = vm.vcpu_count();
  machine.memory_bytes = vm.memory_bytes();
  machine.command_line = vm.firmware().command_line();
  machine.com1 = !vm.serial().com1().empty();
  if (vm.integration().shutdown())
    machine.offers.push_back({"shutdown", "kvmbus,shutdown", kShutdown});
  if (vm.integration().heartbeat())
    machine.offers.push_back({"heartbeat", "kvmbus,heartbeat", kHeartbeat});
  if (vm.integration().time_synchronization())
    machine.offers.push_back({"timesync", "kvmbus,timesync", kTimeSync});
  if (vm.integration().backup()) machine.offers.push_back({"backup", "kvmbus,backup", kBackup});
  const uint32_t controllers = std::max(vm.scsi_controllers(), 1u);
  for (uint32_t i = 0; i < controllers; ++i)
    machine.offers.push_back({fmt::format("scsi/{}", i), "kvmbus,scsi", ScsiInstance(i)});
  return machine;
}

std::string ToFdt(const MachineDescription& machine) {
  const MemoryLayout layout = ComputeMemoryLayout(machine.memory_bytes);
  FdtWriter fdt;
  fdt.Node("", [&] {
    fdt.Text("compatible", kCompatible);
    fdt.Cell("#address-cells", 2);
    fdt.Cell("#size-cells", 2);
    fdt.Text("vm-id", machine.vm_id);
    fdt.Cell("generation", machine.generation);
    fdt.Cells64("memory-bytes", {machine.memory_bytes});
    for (const MemoryRange& range : layout.ram) {
      fdt.Node(fmt::format("memory@{:x}", range.gpa), [&] {
        fdt.Text("device_type", "memory");
        fdt.Cells64("reg", {range.gpa, range.size});
      });
    }
    fdt.Node("cpus", [&] { fdt.Cell("count", machine.vcpu_count); });
    fdt.Node("chosen", [&] { fdt.Text("bootargs", machine.command_line); });
    fdt.Node("chipset", [&] {
      fdt.Cells64("ioapic", {kIoApicGpa});
      fdt.Cells64("local-apic", {kLocalApicGpa});
      fdt.Cell("power-port", kPowerPort);
      fdt.Cell("sci-irq", kSciIrq);
      fdt.Cell("rtc-port", kRtcPort);
      fdt.Cell("com1-port", machine.com1 ? kCom1Port : 0u);
      fdt.Cells64("generation-id", {kGenerationIdGpa});
    });
    fdt.Node("vmbus", [&] {
      fdt.Cells64("low-mmio", {layout.low_mmio.gpa, layout.low_mmio.size});
      fdt.Cells64("high-mmio", {layout.high_mmio.gpa, layout.high_mmio.size});
      fdt.Cell("offers", static_cast<uint32_t>(machine.offers.size()));
      for (size_t i = 0; i < machine.offers.size(); ++i) {
        fdt.Node(fmt::format("offer@{:x}", i), [&] {
          fdt.Text("name", machine.offers[i].name);
          fdt.Text("compatible", machine.offers[i].compatible);
          fdt.Text("instance", machine.offers[i].instance.ToString());
        });
      }
    });
  });
  return fdt.Finish();
}

Result<MachineDescription> FromFdt(std::string_view bytes) {
  const Error damaged(Code::kDataLoss, "the machine description is damaged");
  if (fdt_check_full(bytes.data(), bytes.size()) != 0) return damaged;
  FdtReader fdt(bytes);
  MachineDescription machine;
  if (fdt.Text(0, "compatible") != kCompatible) return damaged;
  machine.vm_id = fdt.Text(0, "vm-id");
  machine.generation = fdt.Cell(0, "generation");
  machine.memory_bytes = fdt.Cell64(0, "memory-bytes");
  machine.vcpu_count = fdt.Cell(fdt.Node(0, "cpus"), "count");
  machine.command_line = fdt.Text(fdt.Node(0, "chosen"), "bootargs");
  machine.com1 = fdt.Cell(fdt.Node(0, "chipset"), "com1-port") != 0;
  const int vmbus = fdt.Node(0, "vmbus");
  const uint32_t offers = fdt.Cell(vmbus, "offers");
  for (uint32_t i = 0; fdt.valid() && i < offers; ++i) {
    const int node = fdt.Node(vmbus, fmt::format("offer@{:x}", i).c_str());
    const auto instance = Guid::Parse(fdt.Text(node, "instance"));
    if (!instance) return damaged;
    machine.offers.push_back({fdt.Text(node, "name"), fdt.Text(node, "compatible"), *instance});
  }
  if (!fdt.valid()) return damaged;
  return machine;
}

bool CanGoOnAs(MachineDescription saved, const MachineDescription& now) {
  saved.vm_id = now.vm_id;
  return saved == now;
}

}  // namespace kvmbus::vmm
