// SPDX-License-Identifier: Apache-2.0
// The board's disks that other processes own.
#include <filesystem>

#include "cmd/vmm/board.h"
#include "virtdev/shared_disk/remote_disk.h"

namespace kvmbus::cmd {

using vmm::Result;

Result<void> Board::AttachShared(const config::Disk& disk) {
  // The folders of the disks' owners lie beside those of the machines.
  const std::string beside =
      std::filesystem::absolute(run_dir_).lexically_normal().parent_path().string();
  virtdev::RemoteDisk::Options options;
  options.socket_path = vmm::shared_disk::OwnerFolder(beside, disk.path()) + "/owner.sock";
  options.initiator = vmm::Guid::Parse(config_.id()).value_or(vmm::Guid());
  std::shared_ptr<virtdev::RemoteDisk> io =
      TRY_CTX(virtdev::RemoteDisk::Connect(std::move(options), *memory_, loop_),
              "connecting to the owner of shared disk '{}'", disk.path());
  if (disk.has_qos()) TRY_VOID_CTX(LimitDisk(*io, disk.qos()), "disk '{}'", disk.path());
  TRY_VOID_CTX(
      controllers_[disk.controller()]->AttachSharedDisk(static_cast<uint8_t>(disk.lun()), io),
      "attaching shared disk '{}'", disk.path());
  disks_[{disk.controller(), disk.lun()}] = {std::move(io), disk.path()};
  return {};
}

}  // namespace kvmbus::cmd
