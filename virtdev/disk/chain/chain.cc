// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/chain/chain.h"

#include <algorithm>
#include <atomic>

#include "vmm/result/result.h"

namespace kvmbus::virtdev {

using Kind = ImageExtent::Kind;
using vmm::Result;

void AppendExtent(std::vector<ImageExtent>& extents, const ImageExtent& extent) {
  if (!extents.empty()) {
    ImageExtent& last = extents.back();
    const bool follows =
        last.kind == extent.kind &&
        (extent.kind != Kind::kData ||
         (last.file == extent.file && last.file_offset + last.length == extent.file_offset));
    if (follows) {
      last.length += extent.length;
      return;
    }
  }
  extents.push_back(extent);
}

Result<void> Image::Grow(uint64_t) {
  return vmm::MakeError(vmm::Code::kUnimplemented,
                        "a disk in a {} image does not grow while it is in use", format());
}

Result<void> Image::Relink(const ParentReference&) {
  return vmm::MakeError(vmm::Code::kUnimplemented, "a {} image is not linked anew while it is open",
                        format());
}

Chain::Chain(std::vector<std::unique_ptr<Image>> layers, std::vector<std::string> paths)
    : layers_(std::move(layers)), paths_(std::move(paths)) {
  KVMBUS_ASSERT(!layers_.empty() && layers_.size() <= kMaxLayers);
  for (const auto& layer : layers_) layer->ShareGate(*gate_);
  for (size_t layer = layers_.size() - 1; layer-- > 0;)
    layers_[layer]->TakeDiskId(layers_[layer + 1]->info().disk_id);
  MakeSkipTable();
}

void Chain::MakeSkipTable() {
  skip_.reset();
  granule_bytes_ = 0;
  // With one layer below the top there is no choice.
  if (layers_.size() <= 2) return;
  for (size_t layer = 1; layer < layers_.size(); ++layer) {
    const uint64_t block = layers_[layer]->block_bytes();
    if (block != 0 && (granule_bytes_ == 0 || block < granule_bytes_)) granule_bytes_ = block;
  }
  if (granule_bytes_ == 0) return;
  granules_ = (info().size_bytes + granule_bytes_ - 1) / granule_bytes_;
  // Without memory for it every layer is asked.
  skip_.reset(static_cast<uint8_t*>(std::calloc(granules_ * layers_.size(), 1)));
}

std::vector<ImageExtent> Chain::MapForRead(uint64_t offset, uint64_t length) {
  std::vector<ImageExtent> extents;
  Resolve(0, offset, length, &extents);
  return extents;
}

void Chain::Resolve(size_t layer, uint64_t offset, uint64_t length,
                    std::vector<ImageExtent>* extents) {
  // A layer may be shorter than the one above it: past its end are zeroes.
  const uint64_t size = layer < layers_.size() ? layers_[layer]->info().size_bytes : 0;
  const uint64_t inside = offset >= size ? 0 : std::min(length, size - offset);
  if (inside != 0 && layers_[layer]->parent() == nullptr) {
    layers_[layer]->MapLayer(offset, inside, extents);
  } else if (inside != 0) {
    // Each depth has a list of its own, which keeps its memory.
    thread_local std::vector<ImageExtent> lists[kMaxLayers];
    std::vector<ImageExtent>& own = lists[layer];
    own.clear();
    layers_[layer]->MapLayer(offset, inside, &own);
    for (const ImageExtent& extent : own) {
      if (extent.kind == Kind::kParent)
        ResolveBelow(layer + 1, offset, extent.length, extents);
      else
        AppendExtent(*extents, extent);
      offset += extent.length;
    }
  }
  if (inside != length) AppendExtent(*extents, {Kind::kZero, nullptr, 0, length - inside});
}

void Chain::ResolveBelow(size_t layer, uint64_t offset, uint64_t length,
                         std::vector<ImageExtent>* extents) {
  if (!skip_ || layer + 1 >= layers_.size()) return Resolve(layer, offset, length, extents);
  while (length != 0) {
    const uint64_t granule = offset / granule_bytes_;
    const uint64_t piece = std::min(length, granule_bytes_ - offset % granule_bytes_);
    std::atomic_ref<uint8_t> known(skip_[layer * granules_ + granule]);
    // Whoever finds it out finds out the same.
    size_t first = known.load(std::memory_order_relaxed);
    if (first == 0) {
      first = FirstLayerWith(granule, layer);
      known.store(static_cast<uint8_t>(first), std::memory_order_relaxed);
    }
    Resolve(first, offset, piece, extents);
    offset += piece;
    length -= piece;
  }
}

/// The last layer if there is none: it has the last word.
size_t Chain::FirstLayerWith(uint64_t granule, size_t from) {
  const uint64_t offset = granule * granule_bytes_;
  const uint64_t length = std::min(granule_bytes_, info().size_bytes - offset);
  std::vector<ImageExtent> own;
  for (size_t layer = from; layer + 1 < layers_.size(); ++layer) {
    const uint64_t size = layers_[layer]->info().size_bytes;
    if (offset >= size || length > size - offset) return layer;  // zeroes past its end
    own.clear();
    layers_[layer]->MapLayer(offset, length, &own);
    if (own.size() != 1 || own[0].kind != Kind::kParent) return layer;
  }
  return layers_.size() - 1;
}

std::unique_ptr<Image> Chain::ReplaceLayer(size_t layer, std::unique_ptr<Image> image) {
  image->ShareGate(*gate_);
  image->TakeDiskId(layers_[layer]->info().disk_id);
  std::swap(layers_[layer], image);
  MakeSkipTable();
  return image;
}

void Chain::PushTop(std::unique_ptr<Image> image, std::string path) {
  KVMBUS_ASSERT(layers_.size() < kMaxLayers && paths_.size() == layers_.size());
  image->ShareGate(*gate_);
  image->TakeDiskId(info().disk_id);
  layers_.insert(layers_.begin(), std::move(image));
  paths_.insert(paths_.begin(), std::move(path));
  MakeSkipTable();
}

std::unique_ptr<Image> Chain::RemoveLayer(size_t layer) {
  KVMBUS_ASSERT(layers_.size() > 1 && paths_.size() == layers_.size());
  const auto at = static_cast<ptrdiff_t>(layer);
  std::unique_ptr<Image> removed = std::move(layers_[layer]);
  layers_.erase(layers_.begin() + at);
  paths_.erase(paths_.begin() + at);
  MakeSkipTable();
  return removed;
}

Result<void> Chain::Grow(uint64_t size_bytes) {
  TRY_VOID(top().Grow(size_bytes));
  MakeSkipTable();  // which has as many granules as the disk
  return {};
}

Result<void> Chain::Close() {
  Result<void> result;
  for (const auto& layer : layers_) {
    auto closed = layer->Close();
    if (!closed.ok() && result.ok()) result = std::move(closed);
  }
  return result;
}

}  // namespace kvmbus::virtdev
