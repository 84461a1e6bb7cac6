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

/// --request-id and --detach of a command that begins a job.
void AddJobOptions(CLI::App* verb, std::string* request_id, bool* detach);

/// A random one, so that a call that is made twice is one job.
std::string NewRequestId();

}  // namespace kvmbus::cmd
