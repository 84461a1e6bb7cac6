// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/scsi_mode.h"

#include <algorithm>

namespace kvmbus::virtdev::scsi {
namespace {

constexpr uint8_t kAllPages = 0x3f;
constexpr uint8_t kAllSubpages = 0xff;

enum PageControl : uint8_t { kCurrent = 0, kChangeable = 1, kDefault = 2, kSaved = 3 };

bool IsTenBytes(const Cdb& cdb) {
  const auto opcode = static_cast<Opcode>(cdb[0]);
  return opcode == Opcode::kModeSense10 || opcode == Opcode::kModeSelect10;
}

size_t HeaderBytes(const Cdb& cdb) { return IsTenBytes(cdb) ? 8 : 4; }

/// The cache is the host's: SYNCHRONIZE CACHE and FUA count, so WCE stays set.
ModePage CachingPage() {
  constexpr uint8_t kWriteCacheEnabled = 0x04;
  ModePage page(20);
  page[0] = 0x08;
  page[1] = 18;
  page[2] = kWriteCacheEnabled;
  return page;
}

/// Sense data of the fixed format, commands in any order, TASK ABORTED for what another aborts.
ModePage ControlPage() {
  constexpr uint8_t kNoImplicitLogSaves = 0x02;  // GLTSD
  constexpr uint8_t kUnrestrictedOrder = 0x10;
  constexpr uint8_t kTaskAbortedStatus = 0x40;
  return {
      0x0a, 10, kNoImplicitLogSaves, kUnrestrictedOrder, 0, kTaskAbortedStatus, 0, 0, 0xff, 0xff,
      0,    0};  // BUSY without a limit of time
}

}  // namespace

ModePages DiskModePages() { return {CachingPage(), ControlPage()}; }

tl::expected<std::vector<uint8_t>, Sense> ModeSenseData(const Cdb& cdb, const ModePages& pages,
                                                        uint8_t device) {
  const uint8_t control = cdb[2] >> 6;
  const uint8_t code = cdb[2] & 0x3f;
  const uint8_t subpage = cdb[3];
  if (control == kSaved) return tl::make_unexpected(kSavingNotSupported);
  if (subpage != 0 && subpage != kAllSubpages) return tl::make_unexpected(kInvalidFieldInCdb);
  std::vector<uint8_t> bytes(HeaderBytes(cdb));
  for (const ModePage& page : pages) {
    if (code != kAllPages && code != page[0]) continue;
    const size_t at = bytes.size();
    bytes.insert(bytes.end(), page.begin(), page.end());
    if (control == kChangeable)
      std::fill(bytes.begin() + static_cast<ptrdiff_t>(at) + 2, bytes.end(), uint8_t{0});
  }
  if (bytes.size() == HeaderBytes(cdb)) return tl::make_unexpected(kInvalidFieldInCdb);
  if (IsTenBytes(cdb)) {
    PutBe<uint16_t>(bytes, 0, static_cast<uint16_t>(bytes.size() - 2));
    bytes[3] = device;
  } else {
    bytes[0] = static_cast<uint8_t>(bytes.size() - 1);
    bytes[2] = device;
  }
  return bytes;
}

size_t ModeAllocationLength(const Cdb& cdb) {
  return IsTenBytes(cdb) ? GetBe<uint16_t>(cdb, 7) : cdb[4];
}

Sense CheckModeSelect(const Cdb& cdb, std::span<const uint8_t> list, const ModePages& pages) {
  constexpr uint8_t kPageFormat = 0x10;
  constexpr uint8_t kSavePages = 0x01;
  if ((cdb[1] & kPageFormat) == 0 || (cdb[1] & kSavePages) != 0) return kInvalidFieldInCdb;
  const size_t length = ModeAllocationLength(cdb);
  if (length == 0) return kNoSense;
  const size_t header = HeaderBytes(cdb);
  if (length > list.size() || length < header) return kParameterListLengthError;
  list = list.first(length);
  const size_t descriptors = IsTenBytes(cdb) ? GetBe<uint16_t>(list, 6) : list[3];
  if (descriptors != 0) return kInvalidFieldInList;  // the block length cannot be changed
  list = list.subspan(header);
  while (!list.empty()) {
    // PS is reserved here, and guests send back what they read.
    const uint8_t code = list[0] & 0x7f;
    const auto page = std::find_if(pages.begin(), pages.end(),
                                   [code](const ModePage& known) { return known[0] == code; });
    if (page == pages.end()) return kInvalidFieldInList;
    if (list.size() < page->size()) return kParameterListLengthError;
    if (!std::equal(page->begin() + 1, page->end(), list.begin() + 1)) return kInvalidFieldInList;
    list = list.subspan(page->size());
  }
  return kNoSense;
}

}  // namespace kvmbus::virtdev::scsi
