// SPDX-License-Identifier: Apache-2.0
#include "virtdev/shared_disk/remote_disk.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <thread>

#include "virtdev/shared_disk/remote_queue.h"
#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::virtdev {

using shared_disk::BytesOf;
using vmm::Code;
using vmm::Error;
using vmm::Result;

namespace {

/// A text of the owner's: up to its zero, and fit for a line.
template <size_t N>
std::string TextOf(const std::array<char, N>& text) {
  std::string clean(text.begin(), std::find(text.begin(), text.end(), '\0'));
  std::replace_if(
      clean.begin(), clean.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; }, '?');
  return clean;
}

}  // namespace

RemoteDisk::RemoteDisk(Options options, vmm::GuestMemory& memory, vmm::Loop& main_loop)
    : options_(std::move(options)), memory_(memory), main_loop_(main_loop) {}

RemoteDisk::~RemoteDisk() { (void)Close(); }

Result<std::shared_ptr<RemoteDisk>> RemoteDisk::Connect(Options options, vmm::GuestMemory& memory,
                                                        vmm::Loop& main_loop) {
  std::shared_ptr<RemoteDisk> self(new RemoteDisk(std::move(options), memory, main_loop));
  const uint64_t end = main_loop.clock().MonotonicNs() + self->options_.connect_ns;
  for (;;) {
    auto greeted = self->Greet();
    if (greeted.ok()) return self;
    if (greeted.error().code() != Code::kUnavailable || main_loop.clock().MonotonicNs() >= end)
      return std::move(greeted.error());
    std::this_thread::sleep_for(std::chrono::nanoseconds(self->options_.retry_ns));
  }
}

Result<void> RemoteDisk::Greet() {
  vmm::Fd socket = TRY(vmm::ConnectUnix(options_.socket_path));
  shared_disk::Hello hello;
  hello.kind = shared_disk::Kind::kClient;
  hello.initiator = options_.initiator.bytes;
  const auto regions = memory_.regions();
  if (regions.size() > hello.range.size())
    return Error(Code::kInternal, "the machine's memory has too many regions for a shared disk");
  hello.ranges = static_cast<uint32_t>(regions.size());
  for (size_t i = 0; i < regions.size(); ++i) hello.range[i] = {regions[i].gpa, regions[i].size};
  const int memory = memory_.fd();
  TRY_VOID(vmm::SendFrame(socket.get(), BytesOf(hello), {&memory, 1}));
  shared_disk::HelloReply reply;
  TRY_VOID_CTX(vmm::ReceiveFrame(socket.get(), BytesOf(reply), options_.answer_ms),
               "the shared disk's owner");
  if (reply.magic != shared_disk::kMagic)
    return Error(Code::kInternal, "the shared disk's owner speaks another protocol");
  if (reply.code != 0)
    return Error(reply.code <= 15 ? static_cast<Code>(reply.code) : Code::kUnknown,
                 TextOf(reply.message));
  const uint32_t sector = reply.logical_sector_bytes;
  if (reply.token == 0 || !std::has_single_bit(sector) || sector < 512 || sector > 4096 ||
      reply.size_bytes == 0 || reply.size_bytes % sector != 0)
    return Error(Code::kInternal, "the shared disk's owner describes no disk");
  TRY_VOID(main_loop_.Watch(socket.get(), EPOLLIN, [this](uint32_t) { OnReady(); }));
  socket_ = std::move(socket);
  TakeOver(reply);
  return {};
}

void RemoteDisk::TakeOver(const shared_disk::HelloReply& reply) {
  const bool replaced = owner_ != 0 && owner_ != reply.owner;
  owner_ = reply.owner;
  if (replaced) {
    // As after a loss of power: of what was not flushed, some may be gone. What a queue notes from
    // here on it does not tell the guest, for Lose has changed the token. Queues find the new one
    // below, after these.
    if (written_.load() > flushed_.load()) lost_writes_ = true;
    power_loss_ = true;
  }
  const bool resized = info_.size_bytes != 0 && info_.size_bytes != reply.size_bytes;
  SetSize(reply.size_bytes);
  info_.logical_sector_bytes = reply.logical_sector_bytes;
  info_.physical_sector_bytes = reply.physical_sector_bytes;
  info_.disk_id.bytes = reply.disk_id;
  format_ = TextOf(reply.format);
  SetLink(Link::State::kUp, reply.token);
  if (resized && resized_) resized_();
}

Result<void> RemoteDisk::Close() {
  main_loop_.CancelTimer(retry_timer_);
  retry_timer_ = 0;
  if (socket_.valid()) main_loop_.Unwatch(socket_.get());
  socket_.Reset();
  SetLink(Link::State::kGivenUp, 0);
  return {};
}

Result<std::unique_ptr<DiskQueue>> RemoteDisk::OpenQueue(vmm::Loop& loop) {
  return qos_.Wrap(std::make_unique<RemoteQueue>(shared_from_this(), loop), loop);
}

// --- the conversation

