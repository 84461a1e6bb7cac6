// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/disk_qos.h"

namespace kvmbus::vmm {

Result<void> ValidateDiskQos(const config::Vm& vm, const config::Disk& disk) {
  const config::DiskQos& qos = disk.qos();
  const auto refuse = [&](Code code, const std::string& what) {
    return MakeError(code, "'{}': disk on SCSI controller {} location {}: {}", vm.name(),
                     disk.controller(), disk.lun(), what);
  };
  if (disk.kind() == config::DVD &&
      (qos.min_iops() != 0 || qos.max_iops() != 0 || qos.max_bytes_per_second() != 0))
    return refuse(Code::kInvalidArgument, "a DVD drive has no limits of I/O");
  if (qos.max_iops() != 0 && (qos.max_iops() < kMinMaxIops || qos.max_iops() > kMaxIops))
    return refuse(Code::kOutOfRange,
                  fmt::format("a maximum of {} I/O operations a second; {} to {} are allowed, or 0 "
                              "for none",
                              qos.max_iops(), kMinMaxIops, kMaxIops));
  const uint64_t bytes = qos.max_bytes_per_second();
  if (bytes != 0 && (bytes < kMinMaxBytesPerSecond || bytes > kMaxBytesPerSecond))
    return refuse(
        Code::kOutOfRange,
        fmt::format("a maximum of {} bytes a second; 64K to 1T are allowed, or 0 for none", bytes));
  if (qos.min_iops() > kMaxIops)
    return refuse(Code::kOutOfRange,
                  fmt::format("a minimum of {} I/O operations a second; up to {} are allowed",
                              qos.min_iops(), kMaxIops));
  if (qos.max_iops() != 0 && qos.min_iops() > qos.max_iops())
    return refuse(Code::kInvalidArgument,
                  fmt::format("the minimum of {} I/O operations a second is above the maximum of "
                              "{}; lower it, or raise that",
                              qos.min_iops(), qos.max_iops()));
  return {};
}

void ChangeDiskQos(const config::DiskQosChange& change, config::DiskQos* qos) {
  if (change.has_min_iops()) qos->set_min_iops(change.min_iops());
  if (change.has_max_iops()) qos->set_max_iops(change.max_iops());
  if (change.has_max_bytes_per_second())
    qos->set_max_bytes_per_second(change.max_bytes_per_second());
}

}  // namespace kvmbus::vmm
