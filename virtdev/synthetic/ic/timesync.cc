// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/ic/timesync.h"

namespace kvmbus::virtdev {

namespace {
constexpr vmm::Guid kInterface = vmm::MakeGuid("9527e630-d0ae-497b-adce-e80ab0175caf");
constexpr ic::Version kWithReferenceTime{4, 0};
}  // namespace

TimesyncDevice::TimesyncDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop,
                               std::function<uint64_t()> reference_time)
    : IcDevice(std::move(name), ic::kTypeTimesync, kInterface, instance_id,
               {{1, 0}, {3, 0}, {4, 0}}, loop),
      reference_time_(std::move(reference_time)) {}

TimesyncDevice::~TimesyncDevice() { OnStop(); }

void TimesyncDevice::OnNegotiated() {
  sync_due_ = true;
  Tick();
}

void TimesyncDevice::OnStart() {
  sync_due_ = true;  // the guest stood still: its clock is behind
  if (version()) Tick();
}

void TimesyncDevice::OnStop() {
  loop().CancelTimer(timer_);
  timer_ = 0;
}

void TimesyncDevice::OnSessionEnd() { OnStop(); }

void TimesyncDevice::Tick() {
  loop().CancelTimer(timer_);
  timer_ = loop().AddTimer(kPeriodNs, [this] { Tick(); });
  if (SendTime(sync_due_ ? ic::kTimesyncSync : ic::kTimesyncSample)) sync_due_ = false;
}

bool TimesyncDevice::SendTime(uint8_t flags) {
  const uint64_t reference = reference_time_();
  const uint64_t host = vmm::FiletimeOfRealtime(loop().clock().RealtimeNs());
  if (version() == kWithReferenceTime) {
    ic::TimesyncBody4 body = {};
    body.host_time = host;
    body.reference_time = reference;
    body.flags = flags;
    body.stratum = 1;
    return SendRequest({reinterpret_cast<const uint8_t*>(&body), sizeof(body)});
  }
  ic::TimesyncBody3 body = {};
  body.host_time = host;
  body.flags = flags;
  return SendRequest({reinterpret_cast<const uint8_t*>(&body), sizeof(body)});
}

}  // namespace kvmbus::virtdev
