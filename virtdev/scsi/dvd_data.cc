// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/dvd_data.h"

#include <algorithm>
#include <string_view>

namespace kvmbus::virtdev::scsi {
namespace {

constexpr uint32_t kBufferBytes = 256u << 10;
constexpr uint16_t kSpeedKilobytes = 11080;  ///< a second: DVD's speed eight times over
constexpr uint8_t kFirstTrack = 1;
constexpr uint8_t kLeadOut = 0xaa;
constexpr uint8_t kDataTrack = 0x14;  ///< ADR 1, CONTROL: data

void PutText(std::span<uint8_t> bytes, size_t offset, std::string_view text) {
  std::copy(text.begin(), text.end(), bytes.begin() + static_cast<ptrdiff_t>(offset));
}

auto Refuse() { return tl::make_unexpected(kInvalidFieldInCdb); }

/// A block's address; in minutes, seconds and frames if asked for, as far as these go.
void PutAddress(std::vector<uint8_t>& bytes, size_t at, uint32_t block, bool msf) {
  if (!msf) return PutBe<uint32_t>(bytes, at, block);
  constexpr uint64_t kLeadInFrames = 150;
  constexpr uint64_t kFramesOfSecond = 75;
  const uint64_t frames = std::min<uint64_t>(block + kLeadInFrames, 256 * 60 * kFramesOfSecond - 1);
  bytes[at + 1] = static_cast<uint8_t>(frames / kFramesOfSecond / 60);
  bytes[at + 2] = static_cast<uint8_t>(frames / kFramesOfSecond % 60);
  bytes[at + 3] = static_cast<uint8_t>(frames % kFramesOfSecond);
}

void AppendTrack(std::vector<uint8_t>& bytes, uint8_t track, uint32_t block, bool msf) {
  const size_t at = bytes.size();
  bytes.resize(at + 8);
  bytes[at + 1] = kDataTrack;
  bytes[at + 2] = track;
  PutAddress(bytes, at + 4, block, msf);
}

struct Feature {
  uint16_t code;
  uint8_t version;
  bool persistent;
  bool current;
  std::vector<uint8_t> data;  ///< a multiple of four bytes
};

std::vector<Feature> Features(bool has_medium) {
  const uint8_t medium = has_medium ? 1 : 0;
  return {
      // Profiles: DVD-ROM, CD-ROM.
      {0x0000, 0, true, true, {0x00, 0x10, medium, 0, 0x00, 0x08, 0, 0}},
      {0x0001, 2, true, true, {0, 0, 0, 1, 0x01, 0, 0, 0}},          // core: SCSI, DBE
      {0x0002, 1, true, true, {0x02, 0, 0, 0}},                      // morphing: OCEvent, polled
      {0x0003, 0, true, true, {0x29, 0, 0, 0}},                      // a tray, lock, eject
      {0x0010, 0, false, has_medium, {0, 0, 0x08, 0, 0, 16, 1, 0}},  // random reads, 2048 bytes
      {0x001e, 2, false, false, {0, 0, 0, 0}},                       // CDs
      {0x001f, 1, false, has_medium, {0, 0, 0, 0}},                  // DVDs
      {0x0100, 0, true, true, {}},                                   // power management
      {0x0105, 1, true, true, {0, 0, 0, 0}},                         // timeouts
      {0x0107, 3, false, has_medium, {0x10, 0, 0, 0}},  // streaming: READ BUFFER CAPACITY
  };
}

/// The physical format of layer 0: one layer, read-only, from sector 30000h.
std::vector<uint8_t> PhysicalFormat(uint32_t blocks) {
  constexpr uint32_t kFirstSector = 0x30000;
  constexpr uint64_t kLastAddress = 0xffffff;
  std::vector<uint8_t> bytes(4 + 2048);
  bytes[4] = 0x01;  // DVD-ROM, version 1
  bytes[5] = 0x0f;  // 120 mm, no rate said
  bytes[6] = 0x01;  // one layer of embossed data
  PutBe<uint32_t>(bytes, 8, kFirstSector);
  const uint64_t last = std::min<uint64_t>(uint64_t{kFirstSector} + blocks - 1, kLastAddress);
  PutBe<uint32_t>(bytes, 12, static_cast<uint32_t>(last));
  return bytes;
}

}  // namespace

std::vector<uint8_t> DvdInquiry() {
  std::vector<uint8_t> data(36);
  data[0] = 0x05;  // a CD or DVD drive
  data[1] = 0x80;  // removable
  data[2] = 0x05;  // SPC-3
  data[3] = 0x02;  // the response data format of SPC
  data[4] = static_cast<uint8_t>(data.size() - 5);
  PutText(data, 8, "Msft    Virtual DVD-ROM 1.0 ");
  return data;
}

DvdAnswer DvdVpdPage(uint8_t page, const vmm::Guid& id) {
  constexpr uint8_t kSupportedPages = 0x00;
  constexpr uint8_t kDeviceIdentification = 0x83;
  if (page == kSupportedPages)
    return std::vector<uint8_t>{0x05, kSupportedPages, 0,
                                2,    kSupportedPages, kDeviceIdentification};
  if (page != kDeviceIdentification) return Refuse();
  std::vector<uint8_t> bytes = {0x05, kDeviceIdentification, 0, 28, 0x01, 0x01, 0, 24};
  bytes.resize(8 + 24);
  PutText(bytes, 8, "MSFT    ");
  std::copy(id.bytes.begin(), id.bytes.end(), bytes.begin() + 16);
  return bytes;
}

ModePages DvdModePages(bool locked) {
  ModePage errors = {0x01, 10};  // error recovery: the host's retries are all there are
  errors.resize(12);
  ModePage power = {0x1a, 10};
  power.resize(12);
  ModePage timeouts = {0x1d, 8};
  timeouts.resize(10);
  ModePage capabilities = {0x2a, 24};
  capabilities.resize(26);
  capabilities[2] = 0x1b;  // reads CD-R, CD-RW, DVD-ROM, DVD-R
  capabilities[4] = 0x70;  // sessions, forms 1 and 2 of mode 2
  capabilities[6] = static_cast<uint8_t>(0x29 | (locked ? 0x02 : 0));  // a tray, lock, eject
  PutBe<uint16_t>(capabilities, 8, kSpeedKilobytes);
  PutBe<uint16_t>(capabilities, 12, kBufferBytes >> 10);
  PutBe<uint16_t>(capabilities, 14, kSpeedKilobytes);
  return {errors, power, timeouts, capabilities};
}

DvdAnswer DvdConfiguration(const Cdb& cdb, bool has_medium) {
  enum Requested : uint8_t { kAll = 0, kCurrent = 1, kOne = 2 };
  const uint8_t requested = cdb[1] & 0x03;
  const uint16_t first = GetBe<uint16_t>(cdb, 2);
  if (requested > kOne) return Refuse();
  std::vector<uint8_t> bytes(8);
  if (has_medium) PutBe<uint16_t>(bytes, 6, 0x0010);  // DVD-ROM
  for (const Feature& feature : Features(has_medium)) {
    const bool wanted = requested == kOne ? feature.code == first : feature.code >= first;
    if (!wanted || (requested == kCurrent && !feature.current)) continue;
    const size_t at = bytes.size();
    bytes.resize(at + 4);
    PutBe<uint16_t>(bytes, at, feature.code);
    bytes[at + 2] = static_cast<uint8_t>(feature.version << 2 | (feature.persistent ? 0x02 : 0) |
                                         (feature.current ? 0x01 : 0));
    bytes[at + 3] = static_cast<uint8_t>(feature.data.size());
    bytes.insert(bytes.end(), feature.data.begin(), feature.data.end());
  }
  PutBe<uint32_t>(bytes, 0, static_cast<uint32_t>(bytes.size() - 4));
  return bytes;
}

std::vector<uint8_t> DvdMechanismStatus(bool tray_open) {
  return {0, static_cast<uint8_t>(tray_open ? 0x10 : 0), 0, 0, 0, 0, 0, 0};
}

/// One session, one track, and where it ends.
DvdAnswer DvdToc(const Cdb& cdb, uint32_t blocks) {
  enum Format : uint8_t { kTracks = 0, kSessions = 1 };
  const bool msf = (cdb[1] & 0x02) != 0;
  // Older hosts give the format in the control byte.
  const uint8_t format = (cdb[2] & 0x0f) != 0 ? cdb[2] & 0x0f : cdb[9] >> 6;
  const uint8_t start = cdb[6];
  std::vector<uint8_t> bytes = {0, 0, 1, 1};  // first and last track, or session
  if (format == kTracks) {
    if (start > kFirstTrack && start != kLeadOut) return Refuse();
    if (start <= kFirstTrack) AppendTrack(bytes, kFirstTrack, 0, msf);
    AppendTrack(bytes, kLeadOut, blocks, msf);
  } else if (format == kSessions) {
    AppendTrack(bytes, kFirstTrack, 0, msf);
  } else {
    return Refuse();
  }
  PutBe<uint16_t>(bytes, 0, static_cast<uint16_t>(bytes.size() - 2));
  return bytes;
}

DvdAnswer DvdDiscInformation(const Cdb& cdb) {
  if ((cdb[1] & 0x07) != 0) return Refuse();  // but the standard kind
  std::vector<uint8_t> bytes(34);
  PutBe<uint16_t>(bytes, 0, 32);
  bytes[2] = 0x0e;  // disc and last session complete
  bytes[3] = 1;     // first track
  bytes[4] = 1;     // sessions
  bytes[5] = 1;     // first track of the last session
  bytes[6] = 1;     // last track of it
  bytes[7] = 0x20;  // unrestricted use
  return bytes;
}

DvdAnswer DvdTrackInformation(const Cdb& cdb, uint32_t blocks) {
  enum AddressKind : uint8_t { kBlock = 0, kTrack = 1, kSession = 2 };
  const uint8_t kind = cdb[1] & 0x03;
  const uint32_t address = GetBe<uint32_t>(cdb, 2);
  if (kind > kSession) return Refuse();
  if (kind == kBlock && address >= blocks) return tl::make_unexpected(kLbaOutOfRange);
  if (kind != kBlock && address != 1) return Refuse();
  std::vector<uint8_t> bytes(36);
  PutBe<uint16_t>(bytes, 0, 34);
  bytes[2] = 1;     // track
  bytes[3] = 1;     // session
  bytes[5] = 0x04;  // data, written without interruption
  bytes[6] = 0x01;  // mode 1
  PutBe<uint32_t>(bytes, 24, blocks);
  return bytes;
}

DvdAnswer DvdStructure(const Cdb& cdb, uint32_t blocks) {
  enum Format : uint8_t { kPhysical = 0x00, kCopyright = 0x01, kManufacturer = 0x04, kList = 0xff };
  const uint8_t media_type = cdb[1] & 0x0f;
  const uint8_t layer = cdb[6];
  const uint8_t format = cdb[7];
  if (media_type != 0 || layer != 0) return Refuse();
  std::vector<uint8_t> bytes;
  if (format == kPhysical) {
    bytes = PhysicalFormat(blocks);
  } else if (format == kCopyright) {
    bytes.resize(4 + 4);  // not protected, all regions
  } else if (format == kManufacturer) {
    bytes.resize(4 + 2048);
  } else if (format == kList) {
    constexpr uint8_t kReadable = 0x40;
    bytes.resize(4);
    for (const auto& [code, size] :
         {std::pair<uint8_t, uint16_t>{kPhysical, 2052}, {kCopyright, 8}, {kManufacturer, 2052}}) {
      bytes.insert(bytes.end(),
                   {code, kReadable, static_cast<uint8_t>(size >> 8), static_cast<uint8_t>(size)});
    }
  } else {
    return Refuse();
  }
  PutBe<uint16_t>(bytes, 0, static_cast<uint16_t>(bytes.size() - 2));
  return bytes;
}

/// The nominal read performance of the whole disc; there is none for writing.
DvdAnswer DvdPerformance(const Cdb& cdb, uint32_t blocks) {
  enum Type : uint8_t { kPerformance = 0x00, kWriteSpeed = 0x03 };
  const uint8_t type = cdb[10];
  const bool for_writing = (cdb[1] & 0x04) != 0;
  const uint8_t exceptions = cdb[1] & 0x03;
  if (type != kPerformance && type != kWriteSpeed) return Refuse();
  std::vector<uint8_t> bytes(8);
  if (for_writing) bytes[4] = 0x02;
  if (type == kPerformance && !for_writing && exceptions == 0 && GetBe<uint16_t>(cdb, 8) != 0) {
    bytes.resize(8 + 16);
    PutBe<uint32_t>(bytes, 12, kSpeedKilobytes);
    PutBe<uint32_t>(bytes, 16, blocks - 1);
    PutBe<uint32_t>(bytes, 20, kSpeedKilobytes);
  }
  PutBe<uint32_t>(bytes, 0, static_cast<uint32_t>(bytes.size() - 4));
  return bytes;
}

std::vector<uint8_t> DvdBufferCapacity() {
  std::vector<uint8_t> bytes(12);
  PutBe<uint16_t>(bytes, 0, 10);
  PutBe<uint32_t>(bytes, 4, kBufferBytes);
  PutBe<uint32_t>(bytes, 8, kBufferBytes);
  return bytes;
}

}  // namespace kvmbus::virtdev::scsi
