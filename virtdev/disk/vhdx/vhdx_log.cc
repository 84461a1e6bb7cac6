// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_log.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kFirstLoggableOffset = kRegionTableOffset[0];

/// The log's sectors, read when they are asked for: a hostile file does not make us hold a log of a
/// gigabyte.
class LogReader {
 public:
  LogReader(BlockFile& file, const Header& header) : file_(file), header_(header) {}

  uint64_t size() const { return header_.log_length; }

  Result<void> ReadSector(uint64_t at, std::span<uint8_t> out) const {
    return file_.Read(out.first(kLogSector), header_.log_offset + at % size());
  }

  /// The header of a valid entry at `start`, or nothing. Signatures come before the checksum, so
  /// that the work stays linear in the log's size whatever it holds: a sector that begins an entry
  /// cannot be inside another one.
  Result<std::optional<LogEntryHeader>> EntryAt(uint64_t start) const {
    uint8_t head[sizeof(LogEntryHeader)];  // most sectors begin no entry: the rest is not read
    TRY_VOID(file_.Read(head, header_.log_offset + start % size()));
    const auto header = Load<LogEntryHeader>(head, 0);
    if (header.signature != kLogEntrySignature || header.log_guid != header_.log_guid ||
        header.sequence_number == 0 || header.entry_length < kLogSector ||
        header.entry_length % kLogSector != 0 || header.entry_length > size() ||
        header.tail % kLogSector != 0 || header.tail >= size() ||
        LogHeadBytes(header.descriptor_count) > header.entry_length)
      return std::nullopt;
    if (!TRY(SectorsAreValid(start, header)) || !TRY(ChecksumIsRight(start, header)))
      return std::nullopt;
    return header;
  }

  Result<void> AppendWrites(uint64_t start, std::vector<LogWrite>* writes, uint64_t* bytes) const {
    std::vector<uint8_t> sector(kLogSector), data(kLogSector);
    TRY_VOID(ReadSector(start, sector));
    const auto header = Load<LogEntryHeader>(sector, 0);
    uint64_t data_at = start + LogHeadBytes(header.descriptor_count);
    for (uint32_t i = 0; i < header.descriptor_count; ++i) {
      const uint64_t at = sizeof(LogEntryHeader) + uint64_t{i} * kLogDescriptorBytes;
      if (i != 0 && at % kLogSector == 0) TRY_VOID(ReadSector(start + at, sector));
      const bool is_zero = Load<uint32_t>(sector, at % kLogSector) == kZeroDescriptorSignature;
      *bytes += sizeof(LogWrite) + (is_zero ? 0 : kLogSector);
      if (*bytes > LogReplay::kMaxBytes)
        return MakeError(
            Code::kUnimplemented,
            "it has more than {} MiB that are not in the file yet: open the image once "
            "with the program that wrote it",
            LogReplay::kMaxBytes / kMiB);
      if (is_zero) {
        const auto zero = Load<ZeroDescriptor>(sector, at % kLogSector);
        writes->push_back({zero.file_offset, zero.zero_length, {}});
        continue;
      }
      const auto descriptor = Load<DataDescriptor>(sector, at % kLogSector);
      TRY_VOID(ReadSector(data_at, data));
      data_at += kLogSector;
      Store(data, 0, descriptor.leading_bytes);
      Store(data, kLogSector - sizeof(uint32_t), descriptor.trailing_bytes);
      writes->push_back({descriptor.file_offset, kLogSector, data});
    }
    return {};
  }

 private:
  bool Loggable(uint64_t offset, uint64_t length, const LogEntryHeader& entry) const {
    // An entry's own word for how long the file must be bounds what it may touch.
    return offset % kLogSector == 0 && length % kLogSector == 0 && offset >= kFirstLoggableOffset &&
           length <= ~uint64_t{0} - offset && offset + length <= entry.last_file_offset &&
           (offset + length <= header_.log_offset ||
            offset >= header_.log_offset + header_.log_length);
  }

