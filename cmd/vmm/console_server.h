// SPDX-License-Identifier: Apache-2.0
/// \file
/// ConsoleServer: a serial port's bytes to and from the clients of a Unix socket, and a ring of the
/// latest output for whoever connects later.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "vmm/event/connection.h"
#include "vmm/event/loop.h"

namespace kvmbus::cmd {

/// Home: the main loop; Write may be called from vCPU threads and never blocks.
class ConsoleServer {
 public:
  static constexpr size_t kHistoryBytes = 64u << 10;
  static constexpr size_t kBacklogLimit =
      1u << 20;  ///< of a client; it loses its oldest output beyond
  static constexpr size_t kClientLimit = 8;

  /// `input` gets what clients type, on the main loop.
  static vmm::Result<std::unique_ptr<ConsoleServer>> Listen(
      vmm::Loop& loop, const std::string& path, std::function<void(std::string_view)> input);
  ~ConsoleServer();

  void Write(std::string_view bytes);

 private:
  ConsoleServer(vmm::Loop& loop, vmm::Fd listener, std::string path,
                std::function<void(std::string_view)> input);
  void Accept();
  void OnOutput();
  void Send(uint64_t id, std::string_view bytes);

  vmm::Loop& loop_;
  vmm::Fd listener_;
  std::string path_;
  std::function<void(std::string_view)> input_;
  vmm::Fd output_ready_;
  std::mutex mutex_;  // guards pending_
  std::string pending_;
  std::string history_;
  std::map<uint64_t, std::unique_ptr<vmm::Connection>> clients_;
  uint64_t next_client_ = 1;
};

}  // namespace kvmbus::cmd
