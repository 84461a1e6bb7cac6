// SPDX-License-Identifier: Apache-2.0
/// \file
/// Worker: one VM from its configuration to its exit record.
#pragma once

#include <memory>
#include <string>

#include "cmd/vmm/board.h"
#include "cmd/vmm/console_server.h"
#include "cmd/vmm/control_server.h"
#include "cmd/vmm/state_capture.h"
#include "config/vm.pb.h"
#include "vmm/event/loop.h"
#include "vmm/machine/machine.h"
#include "worker/worker.pb.h"

namespace kvmbus::cmd {

struct WorkerOptions {
  std::string run_dir;
  config::Vm config;
  bool unsupported_without_slat = false;
};

/// Home: the main thread.
class Worker {
 public:
  explicit Worker(WorkerOptions options);
  ~Worker();

  /// Runs the VM to its end and writes the exit record. The error is why it could not start.
  vmm::Result<void> Run();

 private:
  vmm::Result<void> LockRunDir();
  vmm::Result<void> SetUp();
  void HandleSignals();
  void OnRequest(const worker::Request& request, ControlServer::ReplyFunction reply);
  void OnShutdownRequest(const worker::ShutdownRequest& request,
                         ControlServer::ReplyFunction reply);
  // worker_state.cc
  vmm::Result<void> Begin();
  vmm::Result<void> Resume();
  void OnCapture(const worker::CaptureRequest& request, ControlServer::ReplyFunction reply);
  void OnFreezeGuest(uint64_t timeout_ns, ControlServer::ReplyFunction reply);
  void OnAttachDisk(const config::Disk& disk, ControlServer::ReplyFunction reply);
  void OnDetachDisk(const worker::DetachDiskRequest& request, ControlServer::ReplyFunction reply);
  /// worker_qos.cc
  vmm::Result<void> SetDiskQos(const worker::SetDiskQosRequest& request);
  worker::DiskStatisticsReply DiskStatistics() const;
  void OnInsertDvd(const worker::InsertDvdRequest& request, ControlServer::ReplyFunction reply);
  void OnEjectDvd(const worker::EjectDvdRequest& request, ControlServer::ReplyFunction reply);
  void OnDiskRequest(const worker::Request& request, ControlServer::ReplyFunction reply);
  /// What the drive or disk has now, in the configuration that a hello tells.
  void NotePath(uint32_t controller, uint32_t lun, const std::string& path);
  vmm::Result<void> Pulse(uint32_t count);
  worker::Status MakeStatus() const;
  void BroadcastStatus();
  void OnCrash(const vmm::GuestCrashReport& report);
  void OnEnded(vmm::Code code, std::string reason);
  void WriteExitRecord();

  WorkerOptions options_;
  vmm::Fd lock_;
  vmm::Fd signals_;
  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<ControlServer> control_;
  std::unique_ptr<Board> board_;
  std::unique_ptr<StateCapture> capture_;  ///< under way
  bool resumed_ = false;                   ///< since it was started or restored
  worker::ExitRecord exit_;
};

}  // namespace kvmbus::cmd
