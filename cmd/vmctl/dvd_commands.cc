// SPDX-License-Identifier: Apache-2.0
// vmctl dvd ...: the discs in a machine's DVD drives.
#include <cstdio>
#include <filesystem>
#include <memory>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"

namespace kvmbus::cmd {
namespace {

struct DriveArguments {
  std::string vm, path;
  uint32_t controller = 0, location = 0;
  bool has_location = false, force = false;
};

void AddDriveOptions(CLI::App* verb, const std::shared_ptr<DriveArguments>& arguments) {
  verb->add_option("--controller", arguments->controller,
                   "SCSI controller of the location (default 0)");
  verb->add_option("--location", arguments->location, "0 to 63 (default: the only DVD drive)")
      ->each([arguments](const std::string&) { arguments->has_location = true; });
}

/// Fills in where the machine's only drive is, unless the user said it.
int FindDrive(Client& client, DriveArguments& arguments) {
  if (arguments.has_location) return kExitDone;
  api::VmReference request;
  request.set_vm(arguments.vm);
  api::VmStatus vm;
  grpc::ClientContext call;
  if (const int failed = client.Check(client.machines().GetVm(&call, request, &vm))) return failed;
  unsigned drives = 0;
  for (const auto& disk : vm.config().disks()) {
    if (disk.kind() != config::DVD) continue;
    ++drives;
    arguments.controller = disk.controller();
    arguments.location = disk.lun();
  }
  if (drives == 1) return kExitDone;
  const char* what = drives == 0 ? "has no DVD drive; create it with --dvd none"
                                 : "has several DVD drives; say which one with --location";
  std::fprintf(stderr, "vmctl: '%s' %s\n", vm.config().name().c_str(), what);
  return ExitCodeOf(drives == 0 ? vmm::Code::kNotFound : vmm::Code::kFailedPrecondition);
}

int Insert(const Context& context, DriveArguments& arguments) {
  Client client(context.socket);
  if (const int failed = FindDrive(client, arguments)) return failed;
  api::InsertDvdRequest request;
  request.set_vm(arguments.vm);
  request.set_controller(arguments.controller);
  request.set_lun(arguments.location);
  request.set_path(std::filesystem::absolute(arguments.path).lexically_normal().string());
  api::VmStatus reply;
  grpc::ClientContext call;
  return client.Check(client.machines().InsertDvd(&call, request, &reply));
}

int Eject(const Context& context, DriveArguments& arguments) {
  Client client(context.socket);
  if (const int failed = FindDrive(client, arguments)) return failed;
  api::EjectDvdRequest request;
  request.set_vm(arguments.vm);
  request.set_controller(arguments.controller);
  request.set_lun(arguments.location);
  request.set_force(arguments.force);
  api::VmStatus reply;
  grpc::ClientContext call;
  return client.Check(client.machines().EjectDvd(&call, request, &reply));
}

}  // namespace

void AddDvdCommands(CLI::App& app, Context& context) {
  CLI::App* dvd = app.add_subcommand("dvd", "Discs in DVD drives");
  dvd->require_subcommand(1);

  auto insert = std::make_shared<DriveArguments>();
  CLI::App* verb = dvd->add_subcommand("insert", "Put a disc into a drive, running or not");
  verb->add_option("VM", insert->vm, "Name or id")->required();
  verb->add_option("ISO", insert->path, "Image of the disc")->required();
  AddDriveOptions(verb, insert);
  verb->callback([&context, insert] { context.exit_status = Insert(context, *insert); });

  auto eject = std::make_shared<DriveArguments>();
  verb = dvd->add_subcommand("eject", "Take the disc out; a guest that holds it is asked first");
  verb->add_option("VM", eject->vm, "Name or id")->required();
  AddDriveOptions(verb, eject);
  verb->add_flag("--force", eject->force, "Without asking the guest");
  verb->callback([&context, eject] { context.exit_status = Eject(context, *eject); });
}

}  // namespace kvmbus::cmd
