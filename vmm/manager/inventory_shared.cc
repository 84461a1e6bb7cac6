// SPDX-License-Identifier: Apache-2.0
// The owners of the disks that a VM shares are there before it is, and stay as long as it runs.
#include "vmm/manager/inventory_record.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {

std::vector<std::string> SharedImages(const config::Vm& vm) {
  std::vector<std::string> images;
  for (const config::Disk& disk : vm.disks()) {
    if (disk.shared()) images.push_back(disk.path());
  }
  return images;
}

/// One after the other; `done` when all of them are served, at once if there are none.
void Inventory::HoldSharedDisks(const std::string& id, std::vector<std::string> images, Done done) {
  if (images.empty()) return done({});
  const std::string image = images.back();
  images.pop_back();
  owners_->Acquire(image, [this, alive = alive_, id, image, images = std::move(images),
                           done = std::move(done)](const Result<DiskOwners::Hold>& hold) {
    if (!*alive) return;
    if (!hold.ok()) return done(hold.error());
    if (Record* record = Find(id); record != nullptr && (record->preparing || record->active()))
      record->shared_disks[image] = *hold;
    HoldSharedDisks(id, images, done);
  });
}

/// For a VM that runs already: it waits for its disks itself.
void Inventory::HoldForGood(const std::string& id) {
  const Record* record = Find(id);
  if (record == nullptr) return;
  for (const std::string& image : SharedImages(record->config)) {
    owners_->Acquire(
        image, [this, alive = alive_, id, image](const Result<DiskOwners::Hold>& hold) {
          if (!*alive) return;
          if (!hold.ok()) {
            spdlog::error("{}", hold.error().ToString());
            constexpr uint64_t kRetryNs = 1'000'000'000;
            loop_.AddTimer(kRetryNs, [this, alive, id] {
              if (*alive) HoldForGood(id);
            });
          } else if (Record* running = Find(id); running != nullptr && running->active()) {
            running->shared_disks[image] = *hold;
          }
        });
  }
}

bool Inventory::ServesShared(const std::string& image) const { return owners_->Serves(image); }

void Inventory::GrowShared(const std::string& image, uint64_t size_bytes, Done done) {
  owners_->Grow(image, size_bytes, std::move(done));
}

void Inventory::ReleaseSharedDisk(const std::string& id, const std::string& image) {
  if (Record* record = Find(id); record != nullptr) record->shared_disks.erase(image);
}

}  // namespace kvmbus::vmm
