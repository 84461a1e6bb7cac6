// SPDX-License-Identifier: Apache-2.0
/// \file
/// Logging: spdlog to standard error, in the journal's form ("<4>text") if that is the journal.
/// Whoever decides logs an error, once; a library returns it. What a guest can trigger goes through
/// LogLimited.
#pragma once

#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace kvmbus::vmm {

/// What systemd puts into JOURNAL_STREAM if `fd` leads to the journal: "DEVICE:INODE", or "" if it
/// is not open.
std::string JournalStreamOf(int fd);

/// True if standard error is the journal's, and not only that of a process that started this one.
bool LogsToJournal();

/// Call once, first thing in main. `prefix` names the process ("vmmd", "vmm web"); in the journal
/// its identifier does.
void SetUpLogging(const std::string& prefix, bool verbose);

/// At most `kBurst` lines per `kWindowNs` for each call site; the rest are counted and reported.
class LogLimiter {
 public:
  static constexpr uint32_t kBurst = 10;
  static constexpr uint64_t kWindowNs = 5'000'000'000;
  /// True if this line may be logged now; `suppressed` gets how many were dropped before it.
  bool Allow(uint32_t* suppressed);

 private:
  std::atomic<uint64_t> window_start_ns_{0};
  std::atomic<uint32_t> in_window_{0};
  std::atomic<uint32_t> suppressed_{0};
};

}  // namespace kvmbus::vmm

/// A warning that a guest, a peer or a client can provoke: KVMBUS_LOG_LIMITED("bad opcode {:#x}",
/// op).
#define KVMBUS_LOG_LIMITED(...)                                                       \
  do {                                                                                \
    static ::kvmbus::vmm::LogLimiter limiter;                                         \
    uint32_t suppressed = 0;                                                          \
    if (limiter.Allow(&suppressed)) {                                                 \
      spdlog::warn(__VA_ARGS__);                                                      \
      if (suppressed != 0) spdlog::warn("... and {} like it not logged", suppressed); \
    }                                                                                 \
  } while (false)
