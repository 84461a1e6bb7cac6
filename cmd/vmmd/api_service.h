// SPDX-License-Identifier: Apache-2.0
/// \file
/// The gRPC face of the inventory. The only header of vmmd that includes gRPC's.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "vmm/event/loop.h"
#include "vmm/manager/checkpoints.h"
#include "vmm/manager/state_jobs.h"
#include "vmm/manager/transfers.h"

namespace kvmbus::cmd {

/// Serves until destroyed. Calls run on gRPC's threads and are posted to the inventory's loop.
class ApiServer {
 public:
  /// All outlive the server.
  struct Parts {
    vmm::Loop& loop;
    vmm::Inventory& inventory;
    vmm::Checkpoints& checkpoints;
    vmm::Transfers& transfers;
    vmm::StateJobs& state_jobs;
    vmm::Jobs& jobs;
  };
  /// `socket` is a path; its mode becomes 0660.
  static vmm::Result<std::unique_ptr<ApiServer>> Listen(const Parts& parts,
                                                        const std::string& socket);
  ~ApiServer();

 private:
  class VirtualMachinesService;
  class HostService;
  ApiServer();
  std::unique_ptr<VirtualMachinesService> machines_;
  std::unique_ptr<HostService> host_;
  std::unique_ptr<grpc::Service> disks_;
  std::unique_ptr<grpc::Service> checkpoints_;
  std::unique_ptr<grpc::Service> transfers_;
  std::unique_ptr<grpc::Service> jobs_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace kvmbus::cmd
