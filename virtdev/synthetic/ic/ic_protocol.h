// SPDX-License-Identifier: Apache-2.0
/// \file
/// Integration services on the wire, little-endian. Reference: Linux, include/linux/hyperv.h and
/// drivers/hv/hv_util.c (the guest's end).
#pragma once

#include <array>
#include <cstdint>

namespace kvmbus::virtdev::ic {

struct PipeHeader {
  uint32_t type;  ///< 1: data
  uint32_t bytes;
};
inline constexpr uint32_t kPipeData = 1;

struct Header {
  uint16_t framework_major, framework_minor;
  uint16_t type;
  uint16_t message_major, message_minor;
  uint16_t body_bytes;
  uint32_t status;
  uint8_t transaction_id;
  uint8_t flags;
  uint16_t reserved;
};
static_assert(sizeof(Header) == 20);

inline constexpr uint16_t kTypeNegotiate = 0;
inline constexpr uint16_t kTypeHeartbeat = 1;
inline constexpr uint16_t kTypeShutdown = 3;
inline constexpr uint16_t kTypeTimesync = 4;
inline constexpr uint16_t kTypeVss = 5;
inline constexpr uint8_t kFlagTransaction = 1;
inline constexpr uint8_t kFlagRequest = 2;
inline constexpr uint8_t kFlagResponse = 4;

struct Version {
  uint16_t major;
  uint16_t minor;
  auto operator<=>(const Version&) const = default;
};
struct NegotiateHeader {
  uint16_t framework_count;
  uint16_t message_count;
  uint32_t reserved;
};

#pragma pack(push, 1)
struct HeartbeatBody {
  uint64_t sequence;
  uint32_t application_state;  ///< 0 unknown, 1 healthy, 2 critical, 3 stopped
  uint32_t reserved[7];
};
static_assert(sizeof(HeartbeatBody) == 40);

struct ShutdownBody {
  uint32_t reason;
  uint32_t timeout_seconds;
  uint32_t flags;  ///< 1 force, 2 restart, 4 hibernate
  std::array<uint8_t, 2048> text;
};
inline constexpr uint32_t kShutdownReasonPlanned = 0x80000000;
inline constexpr uint32_t kShutdownForce = 1;
inline constexpr uint32_t kShutdownRestart = 2;

struct TimesyncBody3 {
  uint64_t host_time;  ///< 100 ns since 1601
  uint64_t child_time;
  uint64_t round_trip_time;
  uint8_t flags;
};
struct TimesyncBody4 {
  uint64_t host_time;
  uint64_t reference_time;  ///< of the partition, at the same instant
  uint8_t flags;
  uint8_t leap_flags;
  uint8_t stratum;
  uint8_t reserved[5];
};

struct VssBody {
  uint8_t operation;
  uint8_t reserved[7];
  uint32_t flags;
};
static_assert(sizeof(VssBody) == 12);
#pragma pack(pop)
inline constexpr uint8_t kTimesyncSync = 1;  ///< set the clock
inline constexpr uint8_t kTimesyncSample = 2;
inline constexpr uint8_t kVssCheckBackup = 2;
inline constexpr uint8_t kVssFreeze = 5;
inline constexpr uint8_t kVssThaw = 6;

}  // namespace kvmbus::virtdev::ic
