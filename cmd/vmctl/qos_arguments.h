// SPDX-License-Identifier: Apache-2.0
/// \file
/// QosArguments: a disk's Storage QoS on the command line.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "config/vm.pb.h"

namespace kvmbus::cmd {

/// What is not given is not changed.
struct QosArguments {
  std::optional<uint64_t> min_iops, max_iops;
  std::string max_bytes;

  void AddTo(CLI::App* verb);
  bool given() const { return min_iops || max_iops || !max_bytes.empty(); }
  /// False after a line on standard error: a size that is none.
  bool Fill(config::DiskQosChange* change) const;
};

}  // namespace kvmbus::cmd
