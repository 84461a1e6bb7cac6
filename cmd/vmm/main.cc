// SPDX-License-Identifier: Apache-2.0
// vmm: the worker, one process a running VM, or the owner of a disk that several of them share.
// vmmd starts it; by hand it is for tests.
#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <boost/program_options.hpp>
#include <csignal>
#include <cstdio>
#include <iostream>

#include "cmd/vmm/owner_process.h"
#include "cmd/vmm/worker.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/os/thread.h"

namespace kvmbus::cmd {
namespace {

namespace po = boost::program_options;
using vmm::Code;
using vmm::Result;

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr uint64_t kConfigLimit = 1u << 20;

struct CommandLine {
  std::string run_dir;
  int config_fd = -1;
  std::string config_file;
  std::string shared_disk;
  int log_fd = -1;
  bool unsupported_without_slat = false;
  bool verbose = false;
  bool help = false;
  bool version = false;
};

po::options_description Describe(CommandLine* line) {
  po::options_description options(
      "vmm --run-dir DIR (--config-fd N | --config FILE | --shared-disk IMAGE)\n\nRuns one "
      "virtual machine, or serves one disk to several");
  auto add = options.add_options();
  add("help,h", po::bool_switch(&line->help), "print this");
  add("version", po::bool_switch(&line->version), "print the version");
  add("run-dir", po::value(&line->run_dir), "folder for the sockets, the lock and the exit record");
  add("config-fd", po::value(&line->config_fd),
      "open file with the configuration (kvmbus.config.Vm, serialized)");
  add("config", po::value(&line->config_file), "the same from a path");
  add("shared-disk", po::value(&line->shared_disk), "image that the virtual machines share");
  add("log-fd", po::value(&line->log_fd), "open file for the log instead of standard error");
  add("unsupported-without-slat", po::bool_switch(&line->unsupported_without_slat),
      "tests of the machine model only");
  add("verbose,v", po::bool_switch(&line->verbose), "log more");
  return options;
}

Result<config::Vm> ReadConfig(const CommandLine& line) {
  std::string bytes;
  if (line.config_fd >= 0) {
    const uint64_t size = TRY(vmm::FileSize(line.config_fd));
    if (size > kConfigLimit)
      return vmm::Error(Code::kInvalidArgument, "the configuration is larger than 1 MiB");
    bytes.resize(size);
    TRY_VOID(vmm::PReadAll(line.config_fd, {reinterpret_cast<uint8_t*>(bytes.data()), size}, 0));
    ::close(line.config_fd);
  } else {
    bytes = TRY(vmm::ReadWholeFile(line.config_file, kConfigLimit));
  }
  config::Vm config;
  if (!config.ParseFromString(bytes))
    return vmm::Error(Code::kInvalidArgument, "the configuration cannot be parsed");
  return config;
}

int OwnDisk(const CommandLine& line) {
  vmm::SetThreadStackBytes(vmm::kThreadStackBytes);
  vmm::SetUpLogging("vmm disk", line.verbose);
  const auto ran = RunDiskOwner(line.shared_disk, line.run_dir);
  if (ran.ok()) return 0;
  spdlog::error("shared disk '{}': {}", line.shared_disk, ran.error().ToString());
  return kExitFailed;
}

int Main(int argc, char** argv) {
  CommandLine line;
  const po::options_description options = Describe(&line);
  try {  // the library throws on bad usage
    po::variables_map values;
    po::store(po::parse_command_line(argc, argv, options), values);
    po::notify(values);
  } catch (const po::error& error) {
    std::fprintf(stderr, "vmm: %s; see vmm --help\n", error.what());
    return kExitUsage;
  }
  if (line.help) {
    std::cout << options;
    return 0;
  }
  if (line.version) {
    std::cout << "vmm (kvmbus) " KVMBUS_VERSION "\n";
    return 0;
  }
  const bool has_config = line.config_fd >= 0 || !line.config_file.empty();
  if (line.run_dir.empty() || has_config != line.shared_disk.empty()) {
    std::fprintf(stderr,
                 "vmm: --run-dir and one of --config-fd, --config and --shared-disk are needed; "
                 "see vmm --help\n");
    return kExitUsage;
  }
  if (line.log_fd >= 0) ::dup2(line.log_fd, STDERR_FILENO);
  std::signal(SIGPIPE, SIG_IGN);  // a journal that goes away takes no virtual machine along
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (!line.shared_disk.empty()) return OwnDisk(line);
  auto config = ReadConfig(line);
  if (!config.ok()) {
    std::fprintf(stderr, "vmm: %s\n", config.error().ToString().c_str());
    return kExitFailed;
  }
  vmm::SetThreadStackBytes(vmm::kThreadStackBytes);
  vmm::SetUpLogging("vmm " + config->name(), line.verbose);
  const std::string name = config->name();
  Worker worker({line.run_dir, std::move(config).value(), line.unsupported_without_slat});
  const auto ran = worker.Run();
  if (ran.ok()) return 0;
  spdlog::error("starting '{}': {}", name, ran.error().ToString());
  return kExitFailed;
}

}  // namespace
}  // namespace kvmbus::cmd

int main(int argc, char** argv) { return kvmbus::cmd::Main(argc, argv); }
