// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string_view>

#include "vmm/os/clock.h"

namespace kvmbus::vmm {
namespace {

int PriorityOf(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::critical:
      return LOG_CRIT;
    case spdlog::level::err:
      return LOG_ERR;
    case spdlog::level::warn:
      return LOG_WARNING;
    case spdlog::level::info:
      return LOG_INFO;
    default:
      return LOG_DEBUG;
  }
}

/// sd-daemon(3): "<4>text". The journal makes an entry of each line, so each has its priority: a
/// guest's text of several lines cannot choose one. The journal brings the time, and the name.
class JournalFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    std::string_view rest(message.payload.data(), message.payload.size());
    for (bool more = true; more;) {
      const size_t end = rest.find('\n');
      more = end != std::string_view::npos;
      const std::string_view line = rest.substr(0, end);
      fmt::format_to(std::back_inserter(out), "<{}>{}\n", PriorityOf(message.level), line);
      if (more) rest.remove_prefix(end + 1);
    }
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JournalFormatter>();
  }
};

}  // namespace

std::string JournalStreamOf(int fd) {
  struct stat status = {};
  if (::fstat(fd, &status) < 0) return "";
  return fmt::format("{}:{}", status.st_dev, status.st_ino);
}

bool LogsToJournal() {
  // Children inherit the variable, whatever their standard error is: systemd.exec(5).
  const char* stream = std::getenv("JOURNAL_STREAM");
  return stream != nullptr && *stream != '\0' && JournalStreamOf(STDERR_FILENO) == stream;
}

void SetUpLogging(const std::string& prefix, bool verbose) {
  auto logger =
      std::make_shared<spdlog::logger>(prefix, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  if (LogsToJournal())
    logger->set_formatter(std::make_unique<JournalFormatter>());
  else
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %n: %l: %v");
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
