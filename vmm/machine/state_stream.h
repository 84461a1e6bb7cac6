// SPDX-License-Identifier: Apache-2.0
/// \file
/// The saved state of a machine: a stream of records, one a unit. Layout, little-endian:
///   magic "KVMBSTA1", u32 format version (1), u32 zero;
///   records {u32 name bytes, u32 schema version, u32 minimum reader, u32 flags, u64 payload bytes,
///            u32 CRC-32C of payload, u32 zero, name, payload};
///   last a record named "END" without payload.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

struct StateRecord {
  std::string name;
  uint32_t schema_version = 1;
  uint32_t minimum_reader = 1;
  bool optional = false;  ///< a reader that does not know it may skip it
  std::string payload;
};

inline constexpr size_t kStateRecordLimit = 256;
inline constexpr uint64_t kStatePayloadLimit = 64ull << 20;

std::string WriteStateStream(const std::vector<StateRecord>& records);

/// Checks magic, version, lengths (before anything is allocated), checksums and END. kDataLoss says
/// which record is damaged.
Result<std::vector<StateRecord>> ReadStateStream(std::string_view bytes);

}  // namespace kvmbus::vmm
