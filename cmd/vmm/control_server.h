// SPDX-License-Identifier: Apache-2.0
/// \file
/// ControlServer: the worker's socket: frames of worker.proto in and out.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "vmm/event/framed_connection.h"
#include "vmm/event/loop.h"
#include "worker/worker.pb.h"

namespace kvmbus::cmd {

/// Home: the main loop. A client that sends nonsense, or reads too slowly, is disconnected; the VM
/// goes on.
class ControlServer {
 public:
  static constexpr uint32_t kFrameLimit = 4u << 20;   ///< bytes
  static constexpr size_t kBacklogLimit = 16u << 20;  ///< unsent bytes a client
  static constexpr size_t kClientLimit = 16;

  using ReplyFunction = std::function<void(worker::Reply)>;
  /// Answers a request now or later; the id is filled in by the server. A reply to a client that
  /// left is dropped.
  using Handler = std::function<void(const worker::Request&, ReplyFunction)>;

  static vmm::Result<std::unique_ptr<ControlServer>> Listen(vmm::Loop& loop,
                                                            const std::string& path,
                                                            Handler handler);
  ~ControlServer();

  /// To every client.
  void Broadcast(const worker::Event& event);
  /// Sends what is queued; a client that takes nothing for a second is given up. Before the process
  /// ends.
  void Drain();

 private:
  ControlServer(vmm::Loop& loop, vmm::Fd listener, std::string path, Handler handler);
  void Accept();
  void HandleFrame(uint64_t id, std::string_view frame);
  void Send(uint64_t id, const worker::Message& message);
  void Drop(uint64_t id, const vmm::Error& why);

  vmm::Loop& loop_;
  vmm::Fd listener_;
  std::string path_;
  Handler handler_;
  std::map<uint64_t, std::unique_ptr<vmm::FramedConnection>> clients_;
  uint64_t next_client_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::cmd
