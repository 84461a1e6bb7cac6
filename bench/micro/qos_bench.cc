// SPDX-License-Identifier: Apache-2.0
// What Storage QoS costs a request, before a queue that does nothing. Arguments: what stands before
// it (0 nothing, 1 the layer without limits, 2 with a minimum, 3 with a maximum that is never
// reached), and how many requests there are between two kicks.
#include <benchmark/benchmark.h>

#include <vector>

#include "virtdev/disk/qos/disk_qos.h"

namespace kvmbus::virtdev {
namespace {

/// Completes within Kick what was submitted.
class IdleQueue final : public DiskQueue {
 public:
  void Submit(DiskRequest& request) override { submitted_.push_back(&request); }
  void Kick() override {
    for (DiskRequest* request : submitted_) request->completion->OnDiskComplete(*request);
    submitted_.clear();
  }
  void Drain() override {}

 private:
  std::vector<DiskRequest*> submitted_;
};

class Tally final : public DiskCompletion {
 public:
  void OnDiskComplete(DiskRequest&) override { ++done; }
  uint64_t done = 0;
};

void BM_Qos(benchmark::State& state) {
  const auto loop = vmm::Loop::Create().value();
  DiskQos qos;
  if (state.range(0) == 2) qos.SetLimits({1, 0, 0});
  if (state.range(0) == 3) qos.SetLimits({0, 1'000'000'000, 0});
  std::unique_ptr<DiskQueue> queue = std::make_unique<IdleQueue>();
  if (state.range(0) != 0) queue = qos.Wrap(std::move(queue), *loop);
  Tally tally;
  std::vector<DiskRequest> requests(static_cast<size_t>(state.range(1)));
  for (DiskRequest& request : requests) request.length = 4096;
  for (auto _ : state) {
    for (DiskRequest& request : requests) {
      request.completion = &tally;
      queue->Submit(request);
    }
    queue->Kick();
  }
  if (tally.done != static_cast<uint64_t>(state.iterations()) * requests.size())
    return state.SkipWithError("requests are missing");
  state.SetItemsProcessed(static_cast<int64_t>(tally.done));
}
BENCHMARK(BM_Qos)->ArgNames({"layer", "batch"})->ArgsProduct({{0, 1, 2, 3}, {1, 32}});

}  // namespace
}  // namespace kvmbus::virtdev
