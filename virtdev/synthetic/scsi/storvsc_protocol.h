// SPDX-License-Identifier: Apache-2.0
/// \file
/// The storvsp protocol on the wire. Little-endian, as are all hosts that kvmbus runs on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvmbus::virtdev::storvsc {

enum class Operation : uint32_t {
  kCompleteIo = 1,
  kRemoveDevice = 2,
  kExecuteSrb = 3,
  kResetLun = 4,
  kResetAdapter = 5,
  kResetBus = 6,
  kBeginInitialization = 7,
  kEndInitialization = 8,
  kQueryProtocolVersion = 9,
  kQueryProperties = 10,
  kEnumerateBus = 11,
  kFcHbaData = 12,
  kCreateSubChannels = 13,
  kEventNotification = 14,
};

inline constexpr uint16_t kVersionWin6 = 0x0200;
inline constexpr uint16_t kVersionWin7 = 0x0402;
inline constexpr uint16_t kVersionWin8 = 0x0501;
inline constexpr uint16_t kVersionBlue = 0x0600;
inline constexpr uint16_t kVersionWin10 = 0x0602;

inline constexpr uint32_t kPropertyMultiChannel = 1;

/// NTSTATUS values of replies.
inline constexpr uint32_t kStatusSuccess = 0;
inline constexpr uint32_t kStatusBufferOverflow = 0x80000005;
inline constexpr uint32_t kStatusDeviceBusy = 0x80000011;
inline constexpr uint32_t kStatusInvalidParameter = 0xC000000D;
inline constexpr uint32_t kStatusRevisionMismatch = 0xC0000059;
inline constexpr uint32_t kStatusDeviceDoesNotExist = 0xC00000C0;
inline constexpr uint32_t kStatusCancelled = 0xC0000120;
inline constexpr uint32_t kStatusInvalidDeviceState = 0xC0000184;
inline constexpr uint32_t kStatusIoDeviceError = 0xC0000185;

/// SRB status: a code in the low six bits.
inline constexpr uint8_t kSrbSuccess = 0x01;
inline constexpr uint8_t kSrbAborted = 0x02;
inline constexpr uint8_t kSrbError = 0x04;
inline constexpr uint8_t kSrbBusy = 0x05;
inline constexpr uint8_t kSrbInvalidRequest = 0x06;
inline constexpr uint8_t kSrbDataOverrun = 0x12;
inline constexpr uint8_t kSrbInvalidLun = 0x20;
inline constexpr uint8_t kSrbAutosenseValid = 0x80;

inline constexpr uint8_t kDataInWrite = 0;  ///< SRB data_in: the guest's data goes to the device

inline constexpr size_t kCdbBytes = 16;
inline constexpr size_t kSenseBytes = 20;
inline constexpr size_t kMaxPacketBytes = 64;
inline constexpr uint16_t kSrbBytesWin7 = 0x24;
inline constexpr uint16_t kSrbBytesWin8 = 0x34;

struct PacketHeader {
  uint32_t operation;
  uint32_t flags;
  uint32_t status;
};
static_assert(sizeof(PacketHeader) == 12);

struct __attribute__((packed)) VersionPayload {
  uint16_t major_minor;
  uint16_t build;
};
static_assert(sizeof(VersionPayload) == 4);

struct __attribute__((packed)) PropertiesPayload {
  uint32_t reserved0;
  uint16_t max_sub_channel_count;
  uint16_t reserved1;
  uint32_t flags;
  uint32_t max_transfer_bytes;
  uint64_t reserved2;
};
static_assert(sizeof(PropertiesPayload) == 24);
static_assert(offsetof(PropertiesPayload, max_transfer_bytes) == 12);

struct __attribute__((packed)) Srb {
  uint16_t length;
  uint8_t srb_status;
  uint8_t scsi_status;
  uint8_t port;
  uint8_t path;
  uint8_t target;
  uint8_t lun;
  uint8_t cdb_length;
  uint8_t sense_length;
  uint8_t data_in;
  uint8_t properties;
  uint32_t transfer_length;
  std::array<uint8_t, kSenseBytes> cdb_or_sense;
  // From 5.1 on:
  uint16_t reserved;
  uint8_t queue_tag;
  uint8_t queue_action;
  uint32_t srb_flags;
  uint32_t timeout_seconds;
  uint32_t sort_key;
};
static_assert(sizeof(Srb) == kSrbBytesWin8);
static_assert(offsetof(Srb, transfer_length) == 12);
static_assert(offsetof(Srb, queue_tag) == 38);
static_assert(offsetof(Srb, sort_key) == 48);

/// The whole packet at its longest; shorter ones are zero-extended.
struct __attribute__((packed)) Packet {
  PacketHeader header;
  union {
    VersionPayload version;
    PropertiesPayload properties;
    uint16_t sub_channel_count;
    Srb srb;
    std::array<uint8_t, kSrbBytesWin8> raw;
  };
};
static_assert(sizeof(Packet) == kMaxPacketBytes);
static_assert(std::is_trivially_copyable_v<Packet>);

}  // namespace kvmbus::virtdev::storvsc
