// SPDX-License-Identifier: Apache-2.0
// Parent locators made of the fuzzer's bytes: the driver's reading and the strict check's agree,
// what was read can be written, and no path of it leaves the roots.
#include <filesystem>

#include "tests/fakes/crash_file.h"
#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/vhdx/vhdx_check_parent.h"
#include "virtdev/disk/vhdx/vhdx_format.h"
#include "virtdev/disk/vhdx/vhdx_locator.h"
#include "vmm/text/utf16.h"

namespace kvmbus::virtdev {
namespace {

using Bytes = std::vector<uint8_t>;

/// Every other input is taken as the values of a locator that is sound but for them.
Bytes LocatorOf(std::span<const uint8_t> data) {
  if (data[0] & 1) return Bytes(data.begin() + 1, data.end());
  ParentReference parent;
  parent.linkage = {vhdx::kVhdxParentLocator};
  parent.paths = {{ParentReference::Path::Kind::kRelative, "r"},
                  {ParentReference::Path::Kind::kVolume, "v"},
                  {ParentReference::Path::Kind::kAbsolute, "a"}};
  Bytes item = vhdx::BuildParentLocator(parent).value();
  size_t at = 1;
  for (size_t entry = 0; entry < 4 && at + 2 <= data.size(); ++entry) {
    const size_t length = std::min<size_t>(data[at], data.size() - at - 1);
    if (length != 0) {
      vhdx::Store(item, 20 + entry * 12 + 4, static_cast<uint32_t>(item.size()));
      vhdx::Store(item, 20 + entry * 12 + 10, static_cast<uint16_t>(length));
    }
    item.insert(item.end(), data.begin() + static_cast<ptrdiff_t>(at + 1),
                data.begin() + static_cast<ptrdiff_t>(at + 1 + length));
    at += 1 + length;
  }
  return item;
}

}  // namespace
}  // namespace kvmbus::virtdev

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus::virtdev;
  if (size == 0) return 0;
  const Bytes item = LocatorOf({data, size});
  const auto parsed = vhdx::ParseParentLocator(item);
  const check::Locator checked = check::ReadLocator(item);
  if (!parsed.ok()) {
    KVMBUS_ASSERT(!parsed.error().ToString().empty());
    return 0;
  }
  // The strict check may find more to say, about reserved bytes for instance.
  if (checked.errors.empty()) {
    KVMBUS_ASSERT(checked.parent.linkage.front() == parsed->linkage.front());
    KVMBUS_ASSERT(checked.parent.paths.size() == parsed->paths.size());
  }
  const auto built = vhdx::BuildParentLocator(*parsed);
  if (built.ok()) {
    const auto again = vhdx::ParseParentLocator(*built);
    KVMBUS_ASSERT(again.ok() && again->linkage == parsed->linkage);
    for (size_t i = 0; i < parsed->paths.size(); ++i) {
      KVMBUS_ASSERT(again->paths.at(i).text == parsed->paths[i].text);
      if (checked.errors.empty())
        KVMBUS_ASSERT(checked.parent.paths[i].text == parsed->paths[i].text);
    }
  }
  const std::vector<std::string> roots = {"/nonexistent/vm", "/nonexistent"};
  for (const std::string& candidate : ParentCandidates("/nonexistent/vm", *parsed)) {
    KVMBUS_ASSERT(candidate.starts_with('/'));
    for (const auto& part : std::filesystem::path(candidate)) KVMBUS_ASSERT(part != "..");
  }
  const auto found = FindParent("/proc/self/status", *parsed, roots);
  KVMBUS_ASSERT(!found.ok());
  return 0;
}
