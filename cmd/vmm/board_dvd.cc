// SPDX-License-Identifier: Apache-2.0
// The board's DVD drives.
#include "cmd/vmm/board.h"
#include "vmm/os/log.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Result;

namespace {

Result<std::shared_ptr<virtdev::DiskIo>> OpenDisc(const std::string& path) {
  virtdev::DiskOpenOptions options;
  options.read_only = true;
  options.caching = virtdev::DiskCaching::kBuffered;  // many drives may have the same disc
  std::shared_ptr<virtdev::DiskIo> io =
      TRY_CTX(virtdev::OpenDisk(path, options), "opening disc '{}'", path);
  if (io->format() == "raw") return io;
  const std::string format(io->format());
  (void)io->Close();
  return vmm::MakeError(Code::kInvalidArgument, "'{}' is a {} image; a DVD drive takes ISO images",
                        path, format);
}

/// The last words on a disc that is out.
Result<void> CloseDisc(const std::shared_ptr<virtdev::DiskIo>& io) {
  if (io == nullptr) return {};
  TRY_VOID_CTX(io->Close(), "closing the disc that was in the drive");
  return {};
}

}  // namespace

Result<void> Board::AttachDvd(const config::Disk& drive) {
  std::shared_ptr<virtdev::DiskIo> disc;
  if (!drive.path().empty()) {
    auto opened = OpenDisc(drive.path());
    // Memory is worth more than a disc: its guest goes on, and finds the drive empty.
    const bool may_be_gone =
        config_.saved() && !opened.ok() && opened.error().code() == Code::kNotFound;
    if (!opened.ok() && !may_be_gone) return std::move(opened.error());
    if (opened.ok())
      disc = std::move(opened).value();
    else
      spdlog::warn("{}; the drive is empty now", opened.error().ToString());
  }
  TRY_VOID_CTX(controllers_[drive.controller()]->AttachDvd(static_cast<uint8_t>(drive.lun()), disc),
               "attaching a DVD drive with '{}'", drive.path());
  disks_[{drive.controller(), drive.lun()}] = {std::move(disc), drive.path(), true};
  return {};
}

Result<void> Board::CheckDvd(uint32_t controller, uint32_t lun) const {
  const auto at = disks_.find({controller, lun});
  if (at != disks_.end() && at->second.is_dvd) return {};
  return vmm::MakeError(Code::kNotFound, "SCSI controller {} has no DVD drive at location {}",
                        controller, lun);
}

void Board::InsertDvd(uint32_t controller, uint32_t lun, const std::string& path, Done done) {
  if (auto found = CheckDvd(controller, lun); !found.ok()) return done(found);
  auto disc = OpenDisc(path);
  if (!disc.ok()) return done(std::move(disc.error()));
  auto inserted = controllers_[controller]->InsertMedium(
      static_cast<uint8_t>(lun), *disc,
      [done](const std::shared_ptr<virtdev::DiskIo>& before) { done(CloseDisc(before)); });
  if (!inserted.ok()) {
    (void)(*disc)->Close();
    return done(std::move(inserted.error()).WithContext(fmt::format("inserting '{}'", path)));
  }
  disks_[{controller, lun}] = {*disc, path, true};
}

void Board::EjectDvd(uint32_t controller, uint32_t lun, bool force, Done done) {
  if (auto found = CheckDvd(controller, lun); !found.ok()) return done(found);
  controllers_[controller]->EjectMedium(
      static_cast<uint8_t>(lun), force,
      [this, controller, lun, done](const Result<std::shared_ptr<virtdev::DiskIo>>& disc) {
        if (!disc.ok()) return done(disc.error());
        // Another disc may be in the drive by now, or the drive gone.
        const auto at = disks_.find({controller, lun});
        if (at != disks_.end() && at->second.io == *disc) at->second = {nullptr, "", true};
        done(CloseDisc(*disc));
      });
}

}  // namespace kvmbus::cmd
