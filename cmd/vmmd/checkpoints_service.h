// SPDX-License-Identifier: Apache-2.0
/// \file
/// The API's services Checkpoints and Jobs.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "vmm/event/loop.h"
#include "vmm/manager/checkpoints.h"

namespace kvmbus::cmd {

std::unique_ptr<grpc::Service> MakeCheckpointsService(vmm::Loop& loop, vmm::Inventory& inventory,
                                                      vmm::Checkpoints& checkpoints);
std::unique_ptr<grpc::Service> MakeJobsService(vmm::Loop& loop, vmm::Jobs& jobs);

}  // namespace kvmbus::cmd
