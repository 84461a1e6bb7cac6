// SPDX-License-Identifier: Apache-2.0
/// \file
/// LimitedDisk: a FakeDisk with Storage QoS before its queues.
#pragma once

#include "tests/fakes/fake_disk.h"
#include "virtdev/disk/qos/disk_qos.h"

namespace kvmbus::tests {

class LimitedDisk final : public FakeDisk {
 public:
  /// The clock is that of its queues' loops.
  explicit LimitedDisk(virtdev::DiskInfo info, const vmm::Clock& clock = vmm::SystemClock())
      : FakeDisk(info), qos_(clock) {}

  vmm::Result<std::unique_ptr<virtdev::DiskQueue>> OpenQueue(vmm::Loop& loop) override {
    return qos_.Wrap(TRY(FakeDisk::OpenQueue(loop)), loop);
  }
  virtdev::DiskQos* qos() override { return &qos_; }

 private:
  virtdev::DiskQos qos_;
};

}  // namespace kvmbus::tests
