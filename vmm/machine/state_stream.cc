// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/state_stream.h"

#include <isa-l/crc.h>

#include <cstring>

namespace kvmbus::vmm {
namespace {

constexpr std::string_view kMagic = "KVMBSTA1";
constexpr std::string_view kEnd = "END";
constexpr uint32_t kFormatVersion = 1;
constexpr uint32_t kFlagOptional = 1;
constexpr uint32_t kNameLimit = 64;

struct RecordHeader {
  uint32_t name_bytes;
  uint32_t schema_version;
  uint32_t minimum_reader;
  uint32_t flags;
  uint64_t payload_bytes;
  uint32_t crc32c;
  uint32_t reserved;
};
static_assert(sizeof(RecordHeader) == 32);

uint32_t Crc32c(std::string_view bytes) {
  // isa-l takes an int length and a pointer that it does not write through.
  auto* data = reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data()));
  return ~crc32_iscsi(data, static_cast<int>(bytes.size()), ~0u);
}

void Append(std::string& out, const void* data, size_t size) {
  out.append(static_cast<const char*>(data), size);
}

void AppendRecord(std::string& out, const StateRecord& record) {
  KVMBUS_ASSERT(record.name.size() <= kNameLimit && record.payload.size() <= kStatePayloadLimit);
  RecordHeader header = {};
  header.name_bytes = static_cast<uint32_t>(record.name.size());
  header.schema_version = record.schema_version;
  header.minimum_reader = record.minimum_reader;
  header.flags = record.optional ? kFlagOptional : 0;
  header.payload_bytes = record.payload.size();
  header.crc32c = Crc32c(record.payload);
  Append(out, &header, sizeof(header));
  out += record.name;
  out += record.payload;
}

/// Takes `size` bytes off the front; false if there are fewer.
bool Take(std::string_view& bytes, uint64_t size, std::string_view* piece) {
  if (bytes.size() < size) return false;
  *piece = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return true;
}

Error Damaged(std::string_view what) {
  return MakeError(Code::kDataLoss, "the saved state is damaged: {}", what);
}

}  // namespace

std::string WriteStateStream(const std::vector<StateRecord>& records) {
  std::string out(kMagic);
  const uint32_t head[2] = {kFormatVersion, 0};
  Append(out, head, sizeof(head));
  for (const StateRecord& record : records) AppendRecord(out, record);
  AppendRecord(out, {std::string(kEnd), 1, 1, false, ""});
  return out;
}

Result<std::vector<StateRecord>> ReadStateStream(std::string_view bytes) {
  std::string_view piece;
  if (!Take(bytes, kMagic.size(), &piece) || piece != kMagic) return Damaged("no signature");
  if (!Take(bytes, 8, &piece)) return Damaged("cut off in its head");
  uint32_t version;
  std::memcpy(&version, piece.data(), sizeof(version));
  if (version != kFormatVersion)
    return MakeError(Code::kUnimplemented,
                     "the saved state has format version {}, this program reads {}", version,
                     kFormatVersion);
  std::vector<StateRecord> records;
  while (records.size() <= kStateRecordLimit) {
    RecordHeader header;
    if (!Take(bytes, sizeof(header), &piece))
      return Damaged(fmt::format("cut off after {} records", records.size()));
    std::memcpy(&header, piece.data(), sizeof(header));
    if (header.name_bytes == 0 || header.name_bytes > kNameLimit ||
        header.payload_bytes > kStatePayloadLimit)
      return Damaged(fmt::format("record {} has impossible lengths", records.size()));
    if (!Take(bytes, header.name_bytes, &piece)) return Damaged("cut off in a name");
    StateRecord record;
    record.name = piece;
    if (!Take(bytes, header.payload_bytes, &piece))
      return Damaged(fmt::format("cut off in record '{}'", record.name));
    if (Crc32c(piece) != header.crc32c)
      return Damaged(fmt::format("record '{}' has a wrong checksum", record.name));
    if (record.name == kEnd) {
      if (!bytes.empty()) return Damaged("bytes after its end");
      return records;
    }
    record.schema_version = header.schema_version;
    record.minimum_reader = header.minimum_reader;
    record.optional = (header.flags & kFlagOptional) != 0;
    record.payload = piece;
    records.push_back(std::move(record));
  }
  return Damaged("too many records");
}

}  // namespace kvmbus::vmm
