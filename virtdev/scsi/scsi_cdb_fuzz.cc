// SPDX-License-Identifier: Apache-2.0
// Command blocks and data of hostile guests against a disk that two of them share, or a DVD drive:
// nothing outside the buffer is touched, nothing beyond the disk is asked for (the fake disk
// asserts it), each command ends exactly once, and what is saved can be restored.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "tests/fakes/fake_disk.h"
#include "tests/fuzz/fuzz_input.h"
#include "virtdev/scsi/reservations_fuzz.h"
#include "virtdev/scsi/scsi_disk.h"
#include "virtdev/scsi/scsi_dvd.h"

namespace {

using namespace kvmbus;           // NOLINT: a fuzz target is a program
using namespace kvmbus::virtdev;  // NOLINT
using Input = tests::FuzzInput;

class Counting final : public ScsiCompletion {
 public:
  void OnScsiComplete(ScsiCommand&) override { ++count; }
  unsigned count = 0;
};

void RunOne(Input& input, ScsiUnit& unit, DiskQueue& queue, tests::FakeDisk& fake,
            vmm::Loop& loop) {
  const uint8_t flags = input.Byte();
  const size_t length = input.Word() % 40000;  // the disk has 32 KiB
  std::vector<uint8_t> data(length);
  ScsiCommand command;
  Counting completion;
  command.completion = &completion;
  command.loop = &loop;
  command.data_in = (flags & 1) != 0;
  command.cdb_length = static_cast<uint8_t>(flags >> 1 & 0x1f);
  for (uint8_t& byte : command.cdb) byte = input.Byte();
  const size_t filled = std::min<size_t>(length, input.Byte());
  for (size_t i = 0; i < filled; ++i) data[i] = input.Byte();
  const size_t piece = std::max(1 + input.Byte() * size_t{16}, length / 64);
  for (size_t at = 0; at < length; at += piece)
    command.data.AppendHost(std::span(data).subspan(at, std::min(piece, length - at)));
  if ((flags & 0x40) != 0)
    fake.InjectError(static_cast<tests::FakeDisk::Op>(input.Byte() % 5),
                     input.Byte() % 2 ? EIO : ENOSPC);
  unit.Execute(command, &queue, &fake);
  if ((flags & 0x80) != 0) command.Interrupt();
  queue.Kick();
  queue.Drain();
  loop.RunOnce(0);
  KVMBUS_ASSERT(completion.count == 1);
  KVMBUS_ASSERT(command.bytes_moved <= length);
  KVMBUS_ASSERT(command.status == scsi::Status::kGood || command.bytes_moved == 0);
  KVMBUS_ASSERT((command.status == scsi::Status::kCheckCondition) ==
                (command.sense.key != scsi::SenseKey::kNoSense));
}

void RunDisk(Input& input, const std::shared_ptr<tests::FakeDisk>& fake, DiskQueue& queue,
             vmm::Loop& loop) {
  std::string stored;
  ScsiDisk::Options options;
  options.shared = true;
  options.reservations = std::make_shared<PersistentReservations>([&](const std::string& state) {
    stored = state;
    return true;
  });
  std::shared_ptr<ScsiDisk> disks[2];
  for (auto& disk : disks) {
    options.initiator.bytes[0] = static_cast<uint8_t>(&disk - disks);
    disk = *ScsiDisk::Create(fake, options);
  }
  for (int commands = 0; commands < 32 && !input.empty(); ++commands) {
    ScsiDisk& disk = *disks[input.Byte() % 2];
    RunOne(input, disk, queue, *fake, loop);
    KVMBUS_ASSERT(ScsiDisk::IsValid(disk.Save()));
  }
  CheckReservations(*options.reservations);
  PersistentReservations again;
  KVMBUS_ASSERT(stored.empty() || again.RestorePersistent(stored).ok());
}

void RunDvd(Input& input, const std::shared_ptr<tests::FakeDisk>& fake, DiskQueue& queue,
            vmm::Loop& loop) {
  ScsiDvd drive({}, {});
  for (int commands = 0; commands < 32 && !input.empty(); ++commands) {
    const uint8_t host = input.Byte();
    if (host % 8 == 0) (void)drive.SetMedium(fake);
    if (host % 8 == 1) (void)drive.SetMedium(nullptr);
    if (host % 8 == 2) (void)drive.RequestRemoval();
    RunOne(input, drive, queue, *fake, loop);
    const ScsiDvd::State state = drive.Save();
    KVMBUS_ASSERT(ScsiDvd::IsValid(state));
    drive.Restore(state);
    KVMBUS_ASSERT(drive.Save() == state);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const std::unique_ptr<vmm::Loop> loop = *vmm::Loop::Create();
  Input input(bytes, size);
  const uint8_t shape = input.Byte();
  DiskInfo info = tests::FakeDisk::DefaultInfo(32 << 10);
  info.read_only = (shape & 33) != 0;
  info.can_unmap = (shape & 2) == 0;
  info.unmapped_reads_zero = (shape & 4) == 0;
  if ((shape & 8) != 0) info.logical_sector_bytes = 4096;
  auto fake = std::make_shared<tests::FakeDisk>(info);
  fake->set_timing((shape & 16) != 0 ? tests::FakeDisk::Timing::kPosted
                                     : tests::FakeDisk::Timing::kInline);
  const std::unique_ptr<DiskQueue> queue = *fake->OpenQueue(*loop);
  if ((shape & 32) != 0 && ScsiDvd::CheckMedium(info).ok()) {
    RunDvd(input, fake, *queue, *loop);
  } else {
    RunDisk(input, fake, *queue, *loop);
  }
  if (info.read_only)
    KVMBUS_ASSERT(std::all_of(fake->content().begin(), fake->content().end(),
                              [](uint8_t byte) { return byte == 0; }));
  return 0;
}
