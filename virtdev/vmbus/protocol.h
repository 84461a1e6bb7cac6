// SPDX-License-Identifier: Apache-2.0
/// \file
/// VMBus channel messages on the wire, little-endian. Names follow the protocol's common ones.
/// Reference: Linux, include/linux/hyperv.h (guest side of the same messages); TLFS for their
/// transport.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "vmm/guid/guid.h"

namespace kvmbus::virtdev::vmbus {

/// Guest to host.
enum class GuestMessage : uint32_t {
  kRequestOffers = 3,
  kOpenChannel = 5,
  kCloseChannel = 7,
  kGpadlHeader = 8,
  kGpadlBody = 9,
  kGpadlTeardown = 11,
  kRelIdReleased = 13,
  kInitiateContact = 14,
  kUnload = 16,
  kOpenReservedChannel = 18,
  kCloseReservedChannel = 19,
  kTlConnectRequest = 21,
  kModifyChannel = 22,
};

/// Host to guest.
enum class HostMessage : uint32_t {
  kOfferChannel = 1,
  kRescindChannelOffer = 2,
  kAllOffersDelivered = 4,
  kOpenResult = 6,
  kGpadlCreated = 10,
  kGpadlTorndown = 12,
  kVersionResponse = 15,
  kUnloadComplete = 17,
  kCloseReservedResponse = 20,
  kTlConnectResult = 23,
  kModifyChannelResponse = 24,
};

struct Header {
  uint32_t type;
  uint32_t padding;
};
inline constexpr size_t kMaxMessageBytes = 240;

enum Version : uint32_t {
  kVersionWin8 = 0x00020004,
  kVersionWin81 = 0x00030000,
  kVersionWin10 = 0x00040000,
  kVersionWin10Rs3 = 0x00040001,
  kVersionWin10V5 = 0x00050000,
  kVersionWin10Rs4 = 0x00050001,
  kVersionWin10Rs5 = 0x00050002,
  kVersionIron = 0x00050003,
};
inline constexpr std::array kVersions = {kVersionWin8,     kVersionWin81,   kVersionWin10,
                                         kVersionWin10Rs3, kVersionWin10V5, kVersionWin10Rs4,
                                         kVersionWin10Rs5, kVersionIron};

inline constexpr uint32_t kStatusSuccess = 0;
inline constexpr uint32_t kStatusUnsuccessful = 0xc0000001;
inline constexpr uint32_t kStatusConnectionRefused = 0xc0000236;
inline constexpr uint32_t kNoVp = 0xffffffff;  ///< a channel without interrupts

#pragma pack(push, 1)
struct OfferChannel {
  vmm::Guid interface_id;
  vmm::Guid instance_id;
  uint8_t reserved[16];
  uint16_t flags;
  uint16_t mmio_megabytes;
  std::array<uint8_t, 120> user_defined;
  uint16_t subchannel_index;
  uint16_t mmio_megabytes_optional;
  uint32_t channel_id;
  uint8_t monitor_id;
  uint8_t monitor_allocated;
  uint16_t is_dedicated;
  uint32_t connection_id;
};
static_assert(sizeof(OfferChannel) == 188);

struct ChannelOnly {  // RescindChannelOffer, CloseChannel, RelIdReleased, CloseReservedResponse
  uint32_t channel_id;
};
struct OpenChannel {
  uint32_t channel_id;
  uint32_t open_id;
  uint32_t ring_gpadl;
  uint32_t target_vp;
  uint32_t downstream_page_offset;
  std::array<uint8_t, 120> user_data;
};
static_assert(sizeof(OpenChannel) == 140);
struct OpenResult {
  uint32_t channel_id;
  uint32_t open_id;
  uint32_t status;
};
struct GpadlHeader {
  uint32_t channel_id;
  uint32_t gpadl_id;
  uint16_t range_bytes;
  uint16_t range_count;
};
struct GpadlBody {
  uint32_t message_number;
  uint32_t gpadl_id;
};
struct GpadlCreated {
  uint32_t channel_id;
  uint32_t gpadl_id;
  uint32_t status;
};
struct GpadlTeardown {
  uint32_t channel_id;
  uint32_t gpadl_id;
};
struct GpadlTorndown {
  uint32_t gpadl_id;
};
struct InitiateContact {
  uint32_t version;
  uint32_t target_vp;
  /// Below 5.0 the interrupt page, of no use with dedicated interrupts; from 5.0 on byte 0 is the
  /// SINT for messages, byte 1 the VTL, bytes 4 to 7 feature flags of 6.0.
  uint64_t interrupt_page_or_target;
  uint64_t parent_to_child_monitor;
  uint64_t child_to_parent_monitor;
};
static_assert(sizeof(InitiateContact) == 32);
enum ConnectionState : uint8_t { kConnectionOk = 0, kConnectionFailed = 2 };
struct VersionResponse {
  uint8_t supported;
  uint8_t state;
  uint16_t padding;
  uint32_t connection_id;
};
struct OpenReservedChannel {
  uint32_t channel_id;
  uint32_t target_vp;
  uint32_t target_sint;
  uint32_t ring_gpadl;
  uint32_t downstream_page_offset;
};
struct CloseReservedChannel {
  uint32_t channel_id;
  uint32_t target_vp;
  uint32_t target_sint;
};
struct TlConnectRequest {
  vmm::Guid endpoint;
  vmm::Guid service;
};
struct TlConnectResult {
  vmm::Guid endpoint;
  vmm::Guid service;
  uint32_t status;
};
struct ModifyChannel {
  uint32_t channel_id;
  uint32_t target_vp;
};
struct ModifyChannelResponse {
  uint32_t channel_id;
  uint32_t status;
};
#pragma pack(pop)

/// What a message from the guest must be before its handler sees it. Bodies may be longer: newer
/// guests append fields.
struct GuestMessageRule {
  GuestMessage type;
  size_t body_bytes;
  uint32_t min_version;  ///< the connection's
  bool needs_connection;
};
inline constexpr std::array kGuestMessageRules = {
    GuestMessageRule{GuestMessage::kRequestOffers, 0, 0, true},
    GuestMessageRule{GuestMessage::kOpenChannel, sizeof(OpenChannel), 0, true},
    GuestMessageRule{GuestMessage::kCloseChannel, sizeof(ChannelOnly), 0, true},
    GuestMessageRule{GuestMessage::kGpadlHeader, sizeof(GpadlHeader), 0, true},
    GuestMessageRule{GuestMessage::kGpadlBody, sizeof(GpadlBody), 0, true},
    GuestMessageRule{GuestMessage::kGpadlTeardown, sizeof(GpadlTeardown), 0, true},
    GuestMessageRule{GuestMessage::kRelIdReleased, sizeof(ChannelOnly), 0, true},
    GuestMessageRule{GuestMessage::kInitiateContact, sizeof(InitiateContact), 0, false},
    GuestMessageRule{GuestMessage::kUnload, 0, 0, false},
    GuestMessageRule{GuestMessage::kOpenReservedChannel, sizeof(OpenReservedChannel), kVersionWin10,
                     true},
    GuestMessageRule{GuestMessage::kCloseReservedChannel, sizeof(CloseReservedChannel), 0, false},
    GuestMessageRule{GuestMessage::kTlConnectRequest, sizeof(TlConnectRequest), kVersionWin10,
                     true},
    GuestMessageRule{GuestMessage::kModifyChannel, sizeof(ModifyChannel), kVersionWin10Rs3, true},
};

/// What a message to the guest is: guests check the size exactly.
struct HostMessageRule {
  HostMessage type;
  size_t body_bytes;
  uint32_t min_version;
};
inline constexpr std::array kHostMessageRules = {
    HostMessageRule{HostMessage::kOfferChannel, sizeof(OfferChannel), 0},
    HostMessageRule{HostMessage::kRescindChannelOffer, sizeof(ChannelOnly), 0},
    HostMessageRule{HostMessage::kAllOffersDelivered, 0, 0},
    HostMessageRule{HostMessage::kOpenResult, sizeof(OpenResult), 0},
    HostMessageRule{HostMessage::kGpadlCreated, sizeof(GpadlCreated), 0},
    HostMessageRule{HostMessage::kGpadlTorndown, sizeof(GpadlTorndown), 0},
    HostMessageRule{HostMessage::kVersionResponse, sizeof(VersionResponse), 0},
    HostMessageRule{HostMessage::kUnloadComplete, 0, 0},
    HostMessageRule{HostMessage::kCloseReservedResponse, sizeof(ChannelOnly), 0},
    HostMessageRule{HostMessage::kTlConnectResult, sizeof(TlConnectResult), kVersionWin10Rs3},
    HostMessageRule{HostMessage::kModifyChannelResponse, sizeof(ModifyChannelResponse),
                    kVersionIron},
};

template <typename Rules, typename Type>
constexpr const typename Rules::value_type* FindRule(const Rules& rules, Type type) {
  for (const auto& rule : rules) {
    if (rule.type == type) return &rule;
  }
  return nullptr;
}

inline constexpr uint32_t kMaxChannelId = 2047;
inline constexpr uint32_t kMessageConnectionId = 1;
inline constexpr uint32_t kMessageConnectionIdV5 = 4;
inline constexpr uint8_t kMessageSint = 2;

/// The connection id by which the guest signals a channel: unique, clear of the fixed ids 1 to 4.
constexpr uint32_t SignalConnectionId(uint32_t channel_id) { return 0x2000 | channel_id; }

}  // namespace kvmbus::virtdev::vmbus
