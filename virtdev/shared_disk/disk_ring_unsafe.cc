// SPDX-License-Identifier: Apache-2.0
#include "virtdev/shared_disk/disk_ring_unsafe.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::Error;
using vmm::Result;

/// One writer, one reader; what each writes has a cache line of its own.
struct DiskRing::Direction {
  alignas(64) std::atomic<uint32_t> tail;    ///< the writer's count
  alignas(64) std::atomic<uint32_t> asleep;  ///< the reader waits for the doorbell
  alignas(64) std::array<std::atomic<uint32_t>, kSlots> slots;
};

struct DiskRing::Slot {
  Command command;
  alignas(8) Outcome outcome;
  alignas(64) std::array<Segment, kMaxSegments> segments;
};

struct DiskRing::Layout {
  Direction submitted, completed;
  alignas(64) std::atomic<uint32_t> interrupt;
  alignas(64) std::array<Slot, kSlots> slots;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free);

Result<std::unique_ptr<DiskRing>> DiskRing::Map(vmm::Fd memfd, bool client) {
  void* base = ::mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, MAP_SHARED, memfd.get(), 0);
  if (base == MAP_FAILED) return Error::FromErrno(errno, "mapping a shared disk's ring");
  // SAFETY: the file is as long as a Layout, all of whose values are valid whatever the bytes.
  return std::unique_ptr<DiskRing>(
      new DiskRing(std::move(memfd), static_cast<Layout*>(base), client));
}

Result<std::unique_ptr<DiskRing>> DiskRing::Create() {
  vmm::Fd memfd(::memfd_create("disk-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memfd.valid()) return Error::FromErrno(errno, "memfd_create for a shared disk's ring");
  if (::ftruncate(memfd.get(), sizeof(Layout)) < 0 ||
      ::fcntl(memfd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
    return Error::FromErrno(errno, "sizing a shared disk's ring");
  return Map(std::move(memfd), true);
}

Result<std::unique_ptr<DiskRing>> DiskRing::Adopt(vmm::Fd memfd) {
  const int seals = ::fcntl(memfd.get(), F_GET_SEALS);
  struct stat status = {};
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || ::fstat(memfd.get(), &status) < 0 ||
      status.st_size != static_cast<off_t>(sizeof(Layout)))
    return Error(Code::kInvalidArgument, "no sealed memory file of a ring's size");
  return Map(std::move(memfd), false);
}

DiskRing::DiskRing(vmm::Fd memfd, Layout* layout, bool client)
    : memfd_(std::move(memfd)),
      layout_(layout),
      out_(client ? layout->submitted : layout->completed),
      in_(client ? layout->completed : layout->submitted) {
  in_.asleep.store(1);
}

DiskRing::~DiskRing() { ::munmap(layout_, sizeof(Layout)); }

bool DiskRing::PutCommand(uint32_t slot, Command command, const GuestBuffer& data) {
  const std::span<const iovec> pieces = data.iov();
  if (pieces.size() > kMaxSegments) return false;
  Slot& to = layout_->slots[slot];
  command.segments = static_cast<uint16_t>(pieces.size());
  // SAFETY: our own slot; nothing that is written here is read back.
  std::memcpy(&to.command, &command, sizeof(command));
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Segment segment = {data.gpas()[i], pieces[i].iov_len};
    std::memcpy(&to.segments[i], &segment, sizeof(segment));
  }
  return true;
}

DiskRing::Outcome DiskRing::TakeOutcome(uint32_t slot) const {
  Outcome outcome;
  // SAFETY: a copy; the caller checks it.
  std::memcpy(&outcome, &layout_->slots[slot].outcome, sizeof(outcome));
  return outcome;
}

void DiskRing::Interrupt() { layout_->interrupt.store(1); }

bool DiskRing::TakeInterrupt() {
  return layout_->interrupt.load(std::memory_order_relaxed) != 0 &&
         layout_->interrupt.exchange(0) != 0;
}

bool DiskRing::TakeCommand(uint32_t slot, Command* command, std::vector<Segment>* segments) const {
  const Slot& from = layout_->slots[slot];
  // SAFETY: copies, of as many segments as the copy of the command says and a slot has.
  std::memcpy(command, &from.command, sizeof(*command));
  if (command->segments > kMaxSegments) return false;
  segments->resize(command->segments);
  if (!segments->empty())
    std::memcpy(segments->data(), from.segments.data(), segments->size() * sizeof(Segment));
  return true;
}

void DiskRing::PutOutcome(uint32_t slot, const Outcome& outcome) {
  // SAFETY: nothing that is written here is read back.
  std::memcpy(&layout_->slots[slot].outcome, &outcome, sizeof(outcome));
}

void DiskRing::Push(uint32_t slot) {
  out_.slots[pushed_ % kSlots].store(slot, std::memory_order_relaxed);
  ++pushed_;
}

// Sequentially consistent on both sides: either the reader sees the new tail before it sleeps, or
// the writer sees that it sleeps.

bool DiskRing::Publish() {
  out_.tail.store(pushed_);
  return out_.asleep.load() != 0 && out_.asleep.exchange(0) != 0;
}

DiskRing::Popped DiskRing::Pop(uint32_t* slot) {
  const uint32_t waiting = in_.tail.load() - popped_;
  if (waiting == 0) return Popped::kNothing;
  if (waiting > kSlots) return Popped::kBroken;
  *slot = in_.slots[popped_ % kSlots].load(std::memory_order_relaxed);
  ++popped_;
  return *slot < kSlots ? Popped::kSlot : Popped::kBroken;
}

bool DiskRing::Sleep() {
  in_.asleep.store(1);
  if (in_.tail.load() == popped_) return true;
  in_.asleep.store(0, std::memory_order_relaxed);
  return false;
}

}  // namespace kvmbus::virtdev
