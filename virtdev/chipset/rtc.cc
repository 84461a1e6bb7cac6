// SPDX-License-Identifier: Apache-2.0
#include "virtdev/chipset/rtc.h"

#include <chrono>

#include "state/chipset.pb.h"
#include "virtdev/chipset/rtc_regs.h"

namespace kvmbus::virtdev {

using namespace rtc;

namespace {

bool IsTimeRegister(uint8_t index) {
  return index == kSeconds || index == kMinutes || index == kHours ||
         (index >= kDayOfWeek && index <= kYear) || index == kCentury;
}

/// What no guest can write: one that waits for the end of an update would wait for ever.
bool FixedBitsAreValid(std::string_view cmos) {
  const auto at = [cmos](uint8_t index) { return static_cast<uint8_t>(cmos[index]); };
  return (at(kRegisterA) & kAUpdateInProgress) == 0 && at(kRegisterC) == 0 &&
         at(kRegisterD) == kDValid;
}

}  // namespace

Rtc::State Rtc::PowerOn() {
  State state;
  state.cmos[kRegisterA] = kADefault;
  state.cmos[kRegisterB] = kB24Hours;
  state.cmos[kRegisterD] = kDValid;
  return state;
}

Rtc::Rtc(const vmm::Clock& clock) : clock_(clock), state_(PowerOn()) {}

bool Rtc::Setting() const { return state_.cmos[kRegisterB] & kBSet; }

uint8_t Rtc::Encode(unsigned value) const {
  return static_cast<uint8_t>(state_.cmos[kRegisterB] & kBBinary ? value
                                                                 : value / 10 << 4 | value % 10);
}

unsigned Rtc::Decode(uint8_t value) const {
  return state_.cmos[kRegisterB] & kBBinary ? value
                                            : static_cast<unsigned>(value >> 4) * 10 + (value & 15);
}

void Rtc::LoadTime() {
  using namespace std::chrono;
  const sys_seconds now{
      seconds(static_cast<int64_t>(clock_.RealtimeNs() / 1'000'000'000) + state_.offset_seconds)};
  const sys_days day = floor<days>(now);
  const year_month_day date(day);
  const hh_mm_ss time(now - day);
  auto& cmos = state_.cmos;
  cmos[kSeconds] = Encode(static_cast<unsigned>(time.seconds().count()));
  cmos[kMinutes] = Encode(static_cast<unsigned>(time.minutes().count()));
  const auto hour = static_cast<unsigned>(time.hours().count());
  if (cmos[kRegisterB] & kB24Hours)
    cmos[kHours] = Encode(hour);
  else
    cmos[kHours] =
        static_cast<uint8_t>(Encode(hour % 12 == 0 ? 12 : hour % 12) | (hour >= 12 ? kHourPm : 0));
  cmos[kDayOfWeek] = Encode(weekday(day).c_encoding() + 1);
  cmos[kDayOfMonth] = Encode(static_cast<unsigned>(date.day()));
  cmos[kMonth] = Encode(static_cast<unsigned>(date.month()));
  const auto full_year = static_cast<unsigned>(static_cast<int>(date.year()));
  cmos[kYear] = Encode(full_year % 100);
  cmos[kCentury] = Encode(full_year / 100 % 100);
}

void Rtc::StoreTime() {
  using namespace std::chrono;
  const auto& cmos = state_.cmos;
  unsigned hour = Decode(cmos[kHours] & 0x7f);
  if (!(cmos[kRegisterB] & kB24Hours)) hour = hour % 12 + (cmos[kHours] & kHourPm ? 12 : 0);
  const unsigned century = Decode(cmos[kCentury]), short_year = Decode(cmos[kYear]);
  const year_month_day date{year(static_cast<int>(century * 100 + short_year)),
                            month(Decode(cmos[kMonth])), day(Decode(cmos[kDayOfMonth]))};
  // Nonsense: the clock keeps its time.
  if (century > 99 || short_year > 99 || !date.ok()) return;
  const sys_seconds set = sys_days(date) + hours(hour) + minutes(Decode(cmos[kMinutes])) +
                          seconds(Decode(cmos[kSeconds]));
  state_.offset_seconds =
      set.time_since_epoch().count() - static_cast<int64_t>(clock_.RealtimeNs() / 1'000'000'000);
}

uint64_t Rtc::IoRead(uint64_t offset, unsigned size) {
  const uint64_t ones = size > 1 ? ~uint64_t{0xff} : 0;
  return offset == 1 ? ones | Read(state_.index) : ~uint64_t{0};
}

void Rtc::IoWrite(uint64_t offset, unsigned, uint64_t value) {
  if (offset == 0) state_.index = static_cast<uint8_t>(value & 0x7f);  // bit 7 is the NMI mask
  if (offset == 1) Write(state_.index, static_cast<uint8_t>(value));
}

uint8_t Rtc::Read(uint8_t index) {
  if (IsTimeRegister(index) && !Setting()) LoadTime();
  return state_.cmos[index];
}

void Rtc::Write(uint8_t index, uint8_t value) {
  if (index == kRegisterC || index == kRegisterD) return;  // read-only
  if (IsTimeRegister(index) && !Setting()) LoadTime();
  const bool was_setting = Setting();
  state_.cmos[index] = index == kRegisterA ? value & ~kAUpdateInProgress : value;
  if (index == kRegisterB && !was_setting && Setting()) LoadTime();
  if ((index == kRegisterB && was_setting && !Setting()) || (IsTimeRegister(index) && !Setting()))
    StoreTime();
}

void Rtc::Reset() {
  std::lock_guard guard(mutex_);
  // Battery-backed: a reset changes neither time nor bytes, except what the data sheet's RESET pin
  // clears.
  state_.index = 0;
  state_.cmos[kRegisterB] &= kBSet | kBBinary | kB24Hours;
}

vmm::Result<std::string> Rtc::Save() {
  std::lock_guard guard(mutex_);
  state::Rtc saved;
  saved.set_index(state_.index);
  std::array<uint8_t, kBytes> cmos = state_.cmos;
  if (!Setting()) {
    for (size_t i = 0; i < kBytes; ++i) {
      if (IsTimeRegister(static_cast<uint8_t>(i))) cmos[i] = 0;  // recomputed from the offset
    }
  }
  saved.set_cmos(std::string(cmos.begin(), cmos.end()));
  saved.set_offset_seconds(state_.offset_seconds);
  return saved.SerializeAsString();
}

vmm::Result<void> Rtc::Restore(uint32_t, std::string_view bytes) {
  constexpr int64_t kOffsetLimit = 10'000ll * 366 * 86'400;
  state::Rtc saved;
  if (!saved.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      saved.index() >= kBytes || saved.cmos().size() != kBytes ||
      !FixedBitsAreValid(saved.cmos()) || saved.offset_seconds() > kOffsetLimit ||
      saved.offset_seconds() < -kOffsetLimit)
    return vmm::Error(vmm::Code::kDataLoss, "saved state of the clock is not valid");
  std::lock_guard guard(mutex_);
  state_.index = static_cast<uint8_t>(saved.index());
  std::copy(saved.cmos().begin(), saved.cmos().end(), state_.cmos.begin());
  state_.offset_seconds = saved.offset_seconds();
  return {};
}

}  // namespace kvmbus::virtdev
