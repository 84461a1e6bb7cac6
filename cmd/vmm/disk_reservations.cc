// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/disk_reservations.h"

#include <unistd.h>

#include <cerrno>

#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Result;

Result<std::shared_ptr<virtdev::PersistentReservations>> OpenReservations(const std::string& path) {
  constexpr uint64_t kMaxBytes = 64u << 10;  // hundreds of registrations
  const std::string file = path + ".reservations";
  const auto store = [file](const std::string& state) {
    if (state.empty()) return ::unlink(file.c_str()) == 0 || errno == ENOENT;
    const auto written = vmm::ReplaceFile(file, state, 0640);
    if (!written.ok()) KVMBUS_LOG_LIMITED("keeping reservations: {}", written.error().ToString());
    return written.ok();
  };
  auto reservations = std::make_shared<virtdev::PersistentReservations>(store);
  const auto stored = vmm::ReadWholeFile(file, kMaxBytes);
  if (stored.ok()) {
    TRY_VOID_CTX(reservations->RestorePersistent(*stored),
                 "'{}' is damaged; delete it to forget who reserved the disk", file);
  } else if (stored.error().code() != Code::kNotFound) {
    return stored.error();
  }
  return reservations;
}

}  // namespace kvmbus::cmd
