// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/vm_tree_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "vmm/guid/guid.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm::vm_tree {
namespace {

bool IsVdev(const Key& key) { return key.is_node() && key.name.starts_with("vdev"); }

/// Numbered names of three digits and more sort as their numbers do.
bool ComesBefore(const Key& a, const Key& b) {
  return a.name.size() != b.name.size() ? a.name.size() < b.name.size() : a.name < b.name;
}

/// Entries first, in their order, numbered without a gap.
int64_t Renumber(Key* manifest) {
  std::stable_sort(manifest->children.begin(), manifest->children.end(),
                   [](const Key& a, const Key& b) {
                     return IsVdev(a) && IsVdev(b) ? ComesBefore(a, b) : IsVdev(a) && !IsVdev(b);
                   });
  int64_t count = 0;
  for (Key& key : manifest->children) {
    if (IsVdev(key)) key.name = fmt::format("vdev{:03}", ++count);
  }
  Set(manifest, "size", count);
  return count;
}

}  // namespace

std::string SectionOf(std::string_view instance) { return "_" + LowerCase(instance) + "_"; }

bool IsSame(std::string_view guid, std::string_view other) {
  return LowerCase(guid) == LowerCase(other);
}

Manifest ReadManifest(const Key& configuration) {
  const Key* manifest = configuration.Find("manifest");
  std::vector<const Key*> entries;
  if (manifest != nullptr) {
    for (const Key& key : manifest->children) {
      if (IsVdev(key)) entries.push_back(&key);
    }
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Key* a, const Key* b) { return ComesBefore(*a, *b); });
  Manifest read;
  std::set<std::string> seen;
  for (const Key* key : entries) {
    Vdev vdev{LowerCase(key->StringOr("device", "")), LowerCase(key->StringOr("instance", "")),
              key->StringOr("name", "")};
    const bool is_new = seen.insert(vdev.instance).second;
    (is_new ? read.devices : read.repeated).push_back(std::move(vdev));
  }
  return read;
}

bool IsScsi(const Vdev& vdev) {
  return vdev.device == kScsi.guid && !vdev.instance.starts_with('{') && Guid::Parse(vdev.instance);
}

void AddDevice(Key* configuration, const DeviceClass& device, std::string_view instance) {
  if (device.version != 0)
    SetIfMissing(configuration, SectionOf(instance) + "/VDEVVersion", device.version);
  for (const Vdev& vdev : ReadManifest(*configuration).devices) {
    if (IsSame(vdev.instance, instance)) return;
  }
  Key* manifest = &configuration->Make("manifest");
  const int64_t count = Renumber(manifest);
  Key entry;
  Set(&entry, "device", std::string(device.guid));
  Set(&entry, "flags", int64_t{1});
  Set(&entry, "instance", UpperCase(instance));
  Set(&entry, "name", std::string(device.name));
  entry.name = fmt::format("vdev{:03}", count + 1);
  manifest->children.insert(manifest->children.begin() + count, std::move(entry));
  Set(manifest, "size", count + 1);
  SetIfMissing(manifest, "version", int64_t{260});
}

void RemoveDevice(Key* configuration, std::string_view instance) {
  configuration->Remove(SectionOf(instance));
  Key* manifest = configuration->Find("manifest");
  if (manifest == nullptr) return;
  std::erase_if(manifest->children, [&](const Key& key) {
    return IsVdev(key) && IsSame(key.StringOr("instance", ""), instance);
  });
  Renumber(manifest);
}

void Set(Key* top, std::string_view path, Key::Value value) {
  Key& key = top->Make(path);
  key.value = std::move(value);
  key.children.clear();
}

void SetIfMissing(Key* top, std::string_view path, Key::Value value) {
  if (top->Find(path) == nullptr) Set(top, path, std::move(value));
}

}  // namespace kvmbus::vmm::vm_tree
