// SPDX-License-Identifier: Apache-2.0
// vmmd: the host service.
#include <fcntl.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <boost/program_options.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "cmd/vmmd/api_service.h"
#include "cmd/vmmd/image_files.h"
#include "kvm/host_check.h"
#include "vmm/manager/inventory.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/os/signals.h"
#include "vmm/os/thread.h"

namespace kvmbus::cmd {
namespace {

namespace po = boost::program_options;
using vmm::Code;
using vmm::Result;

struct Options {
  std::string config;
  std::string state_dir;
  std::string run_dir;
  std::string socket;
  std::string worker_path;
  bool verbose = false;
};

/// False (after a line on standard error) on bad usage; `*help` if the help was printed.
bool ParseOptions(int argc, char** argv, Options* options, bool* help) {
  po::options_description description(
      "vmmd: runs Hyper-V virtual machines on KVM\n\nOptions, also in vmmd.conf as NAME = VALUE");
  auto add = description.add_options();
  add("help,h", "print this");
  add("config", po::value(&options->config)->default_value("/etc/kvmbus/vmmd.conf"),
      "file with options");
  add("state-dir", po::value(&options->state_dir)->default_value("/var/lib/kvmbus"),
      "configurations of the virtual machines");
  add("run-dir", po::value(&options->run_dir)->default_value("/run/kvmbus"), "sockets");
  add("socket", po::value(&options->socket)->default_value(""),
      "where to listen (default: RUN_DIR/vmmd.sock)");
  add("worker-path", po::value(&options->worker_path)->default_value(""),
      "the worker program (default: vmm beside vmmd)");
  add("verbose,v", po::bool_switch(&options->verbose), "log more");
  try {  // the library throws on bad usage
    po::variables_map values;
    po::store(po::parse_command_line(argc, argv, description), values);
    *help = values.count("help") != 0;
    if (*help) std::cout << description;
    if (std::ifstream file(values["config"].as<std::string>()); file)
      po::store(po::parse_config_file(file, description), values);
    po::notify(values);
  } catch (const po::error& error) {
    std::cerr << "vmmd: " << error.what() << "; see vmmd --help\n";
    return false;
  }
  if (options->socket.empty()) options->socket = options->run_dir + "/vmmd.sock";
  if (options->worker_path.empty())
    options->worker_path =
        std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/vmm";
  return true;
}

Result<vmm::Fd> LockInstance(const std::string& run_dir) {
  TRY_VOID(vmm::MakeFolders(run_dir, 0755));
  vmm::Fd lock = TRY(vmm::OpenFile(run_dir + "/vmmd.lock", O_RDWR | O_CREAT, 0600));
  const auto locked = vmm::LockFile(lock.get(), vmm::LockKind::kExclusive);
  if (!locked.ok())
    return vmm::MakeError(Code::kAlreadyExists,
                          "another vmmd runs with '{}': stop it first, or choose another --run-dir",
                          run_dir);
  return lock;
}

Result<void> Serve(const Options& options) {
  const vmm::Fd lock = TRY(LockInstance(options.run_dir));
  // Blocked before gRPC starts its threads, so that only the signalfd takes them.
  const vmm::Fd signals = vmm::TakeEndSignals();
  auto loop = TRY(vmm::Loop::Create());
  TRY_VOID(loop->Watch(signals.get(), EPOLLIN, [&](uint32_t) {
    spdlog::info("leaving; running virtual machines go on");
    loop->Stop();
  }));
  vmm::Inventory::Options inventory_options;
  inventory_options.state_dir = options.state_dir;
  inventory_options.run_dir = options.run_dir;
  inventory_options.worker_path = options.worker_path;
  inventory_options.check_host = [] { return kvm::CheckHost(); };
  auto inventory = TRY(vmm::Inventory::Open(*loop, std::move(inventory_options)));
  const auto jobs = TRY(vmm::Jobs::Open(options.state_dir + "/jobs", loop->clock()));
  ImageFiles images;
  vmm::Checkpoints checkpoints(*loop, *inventory, *jobs, images);
  vmm::Transfers transfers(*loop, *inventory, checkpoints, *jobs, images);
  vmm::StateJobs state_jobs(*loop, *inventory, *jobs);
  auto server = TRY(ApiServer::Listen(
      {*loop, *inventory, checkpoints, transfers, state_jobs, *jobs}, options.socket));
  spdlog::info("listening on '{}'", options.socket);
  ::sd_notify(0, "READY=1");
  loop->Run();
  ::sd_notify(0, "STOPPING=1");
  // Everything that counts is on disk or in the workers; calls under way need not be waited for.
  ::unlink(options.socket.c_str());
  ::_exit(0);
}

int Main(int argc, char** argv) {
  Options options;
  bool help = false;
  if (!ParseOptions(argc, argv, &options, &help)) return 2;
  if (help) return 0;
  vmm::SetThreadStackBytes(2 * vmm::kThreadStackBytes);
  vmm::SetUpLogging("vmmd", options.verbose);
  const auto served = Serve(options);
  if (served.ok()) return 0;
  spdlog::error("{}", served.error().ToString());
  return 1;
}

}  // namespace
}  // namespace kvmbus::cmd

int main(int argc, char** argv) { return kvmbus::cmd::Main(argc, argv); }
