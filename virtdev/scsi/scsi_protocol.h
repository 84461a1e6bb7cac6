// SPDX-License-Identifier: Apache-2.0
/// \file
/// SCSI's numbers (SAM, SPC, SBC): operation codes, statuses, sense, big-endian fields.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvmbus::virtdev::scsi {

enum class Opcode : uint8_t {
  kTestUnitReady = 0x00,
  kRequestSense = 0x03,
  kFormatUnit = 0x04,
  kRead6 = 0x08,
  kWrite6 = 0x0a,
  kInquiry = 0x12,
  kModeSelect6 = 0x15,
  kReserve6 = 0x16,
  kRelease6 = 0x17,
  kModeSense6 = 0x1a,
  kStartStopUnit = 0x1b,
  kSendDiagnostic = 0x1d,
  kPreventAllowRemoval = 0x1e,
  kReadCapacity10 = 0x25,
  kRead10 = 0x28,
  kWrite10 = 0x2a,
  kWriteAndVerify10 = 0x2e,
  kVerify10 = 0x2f,
  kSynchronizeCache10 = 0x35,
  kWriteSame10 = 0x41,
  kUnmap = 0x42,
  kReadToc = 0x43,
  kGetConfiguration = 0x46,
  kGetEventStatus = 0x4a,
  kReadDiscInformation = 0x51,
  kReadTrackInformation = 0x52,
  kModeSelect10 = 0x55,
  kReserve10 = 0x56,
  kRelease10 = 0x57,
  kModeSense10 = 0x5a,
  kReadBufferCapacity = 0x5c,
  kPersistentReserveIn = 0x5e,
  kPersistentReserveOut = 0x5f,
  kRead16 = 0x88,
  kWrite16 = 0x8a,
  kWriteAndVerify16 = 0x8e,
  kVerify16 = 0x8f,
  kSynchronizeCache16 = 0x91,
  kWriteSame16 = 0x93,
  kServiceActionIn16 = 0x9e,
  kReportLuns = 0xa0,
  kMaintenanceIn = 0xa3,
  kRead12 = 0xa8,
  kWrite12 = 0xaa,
  kGetPerformance = 0xac,
  kReadDvdStructure = 0xad,
  kWriteAndVerify12 = 0xae,
  kVerify12 = 0xaf,
  kSetStreaming = 0xb6,
  kMechanismStatus = 0xbd,
};

enum class Status : uint8_t {
  kGood = 0x00,
  kCheckCondition = 0x02,
  kBusy = 0x08,
  kReservationConflict = 0x18,
  kTaskAborted = 0x40,
};

enum class SenseKey : uint8_t {
  kNoSense = 0x0,
  kNotReady = 0x2,
  kMediumError = 0x3,
  kHardwareError = 0x4,
  kIllegalRequest = 0x5,
  kUnitAttention = 0x6,
  kDataProtect = 0x7,
  kMiscompare = 0xe,
};

struct Sense {
  SenseKey key = SenseKey::kNoSense;
  uint8_t asc = 0;
  uint8_t ascq = 0;
  bool operator==(const Sense&) const = default;
};

inline constexpr Sense kNoSense = {};
inline constexpr Sense kNoMediumTrayClosed = {SenseKey::kNotReady, 0x3a, 0x01};
inline constexpr Sense kNoMediumTrayOpen = {SenseKey::kNotReady, 0x3a, 0x02};
inline constexpr Sense kNoMediumRemovalPrevented = {SenseKey::kNotReady, 0x53, 0x02};
inline constexpr Sense kReadError = {SenseKey::kMediumError, 0x11, 0x00};
inline constexpr Sense kWriteError = {SenseKey::kMediumError, 0x0c, 0x00};
inline constexpr Sense kParameterListLengthError = {SenseKey::kIllegalRequest, 0x1a, 0x00};
inline constexpr Sense kInvalidOpcode = {SenseKey::kIllegalRequest, 0x20, 0x00};
inline constexpr Sense kLbaOutOfRange = {SenseKey::kIllegalRequest, 0x21, 0x00};
inline constexpr Sense kInvalidFieldInCdb = {SenseKey::kIllegalRequest, 0x24, 0x00};
inline constexpr Sense kInvalidFieldInList = {SenseKey::kIllegalRequest, 0x26, 0x00};
inline constexpr Sense kSavingNotSupported = {SenseKey::kIllegalRequest, 0x39, 0x00};
inline constexpr Sense kInvalidRelease = {SenseKey::kIllegalRequest, 0x26, 0x04};
inline constexpr Sense kMediumRemovalPrevented = {SenseKey::kIllegalRequest, 0x53, 0x02};
inline constexpr Sense kInsufficientRegistrations = {SenseKey::kIllegalRequest, 0x55, 0x04};
inline constexpr Sense kInternalTargetFailure = {SenseKey::kHardwareError, 0x44, 0x00};
inline constexpr Sense kMediumMayHaveChanged = {SenseKey::kUnitAttention, 0x28, 0x00};
inline constexpr Sense kPowerOnOccurred = {SenseKey::kUnitAttention, 0x29, 0x00};
inline constexpr Sense kReservationsPreempted = {SenseKey::kUnitAttention, 0x2a, 0x03};
inline constexpr Sense kReservationsReleased = {SenseKey::kUnitAttention, 0x2a, 0x04};
inline constexpr Sense kRegistrationsPreempted = {SenseKey::kUnitAttention, 0x2a, 0x05};
inline constexpr Sense kCapacityChanged = {SenseKey::kUnitAttention, 0x2a, 0x09};
inline constexpr Sense kWriteProtected = {SenseKey::kDataProtect, 0x27, 0x00};
inline constexpr Sense kSpaceAllocationFailed = {SenseKey::kDataProtect, 0x27, 0x07};
inline constexpr Sense kMiscompareDuringVerify = {SenseKey::kMiscompare, 0x1d, 0x00};

/// Sense data in the fixed format.
inline constexpr size_t kFixedSenseBytes = 18;
inline std::array<uint8_t, kFixedSenseBytes> FixedSense(const Sense& sense) {
  std::array<uint8_t, kFixedSenseBytes> bytes{};
  bytes[0] = 0x70;
  bytes[2] = static_cast<uint8_t>(sense.key);
  bytes[7] = kFixedSenseBytes - 8;
  bytes[12] = sense.asc;
  bytes[13] = sense.ascq;
  return bytes;
}

/// Big-endian fields; `bytes` has room for a T at `offset`.
template <std::unsigned_integral T>
T GetBe(std::span<const uint8_t> bytes, size_t offset) {
  T value = 0;
  for (const uint8_t byte : bytes.subspan(offset, sizeof(T)))
    value = static_cast<T>(static_cast<uint64_t>(value) << 8 | byte);
  return value;
}
template <std::unsigned_integral T>
void PutBe(std::span<uint8_t> bytes, size_t offset, T value) {
  for (size_t i = sizeof(T); i-- > 0; value = static_cast<T>(static_cast<uint64_t>(value) >> 8))
    bytes[offset + i] = static_cast<uint8_t>(value);
}

}  // namespace kvmbus::virtdev::scsi
