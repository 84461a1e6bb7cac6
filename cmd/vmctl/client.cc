// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmctl/client.h"

#include <fmt/format.h>

#include <cstdio>

#include "cmd/vmctl/exit_codes.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::cmd {

namespace {

/// Is not taken down with the client: gRPC would wait some milliseconds for its threads, and the
/// process is about to end.
const std::shared_ptr<grpc::Channel>& Connect(const std::string& socket) {
  return *new auto(grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials()));
}

}  // namespace

Client::Client(const std::string& socket)
    : socket_(socket),
      channel_(Connect(socket)),
      machines_(api::VirtualMachines::NewStub(channel_)),
      disks_(api::Disks::NewStub(channel_)),
      host_(api::Host::NewStub(channel_)),
      checkpoints_(api::Checkpoints::NewStub(channel_)),
      transfers_(api::Transfers::NewStub(channel_)),
      jobs_(api::Jobs::NewStub(channel_)) {}

bool Client::NobodyListens(const grpc::Status& status) const {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE && !vmm::ConnectUnix(socket_).ok();
}

int Client::Check(const grpc::Status& status) const {
  if (status.ok()) return kExitDone;
  if (NobodyListens(status)) {
    std::fprintf(stderr,
                 "vmctl: vmmd does not answer on '%s': start it (systemctl start vmmd), or name "
                 "its socket with --socket\n",
                 socket_.c_str());
    return kExitNoDaemon;
  }
  std::fprintf(stderr, "vmctl: %s\n", status.error_message().c_str());
  return ExitCodeOf(static_cast<vmm::Code>(status.error_code()));
}

}  // namespace kvmbus::cmd
