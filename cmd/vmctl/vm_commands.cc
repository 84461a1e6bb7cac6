// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"
#include "cmd/vmctl/job_commands.h"
#include "vmm/guid/guid.h"

namespace kvmbus::cmd {
namespace {

std::string StateName(worker::State state) {
  static constexpr const char* kNames[] = {"Unknown", "Off",    "Starting", "Running", "Pausing",
                                           "Paused",  "Saving", "Saved",    "Stopping"};
  const auto index = static_cast<size_t>(state);
  return index < std::size(kNames) ? kNames[index] : "Unknown";
}

std::string CachingName(const config::Disk& disk) {
  return disk.kind() == config::DVD || disk.caching() == config::BUFFERED ? "buffered" : "direct";
}

std::string Absolute(const std::string& path) {
  return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

/// A panic is found by its last lines; one line of it is enough for a table.
std::string CrashSummary(const worker::GuestCrash& crash) {
  const std::string& text = crash.message();
  const size_t panic = text.find("Kernel panic");
  if (panic != std::string::npos) return text.substr(panic, text.find('\n', panic) - panic);
  if (!text.empty()) return text.substr(0, text.find('\n'));
  return crash.parameters_size() > 0 ? fmt::format("code {:#x}", crash.parameters(0)) : "";
}

std::string GenerationIdOf(const config::Vm& vm) {
  const auto id = vmm::Guid::FromBytes(vm.generation_id());
  return id ? id->ToString() : "";
}

const std::string& BiosGuidOf(const config::Vm& vm) {
  return vm.smbios().bios_guid().empty() ? vm.id() : vm.smbios().bios_guid();
}

Json ToJson(const api::VmStatus& vm) {
  std::vector<Json> disks, parameters;
  for (const auto& disk : vm.config().disks())
    disks.push_back(Json::Object({{"kind", Json::Text(disk.kind() == config::DVD ? "dvd" : "disk")},
                                  {"path", Json::Text(disk.path())},
                                  {"controller", Json::Number(disk.controller())},
                                  {"location", Json::Number(disk.lun())},
                                  {"caching", Json::Text(CachingName(disk))},
                                  {"read_only", Json::Boolean(disk.read_only())},
                                  {"shared", Json::Boolean(disk.shared())}}));
  for (const uint64_t parameter : vm.crash().parameters())
    parameters.push_back(Json::Number(parameter));
  return Json::Object(
      {{"id", Json::Text(vm.config().id())},
       {"name", Json::Text(vm.config().name())},
       {"state", Json::Text(StateName(vm.state()))},
       {"reason", Json::Text(vm.reason())},
       {"generation", Json::Number(vm.config().generation())},
       {"version", Json::Text(vm.config().version())},
       {"folder", Json::Text(vm.config().folder())},
       {"processors", Json::Number(vm.config().vcpu_count())},
       {"memory_bytes", Json::Number(vm.config().memory_bytes())},
       {"uptime_seconds", Json::Number(vm.uptime_ns() / 1'000'000'000)},
       {"heartbeat", Json::Text(vm.heartbeat())},
       {"vmbus_version", Json::Text(vm.integration_version())},
       {"generation_id", Json::Text(GenerationIdOf(vm.config()))},
       {"bios_guid", Json::Text(BiosGuidOf(vm.config()))},
       {"bios_serial_number", Json::Text(vm.config().smbios().bios_serial_number())},
       {"chassis_asset_tag", Json::Text(vm.config().smbios().chassis_asset_tag())},
       {"reboots", Json::Number(vm.reboots())},
       {"worker_pid", Json::Number(vm.worker_pid())},
       {"crash_message", Json::Text(vm.crash().message())},
       {"crash_parameters", Json::Array(parameters)},
       {"disks", Json::Array(disks)}});
}

void PrintDetails(const api::VmStatus& vm) {
  std::vector<std::vector<std::string>> rows = {
      {"Name", vm.config().name()},
      {"Id", vm.config().id()},
      {"State", StateName(vm.state())},
      {"Generation", std::to_string(vm.config().generation())},
      {"Version", vm.config().version()},
      {"Processors", std::to_string(vm.config().vcpu_count())},
      {"Memory", HumanBytes(vm.config().memory_bytes())}};
  if (!vm.config().smbios().bios_serial_number().empty())
    rows.push_back({"Serial number", vm.config().smbios().bios_serial_number()});
  if (!vm.reason().empty()) rows.push_back({"Reason", vm.reason()});
  if (vm.state() == worker::RUNNING || vm.state() == worker::PAUSED) {
    rows.push_back({"Uptime", HumanDuration(vm.uptime_ns())});
    rows.push_back({"Heartbeat", vm.heartbeat()});
    rows.push_back(
        {"VMBus", vm.integration_version().empty() ? "not connected" : vm.integration_version()});
    rows.push_back({"Worker", fmt::format("process {}", vm.worker_pid())});
  }
  if (vm.reboots() != 0) rows.push_back({"Restarts", std::to_string(vm.reboots())});
  for (const auto& disk : vm.config().disks())
    rows.push_back({disk.kind() == config::DVD ? "DVD" : "Disk",
                    fmt::format("SCSI {} location {}: {}{}{}", disk.controller(), disk.lun(),
                                disk.path().empty() ? "empty" : disk.path(),
                                disk.shared()      ? " (shared)"
                                : disk.read_only() ? " (read-only)"
                                                   : "",
                                disk.caching() == config::BUFFERED ? " (buffered)" : "")});
  if (vm.has_crash()) rows.push_back({"Last crash", CrashSummary(vm.crash())});
  PrintTable(rows);
}

/// Asked on a terminal; elsewhere nobody agrees.
bool Agrees(const std::string& question) {
  if (::isatty(STDIN_FILENO) == 0) return false;
  std::fprintf(stderr, "%s [y/N] ", question.c_str());
  char answer[16] = "";
  return std::fgets(answer, sizeof(answer), stdin) != nullptr &&
         (answer[0] == 'y' || answer[0] == 'Y');
}

/// The calls of one command, each printing what it got.
class VmCommands {
 public:
  explicit VmCommands(Context& context) : context_(context), client_(context.socket) {}

  int Show(const grpc::Status& status, const api::VmStatus& vm, bool quiet_table) {
    if (const int failed = client_.Check(status)) return failed;
    if (context_.format == Format::kJson)
      std::printf("%s\n", ToJson(vm).text().c_str());
    else if (!quiet_table)
      PrintDetails(vm);
    return kExitDone;
  }

  int List() {
    api::ListVmsReply reply;
    grpc::ClientContext call;
    if (const int failed = client_.Check(client_.machines().ListVms(&call, {}, &reply)))
      return failed;
    if (context_.format == Format::kJson) {
      std::vector<Json> vms;
      for (const auto& vm : reply.vms()) vms.push_back(ToJson(vm));
      std::printf("%s\n", Json::Array(vms).text().c_str());
      return kExitDone;
    }
    std::vector<std::vector<std::string>> rows = {
        {"NAME", "STATE", "GEN", "VERSION", "CPUS", "MEMORY", "UPTIME", "HEARTBEAT", "REASON"}};
    for (const auto& vm : reply.vms()) {
      const bool on = vm.state() != worker::OFF && vm.state() != worker::SAVED;
      rows.push_back(
          {vm.config().name(), StateName(vm.state()), std::to_string(vm.config().generation()),
           vm.config().version(), std::to_string(vm.config().vcpu_count()),
           HumanBytes(vm.config().memory_bytes()), on ? HumanDuration(vm.uptime_ns()) : "-",
           on && !vm.heartbeat().empty() ? vm.heartbeat() : "-", vm.reason()});
    }
    PrintTable(rows);
    return kExitDone;
  }

  template <typename Request, typename Method>
  int Simple(const Request& request, Method method, bool quiet_table = true) {
    api::VmStatus reply;
    grpc::ClientContext call;
    const grpc::Status status = (client_.machines().*method)(&call, request, &reply);
    return Show(status, reply, quiet_table);
  }

  int Delete(const std::string& vm) {
    api::VmReference request;
    request.set_vm(vm);
    api::Empty reply;
    grpc::ClientContext call;
    return client_.Check(client_.machines().DeleteVm(&call, request, &reply));
  }

  int Upgrade(const std::string& vm, bool agreed) {
    if (!agreed && !Agrees(fmt::format(
                       "Upgrade the configuration of '{}'? There is no way back, and its saved "
                       "memory is lost, also that of its checkpoints.",
                       vm))) {
      std::fprintf(stderr, "vmctl: nothing was done; say y, or give --yes\n");
      return kExitUsage;
    }
    api::UpgradeVmRequest request;
    request.set_vm(vm);
    request.set_discard_saved_states(true);
    request.set_request_id(JobOptions().Request());
    return BeginJob(context_, &Client::machines, &api::VirtualMachines::Stub::UpgradeVm, request,
                    false);
  }

  int Stop(const api::StopVmRequest& request) {
    grpc::ClientContext call;
    const auto reader = client_.machines().StopVm(&call, request);
    api::Progress progress;
    while (reader->Read(&progress)) {
      if (context_.format == Format::kTable)
        std::printf("%s: %s\n", progress.status().config().name().c_str(),
                    progress.message().c_str());
      std::fflush(stdout);
    }
    const int failed = client_.Check(reader->Finish());
    if (failed == kExitDone && context_.format == Format::kJson)
      std::printf("%s\n", ToJson(progress.status()).text().c_str());
    return failed;
  }

  int Counters(const std::string& vm) {
    api::VmReference request;
    request.set_vm(vm);
    api::CountersReply reply;
    grpc::ClientContext call;
    if (const int failed = client_.Check(client_.machines().GetCounters(&call, request, &reply)))
      return failed;
    std::map<std::string, uint64_t> sorted(reply.counters().begin(), reply.counters().end());
    std::vector<std::pair<std::string, Json>> members;
    std::vector<std::vector<std::string>> rows;
    for (const auto& [name, value] : sorted) {
      members.emplace_back(name, Json::Number(value));
      rows.push_back({name, std::to_string(value)});
    }
    if (context_.format == Format::kJson)
      std::printf("%s\n", Json::Object(members).text().c_str());
    else
      PrintTable(rows);
    return kExitDone;
  }

  int Describe(const std::string& vm) {
    api::VmReference request;
    request.set_vm(vm);
    api::DescribeVmReply reply;
    grpc::ClientContext call;
    if (const int failed = client_.Check(client_.machines().DescribeVm(&call, request, &reply)))
      return failed;
    std::fwrite(reply.fdt().data(), 1, reply.fdt().size(), stdout);  // for dtc -I dtb
    return kExitDone;
  }

  int Console(const std::string& vm) {
    api::VmReference request;
    request.set_vm(vm);
    api::VmStatus reply;
    grpc::ClientContext call;
    if (const int failed = client_.Check(client_.machines().GetVm(&call, request, &reply)))
      return failed;
    if (reply.config().serial().com1() != "console") {
      std::fprintf(stderr, "vmctl: '%s' has no console; create it with --com1 console\n",
                   reply.config().name().c_str());
      return ExitCodeOf(vmm::Code::kFailedPrecondition);
    }
    return RunConsole(context_.run_dir + "/" + reply.config().id() + "/console.sock");
  }

 private:
  Context& context_;
  Client client_;
};

struct CreateArguments {
  config::Vm config;
  std::string name, version, memory = "1G", kernel, initrd, append, com1;
  std::vector<std::string> disks, shared_disks, dvds;
  uint32_t generation = 2, vcpus = 1, controllers = 1;
  config::DiskCaching caching = config::DIRECT;
  bool no_heartbeat = false, no_shutdown = false, no_timesync = false, no_backup = false;
  bool huge_pages = false;
};

int Create(Context& context, const CreateArguments& arguments) {
  api::CreateVmRequest request;
  config::Vm& vm = *request.mutable_config();
  uint64_t memory;
  if (!ParseBytes(arguments.memory, &memory)) {
    std::fprintf(stderr, "vmctl: '%s' is no size; write 512M or 4G\n", arguments.memory.c_str());
    return kExitUsage;
  }
  vm.set_name(arguments.name);
  vm.set_generation(arguments.generation);
  vm.set_version(arguments.version);
  vm.set_vcpu_count(arguments.vcpus);
  vm.set_memory_bytes(memory);
  vm.set_scsi_controllers(arguments.controllers);
  vm.set_huge_pages(arguments.huge_pages);
  vm.mutable_firmware()->set_kernel(Absolute(arguments.kernel));
  vm.mutable_firmware()->set_initrd(Absolute(arguments.initrd));
  vm.mutable_firmware()->set_command_line(arguments.append);
  vm.mutable_serial()->set_com1(arguments.com1);
  vm.mutable_integration()->set_heartbeat(!arguments.no_heartbeat);
  vm.mutable_integration()->set_shutdown(!arguments.no_shutdown);
  vm.mutable_integration()->set_time_synchronization(!arguments.no_timesync);
  vm.mutable_integration()->set_backup(!arguments.no_backup);
  for (size_t i = 0; i < arguments.disks.size(); ++i) {
    config::Disk* disk = vm.add_disks();
    disk->set_path(Absolute(arguments.disks[i]));
    disk->set_caching(arguments.caching);
    disk->set_lun(static_cast<uint32_t>(i));
  }
  for (const std::string& image : arguments.shared_disks) {
    config::Disk* disk = vm.add_disks();
    disk->set_path(Absolute(image));
    disk->set_shared(true);
    disk->set_lun(static_cast<uint32_t>(vm.disks_size() - 1));
  }
  for (const std::string& disc : arguments.dvds) {
    config::Disk* drive = vm.add_disks();
    drive->set_kind(config::DVD);
    if (disc != "none") drive->set_path(Absolute(disc));
    drive->set_lun(static_cast<uint32_t>(vm.disks_size() - 1));
  }
  return VmCommands(context).Simple(request, &api::VirtualMachines::Stub::CreateVm);
}

void AddSaveCommand(CLI::App* vm, Context& context) {
  auto request = std::make_shared<api::SaveVmRequest>();
  auto options = std::make_shared<JobOptions>();
  auto name = std::make_shared<std::string>();
  auto compress = std::make_shared<bool>(false);
  CLI::App* verb = vm->add_subcommand(
      "save", "Save memory and devices to files, and stop; 'start' goes on from there");
  verb->add_option("VM", *name, "Name or id")->required();
  verb->add_flag("--compress", *compress, "The memory, by zstd: a smaller file");
  options->AddTo(verb);
  verb->callback([=, &context] {
    request->set_vm(*name);
    request->set_compress(*compress);
    request->set_request_id(options->Request());
    context.exit_status = BeginJob(context, &Client::machines, &api::VirtualMachines::Stub::SaveVm,
                                   *request, options->detach);
  });
}

/// For backup scripts. They are documented, but not among the help's verbs: whoever looks for a way
/// to stop a machine must not find them.
void AddFreezeCommands(CLI::App* vm, Context& context) {
  auto freeze = std::make_shared<std::pair<std::string, uint32_t>>("", 30);
  CLI::App* verb = vm->add_subcommand(
      "freeze",
      "Bring the guest's file systems to rest, for a backup of its disks; they are thawed after "
      "10 s unless 'vmctl vm thaw' comes before, which says whether they were at rest until then");
  verb->group("");
  verb->add_option("VM", freeze->first, "Name or id")->required();
  verb->add_option("--timeout", freeze->second,
                   "Seconds that the guest has for it, 1 to 600 (default 30)");
  verb->callback([&context, freeze] {
    api::FreezeVmRequest request;
    request.set_vm(freeze->first);
    request.set_timeout_seconds(freeze->second);
    context.exit_status =
        VmCommands(context).Simple(request, &api::VirtualMachines::Stub::FreezeVm);
  });

  auto thaw = std::make_shared<std::string>();
  verb = vm->add_subcommand("thaw",
                            "Thaw the guest's file systems; fails if they were not at rest any "
                            "more, and what was copied since then is of no use");
  verb->group("");
  verb->add_option("VM", *thaw, "Name or id")->required();
  verb->callback([&context, thaw] {
    api::VmReference request;
    request.set_vm(*thaw);
    context.exit_status = VmCommands(context).Simple(request, &api::VirtualMachines::Stub::ThawVm);
  });
}

void AddCreateCommand(CLI::App* vm, Context& context) {
  auto create = std::make_shared<CreateArguments>();
  CLI::App* verb = vm->add_subcommand("create", "Create a virtual machine");
  verb->add_option("NAME", create->name)->required();
  verb->add_option("--generation", create->generation, "1 or 2 (default 2)");
  verb->add_option("--version", create->version,
                   "Of its configuration: 5.0 or 6.2 ('host versions' lists them)");
  verb->add_option("--vcpus", create->vcpus, "Virtual processors (default 1)");
  verb->add_option("--memory", create->memory, "Size, as 512M or 4G (default 1G)");
  verb->add_option("--disk", create->disks,
                   "Image, at the next location of SCSI controller 0; may be given again");
  AddCachingOption(*verb, "--disk-caching", &create->caching);
  verb->add_option("--shared-disk", create->shared_disks,
                   "Image that other virtual machines have too, each as shared; after the disks, "
                   "may be given again");
  verb->add_option(
      "--dvd", create->dvds,
      "DVD drive at the location after the disks': an ISO image in it, or none; may be "
      "given again");
  verb->add_option("--scsi-controllers", create->controllers, "1 to 4 (default 1)");
  verb->add_option("--kernel", create->kernel, "Linux kernel to boot directly");
  verb->add_option("--initrd", create->initrd, "Its initramfs");
  verb->add_option("--append", create->append, "Its command line");
  verb->add_option("--com1", create->com1, "Serial port: console, or file:/PATH");
  verb->add_flag("--huge-pages", create->huge_pages, "Back the memory with 2 MiB pages");
  verb->add_flag("--no-heartbeat", create->no_heartbeat, "Without the heartbeat service");
  verb->add_flag("--no-shutdown", create->no_shutdown, "Without the shutdown service");
  verb->add_flag("--no-time-sync", create->no_timesync, "Without time synchronization");
  verb->add_flag("--no-backup", create->no_backup,
                 "Without the backup service (volume checkpoint)");
  verb->callback([&context, create] { context.exit_status = Create(context, *create); });
}

/// Verbs that take a VM and nothing else.
void AddPlainCommands(CLI::App* vm, Context& context) {
  using Act = std::function<int(VmCommands&, const std::string&)>;
  const auto reference = [](const std::string& name) {
    api::VmReference request;
    request.set_vm(name);
    return request;
  };
  using Stub = api::VirtualMachines::Stub;
  const std::vector<std::tuple<const char*, const char*, Act>> verbs = {
      {"show", "Show one",
       [=](VmCommands& c, const std::string& v) {
         return c.Simple(reference(v), &Stub::GetVm, false);
       }},
      {"start", "Start it; returns when it runs",
       [=](VmCommands& c, const std::string& v) { return c.Simple(reference(v), &Stub::StartVm); }},
      {"turn-off", "Turn it off at once, without asking the guest",
       [=](VmCommands& c, const std::string& v) {
         return c.Simple(reference(v), &Stub::TurnOffVm);
       }},
      {"pause", "Pause it",
       [=](VmCommands& c, const std::string& v) { return c.Simple(reference(v), &Stub::PauseVm); }},
      {"resume", "Let a paused one go on",
       [=](VmCommands& c, const std::string& v) {
         return c.Simple(reference(v), &Stub::ResumeVm);
       }},
      {"discard", "Give up the saved state of a saved one; it is off afterwards",
       [=](VmCommands& c, const std::string& v) {
         return c.Simple(reference(v), &Stub::DiscardSavedState);
       }},
      {"delete", "Delete its configuration; disks stay",
       [](VmCommands& c, const std::string& v) { return c.Delete(v); }},
      {"counters", "What its devices counted",
       [](VmCommands& c, const std::string& v) { return c.Counters(v); }},
      {"describe", "Its machine description, a flattened device tree, to standard output",
       [](VmCommands& c, const std::string& v) { return c.Describe(v); }},
      {"console", "Connect to its serial console; leave with Ctrl-]",
       [](VmCommands& c, const std::string& v) { return c.Console(v); }},
  };
  for (const auto& [name, help, act] : verbs) {
    auto target = std::make_shared<std::string>();
    CLI::App* sub = vm->add_subcommand(name, help);
    sub->add_option("VM", *target, "Name or id")->required();
    sub->callback([&context, target, act = act] {
      VmCommands commands(context);
      context.exit_status = act(commands, *target);
    });
  }
}

void AddUpgradeCommand(CLI::App* vm, Context& context) {
  auto target = std::make_shared<std::string>();
  auto agreed = std::make_shared<bool>(false);
  CLI::App* verb =
      vm->add_subcommand("upgrade", "Bring its configuration to the newest version; it is off");
  verb->add_option("VM", *target, "Name or id")->required();
  verb->add_flag("--yes", *agreed, "Without asking: saved memory is lost, there is no way back");
  verb->callback([&context, target, agreed] {
    context.exit_status = VmCommands(context).Upgrade(*target, *agreed);
  });
}

void AddStopCommand(CLI::App* vm, Context& context) {
  auto stop = std::make_shared<api::StopVmRequest>();
  auto target = std::make_shared<std::string>();
  auto timeout = std::make_shared<uint32_t>(300);
  auto force = std::make_shared<bool>(false), restart = std::make_shared<bool>(false);
  CLI::App* verb =
      vm->add_subcommand("stop", "Ask the guest to shut down, and wait until it is off");
  verb->add_option("VM", *target, "Name or id")->required();
  verb->add_option("--timeout", *timeout, "Seconds to wait (default 300)");
  verb->add_flag("--force", *force, "Tell the guest not to ask its programs");
  verb->add_flag("--restart", *restart, "Restart instead");
  verb->callback([&context, stop, target, timeout, force, restart] {
    stop->set_vm(*target);
    stop->set_timeout_seconds(*timeout);
    stop->set_force(*force);
    stop->set_restart(*restart);
    context.exit_status = VmCommands(context).Stop(*stop);
  });
}

void AddWaitCommand(CLI::App* vm, Context& context) {
  auto target = std::make_shared<std::string>(),
       condition = std::make_shared<std::string>("running");
  auto timeout = std::make_shared<uint32_t>(300);
  CLI::App* verb = vm->add_subcommand("wait", "Wait for a state");
  verb->add_option("VM", *target, "Name or id")->required();
  verb->add_option("--for", *condition, "running, off or heartbeat (default running)");
  verb->add_option("--timeout", *timeout, "Seconds (default 300)");
  verb->callback([&context, target, condition, timeout] {
    api::WaitVmRequest request;
    request.set_vm(*target);
    request.set_condition(*condition);
    request.set_timeout_seconds(*timeout);
    context.exit_status = VmCommands(context).Simple(request, &api::VirtualMachines::Stub::WaitVm);
  });
}

void AddPulseCommand(CLI::App* vm, Context& context) {
  auto target = std::make_shared<std::string>();
  auto count = std::make_shared<uint32_t>(1);
  CLI::App* verb =
      vm->add_subcommand("pulse", "Save, reset and restore it in place; the guest must not notice");
  verb->add_option("VM", *target, "Name or id")->required();
  verb->add_option("--count", *count, "How often (default 1)");
  verb->callback([&context, target, count] {
    api::PulseVmRequest request;
    request.set_vm(*target);
    request.set_count(*count);
    context.exit_status = VmCommands(context).Simple(request, &api::VirtualMachines::Stub::PulseVm);
  });
}

}  // namespace

void AddVmCommands(CLI::App& app, Context& context) {
  CLI::App* vm = app.add_subcommand("vm", "Virtual machines");
  vm->require_subcommand(1);
  AddCreateCommand(vm, context);
  AddImportCommand(vm, context);
  AddExportCommand(vm, context);
  vm->add_subcommand("list", "List the virtual machines")->callback([&context] {
    context.exit_status = VmCommands(context).List();
  });
  AddPlainCommands(vm, context);
  AddUpgradeCommand(vm, context);
  AddStopCommand(vm, context);
  AddWaitCommand(vm, context);
  AddSaveCommand(vm, context);
  AddFreezeCommands(vm, context);
  AddPulseCommand(vm, context);
}

}  // namespace kvmbus::cmd
