// SPDX-License-Identifier: Apache-2.0
/// \file
/// What is done to a disk while its queues run. Each of these blocks; one at a time for a disk, on
/// a thread that no request needs (see IoHold::Run).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "virtdev/disk/chain/live_chain.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/tools/new_file.h"

namespace kvmbus::virtdev {

/// Makes the disk larger, and tells the listener. Errors: those of Image::Grow.
vmm::Result<void> ResizeLiveDisk(LiveChain& live, uint64_t size_bytes);

/// Whether a disk whose image is at `top` finds the layers of `chain` behind `layer`, each by what
/// the one above it says, in the folders in which its parents may be. Errors: those of FindParent.
vmm::Result<void> CheckFindsLayers(const std::string& top, const Chain& chain, size_t layer);

/// Called while requests are held, right before another file becomes the top: whoever keeps data
/// beside the disk, under its name, copies it to the new name. The old name keeps its data.
using TopMoves = std::function<vmm::Result<void>(const std::string& path)>;

/// A new child of the top. Its file is complete but has no name yet, and is deleted with this
/// object.
struct LiveChild {
  std::string path;
  CreateDiskOptions options;
  vmm::Guid parent;  ///< the identity of the top that it was made for
  std::optional<NewFile> file;
};

/// Makes an image for `path` whose parent is the top, while requests run on. kAlreadyExists: there
/// is such a file; kUnimplemented: the top is a raw image.
vmm::Result<LiveChild> PrepareLiveChild(LiveChain& live, const std::string& path);

/// Makes the child the top: from now on it takes the writes, and the former top gets none. After a
/// crash there is either no file at the child's path, and the disk is what it was, or a whole child
/// that is the disk.
vmm::Result<void> SwitchToLiveChild(LiveChain& live, LiveChild child, const TopMoves& top_moves);

/// PrepareLiveChild and SwitchToLiveChild, one after the other.
vmm::Result<void> CreateLiveChild(LiveChain& live, const std::string& path,
                                  const TopMoves& top_moves);

/// The host's files as a merge needs them; tests have others.
class MergeFiles {
 public:
  virtual ~MergeFiles() = default;
  /// Whether the disk can be opened when layer 1 is its top.
  virtual vmm::Result<void> CheckNextTop(const Chain& chain) = 0;
  /// See ReopenForWriting and ShareLock.
  virtual vmm::Result<std::unique_ptr<BlockFile>> Reopen(const std::string& path,
                                                         BlockFile& file) = 0;
  virtual void Share(BlockFile& from, BlockFile& to) = 0;
  virtual vmm::Result<std::vector<ParentReference::Path>> PathsTo(const std::string& child,
                                                                  const std::string& parent) = 0;
  /// From now on, durably, the name of one file leads to the other; the first one has no name then.
  virtual vmm::Result<void> Redirect(const std::string& path, const std::string& to) = 0;
  virtual vmm::Result<void> Remove(const std::string& path) = 0;
};
std::unique_ptr<MergeFiles> MakeHostMergeFiles();

/// Writes layer `layer` (0: the top) into the one below it, takes it out of the chain and deletes
/// its file. The name of a merged top stays, since others know it: it leads to the new top's file.
/// Other children of these files become invalid; if one is in use, the merge fails (kUnavailable).
/// A merge that is killed, cancelled (kCancelled) or fails does no harm: the chain holds what it
/// held, and can be merged again, in use or not. Other errors as CheckMergePair's.
vmm::Result<void> MergeLiveLayer(LiveChain& live, size_t layer, MergeFiles& files,
                                 const Progress& progress, const TopMoves& top_moves);

}  // namespace kvmbus::virtdev
