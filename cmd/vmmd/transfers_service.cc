// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmmd/transfers_service.h"

#include "api/vmms.grpc.pb.h"
#include "cmd/vmmd/api_call.h"

namespace kvmbus::cmd {
namespace {

namespace api = kvmbus::api::v1;
using vmm::Code;
using vmm::Result;
using vmm::Transfers;

void FillList(const std::vector<vmm::Incompatibility>& from,
              google::protobuf::RepeatedPtrField<api::Incompatibility>* to) {
  for (const auto& [what, fix] : from) {
    api::Incompatibility* item = to->Add();
    item->set_what(what);
    item->set_fix(fix);
  }
}

Result<void> CheckAbsolute(const std::string& folder) {
  if (folder.starts_with('/')) return {};
  return vmm::MakeError(Code::kInvalidArgument, "folder '{}' is not absolute", folder);
}

/// Calls run on gRPC's threads and are answered on the loop.
class TransfersService final : public api::Transfers::Service {
 public:
  TransfersService(vmm::Loop& loop, vmm::Inventory& inventory, Transfers& transfers)
      : loop_(loop), inventory_(inventory), transfers_(transfers) {}

  grpc::Status ExportVm(grpc::ServerContext*, const api::ExportVmRequest* request,
                        config::Job* reply) override {
    return OnLoop(loop_, [&]() -> Result<void> {
      TRY_VOID(CheckAbsolute(request->folder()));
      Transfers::ExportOptions options;
      options.vm = TRY(inventory_.Resolve(request->vm()));
      options.folder = request->folder();
      options.checkpoint = request->checkpoint();
      options.capture = CaptureOf(request->capture());
      options.request_id = request->request_id();
      *reply = Shown(TRY(transfers_.Export(options, nullptr)));
      return {};
    });
  }

  grpc::Status ImportVm(grpc::ServerContext*, const api::ImportVmRequest* request,
                        api::ImportVmReply* reply) override {
    vmm::ImportOptions options;
    options.file = request->file();
    options.folders = {request->folders().begin(), request->folders().end()};
    options.name = request->name();
    options.firmware = request->firmware();
    options.mode = ModeOf(request->mode());
    options.destination = request->destination();
    return OnLoop(loop_, [&]() -> Result<void> {
      if (!options.destination.empty()) TRY_VOID(CheckAbsolute(options.destination));
      const auto [plan, job] =
          TRY(transfers_.Import(options, request->compare(), request->request_id(), nullptr));
      *reply->mutable_vm() = plan.machine.vm;
      FillList(plan.obstacles, reply->mutable_obstacles());
      FillList(plan.incompatibilities, reply->mutable_incompatibilities());
      if (job) *reply->mutable_job() = Shown(*job);
      return {};
    });
  }

 private:
  static Transfers::Capture CaptureOf(api::CaptureState state) {
    switch (state) {
      case api::DATA_CONSISTENT:
        return Transfers::Capture::kDataConsistent;
      case api::CRASH_CONSISTENT:
        return Transfers::Capture::kCrashConsistent;
      default:
        return Transfers::Capture::kSavedState;
    }
  }
  static vmm::ImportMode ModeOf(api::ImportMode mode) {
    switch (mode) {
      case api::RESTORE:
        return vmm::ImportMode::kRestore;
      case api::COPY:
        return vmm::ImportMode::kCopy;
      default:
        return vmm::ImportMode::kRegister;
    }
  }

  vmm::Loop& loop_;
  vmm::Inventory& inventory_;
  Transfers& transfers_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTransfersService(vmm::Loop& loop, vmm::Inventory& inventory,
                                                    Transfers& transfers) {
  return std::make_unique<TransfersService>(loop, inventory, transfers);
}

}  // namespace kvmbus::cmd
