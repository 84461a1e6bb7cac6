// SPDX-License-Identifier: Apache-2.0
/// \file
/// vmctl's commands: each function adds a noun's verbs to the command line.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "cmd/vmctl/output.h"
#include "config/vm.pb.h"

namespace kvmbus::cmd {

/// What every command knows; the verb that was given leaves its exit status here.
struct Context {
  std::string socket = "/run/kvmbus/vmmd.sock";
  std::string run_dir = "/run/kvmbus";
  Format format = Format::kTable;
  int exit_status = 0;
};

/// An option's value by its name; `values` outlives the option.
template <typename T>
CLI::Validator OneOf(const std::map<std::string, T>& values) {
  std::string names;
  for (const auto& [name, value] : values) names += (names.empty() ? "" : "|") + name;
  return CLI::Validator(
      [&values, names](std::string& text) {
        const auto found = values.find(text);
        if (found == values.end()) return fmt::format("'{}' is none of {}", text, names);
        text = std::to_string(static_cast<int>(found->second));
        return std::string();
      },
      names);
}

void AddVmCommands(CLI::App& app, Context& context);
void AddCheckpointCommands(CLI::App& app, Context& context);
void AddJobCommands(CLI::App& app, Context& context);
/// A verb of `vm`, which AddVmCommands makes.
void AddImportCommand(CLI::App* vm, Context& context);
void AddExportCommand(CLI::App* vm, Context& context);
void AddDiskCommands(CLI::App& app, Context& context);
/// Verbs of `disk`, which AddDiskCommands makes.
void AddDiskQosCommands(CLI::App* disk, Context& context);
void AddDvdCommands(CLI::App& app, Context& context);
void AddHostCommands(CLI::App& app, Context& context);

/// An option of a verb that says how a disk uses the host's page cache.
void AddCachingOption(CLI::App& verb, const std::string& name, config::DiskCaching* caching);

/// Connects standard input and output to a VM's console; returns the exit status.
int RunConsole(const std::string& socket_path);

}  // namespace kvmbus::cmd
