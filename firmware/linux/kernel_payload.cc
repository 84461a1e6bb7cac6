// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/kernel_payload.h"

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <memory>

#include "firmware/linux/little_endian.h"
#include "firmware/linux/scratch.h"

namespace kvmbus::firmware {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

constexpr size_t kInputBytes = 64 << 10;
constexpr size_t kOutputBytes = 256 << 10;
/// The largest dictionary that a kernel's build asks for is 128 MiB.
constexpr uint64_t kXzMemoryLimit = 160u << 20;
constexpr int kZstdWindowLog = 27;
constexpr uint32_t kLz4LegacyMagic = 0x184c2102;
constexpr uint32_t kLz4BlockBytes = 8 << 20;

/// The compressed bytes, read in pieces.
class Input {
 public:
  Input(const BootFile& file, uint64_t offset, uint64_t length)
      : file_(file), offset_(offset), left_(length) {}

  uint64_t left() const { return left_; }
  Result<std::span<const uint8_t>> Next() {
    const auto size = static_cast<size_t>(std::min<uint64_t>(buffer_.bytes().size(), left_));
    const auto piece = buffer_.bytes().first(size);
    TRY_VOID(ReadTo(piece));
    return std::span<const uint8_t>(piece);
  }
  Result<void> ReadTo(std::span<uint8_t> target) {
    if (target.size() > left_)
      return MakeError(Code::kDataLoss, "{}: the compressed kernel is truncated", file_.name());
    TRY_VOID(file_.Read(target, offset_));
    offset_ += target.size();
    left_ -= target.size();
    return {};
  }

 private:
  const BootFile& file_;
  uint64_t offset_;
  uint64_t left_;
  Scratch buffer_{kInputBytes};
};

/// Passes pieces on, and counts them against the promised length.
class Output {
 public:
  Output(const BootFile& file, uint64_t promised, const PieceSink& sink)
      : file_(file), left_(promised), promised_(promised), sink_(sink) {}

  Result<void> Put(std::span<const uint8_t> piece) {
    if (piece.size() > left_)
      return MakeError(Code::kDataLoss,
                       "{}: the kernel decompresses to more than the {} bytes that it promises",
                       file_.name(), promised_);
    left_ -= piece.size();
    return sink_(piece);
  }
  Result<void> Finish() const {
    if (left_ != 0)
      return MakeError(Code::kDataLoss, "{}: the kernel decompresses to {} bytes, but promises {}",
                       file_.name(), promised_ - left_, promised_);
    return {};
  }

