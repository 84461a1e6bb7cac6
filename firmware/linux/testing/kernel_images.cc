// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/testing/kernel_images.h"

#include <elf.h>
#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <array>
#include <cstring>

#include "firmware/linux/bzimage.h"
#include "firmware/linux/little_endian.h"

namespace kvmbus::firmware::testing {
namespace {

constexpr uint64_t kCodeOffset = 0x1000;
constexpr uint64_t kNoteOffset = 0x400;
constexpr uint64_t kDataOffset = kCodeOffset + kElfSegmentBytes;
constexpr uint64_t kDataBytes = 0x10;

template <typename T>
void Store(Image* image, size_t offset, const T& value) {
  if (image->size() < offset + sizeof(T)) image->resize(offset + sizeof(T));
  std::memcpy(image->data() + offset, &value, sizeof(T));
}

Elf64_Phdr Segment(uint32_t type, uint64_t offset, uint64_t gpa, uint64_t size, uint64_t memory) {
  Elf64_Phdr header = {};
  header.p_type = type;
  header.p_flags = PF_R | PF_X;
  header.p_offset = offset;
  header.p_paddr = header.p_vaddr = gpa;
  header.p_filesz = size;
  header.p_memsz = memory;
  header.p_align = 4096;
  return header;
}

Image Lz4Legacy(std::span<const uint8_t> plain) {
  constexpr uint32_t kMagic = 0x184c2102;
  const auto size = static_cast<int>(plain.size());
  std::vector<char> block(static_cast<size_t>(::LZ4_compressBound(size)));
  const int got = ::LZ4_compress_default(reinterpret_cast<const char*>(plain.data()), block.data(),
                                         size, static_cast<int>(block.size()));
  Image image;
  Store(&image, 0, kMagic);
  Store(&image, 4, static_cast<uint32_t>(got));
  image.insert(image.end(), block.begin(), block.begin() + got);
  return image;
}

Image Gzip(std::span<const uint8_t> plain) {
  z_stream stream = {};
  ::deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  Image image(plain.size() + 1024);
  stream.next_in = const_cast<uint8_t*>(plain.data());
  stream.avail_in = static_cast<uInt>(plain.size());
  stream.next_out = image.data();
  stream.avail_out = static_cast<uInt>(image.size());
  ::deflate(&stream, Z_FINISH);
  image.resize(stream.total_out);
  ::deflateEnd(&stream);
  return image;
}

Image Xz(std::span<const uint8_t> plain) {
  Image image(plain.size() + 1024);
  size_t size = 0;
  const lzma_ret code = ::lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, nullptr, plain.data(),
                                                  plain.size(), image.data(), &size, image.size());
  KVMBUS_ASSERT(code == LZMA_OK);
  image.resize(size);
  return image;
}

Image Zstd(std::span<const uint8_t> plain) {
  Image image(::ZSTD_compressBound(plain.size()));
  image.resize(::ZSTD_compress(image.data(), image.size(), plain.data(), plain.size(), 19));
  return image;
}

Image CompressOnly(Compression compression, std::span<const uint8_t> plain) {
  switch (compression) {
    case Compression::kXz:
      return Xz(plain);
    case Compression::kLz4Legacy:
      return Lz4Legacy(plain);
    case Compression::kZstd:
      return Zstd(plain);
    case Compression::kGzip:
      return Gzip(plain);
    case Compression::kNone:
      break;
  }
  return {plain.begin(), plain.end()};
}

}  // namespace

Image MakeCode() {
  Image code(kElfSegmentBytes);
  for (size_t i = 0; i < code.size(); ++i) code[i] = static_cast<uint8_t>(i * 7 + (i >> 8));
  return code;
}

Image MakeElf(bool with_pvh_note) {
  Elf64_Ehdr header = {};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_entry = kElfEntry;
  header.e_phoff = sizeof(Elf64_Ehdr);
  header.e_ehsize = sizeof(Elf64_Ehdr);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 3;
  Image image;
  Store(&image, 0, header);
  // Another note first, so that the search has to step over one.
  const Elf64_Nhdr other = {4, 3, 2}, pvh = {4, 8, with_pvh_note ? 18u : 99u};
  Store(&image, kNoteOffset, other);
  Store(&image, kNoteOffset + 12, std::array<char, 8>{'X', 'e', 'n', 0, 1, 2, 3, 0});
  Store(&image, kNoteOffset + 20, pvh);
  Store(&image, kNoteOffset + 32, std::array<char, 4>{'X', 'e', 'n', 0});
  Store(&image, kNoteOffset + 36, uint64_t{kElfPvhEntry});
  const Elf64_Phdr programs[] = {
      Segment(PT_LOAD, kCodeOffset, kElfEntry, kElfSegmentBytes, kElfMemoryBytes),
      Segment(PT_NOTE, kNoteOffset, 0, 44, 44),
      Segment(PT_LOAD, kDataOffset, kElfEntry + kElfMemoryBytes, kDataBytes, kDataBytes)};
  Store(&image, sizeof(header), programs);
  image.resize(kCodeOffset);
  const Image code = MakeCode();
  image.insert(image.end(), code.begin(), code.end());
  image.resize(kDataOffset + kDataBytes, 0xd5);
  return image;
}

Image Compress(Compression compression, std::span<const uint8_t> plain) {
  Image image = CompressOnly(compression, plain);
  if (compression == Compression::kGzip || compression == Compression::kNone) return image;
  const size_t end = image.size();
  Store(&image, end, static_cast<uint32_t>(plain.size()));
  return image;
}

Image MakeBzImage(std::span<const uint8_t> payload) {
  constexpr size_t kKernelOffset = 1024;  // the boot sector and one setup sector
  Image image(kKernelOffset + kBzPayloadOffset, 0);
  for (size_t i = kKernelOffset; i < image.size(); ++i) image[i] = static_cast<uint8_t>(i * 5);
  image.insert(image.end(), payload.begin(), payload.end());
  while (image.size() % 16 != 0) image.push_back(0);
  image[setup::kHeader] = 1;
  Store(&image, setup::kSyssize, static_cast<uint32_t>((image.size() - kKernelOffset) / 16));
  Store(&image, setup::kBootFlag, setup::kBootFlagValue);
  Store(&image, setup::kJump, uint16_t{0x6aeb});
  Store(&image, setup::kMagic, setup::kMagicValue);
  Store(&image, setup::kVersion, uint16_t{0x20f});
  image[setup::kLoadflags] = setup::kLoadedHigh;
  Store(&image, setup::kInitrdAddrMax, uint32_t{0x7fffffff});
  Store(&image, setup::kKernelAlignment, uint32_t{0x200000});
  image[setup::kRelocatableKernel] = 1;
  Store(&image, setup::kXloadflags, uint16_t{0x7f});
  Store(&image, setup::kCmdlineSize, uint32_t{2047});
  Store(&image, setup::kPayloadOffset, kBzPayloadOffset);
  Store(&image, setup::kPayloadLength, static_cast<uint32_t>(payload.size()));
  Store(&image, setup::kPrefAddress, kBzPrefAddress);
  Store(&image, setup::kInitSize, kBzInitSize);
  return image;
}

}  // namespace kvmbus::firmware::testing
