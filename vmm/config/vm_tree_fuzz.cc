// SPDX-License-Identifier: Apache-2.0
// Any XML as a machine's configuration. What is read is written into its tree, and then reads as
// the same machine.
#include <cstdint>

#include "vmm/config/vm_tree.h"
#include "vmm/config/xml_tree.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus::vmm;  // NOLINT: a fuzz target is a program
  auto tree = ParseXmlTree({reinterpret_cast<const char*>(data), size});
  if (!tree.ok()) return 0;
  auto read = ReadVmTree(*tree);
  if (!read.ok()) return 0;
  kvmbus::config::Vm& vm = read->vm;
  vm.set_version(vm.version() == "5.0" ? "5.0" : "6.2");
  WriteVmTree(vm, 0, &*tree);
  const auto again = ReadVmTree(*tree);
  KVMBUS_ASSERT(again.ok());
  KVMBUS_ASSERT(again->vm.SerializeAsString() == vm.SerializeAsString());
  return 0;
}
