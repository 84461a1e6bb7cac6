// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/loop.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "vmm/os/thread.h"

namespace kvmbus::vmm {

Result<std::unique_ptr<Loop>> Loop::Create(const Clock& clock) {
  Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return Error::FromErrno(errno, "epoll_create1");
  Fd wake = TRY(CreateEventFd());
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = wake.get();
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) < 0)
    return Error::FromErrno(errno, "epoll_ctl");
  return std::unique_ptr<Loop>(new Loop(std::move(epoll), std::move(wake), clock));
}

Loop::Loop(Fd epoll, Fd wake, const Clock& clock)
    : epoll_(std::move(epoll)), wake_(std::move(wake)), clock_(clock) {}

Loop::~Loop() = default;

void Loop::Run() {
  home_ = std::this_thread::get_id();
  while (!stopping_.load(std::memory_order_acquire)) RunOnce(-1);
  stopping_ = false;
  RunPosted();  // whoever waits in PostAndWait is answered
  home_ = std::thread::id{};
  RunPosted();
}

void Loop::Stop() {
  stopping_.store(true, std::memory_order_release);
  SignalEventFd(wake_.get());
}

bool Loop::IsCurrent() const {
  const std::thread::id home = home_.load();
  return home == std::thread::id{} || home == std::this_thread::get_id();
}

void Loop::Post(Task task) {
  {
    std::lock_guard lock(mutex_);
    posted_.push_back(std::move(task));
  }
  SignalEventFd(wake_.get());
}

void Loop::PostAndWait(Task task) {
  if (IsCurrent()) {
    task();
    return;
  }
  std::mutex mutex;
  std::condition_variable done;
  bool finished = false;
  Post([&] {
    task();
    std::lock_guard lock(mutex);
    finished = true;
    done.notify_one();
  });
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return finished; });
}

int Loop::TimeoutMs(int limit_ms) const {
  if (timers_.empty()) return limit_ms;
  const uint64_t now = clock_.MonotonicNs();
  const uint64_t deadline = timers_.begin()->first.first;
  const uint64_t wait_ms = deadline <= now ? 0 : (deadline - now + 999'999) / 1'000'000;
  const int bounded = static_cast<int>(std::min<uint64_t>(wait_ms, 3'600'000));
  return limit_ms < 0 ? bounded : std::min(limit_ms, bounded);
}

void Loop::RunOnce(int timeout_ms) {
  std::array<epoll_event, 32> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                                 TimeoutMs(timeout_ms));
  ++turn_;
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    if (event.data.fd == wake_.get()) {
      DrainEventFd(wake_.get());
      continue;
    }
    const auto it = watches_.find(event.data.fd);
    if (it == watches_.end()) continue;
    const std::shared_ptr<WatchEntry> entry =
        it->second;  // survives an Unwatch by its own callback
    entry->ready(event.events);
  }
  RunTimers();
  RunPosted();
}

void Loop::RunTimers() {
  const uint64_t now = clock_.MonotonicNs();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    auto node = timers_.extract(timers_.begin());
    deadlines_.erase(node.key().second);
    node.mapped()();
  }
}

void Loop::RunPosted() {
  std::vector<Task> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(posted_);
  }
  for (Task& task : tasks) task();
}

Result<void> Loop::Watch(int fd, uint32_t events, std::function<void(uint32_t)> ready) {
  KVMBUS_ASSERT(IsCurrent());
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0)
    return Error::FromErrno(errno, "epoll_ctl");
  watches_[fd] = std::make_shared<WatchEntry>(WatchEntry{std::move(ready)});
  return {};
}

void Loop::ChangeWatch(int fd, uint32_t events) {
  KVMBUS_ASSERT(IsCurrent());
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  KVMBUS_ASSERT(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
}

void Loop::Unwatch(int fd) {
  KVMBUS_ASSERT(IsCurrent());
  if (watches_.erase(fd) != 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

Loop::TimerId Loop::AddTimer(uint64_t delay_ns, Task task) {
  KVMBUS_ASSERT(IsCurrent());
  const TimerId id = next_timer_++;
  const uint64_t deadline = clock_.MonotonicNs() + delay_ns;
  timers_.emplace(std::make_pair(deadline, id), std::move(task));
  deadlines_[id] = deadline;
  return id;
}

void Loop::CancelTimer(TimerId id) {
  KVMBUS_ASSERT(IsCurrent());
  const auto it = deadlines_.find(id);
  if (it == deadlines_.end()) return;
  timers_.erase({it->second, id});
  deadlines_.erase(it);
}

Result<std::unique_ptr<LoopThread>> LoopThread::Start(const std::string& name) {
  std::unique_ptr<LoopThread> self(new LoopThread(TRY(Loop::Create())));
  Loop* loop = self->loop_.get();
  std::mutex mutex;
  std::condition_variable up;
  bool running = false;
  loop->Post([&] {
    std::lock_guard lock(mutex);
    running = true;
    up.notify_one();
  });
  self->thread_ = std::thread([loop, name] {
    NameThisThread(name);
    loop->Run();
  });
  std::unique_lock lock(mutex);
  up.wait(lock, [&] { return running; });
  return self;
}

LoopThread::~LoopThread() {
  loop_->Stop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace kvmbus::vmm
