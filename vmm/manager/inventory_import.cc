// SPDX-License-Identifier: Apache-2.0
// Machines that were made elsewhere.
#include "vmm/manager/inventory_record.h"

namespace kvmbus::vmm {

Result<ImportPlan> Inventory::Import(const ImportOptions& options, bool compare) {
  ImportPlan plan = TRY(PlanImport(options));
  for (const auto& [id, record] : records_) {
    if (id == plan.vm.id())
      plan.obstacles.push_back(
          {fmt::format("'{}' has its id {}", record->config.name(), id), "delete that one first"});
    else if (record->config.name() == plan.vm.name())
      plan.obstacles.push_back({fmt::format("there is a machine named '{}'", plan.vm.name()),
                                "give it another name with --name"});
  }
  if (compare) return plan;
  if (!plan.obstacles.empty())
    return MakeError(Code::kFailedPrecondition,
                     "importing '{}': {}: {} (--compare lists all that is in the way, {} in all)",
                     plan.vm.name(), plan.obstacles[0].what, plan.obstacles[0].fix,
                     plan.obstacles.size());
  // Without its entry in the list nobody's files have changed but for paths.
  for (const config::Vm& checkpoint : plan.checkpoints)
    TRY_VOID_CTX(store_->Save(checkpoint), "storing a checkpoint of '{}'", plan.vm.name());
  TRY_VOID_CTX(store_->Adopt(plan.vm), "storing '{}'", plan.vm.name());
  auto record = std::make_unique<Record>();
  record->config = plan.vm;
  record->status.set_state(RestStateOf(plan.vm));
  record->status.set_vm_id(plan.vm.id());
  records_[plan.vm.id()] = std::move(record);
  LoadCheckpoints(plan.checkpoints);
  Notify(plan.vm.id());
  return plan;
}

}  // namespace kvmbus::vmm