/// An owner that sends without end does not keep the loop: the rest is for its next turn.
void RemoteDisk::OnReady() {
  constexpr int kFramesPerTurn = 16;
  for (int frames = 0; frames < kFramesPerTurn && socket_.valid(); ++frames) {
    auto reply = TakeReply();
    if (!reply.ok()) return Lose("it has gone");
    if (!reply->has_value()) return;
    HandleEvent(**reply);
  }
}

Result<std::optional<shared_disk::Reply>> RemoteDisk::TakeReply() {
  return shared_disk::TakeFrame<shared_disk::Reply>(socket_.get(), &in_);
}

void RemoteDisk::HandleEvent(const shared_disk::Reply& event) {
  if (event.call != shared_disk::Call::kResized) return;  // the answer came too late
  if (event.size_bytes == 0 || event.size_bytes % info_.logical_sector_bytes != 0) return;
  SetSize(event.size_bytes);
  if (resized_) resized_();
}

Result<shared_disk::Reply> RemoteDisk::Call(const shared_disk::Request& request) {
  if (!socket_.valid())
    return Error(Code::kUnavailable, "the shared disk's owner is away; try again");
  const auto ask = [&]() -> Result<shared_disk::Reply> {
    TRY_VOID(vmm::SendFrame(socket_.get(), BytesOf(request)));
    const uint64_t end = vmm::SystemClock().MonotonicNs() +
                         static_cast<uint64_t>(options_.answer_ms) * uint64_t{1'000'000};
    for (;;) {
      const uint64_t now = vmm::SystemClock().MonotonicNs();
      // ReceiveFrame does not wait for what is there already, as of an owner that sends on and on.
      if (now >= end) return Error(Code::kDeadlineExceeded, "the peer does not answer");
      shared_disk::Reply reply;
      std::copy(in_.begin(), in_.end(), BytesOf(reply).begin());
      TRY_VOID(vmm::ReceiveFrame(socket_.get(), BytesOf(reply).subspan(in_.size()),
                                 static_cast<int>((end - now) / 1'000'000) + 1));
      in_.clear();
      if (reply.call == request.call) return reply;
      HandleEvent(reply);
    }
  };
  auto reply = ask();
  if (!reply.ok()) {
    Lose(reply.error().message());  // what comes next would be taken for another's answer
    return std::move(reply.error()).WithContext("the shared disk's owner");
  }
  if (reply->refused != 0)
    return Error(Code::kDataLoss, "the shared disk's owner takes the saved state for damaged");
  return reply;
}

void RemoteDisk::Lose(std::string_view why) {
  if (!socket_.valid()) return;
  spdlog::warn("the owner of a shared disk is lost ({}): {}", options_.socket_path, why);
  lost_owners_.Add();
  main_loop_.Unwatch(socket_.get());
  socket_.Reset();
  in_.clear();
  lost_at_ns_ = main_loop_.clock().MonotonicNs();
  SetLink(Link::State::kAway, 0);
  retry_timer_ = main_loop_.AddTimer(options_.retry_ns, [this] { Retry(); });
}

void RemoteDisk::Retry() {
  retry_timer_ = 0;
  if (Greet().ok()) {
    spdlog::info("a shared disk has an owner again ({})", options_.socket_path);
    return;
  }
  if (main_loop_.clock().MonotonicNs() - lost_at_ns_ >= options_.patience_ns &&
      link().state != Link::State::kGivenUp) {
    spdlog::error("a shared disk has had no owner for {} s: its commands fail from now on ({})",
                  options_.patience_ns / 1'000'000'000, options_.socket_path);
    SetLink(Link::State::kGivenUp, 0);
  }
  retry_timer_ = main_loop_.AddTimer(options_.retry_ns, [this] { Retry(); });
}

void RemoteDisk::SetSize(uint64_t bytes) {
  info_.size_bytes = bytes;
  size_bytes_ = bytes;
}

// --- any thread

void RemoteDisk::SetLink(Link::State state, uint64_t token) {
  std::lock_guard lock(mutex_);
  link_ = {state, token};
  token_ = token;
}

RemoteDisk::Link RemoteDisk::link() const {
  std::lock_guard lock(mutex_);
  return link_;
}

void RemoteDisk::NoteFlushed(uint64_t written) {
  uint64_t before = flushed_.load(std::memory_order_relaxed);
  while (before < written && !flushed_.compare_exchange_weak(before, written)) {
  }
}

bool RemoteDisk::TakeLostWrites() {
  if (!lost_writes_.load(std::memory_order_relaxed) || !lost_writes_.exchange(false)) return false;
  NoteFlushed(written());  // told once
  return true;
}

bool RemoteDisk::TakePowerLoss() {
  return power_loss_.load(std::memory_order_relaxed) && power_loss_.exchange(false);
}

void RemoteDisk::VisitCounters(const vmm::CounterVisitor& visit) const {
  visit("shared_disk_lost_owners", lost_owners_);
  visit("shared_disk_lost_queues", lost_queues_);
  visit("shared_disk_bad_outcomes", bad_outcomes_);
}

}  // namespace kvmbus::virtdev
