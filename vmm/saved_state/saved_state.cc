// SPDX-License-Identifier: Apache-2.0
#include "vmm/saved_state/saved_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <utility>

#include "vmm/hvs/hvs_reader.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

constexpr int64_t kFormat = 1;
constexpr int64_t kFormatCompressed = 2;
constexpr std::string_view kCompression = "zstd";
constexpr std::string_view kBlockPrefix = "RamBlock";
constexpr uint32_t kDeviceLimit = HvsWriter::kMaxObjectBytes;

/// /savedstate/RamMemoryBlock<d>
struct RamMemoryBlock {
  uint32_t version;  ///< 3
  uint32_t flags;
  uint64_t pages;
  uint64_t mbp_index_start;  ///< the first page's place among all that are saved
  uint64_t gpa_page_start;
  uint32_t vnode;
  uint32_t padding;
  uint64_t ksr_block_id;
};
static_assert(sizeof(RamMemoryBlock) == 48);

std::vector<RamMemoryBlock> MemoryBlocks(const GuestMemory& memory) {
  std::vector<RamMemoryBlock> blocks;
  for (const auto& region : memory.regions()) {
    RamMemoryBlock block = {};
    block.version = 3;
    block.pages = region.size / kPageSize;
    block.mbp_index_start = region.file_offset / kPageSize;
    block.gpa_page_start = region.gpa / kPageSize;
    blocks.push_back(block);
  }
  return blocks;
}

std::string Unfinished(const std::string& path) { return path + std::string(kUnfinishedSuffix); }

Result<Fd> CreateNew(const std::string& path) {
  TRY_VOID(MakeFolders(FolderOf(path), 0750));
  return OpenFile(Unfinished(path), O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW, 0640);
}

/// From its new name to its own; the folder is synced.
Result<void> Rename(const std::string& path) {
  if (::rename(Unfinished(path).c_str(), path.c_str()) < 0)
    return Error::FromErrno(errno, fmt::format("replacing '{}'", path));
  return SyncFolder(FolderOf(path));
}

Error Damaged(const std::string& path, std::string_view what) {
  return MakeError(Code::kDataLoss, "the saved state '{}' is damaged: {}", path, what);
}

}  // namespace

SavedStateWriter::SavedStateWriter(SavedStatePaths paths, const GuestMemory& memory)
    : paths_(std::move(paths)), memory_(memory), places_(memory.ram_bytes() / kRamBlockBytes) {}

SavedStateWriter::~SavedStateWriter() {
  if (published_) return;
  ::unlink(Unfinished(paths_.state).c_str());
  if (!paths_.memory.empty()) ::unlink(Unfinished(paths_.memory).c_str());
}

Result<std::unique_ptr<SavedStateWriter>> SavedStateWriter::Create(const SavedStatePaths& paths,
                                                                   const GuestMemory& memory,
                                                                   bool compressed) {
  if (compressed && !paths.memory.empty())
    return Error(
        Code::kFailedPrecondition,
        "version 5.0 has the memory as it is in a file of its own: do without compression, "
        "or upgrade the virtual machine ('vmctl vm upgrade')");
  std::unique_ptr<SavedStateWriter> self(new SavedStateWriter(paths, memory));
  self->state_file_ = TRY(CreateNew(paths.state));
  self->writer_ = std::make_unique<HvsWriter>(self->state_file_.get());
  if (!paths.memory.empty()) {
    self->memory_file_ = TRY(CreateNew(paths.memory));
    if (::ftruncate(self->memory_file_.get(), static_cast<off_t>(memory.ram_bytes())) < 0)
      return Error::FromErrno(errno, fmt::format("reserving '{}'", paths.memory));
  }
  // Some file systems have no such thing.
  if (auto direct = OpenFile(NameOfFd(self->fd()), O_WRONLY | O_DIRECT); direct.ok())
    self->direct_file_ = std::move(direct).value();
  return self;
}

Result<uint64_t> SavedStateWriter::Place(uint64_t block) {
  FileObject& place = places_[block];
  if (IsCompressed(block)) writer_->GiveUp(std::exchange(place, FileObject()));
  if (place.size == 0) {
    place = memory_file_.valid() ? FileObject{block * kRamBlockBytes, kRamBlockBytes}
                                 : TRY(writer_->Reserve(kRamBlockBytes));
  }
  return place.offset;
}

