// SPDX-License-Identifier: Apache-2.0
/// \file
/// What vmctl does to image files: create, describe, check, convert, resize, compact, merge,
/// reparent. They work without vmmd.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/disk_io.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/tools/new_file.h"

namespace kvmbus::virtdev {

struct CreateDiskOptions {
  std::string format = "vhdx";  ///< "vhdx", "vhd" or "raw"
  uint64_t size_bytes = 0;
  bool fixed = false;  ///< VHDX, VHD: all blocks allocated
  uint32_t block_bytes = 2u << 20;
  uint32_t logical_sector = 512;
  uint32_t physical_sector = 4096;
  /// A differencing image on this one, of its format: size, sectors and disk id are the parent's.
  /// The parent must lie where OpenDisk looks for it by default.
  std::string parent;
};

/// Never overwrites (kAlreadyExists). Made under another name, synced, then linked: all of it or
/// nothing.
vmm::Result<void> CreateDisk(const std::string& path, const CreateDiskOptions& options);

/// The empty image itself, into an empty file; a differencing one if it has a parent.
vmm::Result<void> FormatVhdx(BlockFile& file, const CreateDiskOptions& options,
                             const vmm::Guid& disk_id, const ParentReference* parent = nullptr);

/// The file of a new image, formatted (but for a VHD with a parent) and not yet published.
vmm::Result<NewFile> NewImageFile(const std::string& path, const CreateDiskOptions& options,
                                  const vmm::Guid& disk_id,
                                  const ParentReference* parent = nullptr);

/// The file of a differencing image on options.parent, which is open as `parent` and does not
/// change meanwhile; not yet published. The rest of the options as for CreateDisk.
vmm::Result<NewFile> NewChildFile(const std::string& path, CreateDiskOptions options,
                                  Image& parent);

struct DiskDescription {
  std::string format;
  std::string type;  ///< "fixed", "dynamic", "differencing"; "" for raw
  uint64_t size_bytes = 0;
  uint64_t file_bytes = 0;
  uint32_t block_bytes = 0;
  uint32_t logical_sector = 512;
  uint32_t physical_sector = 512;
  uint64_t allocated_blocks = 0;
  uint64_t blocks = 0;
  uint64_t smallest_bytes = 0;  ///< to what the disk can shrink; 0: nobody knows
  vmm::Guid disk_id;
  bool clean = true;   ///< VHDX: its log is empty; VHD: its footers are sound
  std::string parent;  ///< a differencing image's, as it stands there: "..\\base.vhdx"
  /// For a differencing image: the files from its parent down to the base; if some of them cannot
  /// be opened, `chain_error` says why.
  std::vector<std::string> chain;
  std::string chain_error;
};
vmm::Result<DiskDescription> DescribeDisk(const std::string& path);

struct Finding {
  enum class Severity { kNote, kError };
  Severity severity;
  std::string text;   ///< what and where, for people
  std::string where;  ///< "header 1", "BAT entry 17", "log" ...
  std::string file;   ///< of the image in which it is; CheckVhdx: ""
};
/// A strict check written apart from the driver, of an image and of those below it, as far as they
/// are found. Errors: what it cannot judge (kUnimplemented), or cannot read.
vmm::Result<std::vector<Finding>> CheckDisk(const std::string& path);
/// The same check of one file alone.
vmm::Result<std::vector<Finding>> CheckVhdx(BlockFile& file);
vmm::Result<std::vector<Finding>> CheckVhd(BlockFile& file);

/// Links a differencing image to another parent of its format, or to its parent at another place.
/// The parent's content must be what the image was made on (kFailedPrecondition) unless
/// `ignore_mismatch`. Crash-safe: the old parent or the new one.
vmm::Result<void> ReparentDisk(const std::string& path, const std::string& parent_path,
                               bool ignore_mismatch);

/// The file that an image stands on, found by its locator; "": it is a base. The image may be in
/// use.
vmm::Result<std::string> ParentOfDisk(const std::string& path);

/// `progress(done, total)`; false cancels (kCancelled, and nothing is left).
using Progress = std::function<bool(uint64_t done, uint64_t total)>;
/// Grows or shrinks the disk in a VHDX, VHD or raw image; a fixed one gets all of its new space at
/// once. Its children, if it has any, are lost. What shrinks has no parent, keeps its partitions
/// (kFailedPrecondition: names the smallest size) and gets its GPT's second copy at the new end.
/// `force`: even if no table says what is in use.
vmm::Result<void> ResizeDisk(const std::string& path, uint64_t size_bytes, bool force);

/// Makes a VHDX or VHD file as small as its content allows: see CompactVhdx, CompactVhd. `quick`
/// leaves out the search for blocks of zeroes. Harmless if it is killed or cancelled.
vmm::Result<void> CompactDisk(const std::string& path, bool quick, const Progress& progress);

/// Merges a differencing image into its parent and deletes it. Harmless if it is killed or
/// cancelled: the chain holds what it held, and the merge can be run again. Other children of that
/// parent are lost by it, so the caller knows that there are none.
vmm::Result<void> MergeDisk(const std::string& path, const Progress& progress);
/// Sparse in, sparse out. Sources: raw, VHD, VHDX, and by way of qemu-img what it reads.
vmm::Result<void> ConvertDisk(const std::string& source, const std::string& target,
                              const CreateDiskOptions& options, const Progress& progress);

}  // namespace kvmbus::virtdev
