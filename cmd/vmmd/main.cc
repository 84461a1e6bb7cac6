// SPDX-License-Identifier: Apache-2.0
// vmmd: the host service.
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <syslog.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <boost/program_options.hpp>
#include <cerrno>
#include <filesystem>
#include <iostream>
#include <optional>
#include <sstream>

#include "cmd/vmmd/api_service.h"
#include "cmd/vmmd/image_files.h"
#include "kvm/host_check.h"
#include "vmm/manager/inventory.h"
#include "vmm/manager/worker_process.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/os/signals.h"
#include "vmm/os/thread.h"

namespace kvmbus::cmd {
namespace {

namespace po = boost::program_options;
using vmm::Code;
using vmm::Result;

constexpr int kExitUsage = 2;
constexpr gid_t kNoGroup = static_cast<gid_t>(-1);  // files stay with the one that they have

struct Options {
  std::string config;
  std::string state_dir;
  std::string run_dir;
  std::string socket;
  std::string group;
  gid_t group_id = kNoGroup;
  std::string worker_path;
  bool verbose = false;
};

/// Beside vmmd in a build folder, in libexec once they are installed.
std::string FindWorker() {
  const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::string beside = folder / "vmm";
  if (vmm::FileExists(beside)) return beside;
  return (folder / KVMBUS_WORKER_FOLDER / "vmm").lexically_normal();
}

/// The default one may be missing; one that was named may not.
Result<std::string> ReadConfig(const po::variable_value& path) {
  auto text = vmm::ReadWholeFile(path.as<std::string>());
  if (!text.ok() && path.defaulted() && text.error().code() == Code::kNotFound) return "";
  return text;
}

int BadUsage(const std::string& text) {
  std::cerr << (vmm::LogsToJournal() ? "<3>" : "vmmd: ") << text << "\n";
  return kExitUsage;
}

/// The exit status if there is nothing to serve: after the help, or a line on standard error.
std::optional<int> ParseOptions(int argc, char** argv, Options* options) {
  po::options_description in_file("Options, also in vmmd.conf as NAME = VALUE");
  auto add = in_file.add_options();
  add("state-dir", po::value(&options->state_dir)->default_value("/var/lib/kvmbus"),
      "configurations of the virtual machines");
  add("run-dir", po::value(&options->run_dir)->default_value("/run/kvmbus"), "sockets");
  add("socket", po::value(&options->socket)->default_value(""),
      "where to listen (default: vmmd.sock there)");
  add("group", po::value(&options->group)->default_value(""),
      "whose members may use the sockets, beside root (default: nobody's)");
  add("worker-path", po::value(&options->worker_path)->default_value(""),
      "the worker program (default: vmm beside vmmd, or in libexec)");
  add("verbose,v", po::bool_switch(&options->verbose), "log more");
  po::options_description all("vmmd: runs Hyper-V virtual machines on KVM\n\nOptions");
  auto also = all.add_options();
  also("help,h", "print this");
  also("version", "print the version");
  also("config", po::value(&options->config)->default_value("/etc/kvmbus/vmmd.conf"),
       "file with options");
  all.add(in_file);
  std::string where;
  try {  // the library throws on bad usage
    po::variables_map values;
    const po::positional_options_description none;
    po::store(po::command_line_parser(argc, argv).options(all).positional(none).run(), values);
    if (values.count("help") != 0) return std::cout << all, 0;
    if (values.count("version") != 0) return std::cout << "vmmd (kvmbus) " KVMBUS_VERSION "\n", 0;
    const auto config = ReadConfig(values["config"]);
    if (!config.ok()) return BadUsage(config.error().ToString());
    where = values["config"].as<std::string>() + ": ";
    std::istringstream file(*config);
    po::store(po::parse_config_file(file, in_file), values);
    where.clear();
    po::notify(values);
  } catch (const po::error& error) {
    return BadUsage(where + error.what() + "; see vmmd --help");
  }
  if (options->socket.empty()) options->socket = options->run_dir + "/vmmd.sock";
  if (options->worker_path.empty()) options->worker_path = FindWorker();
  if (options->group.empty()) return std::nullopt;
  const struct group* found = ::getgrnam(options->group.c_str());
  if (found == nullptr)
    return BadUsage(
        fmt::format("there is no group '{0}': make it ('groupadd --system {0}'), or "
                    "change 'group' in {1}",
                    options->group, options->config));
  options->group_id = found->gr_gid;
  return std::nullopt;
}

Result<void> GiveTo(gid_t group, const std::string& path, mode_t mode) {
  if (::chown(path.c_str(), static_cast<uid_t>(-1), group) < 0 ||
      (mode != 0 && ::chmod(path.c_str(), mode) < 0))
    return vmm::Error::FromErrno(errno, fmt::format("giving '{}' to the group", path));
  return {};
}

/// The folders of machines are in it, with their consoles. New ones get the group from the folder
/// above them (its set-group-id bit), by whichever process they are made; those that are there
/// already, of machines that ran before, are given to it now.
Result<void> ShareRunFolder(const std::string& run_dir, gid_t group) {
  if (group == kNoGroup) return {};
  TRY_VOID(GiveTo(group, run_dir, 02750));
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator at(run_dir, error), end; !error && at != end;
       at.increment(error)) {
    std::error_code gone;  // of a machine that ends just now
    const auto kind = at->symlink_status(gone).type();
    if (kind != std::filesystem::file_type::directory && kind != std::filesystem::file_type::socket)
      continue;
    const bool folder = kind == std::filesystem::file_type::directory;
    const auto given = GiveTo(group, at->path(), folder ? 02750 : 0);
    if (!given.ok() && vmm::FileExists(at->path())) return given;
  }
  if (error) return vmm::Error::FromErrno(error.value(), fmt::format("reading '{}'", run_dir));
  return {};
}

Result<vmm::Fd> LockInstance(const std::string& run_dir) {
  TRY_VOID(vmm::MakeFolders(run_dir, 0750));
  vmm::Fd lock = TRY(vmm::OpenFile(run_dir + "/vmmd.lock", O_RDWR | O_CREAT, 0600));
  const auto locked = vmm::LockFile(lock.get(), vmm::LockKind::kExclusive);
  if (!locked.ok())
    return vmm::MakeError(Code::kAlreadyExists,
                          "another vmmd runs with '{}': stop it first, or choose another --run-dir",
                          run_dir);
  return lock;
}

/// What runs in the journal's sight is to be found there, also when its folder is gone.
void LogWorkersAsWeDo() {
  if (!vmm::LogsToJournal()) return;
  vmm::LogWorkersToJournal([](const std::string& identifier) -> Result<vmm::Fd> {
    const int fd = ::sd_journal_stream_fd(identifier.c_str(), LOG_INFO, 1);
    if (fd < 0) return vmm::Error::FromErrno(-fd, "opening a stream to the journal");
    return vmm::Fd(fd);
  });
}

Result<void> Serve(const Options& options) {
  const vmm::Fd lock = TRY(LockInstance(options.run_dir));
  TRY_VOID(ShareRunFolder(options.run_dir, options.group_id));
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
  TRY_VOID(GiveTo(options.group_id, options.socket, 0));
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
  if (const auto status = ParseOptions(argc, argv, &options)) return *status;
  vmm::SetThreadStackBytes(2 * vmm::kThreadStackBytes);
  vmm::SetUpLogging("vmmd", options.verbose);
  LogWorkersAsWeDo();
  const auto served = Serve(options);
  if (served.ok()) return 0;
  spdlog::error("{}", served.error().ToString());
  return 1;
}

}  // namespace
}  // namespace kvmbus::cmd

int main(int argc, char** argv) { return kvmbus::cmd::Main(argc, argv); }
