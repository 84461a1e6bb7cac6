// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"
#include "kvm/host_check.h"

namespace kvmbus::cmd {
namespace {

/// Works without vmmd: the host is asked itself.
int CheckHost(const Context& context) {
  const auto needs = kvm::CheckHost();
  int status = kExitDone;
  std::vector<std::vector<std::string>> rows = {{"REQUIREMENT", "FOUND", "NEEDED", "OK"}};
  std::vector<Json> items;
  for (const vmm::HostRequirement& need : needs) {
    if (!need.ok && status == kExitDone) status = ExitCodeOf(need.code);
    rows.push_back({need.name, need.found, need.needed, need.ok ? "yes" : "NO"});
    items.push_back(Json::Object({{"name", Json::Text(need.name)},
                                  {"found", Json::Text(need.found)},
                                  {"needed", Json::Text(need.needed)},
                                  {"ok", Json::Boolean(need.ok)},
                                  {"remedy", Json::Text(need.remedy)}}));
  }
  if (context.format == Format::kJson) {
    std::printf("%s\n", Json::Array(items).text().c_str());
    return status;
  }
  PrintTable(rows);
  for (const vmm::HostRequirement& need : needs) {
    if (!need.ok) std::printf("%s: %s\n", need.name.c_str(), need.remedy.c_str());
  }
  return status;
}

int Versions(const Context& context) {
  Client client(context.socket);
  api::VersionsReply reply;
  grpc::ClientContext call;
  if (const int failed = client.Check(client.host().ListVersions(&call, {}, &reply))) return failed;
  std::vector<Json> items;
  std::string running;
  for (const std::string& version : reply.running()) {
    items.push_back(Json::Text(version));
    running += (running.empty() ? "" : ", ") + version;
  }
  if (context.format == Format::kJson) {
    const Json json = Json::Object({{"running", Json::Array(items)},
                                    {"default", Json::Text(reply.default_version())},
                                    {"newest_compared", Json::Text(reply.newest_compared())}});
    std::printf("%s\n", json.text().c_str());
    return kExitDone;
  }
  PrintTable({{"Running", running},
              {"Default", reply.default_version()},
              {"Compared", "up to " + reply.newest_compared()}});
  return kExitDone;
}

}  // namespace

void AddHostCommands(CLI::App& app, Context& context) {
  CLI::App* host = app.add_subcommand("host", "This host");
  host->require_subcommand(1);
  host->add_subcommand("check", "What a host needs to run virtual machines, and what this one has")
      ->callback([&context] { context.exit_status = CheckHost(context); });
  host->add_subcommand("versions", "Versions of configurations that virtual machines may have")
      ->callback([&context] { context.exit_status = Versions(context); });
}

}  // namespace kvmbus::cmd
