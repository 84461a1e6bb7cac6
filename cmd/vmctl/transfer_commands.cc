// SPDX-License-Identifier: Apache-2.0
// vmctl vm import, export: machines that come from elsewhere, and that go there.
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"
#include "cmd/vmctl/job_commands.h"

namespace kvmbus::cmd {
namespace {

using List = google::protobuf::RepeatedPtrField<api::Incompatibility>;

std::string Absolute(const std::string& path) {
  return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

Json ToJson(const List& list) {
  std::vector<Json> items;
  for (const auto& item : list)
    items.push_back(
        Json::Object({{"what", Json::Text(item.what())}, {"fix", Json::Text(item.fix())}}));
  return Json::Array(items);
}

void Print(const api::ImportVmReply& reply) {
  std::vector<std::vector<std::string>> rows = {{"", "WHAT", "THEN"}};
  for (const auto& item : reply.obstacles())
    rows.push_back({"in the way", item.what(), item.fix()});
  for (const auto& item : reply.incompatibilities())
    rows.push_back({"lost", item.what(), item.fix()});
  if (rows.size() > 1) PrintTable(rows);
}

int Import(const Context& context, const api::ImportVmRequest& request, bool detach) {
  Client client(context.socket);
  api::ImportVmReply reply;
  grpc::ClientContext call;
  if (const int failed = client.Check(client.transfers().ImportVm(&call, request, &reply)))
    return failed;
  if (context.format == Format::kJson)
    std::printf("%s\n", Json::Object({{"id", Json::Text(reply.vm().id())},
                                      {"name", Json::Text(reply.vm().name())},
                                      {"version", Json::Text(reply.vm().version())},
                                      {"folder", Json::Text(reply.vm().folder())},
                                      {"job", Json::Text(reply.job().id())},
                                      {"obstacles", ToJson(reply.obstacles())},
                                      {"incompatibilities", ToJson(reply.incompatibilities())}})
                            .text()
                            .c_str());
  else
    Print(reply);
  if (!reply.obstacles().empty()) return ExitCodeOf(vmm::Code::kFailedPrecondition);
  if (!reply.has_job() || (detach && context.format == Format::kJson)) return kExitDone;
  Context quiet = context;
  if (!detach) quiet.format = Format::kTable;  // one object is enough
  return AwaitJob(quiet, client, reply.job(), detach);
}

}  // namespace

void AddImportCommand(CLI::App* vm, Context& context) {
  auto request = std::make_shared<api::ImportVmRequest>();
  auto file = std::make_shared<std::string>(), name = std::make_shared<std::string>(),
       destination = std::make_shared<std::string>();
  auto kernel = std::make_shared<std::string>(), initrd = std::make_shared<std::string>(),
       append = std::make_shared<std::string>();
  auto folders = std::make_shared<std::vector<std::string>>();
  auto compare = std::make_shared<bool>(false), copy = std::make_shared<bool>(false),
       restore = std::make_shared<bool>(false);
  auto job = std::make_shared<JobOptions>();
  CLI::App* verb = vm->add_subcommand(
      "import",
      "Take a machine of somebody else's, of Hyper-V's too: where its files are, or a copy");
  verb->add_option("FILE", *file, "Its configuration, .vmcx or .xml")->required();
  auto* copies = verb->add_flag("--copy", *copy, "Copy its files; the copy gets a new id");
  verb->add_flag("--restore", *restore, "Copy its files; the copy keeps its id")->excludes(copies);
  verb->add_option("--destination", *destination,
                   "Of a copy: make a folder of its name there (default: in vmmd's own)");
  verb->add_flag("--compare", *compare, "List what it loses and what is in the way; do nothing");
  verb->add_option("--folder", *folders,
                   "Where its disks may be, beside the folder that it is in; may be given again");
  verb->add_option("--name", *name, "Instead of its own");
  verb->add_option("--kernel", *kernel, "Linux kernel to boot directly");
  verb->add_option("--initrd", *initrd, "Its initramfs");
  verb->add_option("--append", *append, "Its command line");
  job->AddTo(verb);
  verb->callback([=, &context] {
    request->set_file(Absolute(*file));
    for (const std::string& folder : *folders) request->add_folders(Absolute(folder));
    request->set_name(*name);
    request->mutable_firmware()->set_kernel(Absolute(*kernel));
    request->mutable_firmware()->set_initrd(Absolute(*initrd));
    request->mutable_firmware()->set_command_line(*append);
    request->set_compare(*compare);
    if (*copy) request->set_mode(api::COPY);
    if (*restore) request->set_mode(api::RESTORE);
    request->set_destination(Absolute(*destination));
    if (*copy || *restore) request->set_request_id(job->Request());
    context.exit_status = Import(context, *request, job->detach);
  });
}

void AddExportCommand(CLI::App* vm, Context& context) {
  auto name = std::make_shared<std::string>(), folder = std::make_shared<std::string>(),
       checkpoint = std::make_shared<std::string>();
  auto capture = std::make_shared<api::CaptureState>(api::SAVED_STATE);
  auto job = std::make_shared<JobOptions>();
  static const std::map<std::string, api::CaptureState> kCaptures = {
      {"saved-state", api::SAVED_STATE},
      {"data-consistent", api::DATA_CONSISTENT},
      {"crash-consistent", api::CRASH_CONSISTENT}};
  CLI::App* verb = vm->add_subcommand(
      "export", "Copy a machine with its disks and checkpoints into a folder, to be imported");
  verb->add_option("VM", *name, "Name or id")->required();
  verb->add_option("FOLDER", *folder, "A folder of the machine's name is made there")->required();
  verb->add_option("--checkpoint", *checkpoint, "Name or id: it alone, as a machine");
  verb->add_option("--capture", *capture,
                   "Of one that runs: saved-state (with its memory, the default), data-consistent "
                   "(its file systems at rest, no memory), crash-consistent (its disks alone)")
      ->transform(OneOf(kCaptures));
  job->AddTo(verb);
  verb->callback([=, &context] {
    api::ExportVmRequest request;
    request.set_vm(*name);
    request.set_folder(Absolute(*folder));
    request.set_checkpoint(*checkpoint);
    request.set_capture(*capture);
    request.set_request_id(job->Request());
    context.exit_status = BeginJob(context, &Client::transfers, &api::Transfers::Stub::ExportVm,
                                   request, job->detach);
  });
}

}  // namespace kvmbus::cmd
