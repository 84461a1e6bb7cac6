// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cstdio>
#include <ctime>

#include "cmd/vmctl/exit_codes.h"
#include "cmd/vmctl/job_commands.h"
#include "vmm/os/clock.h"
#include "vmm/text/utf8.h"

namespace kvmbus::cmd {
namespace {

std::string TimeOf(uint64_t filetime) {
  const auto seconds = static_cast<time_t>(vmm::RealtimeOfFiletime(filetime) / 1'000'000'000);
  struct tm local = {};
  ::localtime_r(&seconds, &local);
  char text[32];
  std::strftime(text, sizeof(text), "%F %T", &local);
  return text;
}

std::string KindOf(const config::Vm& checkpoint) {
  if (checkpoint.checkpoint().production()) return "production";
  return checkpoint.saved() ? "standard" : "off";
}

Json ToJson(const api::CheckpointEntry& entry) {
  const config::Checkpoint& about = entry.config().checkpoint();
  std::vector<Json> disks;
  for (const config::Disk& disk : entry.config().disks()) disks.push_back(Json::Text(disk.path()));
  return Json::Object({{"id", Json::Text(about.id())},
                       {"name", Json::Text(about.name())},
                       {"parent", Json::Text(about.parent())},
                       {"depth", Json::Number(entry.depth())},
                       {"kind", Json::Text(KindOf(entry.config()))},
                       {"automatic", Json::Boolean(about.automatic())},
                       {"created", Json::Text(TimeOf(about.created_filetime()))},
                       {"current", Json::Boolean(entry.current())},
                       {"disks", Json::Array(disks)}});
}

int List(const Context& context, const std::string& vm) {
  Client client(context.socket);
  api::VmReference request;
  request.set_vm(vm);
  api::ListCheckpointsReply reply;
  grpc::ClientContext call;
  const grpc::Status status = client.checkpoints().ListCheckpoints(&call, request, &reply);
  if (const int failed = client.Check(status)) return failed;
  if (context.format == Format::kJson) {
    std::vector<Json> checkpoints;
    for (const auto& entry : reply.checkpoints()) checkpoints.push_back(ToJson(entry));
    std::printf("%s\n", Json::Array(checkpoints).text().c_str());
    return kExitDone;
  }
  std::vector<std::vector<std::string>> rows = {{"CHECKPOINT", "KIND", "CREATED", "ID", ""}};
  for (const auto& entry : reply.checkpoints()) {
    const config::Checkpoint& about = entry.config().checkpoint();
    // It may be anybody's, and a terminal obeys what is not printable.
    rows.push_back({std::string(entry.depth() * 2, ' ') + vmm::Printable(about.name()),
                    KindOf(entry.config()), TimeOf(about.created_filetime()), about.id(),
                    entry.current() ? "<- now" : ""});
  }
  PrintTable(rows);
  return kExitDone;
}

/// What the job commands have in common.
struct CheckpointOptions : JobOptions {
  std::string vm, checkpoint;
  bool flag = false;

  void AddTo(CLI::App* verb, bool names_checkpoint) {
    verb->add_option("VM", vm, "Name or id")->required();
    if (names_checkpoint) verb->add_option("CHECKPOINT", checkpoint, "Name or id")->required();
    JobOptions::AddTo(verb);
  }
};

template <typename Request, typename Method>
int Begin(const Context& context, const Request& request, Method method, bool detach) {
  return BeginJob(context, &Client::checkpoints, method, request, detach);
}

void AddCreate(CLI::App* checkpoint, Context& context) {
  auto options = std::make_shared<CheckpointOptions>();
  auto name = std::make_shared<std::string>();
  auto standard = std::make_shared<bool>(false), production = std::make_shared<bool>(false);
  CLI::App* verb = checkpoint->add_subcommand("create", "Keep what a virtual machine is now");
  options->AddTo(verb, false);
  verb->add_option("--name", *name, "Default: the virtual machine's name and the time");
  auto* flag = verb->add_flag("--standard", *standard, "With memory, whatever the policy says");
  verb->add_flag("--production", *production, "The guest's file systems at rest, no memory")
      ->excludes(flag);
  verb->add_flag("--compress", options->flag, "The memory, by zstd: a smaller file");
  verb->callback([&context, options, name, standard, production] {
    api::CreateCheckpointRequest request;
    request.set_vm(options->vm);
    request.set_name(*name);
    request.set_request_id(options->Request());
    request.set_compress(options->flag);
    if (*standard) request.set_kind(api::STANDARD_CHECKPOINT);
    if (*production) request.set_kind(api::PRODUCTION_CHECKPOINT);
    context.exit_status =
        Begin(context, request, &api::Checkpoints::Stub::CreateCheckpoint, options->detach);
  });
}

void AddApply(CLI::App* checkpoint, Context& context) {
  auto options = std::make_shared<CheckpointOptions>();
  CLI::App* verb = checkpoint->add_subcommand(
      "apply", "Make the virtual machine what it was; what it is now is lost");
  options->AddTo(verb, true);
  verb->add_flag("--checkpoint-first", options->flag, "Keep what it is now");
  verb->callback([&context, options] {
    api::ApplyCheckpointRequest request;
    request.set_vm(options->vm);
    request.set_checkpoint(options->checkpoint);
    request.set_checkpoint_first(options->flag);
    request.set_request_id(options->Request());
    context.exit_status =
        Begin(context, request, &api::Checkpoints::Stub::ApplyCheckpoint, options->detach);
  });
}

void AddDelete(CLI::App* checkpoint, Context& context) {
  auto options = std::make_shared<CheckpointOptions>();
  CLI::App* verb = checkpoint->add_subcommand(
      "delete", "Delete a checkpoint; its disks are merged in the background");
  options->AddTo(verb, true);
  verb->add_flag("--subtree", options->flag, "And all that grew from it");
  verb->callback([&context, options] {
    api::DeleteCheckpointRequest request;
    request.set_vm(options->vm);
    request.set_checkpoint(options->checkpoint);
    request.set_subtree(options->flag);
    request.set_request_id(options->Request());
    context.exit_status =
        Begin(context, request, &api::Checkpoints::Stub::DeleteCheckpoint, options->detach);
  });
}

void AddRename(CLI::App* checkpoint, Context& context) {
  auto request = std::make_shared<api::RenameCheckpointRequest>();
  auto vm = std::make_shared<std::string>(), name = std::make_shared<std::string>(),
       old_name = std::make_shared<std::string>();
  CLI::App* verb = checkpoint->add_subcommand("rename", "Give it another name");
  verb->add_option("VM", *vm, "Name or id")->required();
  verb->add_option("CHECKPOINT", *old_name, "Name or id")->required();
  verb->add_option("NAME", *name, "The new name")->required();
  verb->callback([&context, request, vm, name, old_name] {
    request->set_vm(*vm);
    request->set_checkpoint(*old_name);
    request->set_name(*name);
    Client client(context.socket);
    api::Empty reply;
    grpc::ClientContext call;
    context.exit_status =
        client.Check(client.checkpoints().RenameCheckpoint(&call, *request, &reply));
  });
}

void AddPolicy(CLI::App* checkpoint, Context& context) {
  auto vm = std::make_shared<std::string>(), policy = std::make_shared<std::string>(),
       automatic = std::make_shared<std::string>();
  CLI::App* verb = checkpoint->add_subcommand("policy", "Of what kind its checkpoints are");
  verb->add_option("VM", *vm, "Name or id")->required();
  verb->add_option("POLICY", *policy,
                   "production (a standard one where that fails), production-only, standard, "
                   "disabled")
      ->check(CLI::IsMember({"production", "production-only", "standard", "disabled"}));
  verb->add_option("--automatic", *automatic, "on: one at every start, gone at a clean stop; off")
      ->check(CLI::IsMember({"on", "off"}));
  verb->callback([&context, vm, policy, automatic] {
    api::SetCheckpointPolicyRequest request;
    request.set_vm(*vm);
    if (*policy == "production") request.set_policy(config::PRODUCTION);
    if (*policy == "production-only") request.set_policy(config::PRODUCTION_ONLY);
    if (*policy == "standard") request.set_policy(config::STANDARD);
    if (*policy == "disabled") request.set_policy(config::DISABLED);
    if (!automatic->empty()) request.set_automatic(*automatic == "on");
    Client client(context.socket);
    api::VmStatus reply;
    grpc::ClientContext call;
    context.exit_status =
        client.Check(client.checkpoints().SetCheckpointPolicy(&call, request, &reply));
  });
}

}  // namespace

void AddCheckpointCommands(CLI::App& app, Context& context) {
  CLI::App* checkpoint = app.add_subcommand("checkpoint", "Checkpoints of virtual machines");
  checkpoint->require_subcommand(1);
  auto vm = std::make_shared<std::string>();
  CLI::App* verb = checkpoint->add_subcommand("list", "Its checkpoints, as a tree");
  verb->add_option("VM", *vm, "Name or id")->required();
  verb->callback([&context, vm] { context.exit_status = List(context, *vm); });
  AddCreate(checkpoint, context);
  AddApply(checkpoint, context);
  AddDelete(checkpoint, context);
  AddRename(checkpoint, context);
  AddPolicy(checkpoint, context);
}

}  // namespace kvmbus::cmd
