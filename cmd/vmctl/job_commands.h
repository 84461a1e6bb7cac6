// SPDX-License-Identifier: Apache-2.0
/// \file
/// Jobs on the command line.
#pragma once

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"

namespace kvmbus::cmd {

/// Waits for the job's end, with its progress on a terminal; with `detach` prints its id at once.
/// The exit status.
int AwaitJob(const Context& context, Client& client, const config::Job& job, bool detach);

/// What commands that begin a job have in common: --request-id and --detach.
struct JobOptions {
  std::string request_id;
  bool detach = false;

  void AddTo(CLI::App* verb);
  /// A random one unless it was given, so that a call that is made twice is one job.
  std::string Request() const;
};

/// Makes a call whose answer is a job, and awaits its end: the exit status.
template <typename Stub, typename Method, typename Request>
int BeginJob(const Context& context, Stub& (Client::*stub)(), Method method, const Request& request,
             bool detach) {
  Client client(context.socket);
  config::Job job;
  grpc::ClientContext call;
  const grpc::Status status = ((client.*stub)().*method)(&call, request, &job);
  if (const int failed = client.Check(status)) return failed;
  return AwaitJob(context, client, job, detach);
}

}  // namespace kvmbus::cmd
