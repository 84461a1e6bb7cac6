// SPDX-License-Identifier: Apache-2.0
#include "vmm/saved_state/block_codec.h"

#include <gtest/gtest.h>

#include <random>

#include "vmm/saved_state/ram_file.h"

namespace kvmbus::vmm {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes Noise(size_t size) {
  std::mt19937 random{5};
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

/// As memory is: some of it noise, most of it the same again.
Bytes Sample() {
  Bytes block = Noise(kRamBlockBytes / 4);
  block.resize(kRamBlockBytes, 7);
  return block;
}

TEST(BlockCodecTest, ABlockComesBack) {
  BlockCompressor compressor;
  for (int i = 0; i < 2; ++i) {
    const Bytes block = Sample();
    Bytes compressed, again(kRamBlockBytes);
    ASSERT_TRUE(compressor.Compress(block, &compressed));
    EXPECT_LT(compressed.size(), kRamBlockBytes / 3);
    const auto done = DecompressBlock(compressed, again);
    ASSERT_TRUE(done.ok()) << done.error().ToString();
    EXPECT_EQ(again, block);
  }
}

TEST(BlockCodecTest, WhatDoesNotShrinkIsLeftAsItIs) {
  BlockCompressor compressor;
  Bytes block = Noise(kRamBlockBytes), compressed;
  EXPECT_FALSE(compressor.Compress(block, &compressed));
  std::fill_n(block.begin(), 1024, uint8_t{0});  // less than a page is gained
  EXPECT_FALSE(compressor.Compress(block, &compressed));
  EXPECT_TRUE(compressor.Compress(Sample(), &compressed)) << "the next one may";
}

TEST(BlockCodecTest, OtherSizesAreRefused) {
  BlockCompressor compressor;
  Bytes compressed, block(kRamBlockBytes);
  for (const uint64_t size :
       {kRamBlockBytes / 2, kRamBlockBytes - 1, kRamBlockBytes + 1, kRamBlockBytes * 64}) {
    ASSERT_TRUE(compressor.Compress(Bytes(size, 3), &compressed));
    EXPECT_EQ(DecompressBlock(compressed, block).error().code(), Code::kDataLoss) << size;
  }
  EXPECT_EQ(DecompressBlock({}, block).error().code(), Code::kDataLoss);
}

TEST(BlockCodecTest, EveryChangeIsNoticed) {
  Bytes compressed, block(kRamBlockBytes);
  ASSERT_TRUE(BlockCompressor().Compress(Sample(), &compressed));
  const Bytes sound = compressed;
  std::mt19937 random{8};
  for (int i = 0; i < 200; ++i) {
    compressed = sound;
    compressed[random() % compressed.size()] ^= static_cast<uint8_t>(1 + random() % 255);
    const auto done = DecompressBlock(compressed, block);
    EXPECT_TRUE(!done.ok() || block == Sample()) << "only bits without a meaning may differ";
    compressed = sound;
    compressed.resize(random() % compressed.size());
    EXPECT_FALSE(DecompressBlock(compressed, block).ok());
  }
}

}  // namespace
}  // namespace kvmbus::vmm
