// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmctl/live_disk_commands.h"

#include <cstdio>
#include <filesystem>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/exit_codes.h"

namespace kvmbus::cmd {
namespace {

std::string Absolute(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

/// No vmmd, or none of its virtual machines: then somebody else uses the file.
int Check(const Client& client, const grpc::Status& status, const vmm::Error& refused) {
  const bool not_ours =
      status.error_code() == grpc::StatusCode::NOT_FOUND || client.NobodyListens(status);
  if (!not_ours) return client.Check(status);
  std::fprintf(stderr, "vmctl: %s\n", refused.ToString().c_str());
  return ExitCodeOf(refused.code());
}

}  // namespace

int CheckDiskChange(const Context& context, const std::string& path, bool merges) {
  Client client(context.socket);
  api::CheckDiskChangeRequest request;
  request.set_path(Absolute(path));
  request.set_merges(merges);
  api::Empty reply;
  grpc::ClientContext call;
  const grpc::Status status = client.disks().CheckDiskChange(&call, request, &reply);
  const bool refused = status.error_code() == grpc::StatusCode::FAILED_PRECONDITION;
  return refused ? client.Check(status) : kExitDone;
}

int ResizeDiskInUse(const Context& context, const std::string& path, uint64_t size_bytes,
                    const vmm::Error& refused) {
  Client client(context.socket);
  api::ResizeDiskRequest request;
  request.set_path(Absolute(path));
  request.set_size_bytes(size_bytes);
  api::Empty reply;
  grpc::ClientContext call;
  return Check(client, client.disks().ResizeDisk(&call, request, &reply), refused);
}

int MergeDiskInUse(const Context& context, const std::string& path,
                   const virtdev::Progress& progress, const vmm::Error& refused) {
  Client client(context.socket);
  api::MergeDiskRequest request;
  request.set_path(Absolute(path));
  grpc::ClientContext call;
  const auto stream = client.disks().MergeDisk(&call, request);
  api::DiskProgress message;
  bool begun = false;
  while (stream->Read(&message)) {
    begun = true;
    progress(message.done(), message.total());
  }
  const grpc::Status status = stream->Finish();
  return begun ? client.Check(status) : Check(client, status, refused);
}

int CreateChildInUse(const Context& context, const std::string& path, const std::string& parent) {
  Client client(context.socket);
  api::CreateChildDiskRequest request;
  request.set_path(Absolute(path));
  request.set_parent(Absolute(parent));
  api::Empty reply;
  grpc::ClientContext call;
  return client.Check(client.disks().CreateChildDisk(&call, request, &reply));
}

}  // namespace kvmbus::cmd
