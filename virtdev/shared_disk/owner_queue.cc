// SPDX-License-Identifier: Apache-2.0
#include "virtdev/shared_disk/owner_queue.h"

#include <algorithm>
#include <cstring>

#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::virtdev {

using vmm::Result;

namespace {

constexpr size_t kIdleCommands = 32;  // kept for reuse

}  // namespace

OwnerQueue::OwnerQueue(std::shared_ptr<OwnerClient> client, vmm::Fd socket,
                       std::unique_ptr<DiskRing> ring, vmm::Loop& loop, vmm::Counter& broken,
                       std::function<void()> ended)
    : client_(std::move(client)),
      socket_(std::move(socket)),
      ring_(std::move(ring)),
      loop_(loop),
      broken_(broken),
      ended_(std::move(ended)) {}

OwnerQueue::~OwnerQueue() { KVMBUS_ASSERT(!started_ || client_ == nullptr); }

void OwnerQueue::Start(const std::vector<uint8_t>& reply) {
  started_ = true;
  if (stopping_) return EndIfIdle();
  auto queue = client_->disk->io()->OpenQueue(loop_);
  Result<void> watched;
  if (queue.ok()) {
    queue_ = std::move(*queue);
    watched = loop_.Watch(socket_.get(), EPOLLIN, [this](uint32_t) { OnReady(); });
  }
  if (queue_ == nullptr || !watched.ok() || !vmm::SendFrame(socket_.get(), reply).ok()) {
    KVMBUS_LOG_LIMITED("a client gets no queue: {}",
                       !queue.ok() ? queue.error().ToString() : "it has gone");
    Stop();
  }
}

void OwnerQueue::Stop() {
  if (stopping_ || client_ == nullptr) return;
  stopping_ = true;
  loop_.Unwatch(socket_.get());
  for (const auto& command : active_) {
    if (command != nullptr) command->Abandon();
  }
  if (started_) Schedule();
}

void OwnerQueue::StopAndWait() {
  Stop();
  while (client_ != nullptr) {
    if (queue_ != nullptr) queue_->Drain();
    EndIfIdle();
  }
  loop_.CancelTimer(timer_);
  timer_ = 0;
}

void OwnerQueue::Break(const char* what) {
  broken_.Add();
  KVMBUS_LOG_LIMITED("a client is disconnected: {}", what);
  Stop();
}

void OwnerQueue::OnReady() {
  std::array<uint8_t, 64> doorbells;
  if (!vmm::ReceiveSome(socket_.get(), doorbells).ok()) return Stop();
  Turn();
}

/// Takes what the client submitted, and answers what ended meanwhile.
void OwnerQueue::Turn() {
  in_turn_ = true;
  if (ring_->TakeInterrupt()) {
    for (const auto& command : active_) {
      if (command != nullptr) command->Interrupt();
    }
  }
  // No more than the ring holds: then others of this loop have their turn.
  uint32_t slot;
  uint32_t taken = 0;
  for (; !stopping_ && taken < DiskRing::kSlots; ++taken) {
    const DiskRing::Popped popped = ring_->Pop(&slot);
    if (popped == DiskRing::Popped::kNothing) {
      if (ring_->Sleep()) break;
      continue;
    }
    if (popped == DiskRing::Popped::kBroken) {
      Break("its ring is damaged");
    } else if (!Begin(slot)) {
      Break("it submitted a command that cannot be");
    }
  }
  if (taken == DiskRing::kSlots) Schedule();
  queue_->Kick();
  in_turn_ = false;
  Publish();
}

bool OwnerQueue::Begin(uint32_t slot) {
  if (active_[slot] != nullptr) return false;
  DiskRing::Command wanted;
  if (!ring_->TakeCommand(slot, &wanted, &segments_)) return false;
  if (idle_.empty()) idle_.push_back(std::make_unique<Command>());
  Command& command = *idle_.back();
  command.data.Clear();
  for (const DiskRing::Segment& segment : segments_) {
    if (segment.bytes == 0 || segment.bytes > kMaxTransferBytes - command.data.size() ||
        !command.data.AppendRange(*client_->memory, segment.gpa, segment.bytes))
      return false;
  }
  if (wanted.cdb_length > command.cdb.size()) return false;
  command.slot = slot;
  command.cdb = wanted.cdb;
  command.cdb_length = wanted.cdb_length;
  command.data_in = wanted.data_in != 0;
  command.completion = this;
  command.loop = &loop_;
  active_[slot] = std::move(idle_.back());
  idle_.pop_back();
  ++under_way_;
  client_->disk->Execute(command, queue_.get(), client_->disk->io().get());
  return true;
}

void OwnerQueue::OnScsiComplete(ScsiCommand& ended) {
  auto& command = static_cast<Command&>(ended);
  DiskRing::Outcome outcome = {};
  outcome.bytes_moved = command.bytes_moved;
  outcome.status = static_cast<uint8_t>(command.status);
  outcome.sense_key = static_cast<uint8_t>(command.sense.key);
  outcome.asc = command.sense.asc;
  outcome.ascq = command.sense.ascq;
  outcome.overrun = command.overrun ? 1 : 0;
  ring_->PutOutcome(command.slot, outcome);
  ring_->Push(command.slot);
  --under_way_;
  std::unique_ptr<Command> idle = std::move(active_[command.slot]);
  if (idle_.size() < kIdleCommands) idle_.push_back(std::move(idle));
  if (!in_turn_) Schedule();
}

/// One answer for all that completes in this round of the loop: a timer that is due costs no system
/// call.
void OwnerQueue::Schedule() {
  if (timer_ != 0) return;
  timer_ = loop_.AddTimer(0, [this, self = self()] {
    timer_ = 0;
    if (stopping_) return EndIfIdle();
    Turn();
  });
}

void OwnerQueue::Publish() {
  constexpr uint8_t kDoorbell = 0;
  // A socket that takes no more is full of doorbells.
  if (ring_->Publish()) (void)vmm::SendFrame(socket_.get(), {&kDoorbell, 1});
}

/// What the client wrote outlives the host from here on, as if it had closed the image.
void OwnerQueue::EndIfIdle() {
  if (under_way_ != 0 || flushing_ || client_ == nullptr) return;
  if (queue_ != nullptr && flush_.completion == nullptr && !client_->disk->info().read_only) {
    flushing_ = true;
    flush_.op = DiskRequest::Op::kFlush;
    flush_.completion = this;
    queue_->Submit(flush_);
    queue_->Kick();
    return;
  }
  queue_.reset();
  client_.reset();
  ended_();
}

void OwnerQueue::OnDiskComplete(DiskRequest& request) {
  if (request.error != 0)
    spdlog::error("flushing after a client: {}", std::strerror(request.error));
  flushing_ = false;
  Schedule();
}

}  // namespace kvmbus::virtdev
