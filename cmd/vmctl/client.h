// SPDX-License-Identifier: Apache-2.0
/// \file
/// The connection to vmmd. The only header of vmctl that includes gRPC's.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "api/vmms.grpc.pb.h"

namespace kvmbus::cmd {

namespace api = kvmbus::api::v1;

class Client {
 public:
  explicit Client(const std::string& socket);

  api::VirtualMachines::Stub& machines() { return *machines_; }
  api::Disks::Stub& disks() { return *disks_; }
  api::Host::Stub& host() { return *host_; }
  api::Checkpoints::Stub& checkpoints() { return *checkpoints_; }
  api::Transfers::Stub& transfers() { return *transfers_; }
  api::Jobs::Stub& jobs() { return *jobs_; }

  /// gRPC says UNAVAILABLE both for that and for what vmmd itself answers.
  bool NobodyListens(const grpc::Status& status) const;
  /// 0, or after one line on standard error the exit status.
  int Check(const grpc::Status& status) const;

 private:
  const std::string socket_;
  const std::shared_ptr<grpc::Channel>& channel_;
  std::unique_ptr<api::VirtualMachines::Stub> machines_;
  std::unique_ptr<api::Disks::Stub> disks_;
  std::unique_ptr<api::Host::Stub> host_;
  std::unique_ptr<api::Checkpoints::Stub> checkpoints_;
  std::unique_ptr<api::Transfers::Stub> transfers_;
  std::unique_ptr<api::Jobs::Stub> jobs_;
};

}  // namespace kvmbus::cmd
