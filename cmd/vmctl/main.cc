// SPDX-License-Identifier: Apache-2.0
// vmctl: the command line for administrators.
#include <unistd.h>

#include <cstdio>

#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"
#include "vmm/os/thread.h"

namespace kvmbus::cmd {
namespace {

int Main(int argc, char** argv) {
  CLI::App app{"vmctl: Hyper-V virtual machines on Linux and KVM", "vmctl"};
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(
      "Exit status: 0 done; 1 failed (disk check: damaged); 2 bad usage (disk check: cannot "
      "judge); 3 vmmd does not answer;\n"
      "11 cancelled; 12 unknown; 13 invalid argument; 14 timed out; 15 not found; 16 exists or "
      "runs already; 17 permission;\n"
      "18 out of a resource; 19 precondition (state, no SLAT); 20 broken off; 21 beyond a limit;\n"
      "22 not supported (no /dev/kvm); 23 internal; 24 in use; 25 damaged data");
  app.set_version_flag("--version", "vmctl (kvmbus) " KVMBUS_VERSION, "Print the version");
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("vmctl: {}; '--help' tells more\n", error.what());
  });
  Context context;
  std::string format = "table";
  app.add_option("--socket", context.socket, "vmmd's socket (default /run/kvmbus/vmmd.sock)");
  app.add_option("--run-dir", context.run_dir,
                 "vmmd's run folder, for consoles (default: the socket's folder)");
  app.add_option("--format", format, "table or json")->check(CLI::IsMember({"table", "json"}));
  app.parse_complete_callback([&] {
    context.format = format == "json" ? Format::kJson : Format::kTable;
    if (app.count("--run-dir") == 0)
      context.run_dir = context.socket.substr(0, context.socket.rfind('/'));
  });
  AddVmCommands(app, context);
  AddCheckpointCommands(app, context);
  AddDiskCommands(app, context);
  AddDvdCommands(app, context);
  AddHostCommands(app, context);
  AddJobCommands(app, context);
  try {  // the library throws, --help included
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  return context.exit_status;
}

}  // namespace
}  // namespace kvmbus::cmd

int main(int argc, char** argv) {
  kvmbus::vmm::SetThreadStackBytes(kvmbus::vmm::kThreadStackBytes);
  const int status = kvmbus::cmd::Main(argc, argv);
  // All is said and closed; what is left are gRPC's threads, which take their time to end.
  std::fflush(nullptr);
  ::_exit(status);
}
