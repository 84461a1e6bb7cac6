// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tests of a disk's commands share: a fake disk with known content, and a way to run a
/// command block to its end.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "tests/fakes/fake_disk.h"
#include "virtdev/scsi/scsi_disk.h"

namespace kvmbus::virtdev::scsi_test {

using Bytes = std::vector<uint8_t>;
using Op = tests::FakeDisk::Op;
using Seen = tests::FakeDisk::Seen;
using Timing = tests::FakeDisk::Timing;

struct Outcome {
  unsigned completions = 0;
  scsi::Status status = scsi::Status::kGood;
  scsi::Sense sense;
  uint64_t moved = 0;
  bool overrun = false;
  Bytes data;  ///< the buffer afterwards

  bool good() const { return completions == 1 && status == scsi::Status::kGood; }
  /// No sense comes with it.
  bool ended_with(scsi::Status expected) const {
    return completions == 1 && status == expected && sense == scsi::kNoSense && moved == 0;
  }
  bool failed_with(const scsi::Sense& expected) const {
    return completions == 1 && status == scsi::Status::kCheckCondition && sense == expected &&
           moved == 0;
  }
};

class ScsiDiskTest : public ::testing::Test, protected ScsiCompletion {
 protected:
  static constexpr uint64_t kDiskBytes = 1 << 20;
  static constexpr uint64_t kSectors = kDiskBytes / 512;

  ScsiDiskTest() { Build(tests::FakeDisk::DefaultInfo(kDiskBytes)); }
  ~ScsiDiskTest() override { queue_.reset(); }

  void Build(const DiskInfo& info) {
    queue_.reset();
    fake_ = std::make_shared<tests::FakeDisk>(info);
    for (size_t i = 0; i < fake_->content().size(); ++i)
      fake_->content()[i] = static_cast<uint8_t>(i * 7 + i / 512 + 1);
    disk_ = *ScsiDisk::Create(fake_, {});
    queue_ = *fake_->OpenQueue(*loop_);
    unit_ = disk_.get();
    medium_ = fake_.get();
  }

  /// Fills in and starts `command_`; the outcome is in outcome_ when it is over.
  void Begin(Bytes cdb, bool data_in, Bytes data) {
    outcome_ = {};
    std::fill(command_.cdb.begin(), command_.cdb.end(), uint8_t{0});
    std::copy(cdb.begin(), cdb.end(), command_.cdb.begin());
    command_.cdb_length = static_cast<uint8_t>(cdb.size());
    command_.data_in = data_in;
    command_.completion = this;
    command_.loop = loop_.get();
    command_.data.Clear();
    Scatter(data);
    unit_->Execute(command_, medium_ != nullptr ? queue_.get() : nullptr, medium_);
    if (queue_ != nullptr) queue_->Kick();
  }
  Outcome Run(Bytes cdb, bool data_in, Bytes data) {
    Begin(std::move(cdb), data_in, std::move(data));
    for (int turns = 0; turns < 1000 && outcome_.completions == 0; ++turns) loop_->RunOnce(0);
    outcome_.data = Gather();
    return outcome_;
  }
  Outcome In(Bytes cdb, size_t room) { return Run(std::move(cdb), true, Bytes(room, 0xee)); }
  Outcome Out(Bytes cdb, Bytes data = {}) { return Run(std::move(cdb), false, std::move(data)); }

  void OnScsiComplete(ScsiCommand& command) override {
    ++outcome_.completions;
    outcome_.status = command.status;
    outcome_.sense = command.sense;
    outcome_.moved = command.bytes_moved;
    outcome_.overrun = command.overrun;
  }

  /// Lays the buffer out in odd pieces with gaps between them, as a guest's would be.
  void Scatter(const Bytes& data) {
    memory_.assign(2 * data.size() + kGap, kGuard);
    pieces_.clear();
    size_t to = kGap;
    for (size_t at = 0, size = 100; at < data.size(); at += size, size += 333) {
      const size_t bytes = std::min(size, data.size() - at);
      std::copy_n(data.begin() + static_cast<ptrdiff_t>(at), bytes,
                  memory_.begin() + static_cast<ptrdiff_t>(to));
      pieces_.push_back(std::span(memory_).subspan(to, bytes));
      command_.data.AppendHost(pieces_.back());
      to += bytes + std::min(kGap, bytes);
    }
  }
  Bytes Gather() {
    Bytes data;
    for (const std::span<uint8_t> piece : pieces_) {
      data.insert(data.end(), piece.begin(), piece.end());
      std::fill(piece.begin(), piece.end(), kGuard);
    }
    EXPECT_EQ(memory_, Bytes(memory_.size(), kGuard)) << "written outside the buffer";
    return data;
  }

  Bytes Content(uint64_t offset, uint64_t length) const {
    const auto begin = fake_->content().begin() + static_cast<ptrdiff_t>(offset);
    return {begin, begin + static_cast<ptrdiff_t>(length)};
  }
  static Bytes Pattern(size_t bytes, uint8_t seed) {
    Bytes pattern(bytes);
    for (size_t i = 0; i < bytes; ++i)
      pattern[i] = static_cast<uint8_t>(seed + i * 3 + (i >> 9) * 5);
    return pattern;
  }

  std::unique_ptr<vmm::Loop> loop_ = *vmm::Loop::Create();
  std::shared_ptr<tests::FakeDisk> fake_;
  std::shared_ptr<ScsiDisk> disk_;
  std::unique_ptr<DiskQueue> queue_;
  ScsiUnit* unit_ = nullptr;        ///< what Begin runs commands on
  const DiskIo* medium_ = nullptr;  ///< of queue_
  static constexpr size_t kGap = 64;
  static constexpr uint8_t kGuard = 0xc3;

  Bytes memory_;
  std::vector<std::span<uint8_t>> pieces_;
  ScsiCommand command_;
  Outcome outcome_;
};

}  // namespace kvmbus::virtdev::scsi_test
