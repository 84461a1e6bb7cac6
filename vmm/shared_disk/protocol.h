// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a shared disk's owner and its clients say on their socket. Both run on one host from one
/// build: plain structs, whole frames of fixed sizes.
///
/// A connection begins with a Hello and its HelloReply. What comes then depends on the kind: a hold
/// says no more; to a growth the reply comes when the disk is larger, and ends the connection; a
/// client sends Requests and gets a Reply for each, and Replies of kind kResized that it did not
/// ask for; a queue's two sides send single bytes, the doorbells of its DiskRing.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmm/os/unix_socket.h"

namespace kvmbus::vmm::shared_disk {

/// Where the owner of an image lives, for virtual machines whose folders are in `run_dir`: the same
/// for every name of the image. It has `owner.sock`, `lock`, `owner.log`, and `exit` if it failed.
std::string OwnerFolder(const std::string& run_dir, const std::string& image);

inline constexpr uint32_t kMagic = 0x4b445348;
inline constexpr uint32_t kVersion = 1;
inline constexpr size_t kMaxRanges = 16;

enum class Kind : uint32_t {
  kHold = 1,    ///< keeps the owner alive
  kClient = 2,  ///< a virtual machine; comes with its memory file
  kQueue = 3,   ///< one of its queues; comes with its ring's memory file
  kGrowth = 4,  ///< makes the disk larger, and tells all clients
};

struct Range {
  uint64_t gpa;
  uint64_t size;
};

struct Hello {
  uint32_t magic = kMagic;
  uint32_t version = kVersion;
  Kind kind = Kind::kHold;
  uint32_t ranges = 0;                       ///< of a client's memory
  std::array<uint8_t, 16> initiator = {};    ///< of a client
  uint64_t token = 0;                        ///< of a queue: its client's
  std::array<Range, kMaxRanges> range = {};  ///< of a growth: the first is the disk as it shall be
};

struct HelloReply {
  uint32_t magic = kMagic;
  uint32_t code = 0;   ///< vmm::Code; of others than kOk the message says why
  uint64_t token = 0;  ///< of a client: for its queues
  uint64_t owner = 0;  ///< differs for each process that ever owned the disk
  uint64_t size_bytes = 0;
  uint32_t logical_sector_bytes = 0;
  uint32_t physical_sector_bytes = 0;
  std::array<uint8_t, 16> disk_id = {};
  std::array<char, 16> format = {};    ///< ends with a zero
  std::array<char, 224> message = {};  ///< ends with a zero
};

enum class Call : uint32_t {
  kReset = 1,    ///< the machine was reset
  kSave = 2,     ///< the reply has what is kept over a save
  kRestore = 3,  ///< the request has it
  kResized = 4,  ///< of a reply that nobody asked for: the disk's size is another now
};

struct Request {
  Call call = Call::kReset;
  std::array<uint8_t, 3> sense = {};  ///< key, ASC, ASCQ
  uint8_t reserved = 0;
  uint64_t reported_sectors = 0;
};

struct Reply {
  Call call = Call::kReset;
  std::array<uint8_t, 3> sense = {};
  uint8_t refused = 0;  ///< the request made no sense
  uint64_t reported_sectors = 0;
  uint64_t size_bytes = 0;
};

template <typename Frame>
std::span<const uint8_t> BytesOf(const Frame& frame) {
  return {reinterpret_cast<const uint8_t*>(&frame), sizeof(frame)};
}
template <typename Frame>
std::span<uint8_t> BytesOf(Frame& frame) {
  return {reinterpret_cast<uint8_t*>(&frame), sizeof(frame)};
}

/// The next frame of a connection, once it is there; what has come of it waits in `in`, which is
/// this function's own. `fds`, `max_fds` and errors: as for ReceiveSome. Never waits.
template <typename Frame>
Result<std::optional<Frame>> TakeFrame(int socket, std::vector<uint8_t>* in,
                                       std::vector<Fd>* fds = nullptr, size_t max_fds = 0) {
  const size_t had = in->size();
  in->resize(sizeof(Frame));
  const auto got = ReceiveSome(socket, std::span(*in).subspan(had), fds, max_fds);
  in->resize(had + (got.ok() ? *got : 0));
  if (!got.ok()) return got.error();
  if (in->size() < sizeof(Frame)) return std::optional<Frame>();
  Frame frame;
  std::memcpy(static_cast<void*>(&frame), in->data(), sizeof(frame));
  in->clear();
  return std::optional<Frame>(frame);
}

}  // namespace kvmbus::vmm::shared_disk