Result<void> SavedStateWriter::PutCompressed(uint64_t block, std::span<const uint8_t> bytes) {
  KVMBUS_ASSERT(!memory_file_.valid() && bytes.size() < kRamBlockBytes);
  if (IsCompressed(block)) writer_->GiveUp(std::exchange(places_[block], FileObject()));
  KVMBUS_ASSERT(!HasPlace(block));
  places_[block] = TRY(writer_->Reserve(static_cast<uint32_t>(bytes.size())));
  TRY_VOID_CTX(PWriteAll(fd(), bytes, places_[block].offset), "writing guest memory");
  return {};
}

void SavedStateWriter::AddBlocks(bool compressed, Key* node) const {
  for (size_t i = 0; i < places_.size() && !memory_file_.valid(); ++i) {
    if (HasPlace(i) && IsCompressed(i) == compressed)
      node->children.push_back({fmt::format("{}{}", kBlockPrefix, i), places_[i], {}});
  }
}

Key SavedStateWriter::Tree(const SavedMachine& machine) const {
  Key root;
  root.Make("configuration/properties/version").value = machine.vm_version;
  Key& saved = root.Make("savedstate");
  saved.Make("VmVersion").value = machine.vm_version;
  saved.Make("type").value = std::string(machine.checkpoint ? "Snapshot" : "Normal");
  int index = 0;
  for (const RamMemoryBlock& block : MemoryBlocks(memory_)) {
    std::string bytes(reinterpret_cast<const char*>(&block), sizeof(block));
    saved.children.push_back({fmt::format("RamMemoryBlock{}", index++), KeyBytes{bytes}, {}});
  }
  AddBlocks(false, &saved);
  Key& own = saved.Make("kvmbus");
  Key compressed{"ram", {}, {}};
  AddBlocks(true, &compressed);
  // A program that does not know it would take these blocks for zeroes.
  own.Make("format").value = compressed.children.empty() ? kFormat : kFormatCompressed;
  if (!compressed.children.empty()) {
    compressed.children.push_back({"compression", std::string(kCompression), {}});
    own.children.push_back(std::move(compressed));
  }
  own.Make("devices").value = KeyBytes{machine.devices};
  own.Make("fdt").value = KeyBytes{machine.fdt};
  return root;
}

Result<void> SavedStateWriter::Publish(const SavedMachine& machine) {
  TRY_VOID(writer_->Finish(Tree(machine)));
  if (memory_file_.valid()) {
    TRY_VOID(SyncFile(memory_file_.get()));
    TRY_VOID(Rename(paths_.memory));
  }
  TRY_VOID(SyncFile(state_file_.get()));
  TRY_VOID(Rename(paths_.state));
  published_ = true;
  return {};
}

namespace {

/// The bytes of an Array, wherever they lie.
Result<std::string> Bytes(const HvsReader& reader, const Key* key) {
  if (key == nullptr) return Error(Code::kDataLoss, "a key is missing");
  if (const auto* inline_bytes = std::get_if<KeyBytes>(&key->value)) return inline_bytes->bytes;
  if (const auto* object = std::get_if<FileObject>(&key->value))
    return reader.Read(*object, kDeviceLimit);
  return MakeError(Code::kDataLoss, "'{}' has another type", key->name);
}

Result<void> CheckMemory(const HvsReader& reader, const Key& saved, const GuestMemory& memory) {
  const std::vector<RamMemoryBlock> expected = MemoryBlocks(memory);
  for (size_t i = 0; i <= expected.size(); ++i) {
    const Key* key = saved.Find(fmt::format("RamMemoryBlock{}", i));
    const bool wanted = i < expected.size();
    if (key == nullptr && !wanted) return {};
    const std::string bytes = key == nullptr ? "" : TRY(Bytes(reader, key));
    if (!wanted || bytes.size() != sizeof(RamMemoryBlock) ||
        std::memcmp(bytes.data(), &expected[i], sizeof(RamMemoryBlock)) != 0)
      return Error(Code::kFailedPrecondition,
                   "it was saved with other memory than the virtual machine has; give it the same, "
                   "or delete the saved state");
  }
  return {};
}

/// The number in a block's name.
std::optional<uint64_t> BlockOf(const Key& key) {
  const std::string_view digits = std::string_view(key.name).substr(kBlockPrefix.size());
  uint64_t block = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), block);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return block;
}

