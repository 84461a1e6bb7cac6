// SPDX-License-Identifier: Apache-2.0
/// \file
/// The files of a saved state: a HyperVStorage container with Hyper-V's keys for memory
/// (/savedstate/RamMemoryBlock<d>, RamBlock<n>) and our own for devices and for blocks of memory
/// that are compressed (/savedstate/kvmbus: Hyper-V would take one for a block of its own
/// kind). 6.2 keeps all in one .vmrs; 5.0 has the memory apart, in a .bin as it lies in the memory
/// file. Reference: "Hyper-V on-disk formats", 4.3.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "vmm/hvs/hvs_writer.h"
#include "vmm/saved_state/ram_file.h"

namespace kvmbus::vmm {

struct SavedStatePaths {
  std::string state;   ///< .vmrs or .vsv
  std::string memory;  ///< .bin; "": in `state`
};

/// What a saved state has beside the memory.
struct SavedMachine {
  int64_t vm_version = 0;  ///< major << 8 | minor of the configuration
  std::string devices;     ///< Machine::SaveUnits
  std::string fdt;         ///< the machine's description
  bool checkpoint = false;
};

/// Writes a saved state beside its place, and puts it there when it is whole.
class SavedStateWriter final : public RamTarget {
 public:
  /// kFailedPrecondition: the memory is `compressed`, and has a file of its own.
  static Result<std::unique_ptr<SavedStateWriter>> Create(const SavedStatePaths& paths,
                                                          const GuestMemory& memory,
                                                          bool compressed = false);
  /// Removes what was not published.
  ~SavedStateWriter() override;

  // RamTarget
  int fd() const override { return memory_file_.valid() ? memory_file_.get() : state_file_.get(); }
  int direct_fd() const override { return direct_file_.get(); }
  bool HasPlace(uint64_t block) const override { return places_[block].size != 0; }
  Result<uint64_t> Place(uint64_t block) override;
  Result<void> PutCompressed(uint64_t block, std::span<const uint8_t> bytes) override;
  bool IsCompressed(uint64_t block) const override {
    return HasPlace(block) && places_[block].size != kRamBlockBytes;
  }

  /// After the memory: durable, and under its names, from here on.
  Result<void> Publish(const SavedMachine& machine);

 private:
  SavedStateWriter(SavedStatePaths paths, const GuestMemory& memory);
  Key Tree(const SavedMachine& machine) const;
  void AddBlocks(bool compressed, Key* node) const;

  const SavedStatePaths paths_;
  const GuestMemory& memory_;
  Fd state_file_, memory_file_;
  Fd direct_file_;  ///< the one of both that fd() is
  std::unique_ptr<HvsWriter> writer_;
  std::vector<FileObject> places_;  ///< of each block; size 0: none; less than a block: compressed
  bool published_ = false;
};

/// A saved state as it is in its files. Everything in them is checked.
struct SavedState {
  SavedMachine machine;
  RamSource ram;

  /// `memory`: the machine's that it is to be restored into. kFailedPrecondition: a saved state of
  /// Windows, or of a machine with other memory; kDataLoss: it is damaged.
  static Result<SavedState> Open(const SavedStatePaths& paths, const GuestMemory& memory);
};

}  // namespace kvmbus::vmm
