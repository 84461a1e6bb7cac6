// SPDX-License-Identifier: Apache-2.0
// Any bytes as an XML configuration. What is read can be written, and reads the same.
#include <cstdint>

#include "vmm/config/xml_tree.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus::vmm;  // NOLINT: a fuzz target is a program
  const auto tree = ParseXmlTree({reinterpret_cast<const char*>(data), size});
  if (!tree.ok()) return 0;
  const auto file = FormatXmlTree(*tree);
  if (!file.ok()) return 0;  // a name that the parser takes and XML does not
  const auto again = ParseXmlTree(*file);
  KVMBUS_ASSERT(again.ok());
  KVMBUS_ASSERT(FormatXmlTree(*again).value() == *file);
  return 0;
}
