// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a medium may hold after a power cut at any moment of some work, which runs once.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "tests/fakes/crash_file.h"

namespace kvmbus::tests {

/// Where cuts come. Long copies into space of nobody's are much alike; what counts is which of the
/// changes before a flush have reached the medium.
struct CutPlan {
  int before_flush = 8;         ///< cuts before each flush, each with a random loss
  size_t single_losses = 48;    ///< and so many in which one change alone is lost, all if there are
                                ///< no more
  uint64_t each_of_first = 40;  ///< one cut before each of the first changes after a flush
  uint64_t stride = 29;         ///< and before every so many of the rest
};

/// All changes but one have reached the medium.
inline SparseBytes LoseOne(const CrashMedium& medium, size_t lost) {
  SparseBytes content = medium.durable;
  for (size_t i = 0; i < medium.pending.size(); ++i) {
    const CrashMedium::Change& change = medium.pending[i];
    if (i == lost) continue;
    if (change.resize)
      content.Resize(change.number);
    else
      content.Set(change.number, change.sector, change.end);
  }
  return content;
}

/// `work(medium)` does what is to be cut. All that the medium holds before it is durable.
template <typename Work>
std::vector<SparseBytes> CutsOf(CrashMedium& medium, const CutPlan& plan, Work work) {
  medium.durable = medium.now;
  medium.pending.clear();
  std::vector<SparseBytes> cuts;
  std::mt19937_64 random(7);
  uint64_t since_flush = 0;
  medium.on_event = [&] {
    if (!medium.at_flush) {
      if (since_flush < plan.each_of_first || since_flush % plan.stride == 0)
        cuts.push_back(medium.Crash(random));
      ++since_flush;
      return;
    }
    for (int i = 0; i < plan.before_flush; ++i) cuts.push_back(medium.Crash(random));
    const size_t losses = std::min(plan.single_losses, medium.pending.size());
    for (size_t i = 0; i < losses; ++i) {
      const bool all = losses == medium.pending.size();
      cuts.push_back(LoseOne(medium, all ? i : random() % medium.pending.size()));
    }
    since_flush = 0;
  };
  work(medium);
  medium.on_event = nullptr;
  return cuts;
}

}  // namespace kvmbus::tests
