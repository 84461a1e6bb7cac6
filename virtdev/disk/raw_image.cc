// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Result;

Result<void> CheckNewSize(BlockFile& file, uint64_t size_bytes) {
  const uint64_t now = TRY(file.Size());
  if (file.is_device())
    return vmm::Error(vmm::Code::kInvalidArgument,
                      "it is a block device: the host gives it its size");
  if (size_bytes < now || size_bytes % 512 != 0)
    return vmm::MakeError(
        vmm::Code::kInvalidArgument,
        "{} bytes: a multiple of 512 of at least {} is needed; it can grow, not shrink", size_bytes,
        now);
  return {};
}

/// The file is the disk.
class RawImage final : public Image {
 public:
  RawImage(std::unique_ptr<BlockFile> file, DiskInfo info) : file_(std::move(file)), info_(info) {}
  const DiskInfo& info() const override { return info_; }
  std::string_view format() const override { return "raw"; }
  BlockFile& file() override { return *file_; }
  void MapLayer(uint64_t offset, uint64_t length, std::vector<ImageExtent>* extents) override {
    AppendExtent(*extents, At(offset, length));
  }
  Result<std::vector<ImageExtent>> MapForWrite(uint64_t offset, uint64_t length) override {
    return std::vector<ImageExtent>{At(offset, length)};
  }
  Result<void> Unmap(uint64_t offset, uint64_t length) override {
    return file_->Release(offset, length);
  }
  Result<void> WriteZeroes(uint64_t offset, uint64_t length) override {
    return file_->Zero(offset, length, true);
  }
  Result<void> Grow(uint64_t size_bytes) override {
    TRY_VOID(CheckNewSize(*file_, size_bytes));
    TRY_VOID(file_->Resize(size_bytes));
    TRY_VOID(Flush());
    info_.size_bytes = size_bytes;
    return {};
  }
  Result<void> Flush() override { return flush_.Run(*file_); }
  Result<void> Close() override { return info_.read_only ? Result<void>() : Flush(); }

 private:
  ImageExtent At(uint64_t offset, uint64_t length) const {
    return {ImageExtent::Kind::kData, file_.get(), offset, length};
  }

  std::unique_ptr<BlockFile> file_;
  DiskInfo info_;
  StickyFlush flush_;
};

}  // namespace

Result<std::unique_ptr<Image>> OpenRawImage(std::unique_ptr<BlockFile> file, bool read_only,
                                            const vmm::Guid& disk_id) {
  DiskInfo info;
  info.size_bytes = TRY(file->Size());
  info.read_only = read_only;
  // What the host cannot release stays what it is, and the guest counts on zeroes.
  info.can_unmap = file->can_release();
  info.unmapped_reads_zero = true;
  info.disk_id = disk_id;
  if (info.size_bytes == 0 || info.size_bytes % info.logical_sector_bytes != 0)
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "a raw image of {} bytes: a multiple of {} above 0 is needed",
                          info.size_bytes, info.logical_sector_bytes);
  return std::unique_ptr<Image>(std::make_unique<RawImage>(std::move(file), info));
}

}  // namespace kvmbus::virtdev
