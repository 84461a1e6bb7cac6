// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/disk_reservations.h"

#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Result;

Result<std::string> ReservationsFile::Load() const {
  std::lock_guard lock(mutex_);
  vmm::RemoveUnfinishedOf(name_);
  return LoadLocked();
}

Result<std::string> ReservationsFile::LoadLocked() const {
  constexpr uint64_t kMaxBytes = 64u << 10;  // hundreds of registrations
  auto stored = vmm::ReadWholeFile(name_, kMaxBytes);
  if (!stored.ok() && stored.error().code() == Code::kNotFound) return std::string();
  return stored;
}

bool ReservationsFile::Store(const std::string& state) {
  std::lock_guard lock(mutex_);
  const bool stored = StoreLocked(name_, state);
  return next_name_.empty() ? stored : StoreLocked(next_name_, state) && stored;
}

bool ReservationsFile::StoreLocked(const std::string& name, const std::string& state) {
  const auto written = state.empty() ? vmm::RemoveFile(name) : vmm::ReplaceFile(name, state, 0640);
  if (!written.ok()) KVMBUS_LOG_LIMITED("keeping reservations: {}", written.error().ToString());
  return written.ok();
}

Result<void> ReservationsFile::BeginMove(const std::string& image) {
  std::lock_guard lock(mutex_);  // initiators change them meanwhile
  const std::string state = TRY(LoadLocked());
  const std::string next = NameFor(image);
  if (next == name_) return {};
  if (!StoreLocked(next, state))
    return vmm::MakeError(Code::kInternal, "'{}' cannot be written", next);
  next_name_ = next;
  return {};
}

void ReservationsFile::EndMove(bool moved) {
  std::lock_guard lock(mutex_);
  if (next_name_.empty()) return;
  if (moved) std::swap(name_, next_name_);
  (void)vmm::RemoveFile(next_name_);  // nobody looks at it: what stays does no harm
  next_name_.clear();
}

Result<DiskReservations> OpenReservations(const std::string& path) {
  // A live merge that was cut short has left a link of the disk's old name, which has none.
  const bool has_own = vmm::FileExists(path + ".reservations");
  auto file =
      std::make_shared<ReservationsFile>(has_own ? path : vmm::RealPath(path).value_or(path));
  auto state = std::make_shared<virtdev::PersistentReservations>(
      [file](const std::string& stored) { return file->Store(stored); });
  const std::string stored = TRY(file->Load());
  if (!stored.empty())
    TRY_VOID_CTX(state->RestorePersistent(stored),
                 "'{}.reservations' is damaged; delete it to forget who reserved the disk", path);
  return DiskReservations{std::move(state), std::move(file)};
}

}  // namespace kvmbus::cmd
