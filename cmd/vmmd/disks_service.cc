// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmmd/disks_service.h"

#include "api/vmms.grpc.pb.h"
#include "cmd/vmmd/api_call.h"
#include "cmd/vmmd/image_files.h"
#include "vmm/manager/disk_operations.h"
#include "vmm/manager/image_users.h"

namespace kvmbus::cmd {
namespace {

namespace api = kvmbus::api::v1;
using vmm::DiskOperations;
using vmm::Result;

constexpr std::chrono::milliseconds kProgressInterval(200);
constexpr int kCancelIntervals = 25;  ///< then nobody waits for the end of what was cancelled

/// Calls run on gRPC's threads and are posted to the inventory's loop.
class DisksService final : public api::Disks::Service {
 public:
  DisksService(vmm::Loop& loop, vmm::Inventory& inventory)
      : loop_(loop), inventory_(inventory), disks_(inventory, DiskOperations::For::kUser) {}

  grpc::Status CheckDiskChange(grpc::ServerContext*, const api::CheckDiskChangeRequest* request,
                               api::Empty*) override {
    const auto done = Begin([this, request = *request](const DiskOperations::Done& tell) {
      using ByHand = DiskOperations::ByHand;
      tell(disks_.CheckByHand(request.path(),
                              request.merges() ? ByHand::kOfflineMerge : ByHand::kResize));
    });
    auto allowed = done->Wait();
    if (allowed.ok() && request->merges()) allowed = CheckUsers(request->path(), true);
    return ToStatus(allowed);
  }

  grpc::Status ResizeDisk(grpc::ServerContext*, const api::ResizeDiskRequest* request,
                          api::Empty*) override {
    const auto done = Begin([this, request = *request](DiskOperations::Done tell) {
      disks_.Resize(request.path(), request.size_bytes(), std::move(tell));
    });
    return ToStatus(done->Wait());
  }

  grpc::Status CreateChildDisk(grpc::ServerContext*, const api::CreateChildDiskRequest* request,
                               api::Empty*) override {
    const auto done = Begin([this, request = *request](DiskOperations::Done tell) {
      disks_.CreateChild(request.parent(), request.path(), std::move(tell));
    });
    return ToStatus(done->Wait());
  }

  grpc::Status MergeDisk(grpc::ServerContext* context, const api::MergeDiskRequest* request,
                         grpc::ServerWriter<api::DiskProgress>* writer) override {
    const std::string path = request->path();
    if (const auto allowed = CheckUsers(path, false); !allowed.ok()) return ToStatus(allowed);
    const auto done = Begin([this, path](DiskOperations::Done tell) {
      const auto allowed = disks_.CheckByHand(path, DiskOperations::ByHand::kMerge);
      allowed.ok() ? disks_.Merge(path, std::move(tell)) : tell(allowed);
    });
    int left_after_cancel = kCancelIntervals;
    while (left_after_cancel != 0) {
      if (const auto result = done->WaitFor(kProgressInterval)) return ToStatus(*result);
      if (!context->IsCancelled())
        Report(path, writer);
      else if (left_after_cancel-- == kCancelIntervals)
        Begin([this, path](DiskOperations::Done tell) { disks_.Cancel(path, std::move(tell)); });
    }
    return grpc::Status::CANCELLED;
  }

 private:
  using Pending = std::shared_ptr<Promise<Result<void>>>;

  template <typename Action>
  Pending Begin(Action action) {
    auto promise = std::make_shared<Promise<Result<void>>>();
    loop_.Post([promise, action] {
      action([promise](const Result<void>& result) { promise->Set(result); });
    });
    return promise;
  }

  /// Who stands on the image, and on its parent.
  Result<void> CheckUsers(const std::string& path, bool offline) {
    std::vector<vmm::ImageUser> users;
    loop_.PostAndWait([&] { users = vmm::ImageUsersOf(inventory_); });
    return vmm::CheckMerge(path, offline, users, files_);
  }

  void Report(const std::string& path, grpc::ServerWriter<api::DiskProgress>* writer) {
    auto promise = std::make_shared<Promise<Result<DiskOperations::Place>>>();
    loop_.Post([this, path, promise] {
      disks_.Find(path, [promise](const auto& place) { promise->Set(place); });
    });
    const auto place = promise->Wait();
    if (!place.ok() || place->disk.total() == 0) return;
    api::DiskProgress progress;
    progress.set_vm(place->vm);
    progress.set_done(place->disk.done());
    progress.set_total(place->disk.total());
    writer->Write(progress);
  }

  vmm::Loop& loop_;
  vmm::Inventory& inventory_;
  DiskOperations disks_;
  ImageFiles files_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeDisksService(vmm::Loop& loop, vmm::Inventory& inventory) {
  return std::make_unique<DisksService>(loop, inventory);
}

}  // namespace kvmbus::cmd
