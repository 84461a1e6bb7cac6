// SPDX-License-Identifier: Apache-2.0
// Storage QoS of the board's disks.
#include "cmd/vmm/board.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Result;

Result<void> Board::SetDiskQos(uint32_t controller, uint32_t lun, const config::DiskQos& qos) {
  const auto at = disks_.find({controller, lun});
  if (at == disks_.end() || at->second.is_dvd) return NoDisk(controller, lun);
  return LimitDisk(*at->second.io, qos);
}

Result<void> Board::LimitDisk(virtdev::DiskIo& io, const config::DiskQos& qos) {
  if (io.qos() == nullptr)
    return vmm::Error(Code::kUnimplemented, "disks of its kind have no limits of I/O");
  io.qos()->SetLimits({qos.min_iops(), qos.max_iops(), qos.max_bytes_per_second()});
  return {};
}

void Board::VisitDiskStatistics(const DiskVisitor& visit) const {
  for (const auto& [slot, disk] : disks_) {
    if (disk.io == nullptr || disk.is_dvd || disk.io->qos() == nullptr) continue;
    visit(slot.first, slot.second, disk.io->qos()->Statistics());
  }
}

}  // namespace kvmbus::cmd
