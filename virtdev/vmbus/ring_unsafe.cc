// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/ring_unsafe.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace kvmbus::virtdev::vmbus {
namespace {

constexpr size_t kIn = 0, kOut = 4, kInterruptMask = 8, kPendingSendSize = 12, kFeatureBits = 64;
constexpr uint32_t kFeatureSupportsPendingSendSize = 1;

struct Descriptor {
  uint16_t type;
  uint16_t offset8;  ///< of the payload, in 8-byte units
  uint16_t length8;  ///< of descriptor and payload
  uint16_t flags;
  uint64_t transaction_id;
};
static_assert(sizeof(Descriptor) == 16);
constexpr uint16_t kFlagCompletionRequested = 1;
constexpr uint32_t kTrailerBytes = 8;

// SAFETY: every ring mapping is at least three pages and page-aligned, so the words of its control
// page exist and are aligned. The guest changes them at any moment: each is loaded once and
// checked.
// Where one side writes a word and then looks at another that the peer writes before it looks at
// ours, both accesses are sequentially consistent: one of the two sees the other's.
std::atomic_ref<uint32_t> Word(const vmm::PageMapping& mapping, size_t offset) {
  const auto bytes = mapping.Piece(offset, sizeof(uint32_t));
  return std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(bytes.data()));
}

// SAFETY: [at, at + size) of the ring's data, which is in the mapping twice, is the caller's to
// check: at < the data's size, size <= it.
template <typename Visit>
void ForEachPiece(const vmm::PageMapping& mapping, size_t at, size_t size, Visit visit) {
  for (at += kRingControlBytes; size != 0;) {
    const auto piece = mapping.Piece(at, size);
    visit(piece);
    size -= piece.size();
    at += piece.size();
  }
}

void Copy(const vmm::PageMapping& mapping, size_t at, std::span<uint8_t> to) {
  ForEachPiece(mapping, at, to.size(), [&to](std::span<const uint8_t> piece) {
    std::memcpy(to.data(), piece.data(), piece.size());
    to = to.subspan(piece.size());
  });
}

void Copy(const vmm::PageMapping& mapping, size_t at, size_t size, std::vector<uint8_t>* to) {
  to->clear();
  ForEachPiece(mapping, at, size, [to](std::span<const uint8_t> piece) {
    to->insert(to->end(), piece.begin(), piece.end());
  });
}

void Put(const vmm::PageMapping& mapping, size_t at, std::span<const uint8_t> bytes) {
  ForEachPiece(mapping, at, bytes.size(), [&bytes](std::span<uint8_t> piece) {
    std::memcpy(piece.data(), bytes.data(), piece.size());
    bytes = bytes.subspan(piece.size());
  });
}

uint32_t DataBytes(const vmm::PageMapping& mapping) {
  return static_cast<uint32_t>((mapping.size() - kRingControlBytes) / 2);
}

uint32_t Distance(uint32_t from, uint32_t to, uint32_t size) {
  return to >= from ? to - from : to + size - from;
}

}  // namespace

vmm::Result<vmm::PageMapping> MapRing(vmm::GuestMemory& memory, std::span<const uint64_t> pfns) {
  if (pfns.size() < 2)
    return vmm::Error(vmm::Code::kInvalidArgument, "a ring needs a control page and data");
  std::vector<uint64_t> pages(pfns.begin(), pfns.end());
  pages.insert(pages.end(), pfns.begin() + 1, pfns.end());
  return memory.MapPages(pages);
}

RingReader::RingReader(vmm::PageMapping mapping, const vmm::GuestMemory& memory)
    : mapping_(std::move(mapping)), memory_(memory), size_(DataBytes(mapping_)) {
  out_ = published_ = Word(mapping_, kOut).load(std::memory_order_relaxed);
  in_ = out_;
  broken_ = out_ >= size_ || out_ % 8 != 0;
  masked_ = Word(mapping_, kInterruptMask).load(std::memory_order_relaxed) != 0;
}

