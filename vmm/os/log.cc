// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>

#include "vmm/os/clock.h"

namespace kvmbus::vmm {

void SetUpLogging(const std::string& prefix, bool verbose) {
  auto logger =
      std::make_shared<spdlog::logger>(prefix, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  // systemd sets JOURNAL_STREAM when standard error is the journal, which brings its own time
  // stamps.
  const bool journal = std::getenv("JOURNAL_STREAM") != nullptr;
  logger->set_pattern(journal ? "%n: %l: %v" : "%Y-%m-%d %H:%M:%S.%e %n: %l: %v");
  logger->set_level(verbose ? spdlog::level::debug : spdlog::level::info);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

bool LogLimiter::Allow(uint32_t* suppressed) {
  const uint64_t now = SystemClock().MonotonicNs();
  uint64_t start = window_start_ns_.load(std::memory_order_relaxed);
  if (now - start > kWindowNs && window_start_ns_.compare_exchange_strong(start, now))
    in_window_ = 0;
  if (in_window_.fetch_add(1, std::memory_order_relaxed) >= kBurst) {
    suppressed_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  *suppressed = suppressed_.exchange(0, std::memory_order_relaxed);
  return true;
}

}  // namespace kvmbus::vmm