  Result<bool> SectorsAreValid(uint64_t start, const LogEntryHeader& header) const {
    std::vector<uint8_t> sector(kLogSector);
    TRY_VOID(ReadSector(start, sector));
    uint64_t data_sectors = 0;
    for (uint64_t i = 0; i < header.descriptor_count; ++i) {
      const uint64_t at = sizeof(LogEntryHeader) + i * kLogDescriptorBytes;
      if (i != 0 && at % kLogSector == 0) TRY_VOID(ReadSector(start + at, sector));
      const auto descriptor = Load<DataDescriptor>(sector, at % kLogSector);
      const auto zero = Load<ZeroDescriptor>(sector, at % kLogSector);
      const bool is_zero = descriptor.signature == kZeroDescriptorSignature;
      if ((!is_zero && descriptor.signature != kDataDescriptorSignature) ||
          descriptor.sequence_number != header.sequence_number ||
          !Loggable(descriptor.file_offset, is_zero ? zero.zero_length : kLogSector, header))
        return false;
      if (!is_zero) ++data_sectors;
    }
    const uint64_t head = LogHeadBytes(header.descriptor_count);
    if (head + data_sectors * kLogSector != header.entry_length) return false;
    for (uint64_t at = head; at < header.entry_length; at += kLogSector) {
      TRY_VOID(ReadSector(start + at, sector));
      const auto data = Load<DataSector>(sector, 0);
      if (data.signature != kDataSectorSignature ||
          data.sequence_high != header.sequence_number >> 32 ||
          data.sequence_low != (header.sequence_number & 0xffffffff))
        return false;
    }
    return true;
  }

  Result<bool> ChecksumIsRight(uint64_t start, const LogEntryHeader& header) const {
    std::vector<uint8_t> sector(kLogSector);
    Crc32cSum sum;
    for (uint64_t at = 0; at < header.entry_length; at += kLogSector) {
      TRY_VOID(ReadSector(start + at, sector));
      if (at == 0) Store(sector, 4, uint32_t{0});
      sum.Add(sector);
    }
    return sum.value() == header.checksum;
  }

  BlockFile& file_;
  const Header& header_;
};

using Entries = std::map<uint64_t, LogEntryHeader>;  // by their place in the log

/// The place of the entry that follows, if there is one.
std::optional<uint64_t> Next(const Entries& entries, uint64_t start, uint64_t log_bytes) {
  const LogEntryHeader& entry = entries.at(start);
  const uint64_t next = (start + entry.entry_length) % log_bytes;
  const auto at = entries.find(next);
  if (at == entries.end() || at->second.sequence_number != entry.sequence_number + 1)
    return std::nullopt;
  return next;
}

/// The entries from one that follows none to one that none follows, in order.
std::vector<uint64_t> ChainFrom(const Entries& entries, uint64_t start, uint64_t log_bytes) {
  std::vector<uint64_t> chain;
  for (std::optional<uint64_t> at = start; at; at = Next(entries, *at, log_bytes))
    chain.push_back(*at);
  return chain;
}

/// Entries do not overlap, so that each follows one other at most and chains do not meet; nor do
/// they go round, as their numbers rise. The active sequence is the chain with the newest last
/// entry that contains that entry's tail, from there on. Each chain is walked once.
std::vector<uint64_t> FindActiveSequence(const Entries& entries, uint64_t log_bytes) {
  std::set<uint64_t> followers;
  for (const auto& [start, entry] : entries) {
    if (const auto next = Next(entries, start, log_bytes)) followers.insert(*next);
  }
  std::vector<uint64_t> best;
  uint64_t best_sequence = 0;
  for (const auto& [start, entry] : entries) {
    if (followers.count(start) != 0) continue;
    std::vector<uint64_t> chain = ChainFrom(entries, start, log_bytes);
    const LogEntryHeader& last = entries.at(chain.back());
    const auto tail = std::find(chain.begin(), chain.end(), last.tail);
    if (last.sequence_number <= best_sequence || tail == chain.end()) continue;
    chain.erase(chain.begin(), tail);
    best = std::move(chain);
    best_sequence = last.sequence_number;
  }
  return best;
}

/// A file under a replay that happened in memory only.
class OverlaidFile final : public BlockFile {
 public:
  OverlaidFile(std::unique_ptr<BlockFile> file, const LogReplay& replay)
      : file_(std::move(file)), minimum_bytes_(replay.last_file_offset) {
    for (const LogWrite& write : replay.writes) Cover(write);
  }

