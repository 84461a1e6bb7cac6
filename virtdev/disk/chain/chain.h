// SPDX-License-Identifier: Apache-2.0
/// \file
/// Chain: the image files that make one disk, from the one that is written down to the base.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

/// Any thread may use a chain; only one may change its layers. Only the top is written; data that
/// the top does not have is looked for in the layers below it. What a layer below the top says of
/// data that is visible through the layers above it never changes.
class Chain {
 public:
  static constexpr size_t kMaxLayers = 64;

  /// `layers`: the top first. At least one, at most kMaxLayers. `paths`: their files', or none.
  explicit Chain(std::vector<std::unique_ptr<Image>> layers, std::vector<std::string> paths = {});

  Image& top() { return *layers_.front(); }
  const std::vector<std::unique_ptr<Image>>& layers() const { return layers_; }
  const std::vector<std::string>& paths() const { return paths_; }
  const DiskInfo& info() const { return layers_.front()->info(); }

  /// Where [offset, offset + length) can be read from: no extent is kParent.
  std::vector<ImageExtent> MapForRead(uint64_t offset, uint64_t length);
  // The next four are called while no request is under way.

  /// A larger disk.
  vmm::Result<void> Grow(uint64_t size_bytes);
  /// The same content in another Image; returns the former one.
  std::unique_ptr<Image> ReplaceLayer(size_t layer, std::unique_ptr<Image> image);
  /// An image whose parent is the top becomes the top.
  void PushTop(std::unique_ptr<Image> image, std::string path);
  /// Takes out a layer whose content the layer below it shows, too. Returns the layer.
  std::unique_ptr<Image> RemoveLayer(size_t layer);

  /// The gate that all layers share.
  IoGate& gate() { return *gate_; }
  /// Closes every layer; the first error counts.
  vmm::Result<void> Close();

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };

  void MakeSkipTable();
  void Resolve(size_t layer, uint64_t offset, uint64_t length, std::vector<ImageExtent>* extents);
  void ResolveBelow(size_t layer, uint64_t offset, uint64_t length,
                    std::vector<ImageExtent>* extents);
  size_t FirstLayerWith(uint64_t granule, size_t from);

  const std::unique_ptr<IoGate> gate_ = std::make_unique<IoGate>();
  std::vector<std::unique_ptr<Image>> layers_;
  std::vector<std::string> paths_;
  // For each layer below the top and each granule (the smallest block of these layers): the first
  // layer, from that one on, that has something of the granule. 0: not known yet. From calloc, so
  // that what nobody reads costs no memory.
  uint64_t granule_bytes_ = 0;
  uint64_t granules_ = 0;
  std::unique_ptr<uint8_t[], Free> skip_;
};

/// Opens an image and what lies below it, each locked: the top as `read_only` says, the others
/// shared. `roots` as in DiskOpenOptions. Errors as OpenDisk's; kFailedPrecondition: a parent is
/// not the one that its child was made on.
vmm::Result<std::unique_ptr<Chain>> OpenChain(const std::string& path, bool read_only,
                                              const std::vector<std::string>& roots = {});

/// Sets how a disk's top image uses the host's page cache; logs one line if direct I/O is not
/// possible. Call it while the image has no transfer under way and all of its data is flushed.
void ApplyCaching(Image& image, DiskCaching caching, const std::string& path);

/// The caching in effect: kDirect if the image's I/O goes past the host's page cache.
DiskCaching CachingOf(Image& image);

/// The disk that a chain makes.
std::unique_ptr<DiskIo> MakeChainDisk(std::unique_ptr<Chain> chain, bool force_threads);

}  // namespace kvmbus::virtdev