 private:
  const BootFile& file_;
  uint64_t left_;
  const uint64_t promised_;
  const PieceSink& sink_;
};

Error Corrupt(const BootFile& file, std::string_view format, std::string_view what) {
  return MakeError(Code::kDataLoss, "{}: decompressing its {} payload: {}", file.name(), format,
                   what);
}

Result<void> Copy(Input& input, Output& output) {
  while (input.left() != 0) {
    const auto piece = TRY(input.Next());
    TRY_VOID(output.Put(piece));
  }
  return {};
}

std::string_view XzText(lzma_ret code) {
  switch (code) {
    case LZMA_MEM_ERROR:
      return "not enough memory";
    case LZMA_MEMLIMIT_ERROR:
      return "its dictionary is over 128 MiB";
    case LZMA_BUF_ERROR:
      return "it is truncated";
    case LZMA_FORMAT_ERROR:
    case LZMA_OPTIONS_ERROR:
      return "its headers are not supported";
    default:
      return "it is corrupt";
  }
}

Result<void> DecompressXz(const BootFile& file, Input& input, Output& output) {
  lzma_allocator allocator = ScratchLzmaAllocator();
  lzma_stream stream = LZMA_STREAM_INIT;
  stream.allocator = &allocator;
  const std::unique_ptr<lzma_stream, void (*)(lzma_stream*)> ender(&stream, lzma_end);
  lzma_ret code = lzma_stream_decoder(&stream, kXzMemoryLimit, 0);
  if (code != LZMA_OK) return Corrupt(file, "XZ", XzText(code));
  const Scratch buffer(kOutputBytes);
  while (code != LZMA_STREAM_END) {
    if (stream.avail_in == 0 && input.left() != 0) {
      const auto piece = TRY(input.Next());
      stream.next_in = piece.data();
      stream.avail_in = piece.size();
    }
    stream.next_out = buffer.bytes().data();
    stream.avail_out = buffer.bytes().size();
    code = lzma_code(&stream, input.left() == 0 ? LZMA_FINISH : LZMA_RUN);
    if (code != LZMA_OK && code != LZMA_STREAM_END) return Corrupt(file, "XZ", XzText(code));
    TRY_VOID(output.Put(buffer.bytes().first(buffer.bytes().size() - stream.avail_out)));
  }
  return {};
}

Result<void> DecompressGzip(const BootFile& file, Input& input, Output& output) {
  z_stream stream = {};
  constexpr int kGzipWrapper = 16;
  if (::inflateInit2(&stream, kGzipWrapper + MAX_WBITS) != Z_OK)
    return Corrupt(file, "gzip", "not enough memory");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> ender(&stream, ::inflateEnd);
  const Scratch buffer(kOutputBytes);
  int code = Z_OK;
  while (code != Z_STREAM_END) {
    if (stream.avail_in == 0 && input.left() != 0) {
      const auto piece = TRY(input.Next());
      stream.next_in = const_cast<uint8_t*>(piece.data());  // zlib's prototype; it only reads
      stream.avail_in = static_cast<uInt>(piece.size());
    }
    stream.next_out = buffer.bytes().data();
    stream.avail_out = static_cast<uInt>(buffer.bytes().size());
    code = ::inflate(&stream, Z_NO_FLUSH);
    if (code == Z_BUF_ERROR) return Corrupt(file, "gzip", "it is truncated");
    if (code != Z_OK && code != Z_STREAM_END) return Corrupt(file, "gzip", "it is corrupt");
    TRY_VOID(output.Put(buffer.bytes().first(buffer.bytes().size() - stream.avail_out)));
  }
  return {};
}

Result<void> DecompressZstd(const BootFile& file, Input& input, Output& output) {
  const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(::ZSTD_createDCtx(),
                                                                   ::ZSTD_freeDCtx);
  if (!context) return Corrupt(file, "zstd", "not enough memory");
  ::ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kZstdWindowLog);
  const Scratch buffer(kOutputBytes);
  ZSTD_inBuffer in = {};
  size_t wanted = 1;      // 0 at a frame's end
  bool flushing = false;  // the last piece filled the buffer, so that more may be ready
  while (wanted != 0) {
    if (in.pos == in.size && !flushing) {
      if (input.left() == 0) return Corrupt(file, "zstd", "it is truncated");
      const auto piece = TRY(input.Next());
      in = {piece.data(), piece.size(), 0};
    }
    ZSTD_outBuffer out = {buffer.bytes().data(), buffer.bytes().size(), 0};
    wanted = ::ZSTD_decompressStream(context.get(), &out, &in);
    if (::ZSTD_isError(wanted)) return Corrupt(file, "zstd", ::ZSTD_getErrorName(wanted));
    flushing = out.pos == out.size;
    TRY_VOID(output.Put(buffer.bytes().first(out.pos)));
  }
  return {};
}

