// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/owner_process.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "cmd/vmm/disk_change.h"
#include "cmd/vmm/disk_reservations.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/live/live_disk.h"
#include "virtdev/shared_disk/disk_owner.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/os/signals.h"
#include "worker/worker.pb.h"

namespace kvmbus::cmd {
namespace {

using vmm::Code;
using vmm::Result;

/// The former owner of the image may be closing it.
Result<vmm::Fd> LockFolder(const std::string& run_dir) {
  constexpr auto kStep = std::chrono::milliseconds(20);
  constexpr int kSteps = 1500;
  vmm::Fd lock = TRY(vmm::OpenFile(run_dir + "/lock", O_RDWR | O_CREAT, 0600));
  for (int step = 0;; ++step) {
    const auto locked = vmm::LockFile(lock.get(), vmm::LockKind::kExclusive);
    if (locked.ok()) return lock;
    if (locked.error().code() != Code::kUnavailable) return locked.error();
    if (step == kSteps)
      return vmm::MakeError(Code::kAlreadyExists,
                            "another process owns this disk already (it holds '{}/lock')", run_dir);
    std::this_thread::sleep_for(kStep);
  }
}

Result<std::shared_ptr<virtdev::DiskIo>> OpenImage(const std::string& image) {
  // A chain is opened as one disk, so its top is looked at first.
  const bool has_parent =
      TRY_CTX(virtdev::OpenImage(image, true), "opening shared disk '{}'", image)->parent() !=
      nullptr;
  std::shared_ptr<virtdev::DiskIo> disk =
      TRY_CTX(virtdev::OpenDisk(image, {}), "opening shared disk '{}'", image);
  const std::string format(disk->format());
  if (!has_parent && format != "vhd") return disk;
  (void)disk->Close();
  return vmm::MakeError(Code::kInvalidArgument,
                        "'{}' is a {}{} image; a shared disk is a fixed or dynamic VHDX or a raw "
                        "image: make one with 'vmctl disk convert'",
                        image, has_parent ? "differencing " : "", format);
}

class OwnerProcess {
 public:
  Result<void> SetUp(const std::string& image, const std::string& run_dir) {
    lock_ = TRY(LockFolder(run_dir));
    ::unlink((run_dir + "/exit").c_str());
    loop_ = TRY(vmm::Loop::Create());
    WatchSignals();
    disk_ = TRY(OpenImage(image));
    virtdev::DiskOwner::Options options;
    options.socket_path = run_dir + "/owner.sock";
    options.disk = disk_;
    options.reservations =
        TRY_CTX(OpenReservations(image), "reservations of disk '{}'", image).state;
    options.on_idle = [this] { loop_->Stop(); };
    options.grow = [this](uint64_t size_bytes, virtdev::DiskOwner::Done done) {
      Grow(size_bytes, std::move(done));
    };
    const size_t threads = std::clamp(std::thread::hardware_concurrency(), 1u, kMaxIoThreads);
    std::vector<vmm::Loop*> loops;
    for (size_t i = 0; i < threads; ++i) {
      io_threads_.push_back(TRY(vmm::LoopThread::Start(fmt::format("io/{}", i))));
      loops.push_back(&io_threads_.back()->loop());
    }
    socket_path_ = options.socket_path;
    owner_ = TRY(virtdev::DiskOwner::Listen(std::move(options), *loop_, std::move(loops)));
    return {};
  }

  void Run() { loop_->Run(); }

  Result<void> Close() {
    // First nobody new can come; who comes all the same finds the next owner, who waits for us.
    if (owner_ != nullptr) ::unlink(socket_path_.c_str());
    growth_.reset();  // while the disk's queues run: it waits for them
    owner_.reset();
    io_threads_.clear();
    if (disk_ == nullptr) return {};
    return disk_->Close();
  }

 private:
  static constexpr unsigned kMaxIoThreads = 4;

  void WatchSignals() {
    signals_ = vmm::TakeEndSignals();
    (void)loop_->Watch(signals_.get(), EPOLLIN, [this](uint32_t) { loop_->Stop(); });
  }

  void Grow(uint64_t size_bytes, virtdev::DiskOwner::Done done) {
    if (growth_ != nullptr)
      return done(vmm::Error(Code::kFailedPrecondition,
                             "the disk is being made larger already: wait for the end of that"));
    growth_ = std::make_unique<DiskChange>(
        *loop_,
        [disk = disk_, size_bytes](const virtdev::Progress&) {
          return virtdev::ResizeLiveDisk(*disk->live(), size_bytes);
        },
        [this, done = std::move(done)](const Result<void>& grown) {
          growth_.reset();
          done(grown);
        });
  }

  vmm::Fd lock_;
  vmm::Fd signals_;
  std::string socket_path_;
  std::unique_ptr<vmm::Loop> loop_;
  std::vector<std::unique_ptr<vmm::LoopThread>> io_threads_;
  std::shared_ptr<virtdev::DiskIo> disk_;
  std::unique_ptr<virtdev::DiskOwner> owner_;
  std::unique_ptr<DiskChange> growth_;  ///< under way
};

void WriteExit(const std::string& run_dir, const vmm::Error& error) {
  worker::ExitRecord record;
  record.set_code(static_cast<uint32_t>(error.code()));
  record.set_reason(error.ToString());
  record.set_realtime_ns(vmm::SystemClock().RealtimeNs());
  (void)vmm::ReplaceFile(run_dir + "/exit", record.SerializeAsString(), 0640);
}

}  // namespace

Result<void> RunDiskOwner(const std::string& image, const std::string& run_dir) {
  // Whatever name of the image they have, its reservations lie beside the image itself.
  std::error_code ignored;
  const std::string path = std::filesystem::weakly_canonical(image, ignored).string();
  OwnerProcess process;
  auto up = process.SetUp(path.empty() ? image : path, run_dir);
  if (up.ok()) process.Run();
  auto closed = process.Close();
  if (!up.ok()) {
    WriteExit(run_dir, up.error());
    return up;
  }
  return closed;
}

}  // namespace kvmbus::cmd
