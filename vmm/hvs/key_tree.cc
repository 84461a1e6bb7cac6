// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/key_tree.h"

#include <algorithm>

namespace kvmbus::vmm {
namespace {

/// The first name of a path, which is shortened by it.
std::string_view TakeName(std::string_view* path) {
  const size_t end = std::min(path->find('/'), path->size());
  const std::string_view name = path->substr(0, end);
  path->remove_prefix(std::min(end + 1, path->size()));
  return name;
}

}  // namespace

const Key* Key::Find(std::string_view path) const {
  const Key* at = this;
  while (!path.empty()) {
    const std::string_view next = TakeName(&path);
    const auto child = std::find_if(at->children.begin(), at->children.end(),
                                    [next](const Key& key) { return key.name == next; });
    if (child == at->children.end()) return nullptr;
    at = &*child;
  }
  return at;
}

Key* Key::Find(std::string_view path) {
  return const_cast<Key*>(static_cast<const Key*>(this)->Find(path));
}

Key& Key::Make(std::string_view path) {
  Key* at = this;
  while (!path.empty()) {
    const std::string_view next = TakeName(&path);
    at->value = {};  // whoever has keys below it is a node
    Key* child = at->Find(next);
    if (child == nullptr) {
      at->children.push_back({std::string(next), {}, {}});
      child = &at->children.back();
    }
    at = child;
  }
  return *at;
}

int64_t Key::IntOr(std::string_view path, int64_t otherwise) const {
  const Key* key = Find(path);
  const auto* found = key == nullptr ? nullptr : std::get_if<int64_t>(&key->value);
  return found == nullptr ? otherwise : *found;
}

bool Key::BoolOr(std::string_view path, bool otherwise) const {
  const Key* key = Find(path);
  const auto* found = key == nullptr ? nullptr : std::get_if<bool>(&key->value);
  return found == nullptr ? otherwise : *found;
}

std::string Key::StringOr(std::string_view path, std::string_view otherwise) const {
  const Key* key = Find(path);
  const auto* found = key == nullptr ? nullptr : std::get_if<std::string>(&key->value);
  return found == nullptr ? std::string(otherwise) : *found;
}

bool Key::Remove(std::string_view path) {
  const size_t last = path.find_last_of('/');
  Key* parent = last == std::string_view::npos ? this : Find(path.substr(0, last));
  if (parent == nullptr) return false;
  const std::string_view child = last == std::string_view::npos ? path : path.substr(last + 1);
  const auto at = std::find_if(parent->children.begin(), parent->children.end(),
                               [child](const Key& key) { return key.name == child; });
  if (at == parent->children.end()) return false;
  parent->children.erase(at);
  return true;
}

}  // namespace kvmbus::vmm
