// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "vmm/os/log.h"
#include "vmm/os/thread.h"
#include "vmm/saved_state/block_codec.h"
#include "vmm/saved_state/ram_loader.h"

namespace kvmbus::vmm {
namespace {

/// Read around a page that somebody waits for.
constexpr uint64_t kFaultBytes = 64u << 10;

}  // namespace

Result<std::unique_ptr<RamLoader>> RamLoader::Start(GuestMemory& memory, RamSource source,
                                                    const Options& options, Failed failed) {
  if (source.places.size() != memory.ram_bytes() / kRamBlockBytes)
    return Error(Code::kDataLoss, "the saved memory has another size than the machine's");
  std::unique_ptr<RamLoader> self(
      new RamLoader(memory, std::move(source), options, std::move(failed)));
  if (options.lazy) {
    const auto armed = self->Arm();
    if (armed.ok()) return self;
    spdlog::warn("all memory is read before the start: {}", armed.error().ToString());
    self->userfault_.reset();
  }
  for (uint64_t block = 0; block < self->source_.places.size(); ++block) {
    if (!self->source_.places[block]) continue;
    // SAFETY: a block of the memory.
    uint8_t* target = memory.base() + block * kRamBlockBytes;
    TRY_VOID(self->ReadBlock(*self->source_.places[block],
                             {target, static_cast<size_t>(kRamBlockBytes)}));
  }
  return self;
}

RamLoader::RamLoader(GuestMemory& memory, RamSource source, const Options& options, Failed failed)
    : memory_(memory),
      source_(std::move(source)),
      options_(options),
      failed_(std::move(failed)),
      unit_blocks_(BlocksTogether(memory)) {}

RamLoader::~RamLoader() {
  abandoned_ = true;
  if (stop_.valid()) SignalEventFd(stop_.get());
  Finish();
  memory_.SetBeforeMapping(nullptr);
}

Result<void> RamLoader::Arm() {
  userfault_ = TRY(Userfault::Create(memory_.host_page_bytes()));
  TRY_VOID(userfault_->Register(reinterpret_cast<uint64_t>(memory_.base()), memory_.ram_bytes(),
                                Userfault::Kind::kMissing));
  stop_ = TRY(CreateEventFd());
  memory_.SetBeforeMapping([](uint64_t address) {
    // SAFETY: a page of the memory; the look makes it come.
    (void)*reinterpret_cast<const volatile uint8_t*>(address);
  });
  fault_thread_ = std::thread([this] {
    NameThisThread("work/faults");
    ServeFaults();
  });
  return {};
}

void RamLoader::Prefetch() {
  const std::unique_lock lock(threads_mutex_, std::try_to_lock);
  if (lock && userfault_) StartPrefetching();  // else Finish() holds it, and did so
}

void RamLoader::StartPrefetching() {
  if (std::exchange(prefetch_began_, true)) return;
  prefetching_ = options_.prefetch_threads;
  for (unsigned i = 0; i < options_.prefetch_threads; ++i) {
    prefetch_threads_.emplace_back([this, i] {
      NameThisThread(fmt::format("work/load{}", i));
      LetOthersFirst();
      PrefetchUnits();
    });
  }
}

void RamLoader::Fail(const Error& error) {
  if (!has_failed_.exchange(true)) failed_(error);
}

void RamLoader::PrefetchUnits() {
  std::vector<uint8_t> buffer;
  for (uint64_t unit; (unit = next_unit_.fetch_add(1)) < memory_.ram_bytes() / unit_bytes();) {
    if (abandoned_) return;
    const auto loaded = LoadUnit(unit, &buffer);
    if (!loaded.ok()) return Fail(loaded.error());
  }
  if (prefetching_.fetch_sub(1) == 1 && !has_failed_) Disarm();
}

/// Nothing is missing any more but what is zero anyway.
void RamLoader::Disarm() {
  memory_.SetBeforeMapping(nullptr);
  (void)userfault_->Unregister(reinterpret_cast<uint64_t>(memory_.base()), memory_.ram_bytes());
  SignalEventFd(stop_.get());
}

Result<void> RamLoader::ReadBlock(const RamPlace& place, std::span<uint8_t> block) const {
  if (place.compressed_bytes == 0) {
    TRY_VOID_CTX(PReadAll(source_.file.get(), block, place.offset), "reading saved memory");
    return {};
  }
  std::vector<uint8_t> compressed(place.compressed_bytes);
  TRY_VOID_CTX(PReadAll(source_.file.get(), compressed, place.offset), "reading saved memory");
  return DecompressBlock(compressed, block);
}

/// What is zero may stay missing.
Result<void> RamLoader::LoadUnit(uint64_t unit, std::vector<uint8_t>* buffer) {
  const auto first = source_.places.begin() + static_cast<ptrdiff_t>(unit * unit_blocks_);
  if (std::none_of(first, first + static_cast<ptrdiff_t>(unit_blocks_),
                   [](const auto& place) { return place.has_value(); }))
    return {};
  return FillUnit(unit, buffer);
}

Result<void> RamLoader::FillUnit(uint64_t unit, std::vector<uint8_t>* buffer) {
  buffer->resize(unit_bytes());
  for (uint64_t i = 0; i < unit_blocks_; ++i) {
    const auto block = std::span(*buffer).subspan(i * kRamBlockBytes, kRamBlockBytes);
    const auto& place = source_.places[unit * unit_blocks_ + i];
    if (place)
      TRY_VOID(ReadBlock(*place, block));
    else
      std::ranges::fill(block, uint8_t{0});
  }
  return userfault_->Fill(reinterpret_cast<uint64_t>(memory_.base()) + unit * unit_bytes(),
                          *buffer);
}

void RamLoader::ServeFaults() {
  while (const auto fault = userfault_->Wait(stop_.get())) {
    const auto served = Serve(fault->address);
    if (!served.ok()) return Fail(served.error());
  }
}

Result<void> RamLoader::Serve(uint64_t address) {
  const uint64_t base = reinterpret_cast<uint64_t>(memory_.base());
  const uint64_t offset = address - base;
  const auto place = source_.places[offset / kRamBlockBytes];
  const bool is_huge = memory_.host_page_bytes() != kPageSize;
  if (is_huge || (place && place->compressed_bytes != 0)) {  // there is no part of it
    std::vector<uint8_t> unit;
    return FillUnit(offset / unit_bytes(), &unit);
  }
  if (!place) return userfault_->FillZero(address, kPageSize);
  const uint64_t around = offset & ~(kFaultBytes - 1);
  std::vector<uint8_t> buffer(kFaultBytes);
  TRY_VOID_CTX(PReadAll(source_.file.get(), buffer, place->offset + around % kRamBlockBytes),
               "reading saved memory");
  return userfault_->Fill(base + around, buffer);
}

void RamLoader::Finish() {
  const std::lock_guard lock(threads_mutex_);
  if (userfault_ && !abandoned_) StartPrefetching();
  for (std::thread& thread : prefetch_threads_) thread.join();
  prefetch_threads_.clear();
  if (fault_thread_.joinable()) fault_thread_.join();
}

}  // namespace kvmbus::vmm
