// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/frame_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace kvmbus::vmm {
namespace {

using testing::ElementsAre;

constexpr uint32_t kLimit = 16;

std::string Header(uint32_t frame_bytes) {
  const auto header = FrameHeader(frame_bytes);
  return {header.begin(), header.end()};
}

std::string Framed(const std::string& frame) {
  return Header(static_cast<uint32_t>(frame.size())) + frame;
}

/// Those that are whole.
std::vector<std::string> TakeAll(FrameReader& reader) {
  std::vector<std::string> frames;
  for (;;) {
    auto frame = reader.Next();
    EXPECT_TRUE(frame.ok());
    if (!frame.ok() || !*frame) return frames;
    frames.push_back(**frame);
  }
}

TEST(FrameReaderTest, TheLengthIsLittleEndianAndDoesNotCountItself) {
  EXPECT_EQ(Header(0x01020304), std::string("\x04\x03\x02\x01"));
  FrameReader reader(kLimit);
  reader.Append(std::string("\x02\0\0\0ab", 6));
  EXPECT_THAT(TakeAll(reader), ElementsAre("ab"));
}

TEST(FrameReaderTest, NothingIsInNothing) {
  FrameReader reader(kLimit);
  EXPECT_THAT(TakeAll(reader), ElementsAre());
  reader.Append("");
  EXPECT_THAT(TakeAll(reader), ElementsAre());
  EXPECT_EQ(reader.pending_bytes(), 0u);
}

TEST(FrameReaderTest, FramesMayBeCutAtAnyByte) {
  const std::string stream = Framed("first") + Framed("") + Framed("third");
  for (size_t cut = 0; cut <= stream.size(); ++cut) {
    FrameReader reader(kLimit);
    reader.Append(std::string_view(stream).substr(0, cut));
    std::vector<std::string> frames = TakeAll(reader);
    reader.Append(std::string_view(stream).substr(cut));
    for (std::string& frame : TakeAll(reader)) frames.push_back(std::move(frame));
    EXPECT_THAT(frames, ElementsAre("first", "", "third")) << "cut at " << cut;
    EXPECT_EQ(reader.pending_bytes(), 0u);
  }
}

TEST(FrameReaderTest, FramesMayComeByteByByte) {
  const std::string stream = Framed("first") + Framed("") + Framed("third");
  FrameReader reader(kLimit);
  std::vector<std::string> frames;
  for (const char byte : stream) {
    reader.Append({&byte, 1});
    for (std::string& frame : TakeAll(reader)) frames.push_back(std::move(frame));
    EXPECT_LT(reader.pending_bytes(), kFrameHeaderBytes + kLimit);
  }
  EXPECT_THAT(frames, ElementsAre("first", "", "third"));
}

TEST(FrameReaderTest, AFrameOfTheLimitIsTaken) {
  FrameReader reader(kLimit);
  reader.Append(Framed(std::string(kLimit, 'x')));
  EXPECT_THAT(TakeAll(reader), ElementsAre(std::string(kLimit, 'x')));
}

TEST(FrameReaderTest, AFrameBeyondTheLimitIsRefusedByItsHeader) {
  FrameReader reader(kLimit);
  reader.Append(Framed("sound") + Header(kLimit + 1));
  EXPECT_EQ(*reader.Next().value(), "sound");
  const auto refused = reader.Next();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Code::kOutOfRange);
  EXPECT_EQ(refused.error().message(), "a frame of 17 bytes, the limit is 16");
}

TEST(FrameReaderTest, NothingIsReadBehindAnError) {
  FrameReader reader(kLimit);
  reader.Append(Header(UINT32_MAX));
  EXPECT_FALSE(reader.Next().ok());
  reader.Append(Framed("sound"));
  EXPECT_FALSE(reader.Next().ok());
  EXPECT_EQ(reader.Next().error().code(), Code::kOutOfRange);
}

TEST(FrameReaderTest, AnEndInTheMiddleLeavesBytesPending) {
  FrameReader reader(kLimit);
  reader.Append(Framed("whole") + Framed("cut off").substr(0, 6));
  EXPECT_THAT(TakeAll(reader), ElementsAre("whole"));
  EXPECT_EQ(reader.pending_bytes(), 6u);
}

}  // namespace
}  // namespace kvmbus::vmm
