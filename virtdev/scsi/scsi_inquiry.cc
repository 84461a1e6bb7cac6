// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/scsi_inquiry.h"

#include <algorithm>
#include <span>
#include <string_view>

#include "virtdev/scsi/scsi_protocol.h"

namespace kvmbus::virtdev::scsi {
namespace {

enum VpdPage : uint8_t {
  kSupportedPages = 0x00,
  kUnitSerialNumber = 0x80,
  kDeviceIdentification = 0x83,
  kBlockLimits = 0xb0,
  kBlockCharacteristics = 0xb1,
  kLogicalBlockProvisioning = 0xb2,
};

constexpr size_t kVpdHeaderBytes = 4;
constexpr uint8_t kVersionSpc3 = 5;

void PutText(std::span<uint8_t> bytes, size_t offset, std::string_view text) {
  std::copy(text.begin(), text.end(), bytes.begin() + static_cast<ptrdiff_t>(offset));
}

InquiryData BaseInquiry() {
  InquiryData data{};
  data[2] = kVersionSpc3;
  data[3] = 2;  // the response data format of SPC
  data[4] = kInquiryBytes - 5;
  data[7] = 0x02;  // CMDQUE
  return data;
}

void PutNames(InquiryData& data) {
  PutText(data, 8, "Msft    ");
  PutText(data, 16, "Virtual Disk    ");
  PutText(data, 32, "1.0 ");
}

/// A page with its header; `body` bytes of zeroes follow.
std::vector<uint8_t> NewPage(uint8_t page, size_t body) {
  std::vector<uint8_t> bytes(kVpdHeaderBytes + body);
  bytes[1] = page;
  PutBe<uint16_t>(bytes, 2, static_cast<uint16_t>(body));
  return bytes;
}

std::vector<uint8_t> SupportedPagesPage(const DiskInfo& info) {
  std::vector<uint8_t> pages = {kSupportedPages};
  if (!info.disk_id.IsZero()) pages.push_back(kUnitSerialNumber);
  for (const uint8_t page :
       {kDeviceIdentification, kBlockLimits, kBlockCharacteristics, kLogicalBlockProvisioning})
    pages.push_back(page);
  std::vector<uint8_t> bytes = NewPage(kSupportedPages, pages.size());
  std::copy(pages.begin(), pages.end(), bytes.begin() + kVpdHeaderBytes);
  return bytes;
}

std::vector<uint8_t> SerialNumberPage(const DiskInfo& info) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::vector<uint8_t> bytes = NewPage(kUnitSerialNumber, 2 * info.disk_id.bytes.size());
  for (size_t i = 0; i < info.disk_id.bytes.size(); ++i) {
    bytes[kVpdHeaderBytes + 2 * i] = static_cast<uint8_t>(kDigits[info.disk_id.bytes[i] >> 4]);
    bytes[kVpdHeaderBytes + 2 * i + 1] = static_cast<uint8_t>(kDigits[info.disk_id.bytes[i] & 0xf]);
  }
  return bytes;
}

/// Guests name the disk by these for ever: udev's scsi-1... and wwn-0x... links, Windows' disk id.
std::vector<uint8_t> IdentificationPage(const DiskInfo& info) {
  if (info.disk_id.IsZero()) return NewPage(kDeviceIdentification, 0);
  constexpr uint8_t kBinary = 1;
  constexpr uint8_t kTypeT10Vendor = 1;
  constexpr uint8_t kTypeNaa = 3;
  constexpr size_t kT10Bytes = 24;
  constexpr size_t kNaaBytes = 16;
  const auto& id = info.disk_id.bytes;
  std::vector<uint8_t> bytes = NewPage(kDeviceIdentification, 4 + kT10Bytes + 4 + kNaaBytes);
  const std::span<uint8_t> t10 = std::span(bytes).subspan(kVpdHeaderBytes, 4 + kT10Bytes);
  t10[0] = kBinary;
  t10[1] = kTypeT10Vendor;
  t10[3] = kT10Bytes;
  PutText(t10, 4, "MSFT    ");
  std::copy(id.begin(), id.end(), t10.begin() + 12);
  const std::span<uint8_t> naa = std::span(bytes).subspan(kVpdHeaderBytes + t10.size());
  naa[0] = kBinary;
  naa[1] = kTypeNaa;
  naa[3] = kNaaBytes;
  PutBe<uint32_t>(naa, 4, 0x60022480);
  std::copy(id.begin(), id.begin() + 6, naa.begin() + 8);
  std::copy(id.end() - 6, id.end(), naa.begin() + 14);
  return bytes;
}

std::vector<uint8_t> BlockLimitsPage(const DiskInfo& info) {
  constexpr uint8_t kNoZeroWriteSame = 0x01;  // WSNZ
  constexpr uint32_t kAlignmentValid = 0x80000000;
  const uint32_t granularity = info.physical_sector_bytes / info.logical_sector_bytes;
  std::vector<uint8_t> bytes = NewPage(kBlockLimits, 60);
  bytes[4] = kNoZeroWriteSame;
  PutBe<uint16_t>(bytes, 6, static_cast<uint16_t>(std::min<uint32_t>(granularity, 0xffff)));
  if (info.can_unmap) {
    PutBe<uint32_t>(bytes, 20, 0xffffffff);
    PutBe<uint32_t>(bytes, 24, kMaxUnmapDescriptors);
    PutBe<uint32_t>(bytes, 28, granularity);
    PutBe<uint32_t>(bytes, 32, kAlignmentValid);
  }
  PutBe<uint64_t>(bytes, 36, kMaxWriteSameBytes / info.logical_sector_bytes);
  return bytes;
}

std::vector<uint8_t> CharacteristicsPage() {
  constexpr uint16_t kNonRotating = 1;
  std::vector<uint8_t> bytes = NewPage(kBlockCharacteristics, 60);
  PutBe<uint16_t>(bytes, 4, kNonRotating);
  return bytes;
}

std::vector<uint8_t> ProvisioningPage(const DiskInfo& info) {
  constexpr uint8_t kByUnmapAndWriteSame = 0xe0;  // LBPU, LBPWS, LBPWS10
  constexpr uint8_t kReadsZero = 0x04;            // LBPRZ
  constexpr uint8_t kThin = 2;
  std::vector<uint8_t> bytes = NewPage(kLogicalBlockProvisioning, 4);
  if (info.can_unmap) {
    bytes[5] =
        static_cast<uint8_t>(kByUnmapAndWriteSame | (info.unmapped_reads_zero ? kReadsZero : 0));
    bytes[6] = kThin;
  }
  return bytes;
}

}  // namespace

InquiryData DiskInquiry() {
  InquiryData data = BaseInquiry();
  PutNames(data);
  return data;
}

InquiryData AbsentInquiry(bool named) {
  InquiryData data = BaseInquiry();
  data[0] = 0x7f;  // no device can be here, of no known type
  if (named) {
    PutNames(data);
  } else {
    std::fill(data.begin() + 8, data.begin() + 36, uint8_t{' '});
  }
  return data;
}

std::optional<std::vector<uint8_t>> DiskVpdPage(uint8_t page, const DiskInfo& info) {
  switch (page) {
    case kSupportedPages:
      return SupportedPagesPage(info);
    case kUnitSerialNumber:
      if (info.disk_id.IsZero()) return std::nullopt;
      return SerialNumberPage(info);
    case kDeviceIdentification:
      return IdentificationPage(info);
    case kBlockLimits:
      return BlockLimitsPage(info);
    case kBlockCharacteristics:
      return CharacteristicsPage();
    case kLogicalBlockProvisioning:
      return ProvisioningPage(info);
    default:
      return std::nullopt;
  }
}

}  // namespace kvmbus::virtdev::scsi