  Result<uint64_t> Size() override { return std::max(TRY(file_->Size()), minimum_bytes_); }

  Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) override {
    const uint64_t size = TRY(file_->Size());
    const uint64_t inside = offset >= size ? 0 : std::min<uint64_t>(buffer.size(), size - offset);
    if (buffer.size() > inside && offset + buffer.size() > std::max(size, minimum_bytes_))
      return Error(Code::kOutOfRange, "a read past the end of the file");
    if (inside != 0) TRY_VOID(file_->Read(buffer.first(inside), offset));
    std::fill(buffer.begin() + static_cast<ptrdiff_t>(inside), buffer.end(), 0);
    auto piece = pieces_.upper_bound(offset);
    if (piece != pieces_.begin()) --piece;
    for (; piece != pieces_.end() && piece->first < offset + buffer.size(); ++piece) {
      const auto& [start, cover] = *piece;
      const uint64_t first = std::max(offset, start);
      const uint64_t end = std::min(offset + buffer.size(), start + cover.length);
      if (first >= end) continue;
      if (cover.page.empty())
        std::fill_n(buffer.begin() + static_cast<ptrdiff_t>(first - offset), end - first, 0);
      else
        std::copy_n(cover.page.begin() + static_cast<ptrdiff_t>(first - start), end - first,
                    buffer.begin() + static_cast<ptrdiff_t>(first - offset));
    }
    return {};
  }

  Result<void> Write(std::span<const uint8_t>, uint64_t) override { return ReadOnly(); }
  Result<void> Flush() override { return {}; }
  Result<void> Resize(uint64_t) override { return ReadOnly(); }
  Result<void> Zero(uint64_t, uint64_t, bool) override { return ReadOnly(); }
  int lock_fd() const override { return file_->lock_fd(); }

 private:
  struct Piece {
    uint64_t length;
    std::vector<uint8_t> page;  // empty for zeroes
  };

  static Error ReadOnly() { return Error(Code::kPermissionDenied, "the image is open read-only"); }

  /// A later write replaces what earlier ones said of its pages; a data page is never split, as all
  /// is in whole pages.
  void Cover(const LogWrite& write) {
    if (write.length == 0) return;
    const uint64_t end = write.file_offset + write.length;
    auto at = pieces_.lower_bound(write.file_offset);
    if (at != pieces_.begin()) {
      const auto before = std::prev(at);
      const uint64_t before_end = before->first + before->second.length;
      if (before_end > write.file_offset) {
        before->second.length = write.file_offset - before->first;
        if (before_end > end) pieces_.emplace(end, Piece{before_end - end, {}});
      }
    }
    while (at != pieces_.end() && at->first < end) {
      const uint64_t at_end = at->first + at->second.length;
      if (at_end > end) pieces_.emplace(end, Piece{at_end - end, {}});
      at = pieces_.erase(at);
    }
    pieces_[write.file_offset] = {write.length, write.page};
  }

  std::unique_ptr<BlockFile> file_;
  const uint64_t minimum_bytes_;
  std::map<uint64_t, Piece> pieces_;  // by offset, disjoint
};

}  // namespace

Result<LogReplay> ReadLog(BlockFile& file, const Header& header, uint64_t file_bytes) {
  const LogReader log(file, header);
  Entries entries;
  for (uint64_t start = 0; start < log.size(); start += kLogSector) {
    const auto entry = TRY_CTX(log.EntryAt(start), "reading the log");
    if (entry) entries.emplace(start, *entry);
  }
  const std::vector<uint64_t> sequence = FindActiveSequence(entries, log.size());
  if (sequence.empty())
    return Error(Code::kDataLoss,
                 "its header says that the log has entries, but there is no valid one: the image "
                 "is damaged");
  const LogEntryHeader& last = entries.at(sequence.back());
  if (file_bytes < last.flushed_file_offset)
    return MakeError(Code::kDataLoss,
                     "the file has {} bytes and its log knows of {}: it was cut off", file_bytes,
                     last.flushed_file_offset);
  LogReplay replay;
  replay.last_file_offset = last.last_file_offset;
  uint64_t bytes = 0;
  for (const uint64_t start : sequence)
    TRY_VOID_CTX(log.AppendWrites(start, &replay.writes, &bytes), "reading the log");
  for (const LogWrite& write : replay.writes)
    replay.last_file_offset = std::max(replay.last_file_offset, write.file_offset + write.length);
  if (replay.last_file_offset > kMaxFileBytes)
    return MakeError(Code::kDataLoss, "its log wants a file of {} TiB; this version takes 512",
                     replay.last_file_offset >> 40);
  return replay;
}

Result<void> ReplayInPlace(BlockFile& file, ActiveHeader* active, const LogReplay& replay) {
  // The file is about to change: its write GUID says so first. The log stays named until it is
  // done.
  active->header.file_write_guid = vmm::Guid::Random();
  TRY_VOID(WriteNextHeader(file, active));
  if (TRY(file.Size()) < replay.last_file_offset) TRY_VOID(file.Resize(replay.last_file_offset));
  for (const LogWrite& write : replay.writes) {
    // A hole reads as zeroes too, and a few bytes of a log must not take all of the host's space.
    if (write.page.empty())
      TRY_VOID(file.Zero(write.file_offset, write.length, false));
    else
      TRY_VOID(file.Write(write.page, write.file_offset));
  }
  TRY_VOID(file.Flush());
  active->header.log_guid = {};
  return WriteNextHeader(file, active);
}

std::unique_ptr<BlockFile> ReplayInMemory(std::unique_ptr<BlockFile> file,
                                          const LogReplay& replay) {
  return std::make_unique<OverlaidFile>(std::move(file), replay);
}

}  // namespace kvmbus::virtdev::vhdx
