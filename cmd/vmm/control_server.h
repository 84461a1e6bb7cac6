// SPDX-License-Identifier: Apache-2.0
/// \file
/// ControlServer: the worker's socket: frames of worker.proto in and out.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "vmm/event/loop.h"
#include "worker/worker.pb.h"

namespace kvmbus::cmd {

/// Home: the main loop. A client that sends nonsense, or reads too slowly, is disconnected; the VM
/// goes on.
class ControlServer {
 public:
  static constexpr uint32_t kFrameLimit = 4u << 20;
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
  /// Sends what is queued, for at most a second: before the process ends.
  void Drain();

 private:
  struct Client {
    vmm::Fd fd;
    std::string in;
    std::string out;
    bool wants_write = false;
  };

  ControlServer(vmm::Loop& loop, vmm::Fd listener, std::string path, Handler handler);
  void Accept();
  void OnClientReady(uint64_t id, uint32_t events);
  bool ReadFrames(uint64_t id);
  void HandleFrame(uint64_t id, const std::string& frame);
  void Send(uint64_t id, const worker::Message& message);
  bool Flush(uint64_t id);
  void Drop(uint64_t id);

  vmm::Loop& loop_;
  vmm::Fd listener_;
  std::string path_;
  Handler handler_;
  std::map<uint64_t, Client> clients_;
  uint64_t next_client_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::cmd
