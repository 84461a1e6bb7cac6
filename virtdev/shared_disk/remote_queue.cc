// SPDX-License-Identifier: Apache-2.0
#include "virtdev/shared_disk/remote_queue.h"

#include <poll.h>

#include <cerrno>
#include <utility>

#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::virtdev {

using shared_disk::BytesOf;

namespace {

/// What the guest hears of a command whose owner died: whether it was done nobody knows. Most may
/// simply be repeated; a change of the reservations may not, so its initiator has to look.
void SetInterrupted(ScsiCommand& command) {
  const bool reserves = command.cdb[0] == static_cast<uint8_t>(scsi::Opcode::kPersistentReserveOut);
  command.status = reserves ? scsi::Status::kCheckCondition : scsi::Status::kBusy;
  command.sense = reserves ? scsi::kPowerOnOccurred : scsi::kNoSense;
  command.bytes_moved = 0;
  command.overrun = false;
}

void SetFailed(ScsiCommand& command) {
  command.status = scsi::Status::kCheckCondition;
  command.sense = scsi::kInternalTargetFailure;
  command.bytes_moved = 0;
  command.overrun = false;
}

/// What this machine counts of its disk is told too.
void End(ScsiCommand& command, DiskRequest& request) {
  const scsi::SenseKey key = command.sense.key;
  if (command.status != scsi::Status::kGood) request.length = 0;
  request.command_failed =
      command.status == scsi::Status::kCheckCondition &&
      (key == scsi::SenseKey::kMediumError || key == scsi::SenseKey::kHardwareError);
  request.completion->OnDiskComplete(request);
}

bool IsStatus(uint8_t status) {
  switch (static_cast<scsi::Status>(status)) {
    case scsi::Status::kGood:
    case scsi::Status::kCheckCondition:
    case scsi::Status::kBusy:
    case scsi::Status::kReservationConflict:
    case scsi::Status::kTaskAborted:
      return true;
  }
  return false;
}

}  // namespace

RemoteQueue::RemoteQueue(std::shared_ptr<RemoteDisk> disk, vmm::Loop& loop)
    : disk_(std::move(disk)), loop_(loop), away_since_ns_(loop.clock().MonotonicNs()) {
  for (uint32_t slot = DiskRing::kSlots; slot-- > 0;) free_.push_back(slot);
  Greet();
}

RemoteQueue::~RemoteQueue() {
  KVMBUS_ASSERT(loop_.IsCurrent() && !busy() && interrupted_.empty());
  loop_.CancelTimer(retry_timer_);
  if (socket_.valid()) loop_.Unwatch(socket_.get());
}

// --- commands

void RemoteQueue::Submit(DiskRequest& request) {
  if (request.command != nullptr) {
    if (!Forward(*request.command, request)) End(*request.command, request);
    return;
  }
  request.error = EOPNOTSUPP;
  request.completion->OnDiskComplete(request);
}

/// False: it ended at once, with a status.
bool RemoteQueue::Forward(ScsiCommand& command, DiskRequest& request) {
  if (command.owner_token_ != disk_->token()) {
    // A limit held it back, and its guest has not heard of the loss of the former owner.
    SetInterrupted(command);
    return false;
  }
  // The guest's channels take no more than that each.
  if (free_.empty() || waiting_.size() + interrupted_.size() >= DiskRing::kSlots) {
    command.status = scsi::Status::kBusy;
    return false;
  }
  if (command.data.iov().size() > DiskRing::kMaxSegments) {
    SetFailed(command);
    return false;
  }
  if (state_ == State::kUp) {
    Send({&command, &request});
    return true;
  }
  if (HasGivenUp()) {
    SetFailed(command);
    return false;
  }
  waiting_.push_back({&command, &request});
  return true;
}

void RemoteQueue::Send(const Flight& flight) {
  const uint32_t slot = free_.back();
  free_.pop_back();
  DiskRing::Command command = {};
  command.cdb = flight.command->cdb;
  command.cdb_length = flight.command->cdb_length;
  command.data_in = flight.command->data_in ? 1 : 0;
  KVMBUS_ASSERT(ring_->PutCommand(slot, command, flight.command->data));
  flights_[slot] = flight;
  ring_->Push(slot);
  pushed_ = true;
}

void RemoteQueue::Kick() {
  if (!std::exchange(pushed_, false) || ring_ == nullptr) return;
  constexpr uint8_t kDoorbell = 0;
  // A socket that takes no more is full of doorbells, or its end is about to be seen.
  if (ring_->Publish()) (void)vmm::SendFrame(socket_.get(), {&kDoorbell, 1});
}

void RemoteQueue::Drain() {
  constexpr int kWaitMs = 1000;
  while (busy() || !interrupted_.empty()) {
    if (state_ == State::kAway) {
      EndAll(SetInterrupted);
      continue;
    }
    if (state_ == State::kUp) {
      Kick();
      ring_->Interrupt();
      constexpr uint8_t kDoorbell = 0;
      (void)vmm::SendFrame(socket_.get(), {&kDoorbell, 1});
    }
    pollfd waiting = {socket_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, kWaitMs) > 0) {
      OnReady();
    } else if (state_ == State::kGreeting) {
      EndAll(SetInterrupted);
    }
  }
}

/// What waits for an owner, or for the end of one.
void RemoteQueue::EndAll(void (*set_status)(ScsiCommand&)) {
  std::vector<Flight> flights = std::exchange(interrupted_, {});
  flights.insert(flights.end(), waiting_.begin(), waiting_.end());
  waiting_.clear();
  for (const Flight& flight : flights) {
    set_status(*flight.command);
    End(*flight.command, *flight.request);
  }
}

