// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmctl/job_commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "cmd/vmctl/exit_codes.h"
#include "vmm/guid/guid.h"
#include "vmm/os/clock.h"

namespace kvmbus::cmd {
namespace {

std::string KindName(config::JobKind kind) {
  switch (kind) {
    case config::CREATE_CHECKPOINT:
      return "create checkpoint";
    case config::APPLY_CHECKPOINT:
      return "apply checkpoint";
    case config::DELETE_CHECKPOINT:
      return "delete checkpoint";
    case config::MERGE_DISKS:
      return "merge disks";
    case config::EXPORT_VM:
      return "export";
    case config::IMPORT_VM:
      return "import";
    case config::SAVE_VM:
      return "save";
    case config::UPGRADE_VM:
      return "upgrade";
    default:
      return "?";
  }
}

std::string StateName(config::JobState state) {
  switch (state) {
    case config::JOB_RUNNING:
      return "running";
    case config::JOB_DONE:
      return "done";
    case config::JOB_FAILED:
      return "failed";
    default:
      return "cancelled";
  }
}

std::string Percent(const config::Job& job) {
  if (job.state() != config::JOB_RUNNING || job.total() == 0) return "-";
  return fmt::format("{} %", job.done() * 100 / job.total());
}

Json ToJson(const config::Job& job) {
  return Json::Object({{"id", Json::Text(job.id())},
                       {"kind", Json::Text(KindName(job.kind()))},
                       {"vm", Json::Text(job.vm())},
                       {"checkpoint", Json::Text(job.checkpoint())},
                       {"state", Json::Text(StateName(job.state()))},
                       {"error", Json::Text(job.error())},
                       {"done", Json::Number(job.done())},
                       {"total", Json::Number(job.total())},
                       {"pause_ns", Json::Number(job.pause_ns())},
                       {"bytes_written", Json::Number(job.bytes_written())},
                       {"request_id", Json::Text(job.request_id())}});
}

int List(const Context& context) {
  Client client(context.socket);
  api::ListJobsReply reply;
  grpc::ClientContext call;
  if (const int failed = client.Check(client.jobs().ListJobs(&call, {}, &reply))) return failed;
  if (context.format == Format::kJson) {
    std::vector<Json> jobs;
    for (const config::Job& job : reply.jobs()) jobs.push_back(ToJson(job));
    std::printf("%s\n", Json::Array(jobs).text().c_str());
    return kExitDone;
  }
  std::vector<std::vector<std::string>> rows = {
      {"JOB", "KIND", "VM", "STATE", "PROGRESS", "ERROR"}};
  for (const config::Job& job : reply.jobs())
    rows.push_back({job.id(), KindName(job.kind()), job.vm(), StateName(job.state()), Percent(job),
                    job.error()});
  PrintTable(rows);
  return kExitDone;
}

}  // namespace

void JobOptions::AddTo(CLI::App* verb) {
  verb->add_option("--request-id", request_id, "Asked for again, it is the same job");
  verb->add_flag("--detach", detach, "Print the job's id, and do not wait for its end");
}

std::string JobOptions::Request() const {
  return request_id.empty() ? vmm::Guid::Random().ToString() : request_id;
}

int AwaitJob(const Context& context, Client& client, const config::Job& job, bool detach) {
  if (detach) {
    std::printf("%s\n",
                context.format == Format::kJson ? ToJson(job).text().c_str() : job.id().c_str());
    return kExitDone;
  }
  api::JobReference request;
  request.set_id(job.id());
  grpc::ClientContext call;
  const auto stream = client.jobs().FollowJob(&call, request);
  config::Job last = job, next;
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  while (stream->Read(&next)) {
    last = next;
    if (terminal && last.total() != 0)
      std::fprintf(stderr, "\r%s: %s ", KindName(last.kind()).c_str(), Percent(last).c_str());
  }
  if (terminal && last.total() != 0) std::fprintf(stderr, "\r\033[K");
  if (const int failed = client.Check(stream->Finish())) return failed;
  if (context.format == Format::kJson) std::printf("%s\n", ToJson(last).text().c_str());
  if (last.state() == config::JOB_DONE) return kExitDone;
  std::fprintf(stderr, "vmctl: %s\n", last.error().c_str());
  return ExitCodeOf(static_cast<vmm::Code>(last.error_code()));
}

void AddJobCommands(CLI::App& app, Context& context) {
  CLI::App* job = app.add_subcommand("job", "What vmmd does that takes long");
  job->require_subcommand(1);
  job->add_subcommand("list", "All that run, and the last ones that have ended")
      ->callback([&context] { context.exit_status = List(context); });
  auto id = std::make_shared<std::string>();
  CLI::App* verb = job->add_subcommand("wait", "Wait for its end; its exit status is the job's");
  verb->add_option("JOB", *id, "Id")->required();
  verb->callback([&context, id] {
    Client client(context.socket);
    config::Job found;
    found.set_id(*id);
    context.exit_status = AwaitJob(context, client, found, false);
  });
  verb = job->add_subcommand("cancel", "End it, and undo what it did");
  verb->add_option("JOB", *id, "Id")->required();
  verb->callback([&context, id] {
    Client client(context.socket);
    api::JobReference request;
    request.set_id(*id);
    api::Empty reply;
    grpc::ClientContext call;
    context.exit_status = client.Check(client.jobs().CancelJob(&call, request, &reply));
  });
}

}  // namespace kvmbus::cmd
