// SPDX-License-Identifier: Apache-2.0
#include "firmware/smbios/structure.h"

#include "vmm/result/result.h"

namespace kvmbus::firmware {

namespace {
constexpr size_t kMaxString = 64;  // what readers of the older standard take
}  // namespace

SmbiosStructure::SmbiosStructure(uint8_t type, uint16_t handle) {
  Put<uint8_t>(type).Put<uint8_t>(0).Put<uint16_t>(handle);
}

SmbiosStructure& SmbiosStructure::PutZeros(size_t count) {
  formatted_.resize(formatted_.size() + count);
  return *this;
}

SmbiosStructure& SmbiosStructure::PutBytes(const uint8_t* bytes, size_t count) {
  formatted_.insert(formatted_.end(), bytes, bytes + count);
  return *this;
}

SmbiosStructure& SmbiosStructure::PutString(std::string_view text) {
  if (text.empty()) return Put<uint8_t>(0);
  std::string clean(text.substr(0, kMaxString));
  for (char& c : clean) {
    if (c < ' ' || c > '~') c = '?';
  }
  strings_.push_back(std::move(clean));
  return Put<uint8_t>(static_cast<uint8_t>(strings_.size()));
}

void SmbiosStructure::Finish(size_t expected_size, std::vector<uint8_t>* table) {
  KVMBUS_ASSERT(formatted_.size() == expected_size);
  formatted_[1] = static_cast<uint8_t>(expected_size);
  table->insert(table->end(), formatted_.begin(), formatted_.end());
  for (const std::string& text : strings_) {
    table->insert(table->end(), text.begin(), text.end());
    table->push_back(0);
  }
  if (strings_.empty()) table->push_back(0);
  table->push_back(0);
}

}  // namespace kvmbus::firmware
