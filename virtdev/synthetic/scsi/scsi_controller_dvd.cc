// SPDX-License-Identifier: Apache-2.0
// DVD drives, and the discs that come and go while the guest runs.
#include "virtdev/synthetic/scsi/detach_ticket.h"
#include "virtdev/synthetic/scsi/scsi_controller.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

namespace {

/// Guests know the drive by it, whatever disc is in it.
vmm::Guid DriveId(vmm::Guid controller, uint8_t lun) {
  controller.bytes[14] ^= 0xd5;
  controller.bytes[15] ^= lun;
  return controller;
}

}  // namespace

Result<void> SyntheticScsiController::AttachDvd(uint8_t lun, std::shared_ptr<DiskIo> medium) {
  TRY_VOID(CheckFree(lun));
  if (medium != nullptr)
    TRY_VOID_CTX(ScsiDvd::CheckMedium(medium->info()), "LUN {} of '{}'", lun, options_.name);
  auto unit =
      std::make_shared<ScsiDvd>(DriveId(options_.instance_id, lun), [this, alive = alive_, lun] {
        main_loop_.Post([this, alive, lun] {
          if (*alive) OnTrayOpened(lun);
        });
      });
  if (medium != nullptr) {
    (void)unit->SetMedium(std::move(medium));
    unit->Reset();  // it was in when the drive came: no change of discs
  }
  units_[lun].dvd = std::move(unit);
  Insert(lun);
  return {};
}

Result<void> SyntheticScsiController::InsertMedium(uint8_t lun, std::shared_ptr<DiskIo> medium,
                                                   DetachDone done) {
  const auto at = units_.find(lun);
  if (at == units_.end() || at->second.dvd == nullptr)
    return MakeError(Code::kNotFound, "LUN {} of '{}' has no DVD drive", lun, options_.name);
  TRY_VOID_CTX(ScsiDvd::CheckMedium(medium->info()), "LUN {} of '{}'", lun, options_.name);
  if (at->second.dvd->IsHeld())
    return MakeError(Code::kFailedPrecondition,
                     "the guest holds the disc that is in the drive; eject that one first");
  SwapMedium(lun, std::move(medium), std::move(done));
  return {};
}

void SyntheticScsiController::EjectMedium(uint8_t lun, bool force, EjectDone done) {
  const auto at = units_.find(lun);
  if (at == units_.end() || at->second.dvd == nullptr)
    return done(MakeError(Code::kNotFound, "LUN {} of '{}' has no DVD drive", lun, options_.name));
  // Who asked before hears of it now: the disc goes, or somebody else waits for it.
  FinishEject(lun, vmm::Error(Code::kAborted, "the disc was asked for a second time"));
  if (force || at->second.dvd->RequestRemoval())
    return SwapMedium(lun, nullptr, [done = std::move(done)](std::shared_ptr<DiskIo> medium) {
      done(std::move(medium));
    });
  PendingEject& pending = ejects_[lun];
  pending.done = std::move(done);
  pending.timer = main_loop_.AddTimer(options_.eject_wait_ns, [this, lun] {
    ejects_.at(lun).timer = 0;
    FinishEject(lun, vmm::Error(Code::kFailedPrecondition,
                                "the guest was asked for the disc and did not let it go; unmount "
                                "it there, or force it out (--force)"));
  });
}

void SyntheticScsiController::OnTrayOpened(uint8_t lun) {
  const auto at = ejects_.find(lun);
  if (at == ejects_.end()) return;
  SwapMedium(lun, nullptr,
             [done = at->second.done](std::shared_ptr<DiskIo> medium) { done(std::move(medium)); });
  main_loop_.CancelTimer(at->second.timer);
  ejects_.erase(at);
}

void SyntheticScsiController::FinishEject(uint8_t lun,
                                          const Result<std::shared_ptr<DiskIo>>& result) {
  const auto at = ejects_.find(lun);
  if (at == ejects_.end()) return;
  const PendingEject pending = std::move(at->second);
  ejects_.erase(at);
  main_loop_.CancelTimer(pending.timer);
  pending.done(result);
}

/// Channels still have queues of the old disc until their loops come to it; its reads end well.
void SyntheticScsiController::SwapMedium(uint8_t lun, std::shared_ptr<DiskIo> medium,
                                         DetachDone done) {
  std::shared_ptr<DiskIo> before = units_.at(lun).dvd->SetMedium(medium);
  auto ticket = std::make_shared<DetachTicket>(main_loop_, std::move(before), std::move(done));
  PostToChannels(
      [lun, medium, ticket](ScsiChannel& channel) { channel.ReplaceMedium(lun, medium, ticket); });
}

}  // namespace kvmbus::virtdev