// --- the connection

void RemoteQueue::ScheduleRetry() {
  lost_ = true;
  ArmRetry();
}

void RemoteQueue::ArmRetry() {
  if (retry_timer_ == 0)
    retry_timer_ = loop_.AddTimer(disk_->retry_ns(), [this] {
      retry_timer_ = 0;
      Retry();
    });
}

void RemoteQueue::Retry() {
  if (state_ == State::kUp) return;
  if (HasGivenUp()) EndAll(SetFailed);
  if (state_ == State::kAway)
    Greet();
  else
    ArmRetry();  // an owner may never answer
}

/// Its machine has no owner, or has one that gives this queue nothing, for too long.
bool RemoteQueue::HasGivenUp() const {
  return disk_->link().state == RemoteDisk::Link::State::kGivenUp ||
         loop_.clock().MonotonicNs() - away_since_ns_ >= disk_->patience_ns();
}

void RemoteQueue::Greet() {
  const RemoteDisk::Link link = disk_->link();
  if (link.state != RemoteDisk::Link::State::kUp) return ScheduleRetry();
  auto ring = DiskRing::Create();
  auto socket = vmm::ConnectUnix(disk_->socket_path());
  if (!ring.ok() || !socket.ok()) return ScheduleRetry();
  shared_disk::Hello hello;
  hello.kind = shared_disk::Kind::kQueue;
  hello.token = link.token;
  const int memory = (*ring)->fd();
  if (!vmm::SendFrame(socket->get(), BytesOf(hello), {&memory, 1}).ok() ||
      !loop_.Watch(socket->get(), EPOLLIN, [this](uint32_t) { OnReady(); }).ok())
    return ScheduleRetry();
  socket_ = std::move(*socket);
  ring_ = std::move(*ring);
  token_ = link.token;
  reply_bytes_ = 0;
  state_ = State::kGreeting;
  ArmRetry();
}

void RemoteQueue::OnReady() {
  if (state_ == State::kGreeting) {
    if (!TakeHelloReply()) Lose();
    return;
  }
  std::array<uint8_t, 64> doorbells;
  const bool alive = vmm::ReceiveSome(socket_.get(), doorbells).ok();
  TakeOutcomes();  // also of an owner that has just died: it did them
  if (!alive && state_ == State::kUp) Lose();
}

/// False: there is no queue to be had here.
bool RemoteQueue::TakeHelloReply() {
  const auto got = vmm::ReceiveSome(socket_.get(), BytesOf(reply_).subspan(reply_bytes_));
  if (!got.ok()) return false;
  reply_bytes_ += *got;
  if (reply_bytes_ < sizeof(reply_)) return true;
  if (reply_.magic != shared_disk::kMagic || reply_.code != 0) {
    KVMBUS_LOG_LIMITED("a shared disk's owner gives no queue (code {})", reply_.code);
    return false;
  }
  state_ = State::kUp;
  if (std::exchange(lost_, false)) {
    // Those that no owner has seen too: they were let through before it was known what was lost.
    EndAll(SetInterrupted);
  } else {
    for (const Flight& flight : std::exchange(waiting_, {})) Send(flight);
  }
  Kick();
  return true;
}

void RemoteQueue::TakeOutcomes() {
  uint32_t slot;
  for (;;) {
    const DiskRing::Popped popped = ring_->Pop(&slot);
    if (popped == DiskRing::Popped::kSlot && Finish(slot)) continue;
    if (popped == DiskRing::Popped::kNothing) {
      if (ring_->Sleep()) return;
      continue;
    }
    disk_->bad_outcomes().Add();
    KVMBUS_LOG_LIMITED("a shared disk's owner answers nonsense; its connection is ended");
    return Lose();
  }
}

/// False: no command of ours ended, or not so.
bool RemoteQueue::Finish(uint32_t slot) {
  const Flight flight = flights_[slot];
  if (flight.command == nullptr) return false;
  const DiskRing::Outcome outcome = ring_->TakeOutcome(slot);
  ScsiCommand& command = *flight.command;
  if (!IsStatus(outcome.status) || outcome.sense_key > 0xf ||
      outcome.bytes_moved > command.data.size())
    return false;
  command.status = static_cast<scsi::Status>(outcome.status);
  command.sense = {static_cast<scsi::SenseKey>(outcome.sense_key), outcome.asc, outcome.ascq};
  command.bytes_moved = outcome.bytes_moved;
  command.overrun = outcome.overrun != 0;
  command.owner_token_ = token_;
  if (!command.moves_blocks_) flight.request->length = outcome.bytes_moved;
  flights_[slot] = {};
  free_.push_back(slot);
  End(command, *flight.request);
  return true;
}

/// The commands that the owner had are kept until there is another one: that one could lock the
/// image, so nothing of the old one still reaches the image or the guest's memory.
void RemoteQueue::Lose() {
  disk_->lost_queues().Add();
  loop_.Unwatch(socket_.get());
  socket_.Reset();
  ring_.reset();
  pushed_ = false;
  if (state_ == State::kUp) away_since_ns_ = loop_.clock().MonotonicNs();
  state_ = State::kAway;
  for (uint32_t slot = 0; slot < DiskRing::kSlots; ++slot) {
    if (flights_[slot].command == nullptr) continue;
    interrupted_.push_back(flights_[slot]);
    flights_[slot] = {};
    free_.push_back(slot);
  }
  ScheduleRetry();
}

}  // namespace kvmbus::virtdev
