// SPDX-License-Identifier: Apache-2.0
// The board's part of saved states: where they come from, and what its disks do about them.
#include <algorithm>

#include "cmd/vmm/board.h"
#include "virtdev/disk/live/live_disk.h"
#include "vmm/config/vm_files.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Error;
using vmm::Result;

void Board::StartReadingSavedState() {
  const std::vector<std::string> files = vmm::SavedStateFilesOf(config_);
  vmm::SavedStatePaths paths{files.front(), files.size() == 1 ? "" : files.back()};
  saved_ = std::async(std::launch::async, [paths = std::move(paths), &memory = *memory_] {
    return vmm::SavedState::Open(paths, memory);
  });
}

Result<void> Board::Restore(std::function<void(const Error&)> failed) {
  const std::string state = vmm::SavedStateFilesOf(config_).front();
  vmm::SavedState saved = TRY(saved_.get());
  auto was = TRY_CTX(vmm::FromFdt(saved.machine.fdt), "saved state '{}'", state);
  if (!vmm::CanGoOnAs(std::move(was), TRY(vmm::FromFdt(fdt_))))
    return vmm::MakeError(Code::kFailedPrecondition,
                          "it was saved with other hardware than it has now; give it the same "
                          "again, or delete the saved state ('{}')",
                          state);
  loader_ = TRY(vmm::RamLoader::Start(*memory_, std::move(saved.ram), vmm::RamLoader::Options(),
                                      std::move(failed)));
  TRY_VOID_CTX(machine_->PowerOnFrom(saved.machine.devices), "saved state '{}'", state);
  // Another one than was saved: a checkpoint was applied, and the guest is to know.
  if (const auto id = vmm::Guid::FromBytes(config_.generation_id())) generation_id_->SetId(*id);
  return {};
}

void Board::PrefetchMemory() {
  if (loader_) loader_->Prefetch();
}

void Board::FinishLoading() {
  if (loader_) loader_->Finish();
}

Result<void> Board::CheckChildren(const worker::CaptureRequest& request) {
  for (const worker::CreateChildRequest& child : request.children()) {
    const Disk* disk = TRY(FindForChange(child.controller(), child.lun()));
    const virtdev::Image& top = disk->io->live()->chain().top();
    if (top.format() == "raw")
      return vmm::MakeError(Code::kFailedPrecondition,
                            "disk '{}' is a raw image, which cannot be part of a checkpoint: shut "
                            "the virtual machine down, and convert it to VHDX with 'vmctl disk "
                            "convert'",
                            disk->path);
  }
  for (const auto& [slot, disk] : disks_) {
    if (disk.change != nullptr) return IsChanging(disk);
    const bool shared = !disk.is_dvd && disk.io != nullptr && disk.io->live() == nullptr;
    if (shared)
      return vmm::MakeError(Code::kFailedPrecondition,
                            "disk '{}' is shared with other virtual machines: it cannot be part of "
                            "a saved state or checkpoint",
                            disk.path);
  }
  return {};
}

Result<CaptureSource::MakeChild> Board::ChildMaker(uint32_t controller, uint32_t lun,
                                                   const std::string& path) {
  Disk* disk = TRY(FindForChange(controller, lun));
  disk->next = std::make_shared<std::optional<virtdev::LiveChild>>();
  return MakeChild([io = disk->io, next = disk->next, path, top = disk->path]() -> Result<void> {
    next->emplace(TRY_CTX(virtdev::PrepareLiveChild(*io->live(), path), "disk '{}'", top));
    return {};
  });
}

Result<void> Board::SwitchToChild(uint32_t controller, uint32_t lun) {
  Disk* disk = TRY(FindForChange(controller, lun));
  KVMBUS_ASSERT(disk->next != nullptr && disk->next->has_value());
  auto switched = virtdev::SwitchToLiveChild(*disk->io->live(), std::move(**disk->next),
                                             Carry(disk->reservations));
  const std::string before = FollowTop(*disk);
  if (switched.ok()) return switched;
  return std::move(switched.error()).WithContext(fmt::format("disk '{}'", before));
}

void Board::DropPreparedChildren() {
  for (auto& [slot, disk] : disks_) disk.next.reset();
}

Result<void> Board::FlushDisks() {
  for (auto& [slot, disk] : disks_) {
    if (disk.is_dvd || disk.io == nullptr || disk.io->live() == nullptr) continue;
    virtdev::LiveChain& live = *disk.io->live();
    TRY_VOID_CTX(live.Hold([&live] { return live.chain().top().Flush(); }), "disk '{}'", disk.path);
  }
  return {};
}

}  // namespace kvmbus::cmd
