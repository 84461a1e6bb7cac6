// SPDX-License-Identifier: Apache-2.0
#include "vmm/saved_state/block_codec.h"

#include <zstd.h>

#include "vmm/memory/guest_memory.h"

namespace kvmbus::vmm {
namespace {

/// As fast as a disk writes; more of it saves little of what memory has.
constexpr int kLevel = 1;

}  // namespace

struct BlockCompressor::Context {
  std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> zstd{::ZSTD_createCCtx(), ::ZSTD_freeCCtx};
};

BlockCompressor::BlockCompressor() : context_(std::make_unique<Context>()) {
  ZSTD_CCtx* zstd = context_->zstd.get();
  if (zstd == nullptr) return;
  (void)::ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, kLevel);
  (void)::ZSTD_CCtx_setParameter(zstd, ZSTD_c_checksumFlag, 1);
}

BlockCompressor::~BlockCompressor() = default;

bool BlockCompressor::Compress(std::span<const uint8_t> block, std::vector<uint8_t>* compressed) {
  if (context_->zstd == nullptr || block.size() <= kPageSize) return false;
  compressed->resize(block.size() - kPageSize);  // what does not fit is an error to zstd
  const size_t size = ::ZSTD_compress2(context_->zstd.get(), compressed->data(), compressed->size(),
                                       block.data(), block.size());
  if (::ZSTD_isError(size)) return false;
  compressed->resize(size);
  return true;
}

Result<void> DecompressBlock(std::span<const uint8_t> compressed, std::span<uint8_t> block) {
  thread_local const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(::ZSTD_createDCtx(),
                                                                                ::ZSTD_freeDCtx);
  if (!context) return Error(Code::kResourceExhausted, "not enough memory to decompress a block");
  const size_t size = ::ZSTD_decompressDCtx(context.get(), block.data(), block.size(),
                                            compressed.data(), compressed.size());
  if (::ZSTD_isError(size))
    return MakeError(Code::kDataLoss, "a compressed block is damaged: {}",
                     ::ZSTD_getErrorName(size));
  if (size != block.size())
    return MakeError(Code::kDataLoss, "a compressed block has {} bytes, not {}", size,
                     block.size());
  return {};
}

}  // namespace kvmbus::vmm