/// Of the blocks in the container itself, below `node`.
Result<void> FindBlocks(const Key& node, bool compressed, uint64_t file_bytes, RamSource* ram) {
  for (const Key& key : node.children) {
    if (!key.name.starts_with(kBlockPrefix)) continue;
    const auto block = BlockOf(key);
    const auto* object = std::get_if<FileObject>(&key.value);
    const bool known = block && *block < ram->places.size() && !ram->places[*block];
    if (!known || object == nullptr || object->offset > file_bytes ||
        file_bytes - object->offset < object->size)
      return MakeError(Code::kDataLoss, "'{}' is no block of memory", key.name);
    const bool fits = compressed ? object->size != 0 && object->size < kRamBlockBytes
                                 : object->size == kRamBlockBytes;
    if (!fits) return MakeError(Code::kDataLoss, "'{}' has {} bytes", key.name, object->size);
    ram->places[*block] = RamPlace{object->offset, compressed ? object->size : 0};
  }
  return {};
}

Result<void> FindAllBlocks(const Key& saved, uint64_t file_bytes, RamSource* ram) {
  TRY_VOID(FindBlocks(saved, false, file_bytes, ram));
  const Key* compressed = saved.Find("kvmbus/ram");
  if (compressed == nullptr) return {};
  const std::string compression = compressed->StringOr("compression", "");
  if (compression != kCompression)
    return MakeError(Code::kUnimplemented,
                     "its memory is compressed in a way that this program does not know ('{}'); a "
                     "newer one may",
                     compression);
  return FindBlocks(*compressed, true, file_bytes, ram);
}

Result<void> FindRam(const SavedStatePaths& paths, const Key& saved, Fd state_file,
                     SavedState* result) {
  if (paths.memory.empty()) {
    const uint64_t file_bytes = TRY(FileSize(state_file.get()));
    TRY_VOID(FindAllBlocks(saved, file_bytes, &result->ram));
    result->ram.file = std::move(state_file);
    return {};
  }
  result->ram.file = TRY(OpenRegularFile(paths.memory));
  if (TRY(FileSize(result->ram.file.get())) != result->ram.places.size() * kRamBlockBytes)
    return MakeError(Code::kDataLoss, "'{}' has another size than the memory", paths.memory);
  for (uint64_t block = 0; block < result->ram.places.size(); ++block) {
    // Holes are zero.
    const auto start = static_cast<off_t>(block * kRamBlockBytes);
    const off_t data = ::lseek(result->ram.file.get(), start, SEEK_DATA);
    if (data >= 0 && data < start + static_cast<off_t>(kRamBlockBytes))
      result->ram.places[block] = RamPlace{block * kRamBlockBytes};
  }
  return {};
}

Result<void> Parse(const SavedStatePaths& paths, Fd file, const GuestMemory& memory,
                   SavedState* result) {
  HvsReader::Limits limits;
  limits.inline_bytes = 0;  // blocks of memory stay where they are
  const HvsReader reader = TRY(HvsReader::Open(file.get(), limits));
  const Key* saved = reader.root().Find("savedstate");
  if (saved == nullptr) return Error(Code::kDataLoss, "it holds no saved state");
  const int64_t format = saved->IntOr("kvmbus/format", 0);
  if (format == 0)
    return Error(Code::kFailedPrecondition,
                 "another hypervisor made it, and its devices' states are not ours: delete the "
                 "saved state, or start and shut down the virtual machine where it was saved");
  if (format != kFormat && format != kFormatCompressed)
    return Error(Code::kUnimplemented, "it needs a newer program");
  result->machine.vm_version = saved->IntOr("VmVersion", 0);
  result->machine.checkpoint = saved->StringOr("type", "") == "Snapshot";
  result->machine.devices = TRY(Bytes(reader, saved->Find("kvmbus/devices")));
  result->machine.fdt = TRY(Bytes(reader, saved->Find("kvmbus/fdt")));
  TRY_VOID(CheckMemory(reader, *saved, memory));
  result->ram.places.resize(memory.ram_bytes() / kRamBlockBytes);
  return FindRam(paths, *saved, std::move(file), result);
}

}  // namespace

Result<SavedState> SavedState::Open(const SavedStatePaths& paths, const GuestMemory& memory) {
  Fd file = TRY(OpenRegularFile(paths.state));
  SavedState result;
  auto parsed = Parse(paths, std::move(file), memory, &result);
  if (parsed.ok()) return result;
  if (parsed.error().code() == Code::kDataLoss)
    return Damaged(paths.state, parsed.error().ToString());
  return std::move(parsed.error()).WithContext(fmt::format("saved state '{}'", paths.state));
}

}  // namespace kvmbus::vmm
