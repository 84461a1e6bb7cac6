// SPDX-License-Identifier: Apache-2.0
/// \file
/// Image: one image file of a disk, whatever its format: a layer of a Chain.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/disk_io.h"
#include "virtdev/disk/io_gate.h"

namespace kvmbus::virtdev {

/// A piece of a request: where it lies.
struct ImageExtent {
  enum class Kind {
    kData,    ///< in the file
    kZero,    ///< nowhere: reads as zeroes
    kParent,  ///< nowhere in this layer: it is what the layer below says, or zeroes if there is
              ///< none
  };
  Kind kind = Kind::kZero;
  BlockFile* file = nullptr;  ///< kData: whose bytes they are
  uint64_t file_offset = 0;   ///< kData: where
  uint64_t length = 0;
};

/// What a differencing image says of its parent.
struct ParentReference {
  struct Path {
    enum class Kind { kRelative, kVolume, kAbsolute };
    Kind kind = Kind::kRelative;
    std::string text;  ///< UTF-8, as it stands there: "..\\base.vhdx"
  };
  std::vector<Path> paths;         ///< in the order in which they are tried
  std::vector<vmm::Guid> linkage;  ///< the parent's identity() must be one of these
  int64_t modified = 0;            ///< VHD: when the parent's file was written last, in Unix time
};

/// Appends a piece, as a part of the last one if it goes on there.
void AppendExtent(std::vector<ImageExtent>& extents, const ImageExtent& extent);

/// Any thread: mapping an allocated block takes no lock, or a short one for a block that is partly
/// here. Ranges lie within the disk and are whole logical sectors. Each use of a mapping lies
/// between gate().Enter() before it and gate().Leave() after its I/O.
class Image {
 public:
  virtual ~Image() = default;
  virtual const DiskInfo& info() const = 0;
  virtual std::string_view format() const = 0;
  virtual BlockFile& file() = 0;
  /// Null unless it is a differencing image: then some of it may be kParent.
  virtual const ParentReference* parent() const { return nullptr; }
  /// The id by which children know their parent. It changes whenever the content does (VHDX: the
  /// data write GUID), or names the image (VHD: its unique id).
  virtual vmm::Guid identity() const { return {}; }
  /// Whether identity() becomes another one when the content changes.
  virtual bool identity_follows_content() const { return false; }

  /// The size of the units in which the image allocates; 0: it does not allocate.
  virtual uint64_t block_bytes() const { return 0; }

  /// What this layer has of [offset, offset + length), in order and without gaps.
  virtual void MapLayer(uint64_t offset, uint64_t length, std::vector<ImageExtent>* extents) = 0;
  /// False until PrepareToWrite has been done: it blocks, MapForWrite does not.
  virtual bool ReadyToWrite() const { return true; }
  virtual vmm::Result<void> PrepareToWrite() { return {}; }
  /// Where the range is to be written; allocates blocks as needed. Every extent is kData.
  virtual vmm::Result<std::vector<ImageExtent>> MapForWrite(uint64_t offset, uint64_t length) = 0;
  /// To be called once the data is where MapForWrite said. Only now does the image record what
  /// reads and the next flush must find: a differencing layer, that it has these sectors.
  virtual void WriteDone(uint64_t /*offset*/, uint64_t /*length*/) {}
  /// True, once, if so much metadata waits in memory that somebody should call Flush soon.
  virtual bool WantsFlush() { return false; }
  /// Releases what the format can release; the rest keeps its data.
  virtual vmm::Result<void> Unmap(uint64_t offset, uint64_t length) = 0;
  /// Makes the range read as zeroes.
  virtual vmm::Result<void> WriteZeroes(uint64_t offset, uint64_t length) = 0;
  /// Data whose writes have completed, and the metadata that finds it, are durable when it returns.
  /// After a failure the host may have dropped data, so that every later flush fails too.
  virtual vmm::Result<void> Flush() = 0;
  virtual vmm::Result<void> Close() = 0;

  /// Makes the disk larger. No request is under way. A crash leaves the old size or the new.
  virtual vmm::Result<void> Grow(uint64_t size_bytes);
  /// Durably replaces what the image says of its parent. Its own content and its identity() stay.
  /// A VHD is relinked only while no request is under way.
  virtual vmm::Result<void> Relink(const ParentReference& parent);

  IoGate& gate() { return *gate_; }
  /// Before the first request: the gate of the chain that it is a layer of, whose requests know
  /// places in every layer.
  void ShareGate(IoGate& gate) { gate_ = &gate; }
  /// Sets info().disk_id to that of the layer below, unless the format stores one. A VHD has only
  /// its unique id, which names the file: without this, a guest would take a child for another
  /// disk.
  virtual void TakeDiskId(const vmm::Guid& /*disk_id*/) {}

 private:
  IoGate own_gate_;
  IoGate* gate_ = &own_gate_;
};

vmm::Result<std::unique_ptr<Image>> OpenRawImage(std::unique_ptr<BlockFile> file, bool read_only,
                                                 const vmm::Guid& disk_id);
/// Fixed, dynamic or differencing. A damaged footer is mended from its copy unless `read_only`.
vmm::Result<std::unique_ptr<Image>> OpenVhdImage(std::unique_ptr<BlockFile> file, bool read_only);
/// Replays the log of an image that was not closed; in memory only if `read_only`. `next_identity`
/// is what identity() becomes when its content first changes; zero: a random one.
vmm::Result<std::unique_ptr<Image>> OpenVhdxImage(std::unique_ptr<BlockFile> file, bool read_only,
                                                  const vmm::Guid& next_identity = {});

}  // namespace kvmbus::virtdev
