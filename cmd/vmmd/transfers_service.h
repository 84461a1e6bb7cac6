// SPDX-License-Identifier: Apache-2.0
/// \file
/// The service Transfers of the API: exports and imports.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "vmm/manager/transfers.h"

namespace kvmbus::cmd {

std::unique_ptr<grpc::Service> MakeTransfersService(vmm::Loop& loop, vmm::Inventory& inventory,
                                                    vmm::Transfers& transfers);

}  // namespace kvmbus::cmd
