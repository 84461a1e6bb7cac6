// SPDX-License-Identifier: Apache-2.0
// Saved states whose containers are sound and whose keys say what the fuzzer likes: other types and
// sizes, blocks of memory that there are not, objects that are cut off, compressed blocks that are
// none. What is taken can be loaded, and is what the file has.
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz_input.h"
#include "vmm/hvs/hvs_writer.h"
#include "vmm/saved_state/block_codec.h"
#include "vmm/saved_state/ram_loader.h"
#include "vmm/saved_state/saved_state.h"

namespace kvmbus::vmm {
namespace {

using tests::FuzzInput;

constexpr uint64_t kRam = 4 * kRamBlockBytes;
constexpr const char* kNames[] = {
    "savedstate/RamBlock0",
    "savedstate/RamBlock1",
    "savedstate/RamBlock3",
    "savedstate/RamBlock4",
    "savedstate/RamBlock",
    "savedstate/RamBlock-1",
    "savedstate/RamBlock0x1",
    "savedstate/RamBlock18446744073709551616",
    "savedstate/RamMemoryBlock0",
    "savedstate/RamMemoryBlock1",
    "savedstate/VmVersion",
    "savedstate/type",
    "savedstate/kvmbus/format",
    "savedstate/kvmbus/devices",
    "savedstate/kvmbus/fdt",
    "savedstate/kvmbus/ram",
    "savedstate/kvmbus/ram/compression",
    "savedstate/kvmbus/ram/RamBlock0",
    "savedstate/kvmbus/ram/RamBlock2",
    "savedstate/kvmbus",
    "savedstate",
};

/// Of the one region that the memory has.
std::string SoundMemoryBlock() {
  std::string bytes(48, '\0');
  bytes[0] = 3;
  const uint64_t pages = kRam / kPageSize;
  bytes.replace(8, sizeof(pages), reinterpret_cast<const char*>(&pages), sizeof(pages));
  return bytes;
}

FileObject Object(FuzzInput* input, HvsWriter* writer, int fd, uint32_t size) {
  auto object = writer->Reserve(size);
  if (!object.ok()) return {};
  const std::vector<uint8_t> content = input->Bytes(input->Byte());
  KVMBUS_ASSERT(PWriteAll(fd, content, object->offset).ok());
  return *object;
}

/// A block that was compressed, with something of it changed or cut off.
FileObject Compressed(FuzzInput* input, HvsWriter* writer, int fd) {
  static const std::vector<uint8_t> sound = [] {
    std::vector<uint8_t> block(kRamBlockBytes), compressed;
    for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<uint8_t>(i * i >> 12);
    KVMBUS_ASSERT(BlockCompressor().Compress(block, &compressed));
    return compressed;
  }();
  std::vector<uint8_t> bytes = sound;
  const uint8_t changes = input->Byte();
  for (int i = 0; i < changes % 8; ++i) bytes[input->Word() % bytes.size()] ^= input->Byte();
  if (changes >= 128) bytes.resize(1 + input->Word() % bytes.size());
  auto object = writer->Reserve(static_cast<uint32_t>(bytes.size()));
  KVMBUS_ASSERT(object.ok() && PWriteAll(fd, bytes, object->offset).ok());
  return *object;
}

Key::Value Value(FuzzInput* input, HvsWriter* writer, int fd) {
  switch (input->Byte() % 8) {
    case 0:
      return int64_t{input->Word()};
    case 1:
      return input->Byte() % 2 == 0 ? "Snapshot" : "Normal";
    case 2: {
      const std::vector<uint8_t> bytes = input->Bytes(input->Byte());
      return KeyBytes{std::string(bytes.begin(), bytes.end())};
    }
    case 3:
      return KeyBytes{SoundMemoryBlock()};
    case 4:
      return Object(input, writer, fd, kRamBlockBytes);
    case 5:
      return Compressed(input, writer, fd);
    case 6:
      return "zstd";
    default:
      return Object(input, writer, fd, input->Take<uint32_t>() % (2 * kRamBlockBytes));
  }
}

Key Tree(FuzzInput* input, HvsWriter* writer, int fd) {
  Key root;
  root.Make("savedstate/VmVersion").value = int64_t{0x602};
  root.Make("savedstate/type").value = "Normal";
  root.Make("savedstate/RamMemoryBlock0").value = KeyBytes{SoundMemoryBlock()};
  root.Make("savedstate/kvmbus/format").value = int64_t{1};
  root.Make("savedstate/kvmbus/devices").value = KeyBytes{"devices"};
  root.Make("savedstate/kvmbus/fdt").value = KeyBytes{"fdt"};
  while (!input->empty()) {
    const char* name = kNames[input->Byte() % std::size(kNames)];
    const uint8_t how = input->Byte();
    if (how % 8 == 0) {
      (void)root.Remove(name);
      continue;
    }
    Key& key = root.Make(name);
    key.value = Value(input, writer, fd);
    key.children.clear();
  }
  return root;
}

void Load(GuestMemory* memory, SavedState state, int file) {
  RamLoader::Options options;
  options.lazy = false;
  const std::vector<std::optional<RamPlace>> places = state.ram.places;
  const bool plain = std::none_of(places.begin(), places.end(), [](const auto& place) {
    return place && place->compressed_bytes != 0;
  });
  const auto loader = RamLoader::Start(*memory, std::move(state.ram), options, [](const Error&) {});
  KVMBUS_ASSERT(loader.ok() || (!plain && loader.error().code() == Code::kDataLoss));
  if (!loader.ok()) return;
  std::vector<uint8_t> expected(kRamBlockBytes);
  for (uint64_t block = 0; block < places.size(); ++block) {
    if (!places[block] || places[block]->compressed_bytes != 0) continue;
    KVMBUS_ASSERT(PReadAll(file, expected, places[block]->offset).ok());
    KVMBUS_ASSERT(
        std::equal(expected.begin(), expected.end(), memory->base() + block * kRamBlockBytes));
  }
}

}  // namespace
}  // namespace kvmbus::vmm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus::vmm;  // NOLINT: a fuzz target is a program
  FuzzInput input(data, size);
  const Fd file(::memfd_create("fuzz", MFD_CLOEXEC));
  const uint8_t cut = input.Byte();
  HvsWriter writer(file.get());
  if (!writer.Finish(Tree(&input, &writer, file.get())).ok()) return 0;
  if (cut < 16) {
    const off_t end = ::lseek(file.get(), 0, SEEK_END);
    KVMBUS_ASSERT(::ftruncate(file.get(), end / 16 * cut) == 0);
  }
  const MemoryRange ranges[] = {{0, kRam}};
  const auto memory = GuestMemory::Create(ranges).value();
  auto state = SavedState::Open({"/proc/self/fd/" + std::to_string(file.get()), ""}, *memory);
  if (state.ok()) Load(memory.get(), std::move(state).value(), file.get());
  return 0;
}
