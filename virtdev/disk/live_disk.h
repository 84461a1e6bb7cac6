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

#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/live_chain.h"
#include "virtdev/disk/new_file.h"

namespace kvmbus::virtdev {

/// Makes the disk larger, and tells the listener. Errors: those of Image::Grow.
vmm::Result<void> ResizeLiveDisk(LiveChain& live, uint64_t size_bytes);

/// Whether a disk whose image is at `top` finds the layers of `chain` behind `layer`, each by what
/// the one above it says, in the folders in which its parents may be. Errors: those of FindParent.
vmm::Result<void> CheckFindsLayers(const std::string& top, const Chain& chain, size_t layer);

/// Called while requests are held, right before another file becomes the top: what goes with the
/// disk under its name goes with it now, in a way that leaves the old name what it has.
using TopMoves = std::function<vmm::Result<void>(const std::string& path)>;

/// A child of the top that is on the disk, but for its name; gone with the object.
struct LiveChild {
  std::string path;
  CreateDiskOptions options;
  vmm::Guid parent;  ///< the identity of the top that it was made for
  std::optional<NewFile> file;
};

/// Makes an image for `path` whose parent is the top, while requests run on. kAlreadyExists: there
/// is such a file; kUnimplemented: the top is not a VHDX image.
vmm::Result<LiveChild> PrepareLiveChild(LiveChain& live, const std::string& path);

/// The child is written from now on; the former top is not any more. A crash leaves no file at its
/// path, and the disk is what it was, or a whole one, and that is the disk.
vmm::Result<void> SwitchToLiveChild(LiveChain& live, LiveChild child, const TopMoves& top_moves);

/// Both.
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
/// its file; of a top, whose name others know, the name stays, and leads to the file that is the
/// top now. Other children of these files are lost by it; those in use are noticed (kUnavailable).
/// Harmless when it is killed, cancelled (kCancelled) or fails: the chain holds what it held, and
/// can be merged again, in use or not. Other errors as CheckMergePair's.
vmm::Result<void> MergeLiveLayer(LiveChain& live, size_t layer, MergeFiles& files,
                                 const Progress& progress, const TopMoves& top_moves);

}  // namespace kvmbus::virtdev