Channel::ReadStatus RingReader::Read(IncomingPacket* packet) {
  using Status = Channel::ReadStatus;
  if (broken_) return Status::kBroken;
  if (in_ == out_) {
    in_ = Word(mapping_, kIn).load(std::memory_order_acquire);
    if (in_ == out_) return Status::kEmpty;
  }
  broken_ = true;  // until the packet turns out to be sound
  if (in_ >= size_ || in_ % 8 != 0) return Status::kBroken;
  const uint32_t available = Distance(out_, in_, size_);
  if (available < sizeof(Descriptor) + kTrailerBytes) return Status::kBroken;
  Descriptor descriptor;
  Copy(mapping_, out_, {reinterpret_cast<uint8_t*>(&descriptor), sizeof(descriptor)});
  const uint32_t length = uint32_t{descriptor.length8} * 8,
                 offset = uint32_t{descriptor.offset8} * 8;
  if (length < sizeof(Descriptor) || length + kTrailerBytes > available || length > kPacketLimit ||
      offset < sizeof(Descriptor) || offset > length)
    return Status::kBroken;
  if ((descriptor.flags & ~kFlagCompletionRequested) != 0) return Status::kBroken;
  packet->type = static_cast<PacketType>(descriptor.type);
  packet->completion_requested = descriptor.flags != 0;
  packet->transaction_id = descriptor.transaction_id;
  Copy(mapping_, out_ + offset, length - offset, &packet->payload);
  switch (packet->type) {
    case PacketType::kInBand:
    case PacketType::kCompletion:
      packet->ranges.clear();
      break;
    case PacketType::kGpaDirect:
      Copy(mapping_, out_ + sizeof(Descriptor), offset - sizeof(Descriptor), &header_);
      if (!ParseRanges(header_, packet)) return Status::kBroken;
      break;
    default:
      return Status::kBroken;
  }
  out_ += length + kTrailerBytes;
  if (out_ >= size_) out_ -= size_;
  broken_ = false;
  return Status::kPacket;
}

bool RingReader::ParseRanges(std::span<const uint8_t> header, IncomingPacket* packet) const {
  uint32_t counts[2];  // reserved, ranges
  if (header.size() < sizeof(counts)) return false;
  std::memcpy(counts, header.data(), sizeof(counts));
  header = header.subspan(sizeof(counts));
  if (counts[1] == 0 || counts[1] > kRangeLimit) return false;
  packet->ranges.resize(counts[1]);  // those that were there keep their memory
  uint64_t all_pages = 0;
  for (GpaRange& range : packet->ranges) {
    uint32_t extent[2];  // bytes, offset
    if (header.size() < sizeof(extent)) return false;
    std::memcpy(extent, header.data(), sizeof(extent));
    header = header.subspan(sizeof(extent));
    if (extent[0] == 0 || extent[1] > 0xfff) return false;
    const uint64_t pages = (uint64_t{extent[0]} + extent[1] + 4095) / 4096;
    all_pages += pages;
    if (all_pages > kRangePagesLimit || header.size() / 8 < pages) return false;
    range.bytes = extent[0];
    range.offset = extent[1];
    range.pfns.resize(pages);
    std::memcpy(range.pfns.data(), header.data(), pages * 8);
    header = header.subspan(pages * 8);
    for (const uint64_t pfn : range.pfns) {
      if (pfn >= uint64_t{1} << 52 || !memory_.Contains(pfn << vmm::kPageShift, vmm::kPageSize))
        return false;
    }
  }
  return true;
}

bool RingReader::Commit() {
  if (broken_ || out_ == published_) return false;
  const uint32_t before = published_;
  Word(mapping_, kOut).store(out_, std::memory_order_seq_cst);
  mapping_.MarkDirty(0, kFeatureBits);
  published_ = out_;
  const uint32_t pending = Word(mapping_, kPendingSendSize).load(std::memory_order_seq_cst) & ~7u;
  if (pending == 0) return false;
  // Read after the wish: a producer that waits stands still, so this is where it stands.
  const uint32_t guest_in = Word(mapping_, kIn).load(std::memory_order_relaxed);
  if (guest_in >= size_ || guest_in % 8 != 0) return false;  // the next Read reports it
  // Signalled once, when the room passes what the blocked producer waits for.
  const uint32_t free_before = size_ - 8 - Distance(before, guest_in, size_);
  const uint32_t free_after = size_ - 8 - Distance(out_, guest_in, size_);
  return free_before < pending && free_after >= pending;
}

void RingReader::DisableSignals() {
  if (masked_) return;
  masked_ = true;
  Word(mapping_, kInterruptMask).store(1, std::memory_order_relaxed);
  mapping_.MarkDirty(0, kFeatureBits);
}

bool RingReader::EnableSignals() {
  if (broken_) return true;
  if (masked_) {
    masked_ = false;
    Word(mapping_, kInterruptMask).store(0, std::memory_order_seq_cst);
    mapping_.MarkDirty(0, kFeatureBits);
  }
  return Word(mapping_, kIn).load(std::memory_order_seq_cst) == out_;
}

bool RingReader::GuestSignalsRoom() const {
  return Word(mapping_, kFeatureBits).load(std::memory_order_relaxed) &
         kFeatureSupportsPendingSendSize;
}

