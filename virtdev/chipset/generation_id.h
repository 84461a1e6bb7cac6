// SPDX-License-Identifier: Apache-2.0
/// \file
/// GenerationId: the VM generation id, 16 bytes in reserved guest memory, by which a guest learns
/// that it is a copy. It changes on checkpoint apply, clone and import as a copy; not on reboot,
/// pause or migration.
#pragma once

#include <functional>

#include "vmm/device/device.h"
#include "vmm/guid/guid.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::virtdev {

/// Home: the main thread.
class GenerationId final : public vmm::StateUnit {
 public:
  /// `changed` tells the guest (GPE 0).
  GenerationId(vmm::GuestMemory& memory, const vmm::Guid& id, std::function<void()> changed);

  /// The guest is told if it is another one.
  void SetId(const vmm::Guid& id);

  std::string_view unit_name() const override { return "generation-id"; }
  void Start() override { WriteToGuest(); }
  void Reset() override {}
  vmm::Result<std::string> Save() override;
  vmm::Result<void> Restore(uint32_t schema_version, std::string_view state) override;

 private:
  void WriteToGuest();

  vmm::GuestMemory& memory_;
  const std::function<void()> changed_;
  vmm::Guid id_;
};

}  // namespace kvmbus::virtdev