/// Blocks of up to 8 MiB, each {u32 length, bytes}, to the end of the input.
Result<void> DecompressLz4(const BootFile& file, Input& input, Output& output) {
  std::array<uint8_t, 4> word;
  TRY_VOID(input.ReadTo(word));  // the magic number, which has been looked at
  const Scratch compressed(LZ4_COMPRESSBOUND(kLz4BlockBytes));
  const Scratch plain(kLz4BlockBytes);
  while (input.left() != 0) {
    TRY_VOID(input.ReadTo(word));
    const auto size = LoadField<uint32_t>(word, 0);
    if (size == kLz4LegacyMagic) continue;  // frames may follow each other
    if (size == 0 || size > compressed.bytes().size())
      return Corrupt(file, "LZ4", "a block's length is out of range");
    const auto block = compressed.bytes().first(size);
    TRY_VOID(input.ReadTo(block));
    const int got = ::LZ4_decompress_safe(reinterpret_cast<const char*>(block.data()),
                                          reinterpret_cast<char*>(plain.bytes().data()),
                                          static_cast<int>(size), kLz4BlockBytes);
    if (got < 0) return Corrupt(file, "LZ4", "a block is corrupt");
    TRY_VOID(output.Put(plain.bytes().first(static_cast<size_t>(got))));
  }
  return {};
}

}  // namespace

std::optional<Compression> DetectCompression(std::span<const uint8_t> head) {
  const auto starts = [head](std::initializer_list<uint8_t> magic) {
    return head.size() >= magic.size() && std::equal(magic.begin(), magic.end(), head.begin());
  };
  if (starts({0x7f, 'E', 'L', 'F'})) return Compression::kNone;
  if (starts({0xfd, '7', 'z', 'X', 'Z', 0})) return Compression::kXz;
  if (starts({0x02, 0x21, 0x4c, 0x18})) return Compression::kLz4Legacy;
  if (starts({0x28, 0xb5, 0x2f, 0xfd})) return Compression::kZstd;
  if (starts({0x1f, 0x8b})) return Compression::kGzip;
  return std::nullopt;
}

Result<Payload> OpenPayload(const BootFile& file, uint64_t offset, uint64_t length,
                            uint64_t limit_bytes) {
  constexpr size_t kHeadBytes = 8, kSizeBytes = 4;
  if (length < kHeadBytes + kSizeBytes)
    return MakeError(Code::kInvalidArgument, "{}: payload_length {} is too short", file.name(),
                     length);
  std::array<uint8_t, kHeadBytes> head;
  std::array<uint8_t, kSizeBytes> size;
  TRY_VOID(file.Read(head, offset));
  TRY_VOID(file.Read(size, offset + length - kSizeBytes));
  const auto compression = DetectCompression(head);
  if (!compression)
    return MakeError(Code::kUnimplemented,
                     "{}: its payload is compressed neither by XZ, LZ4, zstd nor gzip",
                     file.name());
  Payload payload{offset, length, LoadField<uint32_t>(size, 0), *compression};
  if (payload.compression == Compression::kNone) payload.output_bytes = length;
  // gzip's own trailer is that length; behind every other format the build appends it.
  const bool appended =
      payload.compression != Compression::kGzip && payload.compression != Compression::kNone;
  if (appended) payload.length -= kSizeBytes;
  if (payload.output_bytes > limit_bytes)
    return MakeError(Code::kResourceExhausted,
                     "{}: its payload promises {} bytes, more than the {} of RAM; give the VM more "
                     "memory",
                     file.name(), payload.output_bytes, limit_bytes);
  return payload;
}

Result<void> Decompress(const BootFile& file, const Payload& payload, const PieceSink& sink) {
  Input input(file, payload.offset, payload.length);
  Output output(file, payload.output_bytes, sink);
  switch (payload.compression) {
    case Compression::kNone:
      TRY_VOID(Copy(input, output));
      break;
    case Compression::kXz:
      TRY_VOID(DecompressXz(file, input, output));
      break;
    case Compression::kLz4Legacy:
      TRY_VOID(DecompressLz4(file, input, output));
      break;
    case Compression::kZstd:
      TRY_VOID(DecompressZstd(file, input, output));
      break;
    case Compression::kGzip:
      TRY_VOID(DecompressGzip(file, input, output));
      break;
  }
  return output.Finish();
}

}  // namespace kvmbus::firmware
