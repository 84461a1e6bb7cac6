// SPDX-License-Identifier: Apache-2.0
// The worker's part of saved states: it starts from one, and makes one.
#include <unistd.h>

#include <utility>

#include "cmd/vmm/worker.h"
#include "cmd/vmm/worker_reply.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Error;
using vmm::Result;

/// A saved machine is Paused afterwards: vmmd notes that its saved state is used up, and resumes
/// it.
Result<void> Worker::Begin() {
  if (!options_.config.saved()) return board_->machine().PowerOn();
  return board_->Restore([run_dir = options_.run_dir](const Error& error) {
    // On a thread of its own, while the processors and the main thread may wait for a page that
    // will never come: there is no way to stop them but this.
    worker::ExitRecord record;
    record.set_code(static_cast<uint32_t>(error.code()));
    record.set_reason(fmt::format("its saved memory was lost: {}", error.ToString()));
    record.set_realtime_ns(vmm::SystemClock().RealtimeNs());
    spdlog::critical("{}", record.reason());
    (void)vmm::ReplaceFile(run_dir + "/exit", record.SerializeAsString(), 0640);
    ::_exit(1);
  });
}

Result<void> Worker::Resume() {
  const bool before = std::exchange(resumed_, true);
  auto resumed = board_->machine().Resume();
  if (!resumed.ok()) resumed_ = before;
  // What the guest touches first comes first.
  constexpr uint64_t kPrefetchDelayNs = 20'000'000;
  if (resumed.ok() && options_.config.saved() && !before)
    loop_->AddTimer(kPrefetchDelayNs, [this] { board_->PrefetchMemory(); });
  return resumed;
}

void Worker::OnCapture(const worker::CaptureRequest& request, ControlServer::ReplyFunction reply) {
  if (capture_ != nullptr)
    return reply(Failed(Error(Code::kFailedPrecondition,
                              "the virtual machine is being saved or checkpointed already; wait "
                              "for the end of that, or cancel it")));
  if (request.stop() && request.state_path().empty())
    return reply(Failed(Error(Code::kInvalidArgument, "a file for the saved state is missing")));
  if (const auto can = board_->CheckChildren(request); !can.ok()) return reply(Failed(can.error()));
  capture_ = std::make_unique<StateCapture>(
      *loop_, *board_, request, [this, request, reply](const Result<worker::CaptureReply>& result) {
        capture_.reset();
        board_->DropPreparedChildren();
        for (const worker::CreateChildRequest& child : request.children())
          NotePath(child.controller(), child.lun(),
                   board_->PathOf(child.controller(), child.lun()));
        if (!result.ok()) return reply(Failed(result.error()));
        worker::Reply answer;
        *answer.mutable_capture() = *result;
        reply(answer);
      });
}

}  // namespace kvmbus::cmd
