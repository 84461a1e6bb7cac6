// SPDX-License-Identifier: Apache-2.0
// vmctl vm import: machines that were made elsewhere.
#include <cstdio>
#include <filesystem>
#include <memory>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"

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

int Import(const Context& context, const api::ImportVmRequest& request) {
  Client client(context.socket);
  api::ImportVmReply reply;
  grpc::ClientContext call;
  if (const int failed = client.Check(client.machines().ImportVm(&call, request, &reply)))
    return failed;
  if (context.format == Format::kJson)
    std::printf("%s\n", Json::Object({{"id", Json::Text(reply.vm().id())},
                                      {"name", Json::Text(reply.vm().name())},
                                      {"version", Json::Text(reply.vm().version())},
                                      {"obstacles", ToJson(reply.obstacles())},
                                      {"incompatibilities", ToJson(reply.incompatibilities())}})
                            .text()
                            .c_str());
  else
    Print(reply);
  return reply.obstacles().empty() ? kExitDone : ExitCodeOf(vmm::Code::kFailedPrecondition);
}

}  // namespace

void AddImportCommand(CLI::App* vm, Context& context) {
  auto request = std::make_shared<api::ImportVmRequest>();
  auto file = std::make_shared<std::string>(), name = std::make_shared<std::string>();
  auto kernel = std::make_shared<std::string>(), initrd = std::make_shared<std::string>(),
       append = std::make_shared<std::string>();
  auto folders = std::make_shared<std::vector<std::string>>();
  auto compare = std::make_shared<bool>(false);
  CLI::App* verb = vm->add_subcommand(
      "import", "Register a machine of somebody else's, of Hyper-V's too, where its files are");
  verb->add_option("FILE", *file, "Its configuration, .vmcx or .xml")->required();
  verb->add_flag("--compare", *compare, "List what it loses and what is in the way; do nothing");
  verb->add_option("--folder", *folders,
                   "Where its disks may be, beside the folder that it is in; may be given again");
  verb->add_option("--name", *name, "Instead of its own");
  verb->add_option("--kernel", *kernel, "Linux kernel to boot directly");
  verb->add_option("--initrd", *initrd, "Its initramfs");
  verb->add_option("--append", *append, "Its command line");
  verb->callback([=, &context] {
    request->set_file(Absolute(*file));
    for (const std::string& folder : *folders) request->add_folders(Absolute(folder));
    request->set_name(*name);
    request->mutable_firmware()->set_kernel(Absolute(*kernel));
    request->mutable_firmware()->set_initrd(Absolute(*initrd));
    request->mutable_firmware()->set_command_line(*append);
    request->set_compare(*compare);
    context.exit_status = Import(context, *request);
  });
}

}  // namespace kvmbus::cmd
