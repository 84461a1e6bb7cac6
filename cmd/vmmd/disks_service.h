// SPDX-License-Identifier: Apache-2.0
/// \file
/// The service of disks in use.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "vmm/event/loop.h"
#include "vmm/manager/inventory.h"

namespace kvmbus::cmd {

/// Both outlive it.
std::unique_ptr<grpc::Service> MakeDisksService(vmm::Loop& loop, vmm::Inventory& inventory);

}  // namespace kvmbus::cmd
