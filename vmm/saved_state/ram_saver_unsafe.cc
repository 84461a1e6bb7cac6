// SPDX-License-Identifier: Apache-2.0
#include <isa-l/mem_routines.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "vmm/os/log.h"
#include "vmm/os/thread.h"
#include "vmm/saved_state/block_codec.h"
#include "vmm/saved_state/ram_saver.h"

namespace kvmbus::vmm {
namespace {

/// A rest of this many pages, 2 MiB, is written while the guest is stopped: a millisecond or two.
constexpr uint64_t kSmallRest = 512;
constexpr int kLivePasses = 4;
/// From here on it takes less to have the disk read guest memory than to copy it.
constexpr uint64_t kDirectBytes = 256u << 10;

bool IsZero(const uint8_t* bytes, uint64_t size) {
  // SAFETY: the caller's range; isa-l reads it only.
  return isal_zero_detect(const_cast<uint8_t*>(bytes), size) == 0;
}

}  // namespace

RamSaver::RamSaver(GuestMemory& memory, DirtyTracker& tracker, RamTarget& target,
                   const Options& options, Progress progress)
    : memory_(memory),
      tracker_(tracker),
      target_(target),
      options_(options),
      progress_(std::move(progress)),
      unit_blocks_(BlocksTogether(memory)),
      backed_(memory.ram_pages()),
      rest_(memory.ram_pages()),
      claims_(memory.ram_bytes() / unit_bytes()) {
  KVMBUS_ASSERT(memory.ram_bytes() % unit_bytes() == 0);
}

RamSaver::~RamSaver() {
  EndFaults();
  if (!tracking_) return;
  memory_.StopDirtyTracking();
  tracker_.StopTracking();
}

bool RamSaver::Report(uint64_t done) { return !progress_ || progress_(done, memory_.ram_bytes()); }

/// All blocks, on several threads, in about their order.
Result<void> RamSaver::ForEachBlock(const std::function<Result<void>(uint64_t)>& work) {
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  Result<void> result;
  const auto run = [&] {
    for (uint64_t block; (block = next.fetch_add(1)) < blocks();) {
      auto done = work(block);
      if (done.ok()) continue;
      const std::lock_guard lock(mutex);
      if (result.ok()) result = std::move(done);
      next = blocks();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < options_.threads; ++i) {
    threads.emplace_back([&run, i] {
      NameThisThread(fmt::format("work/save{}", i));
      run();
    });
  }
  run();
  for (std::thread& thread : threads) thread.join();
  return result;
}

Result<void> RamSaver::CopyLive() {
  tracking_ = true;
  memory_.StartDirtyTracking();
  TRY_VOID(tracker_.StartTracking());
  FindBacked();
  std::atomic<uint64_t> copied{0};
  TRY_VOID(ForEachBlock([&](uint64_t block) -> Result<void> {
    if (!Report((copied += kRamBlockBytes) - kRamBlockBytes))
      return Error(Code::kCancelled, "cancelled");
    return options_.compress ? SaveCompressed(block) : SaveBacked(block, false);
  }));
  uint64_t before = memory_.ram_pages();
  for (int pass = 1; pass < kLivePasses; ++pass) {
    TRY_VOID(TakeDirty(false));
    const uint64_t left = rest_.Count();
    // Also when the guest writes as fast as we do: more passes would only write more.
    if (left <= kSmallRest || left > before / 4 * 3) break;
    before = left;
    TRY_VOID(ForEachBlock([&](uint64_t block) -> Result<void> {
      if (!Report(memory_.ram_bytes())) return Error(Code::kCancelled, "cancelled");
      return SavePages(block, false);
    }));
  }
  return {};
}

Result<void> RamSaver::TakeDirty(bool last) {
  TRY_VOID(tracker_.TakeDirtyPages(&rest_, last));
  memory_.TakeDirtyPages(&rest_);
  backed_.AddAll(rest_);
  return {};
}

/// Once: the search for the end of a range does not stop at the end of a block. What the guest
/// touches first from here on is a changed page.
void RamSaver::FindBacked() {
  for (uint64_t at = 0; at < memory_.ram_bytes();) {
    const auto backed = memory_.NextBackedInFile(at, memory_.ram_bytes() - at);
    if (!backed) break;
    backed_.AddRange(backed->offset / kPageSize, backed->size / kPageSize);
    at = backed->offset + backed->size;
  }
}

Result<void> RamSaver::SaveBacked(uint64_t block, bool somebody_waits) {
  const uint64_t end = (block + 1) * kRamBlockPages;
  auto run = backed_.NextRun(block * kRamBlockPages, end);
  for (; !run.empty(); run = backed_.NextRun(run.end, end))
    TRY_VOID(WriteUnlessZero(block, run, somebody_waits));
  return {};
}

/// The block as it is now; false: it is zero.
bool RamSaver::ReadBlock(uint64_t block, std::vector<uint8_t>* content) {
  content->assign(kRamBlockBytes, 0);
  bool any = false;
  const uint64_t first = block * kRamBlockPages, end = first + kRamBlockPages;
  for (auto run = backed_.NextRun(first, end); !run.empty(); run = backed_.NextRun(run.end, end)) {
    // SAFETY: a range of the memory and the same one of the block.
    std::memcpy(content->data() + (run.first - first) * kPageSize,
                memory_.base() + run.first * kPageSize, run.pages() * kPageSize);
    any = true;
  }
  return any && !IsZero(content->data(), content->size());
}

Result<void> RamSaver::SaveCompressed(uint64_t block) {
  thread_local BlockCompressor compressor;
  thread_local std::vector<uint8_t> content, compressed;
  // Of a copy: the guest may change the memory meanwhile.
  if (!ReadBlock(block, &content)) {
    if (target_.HasPlace(block)) TRY_VOID(target_.Place(block));  // a new one: zeroes
    return {};
  }
  if (!compressor.Compress(content, &compressed)) return SaveBacked(block, false);
  bytes_written_ += compressed.size();
  return target_.PutCompressed(block, compressed);
}

/// The block's pages of the rest, which are not of it any more.
Result<void> RamSaver::SavePages(uint64_t block, bool somebody_waits) {
  const uint64_t first = block * kRamBlockPages;
  if (!rest_.AnyIn(first, kRamBlockPages)) return {};
  if (target_.IsCompressed(block)) {
    rest_.RemoveRange(first, kRamBlockPages);
    if (!somebody_waits) return SaveCompressed(block);
    TRY_VOID(target_.Place(block));
    return SaveBacked(block, true);
  }
  const uint64_t end = first + kRamBlockPages;
  for (auto run = rest_.NextRun(first, end); !run.empty(); run = rest_.NextRun(run.end, end)) {
    rest_.RemoveRange(run.first, run.pages());
    TRY_VOID(WriteUnlessZero(block, run, somebody_waits));
  }
  return {};
}

/// Those of them that are in `mapped`, which has some of the block's; all of a compressed block,
/// for it is written as a whole, and what is mapped would be of another instant later.
Result<void> RamSaver::SaveMapped(uint64_t block, const PageSet& mapped) {
  const uint64_t first = block * kRamBlockPages, end = first + kRamBlockPages;
  if (target_.IsCompressed(block)) return SavePages(block, true);
  for (auto run = mapped.NextRun(first, end); !run.empty(); run = mapped.NextRun(run.end, end)) {
    for (auto rest = rest_.NextRun(run.first, run.end); !rest.empty();
         rest = rest_.NextRun(rest.end, run.end)) {
      rest_.RemoveRange(rest.first, rest.pages());
      TRY_VOID(WriteUnlessZero(block, rest, true));
    }
  }
  return {};
}

/// Nothing is what a block without a place has.
Result<void> RamSaver::WriteUnlessZero(uint64_t block, const PageSet::Run& pages,
                                       bool somebody_waits) {
  // SAFETY: a range of the memory. The guest may change it meanwhile: then it is written again.
  const std::span<const uint8_t> bytes(memory_.base() + pages.first * kPageSize,
                                       pages.pages() * kPageSize);
  if (!target_.HasPlace(block) && IsZero(bytes.data(), bytes.size())) return {};
  const uint64_t place =
      TRY(target_.Place(block)) + (pages.first - block * kRamBlockPages) * kPageSize;
  const bool direct = bytes.size() >= kDirectBytes && !somebody_waits && target_.direct_fd() >= 0;
  // Where that fails, the other way is tried, and says why.
  if (!direct || !PWriteAll(target_.direct_fd(), bytes, place).ok())
    TRY_VOID_CTX(PWriteAll(target_.fd(), bytes, place), "writing guest memory");
  bytes_written_ += bytes.size();
  return {};
}

/// For the rest, which is of these blocks: a compressed one is written as a whole.
uint64_t RamSaver::PagesToWrite(std::span<const uint64_t> rest) const {
  uint64_t pages = 0;
  for (const uint64_t block : rest)
    pages += target_.IsCompressed(block) ? kRamBlockPages
                                         : rest_.CountIn(block * kRamBlockPages, kRamBlockPages);
  return pages;
}

/// Looks at nothing but the rest: the guest is stopped for as long whatever the memory's size.
Result<void> RamSaver::HoldRest() {
  TRY_VOID(TakeDirty(true));
  if (!options_.copy_on_write) return {};
  const std::vector<uint64_t> rest = rest_.Blocks(kRamBlockPages);
  if (PagesToWrite(rest) <= kSmallRest) {
    for (const uint64_t block : rest) TRY_VOID(SavePages(block, true));
    return {};
  }
  const auto protect = ProtectRest();
  if (protect.ok()) return {};
  spdlog::warn("the guest waits until its memory is saved: {}", protect.error().ToString());
  EndFaults();
  return ForEachBlock([this](uint64_t block) { return SavePages(block, true); });
}

/// Pages that are mapped elsewhere too are written at once: there they could be changed unseen.
Result<void> RamSaver::ProtectRest() {
  const auto base = reinterpret_cast<uint64_t>(memory_.base());
  userfault_ = TRY(Userfault::Create(memory_.host_page_bytes()));
  TRY_VOID(userfault_->Register(base, memory_.ram_bytes(), Userfault::Kind::kWriteProtect));
  PageSet mapped(memory_.ram_pages());
  memory_.AddMappedPages(&mapped);
  for (const uint64_t block : mapped.Blocks(kRamBlockPages)) TRY_VOID(SaveMapped(block, mapped));
  const std::vector<uint64_t> units = rest_.Blocks(unit_pages());
  for (size_t i = 0; i < units.size();) {
    const uint64_t first = units[i];
    uint64_t end = first;
    for (; i < units.size() && units[i] == end; ++i) ++end;
    TRY_VOID(userfault_->WriteProtect(base + first * unit_bytes(), (end - first) * unit_bytes()));
  }
  stop_ = TRY(CreateEventFd());
  fault_thread_ = std::thread([this] { ServeFaults(); });
  return {};
}

void RamSaver::ServeFaults() {
  NameThisThread("work/faults");
  const auto base = reinterpret_cast<uint64_t>(memory_.base());
  while (const auto fault = userfault_->Wait(stop_.get())) {
    const uint64_t unit = (fault->address - base) / unit_bytes();
    if (SaveClaimed(unit, true).ok() && claims_[unit] != kSaved)
      continue;  // who has it will wake them
    // In the file, or it will never be: the guest goes on.
    if (claims_[unit] != kSaved) fault_failed_ = true;
    (void)Unprotect(unit);
  }
}

Result<void> RamSaver::Unprotect(uint64_t unit) {
  return userfault_->Unprotect(reinterpret_cast<uint64_t>(memory_.base()) + unit * unit_bytes(),
                               unit_bytes());
}

/// Saves the unit unless somebody else does or did.
Result<void> RamSaver::SaveClaimed(uint64_t unit, bool somebody_waits) {
  uint8_t expected = kFree;
  if (!claims_[unit].compare_exchange_strong(expected, kTaken)) return {};
  const bool is_protected = rest_.AnyIn(unit * unit_pages(), unit_pages());
  for (uint64_t block = unit * unit_blocks_; block < (unit + 1) * unit_blocks_; ++block) {
    auto saved = SavePages(block, somebody_waits);
    if (saved.ok()) continue;
    claims_[unit] = kFree;
    return saved;
  }
  claims_[unit] = kSaved;
  return is_protected ? Unprotect(unit) : Result<void>();
}

Result<void> RamSaver::CopyRest() {
  const bool is_protected = userfault_.has_value();
  auto saved = ForEachBlock([&](uint64_t block) -> Result<void> {
    if (!Report(memory_.ram_bytes())) return Error(Code::kCancelled, "cancelled");
    if (!is_protected) return SavePages(block, false);
    if (block % unit_blocks_ != 0) return {};  // the unit's first did it
    return SaveClaimed(block / unit_blocks_, false);
  });
  EndFaults();
  if (saved.ok() && fault_failed_) saved = Error(Code::kUnavailable, "writing guest memory failed");
  return saved;
}

void RamSaver::EndFaults() {
  if (!userfault_) return;
  if (fault_thread_.joinable()) {
    SignalEventFd(stop_.get());
    fault_thread_.join();
  }
  (void)userfault_->Unregister(reinterpret_cast<uint64_t>(memory_.base()), memory_.ram_bytes());
  userfault_.reset();  // whoever waits still goes on
}

}  // namespace kvmbus::vmm