RingWriter::RingWriter(vmm::PageMapping mapping)
    : mapping_(std::move(mapping)), size_(DataBytes(mapping_)) {
  in_ = Word(mapping_, kIn).load(std::memory_order_relaxed);
  if (in_ >= size_ || in_ % 8 != 0)
    in_ = 0;  // a guest that left nonsense there gets a ring that it cannot read
  published_ = in_;
  waiting_ = Word(mapping_, kPendingSendSize).load(std::memory_order_relaxed) != 0;
  Word(mapping_, kFeatureBits).fetch_or(kFeatureSupportsPendingSendSize);
  mapping_.MarkDirty(0, kFeatureBits + 4);
}

uint64_t RingWriter::RingBytes(size_t payload_bytes) {
  return sizeof(Descriptor) + ((uint64_t{payload_bytes} + 7) & ~uint64_t{7}) + kTrailerBytes;
}

uint32_t RingWriter::FreeBytes() {
  const uint32_t out = Word(mapping_, kOut).load(std::memory_order_seq_cst);
  broken_ = out >= size_ || out % 8 != 0;
  if (broken_) return 0;  // the guest gets nothing more until it mends it
  return size_ - 8 - Distance(out, in_, size_);
}

bool RingWriter::HasRoom(size_t payload_bytes, unsigned packets) {
  if (FreeBytes() < RingBytes(payload_bytes) * packets) return false;
  if (waiting_) {
    waiting_ = false;
    Word(mapping_, kPendingSendSize).store(0, std::memory_order_relaxed);
    mapping_.MarkDirty(0, kFeatureBits);
  }
  return true;
}

bool RingWriter::WaitForRoom(size_t payload_bytes, unsigned packets) {
  const uint64_t needed = RingBytes(payload_bytes) * packets;
  const auto wish = static_cast<uint32_t>(std::min<uint64_t>(needed, size_ - 8));
  waiting_ = true;
  Word(mapping_, kPendingSendSize).store(wish, std::memory_order_seq_cst);
  mapping_.MarkDirty(0, kFeatureBits);
  // The guest sees the wish, or we see its room.
  return HasRoom(payload_bytes, packets);
}

bool RingWriter::Write(PacketType type, uint64_t transaction_id, bool completion_requested,
                       std::span<const uint8_t> header, std::span<const uint8_t> payload) {
  const uint64_t bytes = RingBytes(header.size() + payload.size());
  KVMBUS_ASSERT(header.size() % 8 == 0 && bytes <= kPacketLimit + kTrailerBytes);
  if (bytes > FreeBytes()) return false;
  const size_t offset = sizeof(Descriptor) + header.size();
  Descriptor descriptor = {};
  descriptor.type = static_cast<uint16_t>(type);
  descriptor.offset8 = static_cast<uint16_t>(offset / 8);
  descriptor.length8 = static_cast<uint16_t>((bytes - kTrailerBytes) / 8);
  descriptor.flags = completion_requested ? kFlagCompletionRequested : 0;
  descriptor.transaction_id = transaction_id;
  const uint64_t trailer = uint64_t{in_} << 32;
  const auto place = mapping_.Piece(kRingControlBytes + in_, bytes);
  const bool in_a_row = place.size() == bytes;
  if (!in_a_row) packet_.resize(bytes);
  uint8_t* base = in_a_row ? place.data() : packet_.data();
  // SAFETY: in_ < size_ and bytes < size_; the data is in the mapping twice, so nothing wraps.
  std::memcpy(base, &descriptor, sizeof(descriptor));
  if (!header.empty()) std::memcpy(base + sizeof(descriptor), header.data(), header.size());
  if (!payload.empty()) std::memcpy(base + offset, payload.data(), payload.size());
  const size_t padding = bytes - kTrailerBytes - offset - payload.size();
  std::memset(base + offset + payload.size(), 0, padding);
  std::memcpy(base + bytes - kTrailerBytes, &trailer, kTrailerBytes);
  if (!in_a_row) Put(mapping_, in_, packet_);
  mapping_.MarkDirty(kRingControlBytes + in_, bytes);
  in_ += static_cast<uint32_t>(bytes);
  if (in_ >= size_) in_ -= size_;
  return true;
}

bool RingWriter::Commit() {
  if (in_ == published_) return false;
  const uint32_t before = published_;
  Word(mapping_, kIn).store(in_, std::memory_order_seq_cst);
  mapping_.MarkDirty(0, kFeatureBits);
  published_ = in_;
  if (Word(mapping_, kInterruptMask).load(std::memory_order_seq_cst) != 0) return false;
  // Empty before: nobody is on the way to read it.
  return Word(mapping_, kOut).load(std::memory_order_seq_cst) == before;
}

}  // namespace kvmbus::virtdev::vmbus
