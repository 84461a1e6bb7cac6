// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the services' calls share: results as gRPC's, and results that come from another thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>

#include "config/job.pb.h"
#include "vmm/event/loop.h"
#include "vmm/result/result.h"

namespace kvmbus::cmd {

inline grpc::Status ToStatus(const vmm::Error& error) {
  return grpc::Status(static_cast<grpc::StatusCode>(error.code()), error.ToString());
}
inline grpc::Status ToStatus(const vmm::Result<void>& result) {
  return result.ok() ? grpc::Status::OK : ToStatus(result.error());
}

/// What callers see of a job: not what vmmd notes for itself.
inline config::Job Shown(config::Job job) {
  job.clear_change();
  job.clear_new_files();
  job.clear_committed();
  return job;
}

/// What `function` returns on the loop, as gRPC's.
template <typename Function>
grpc::Status OnLoop(vmm::Loop& loop, Function function) {
  vmm::Result<void> result;
  loop.PostAndWait([&] { result = function(); });
  return ToStatus(result);
}

/// A result that another thread delivers, once. Shared, since the waiter may give up first.
template <typename T>
class Promise {
 public:
  void Set(T value) {
    std::lock_guard lock(mutex_);
    value_ = std::move(value);
    ready_.notify_all();
  }
  T Wait() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return value_.has_value(); });
    return std::move(*value_);
  }
  /// nullopt: not yet.
  std::optional<T> WaitFor(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, limit, [this] { return value_.has_value(); });
    return value_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<T> value_;
};

}  // namespace kvmbus::cmd
