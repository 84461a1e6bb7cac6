// SPDX-License-Identifier: Apache-2.0
// Containers made of the fuzzer's bytes: a sound one with the input laid over its structures, whose
// checksums are mended every other time. What the reader takes can be written and read again.
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz_input.h"
#include "vmm/hvs/hvs_check.h"
#include "vmm/hvs/hvs_format.h"
#include "vmm/hvs/hvs_reader.h"
#include "vmm/hvs/hvs_writer.h"
#include "vmm/os/fd.h"

namespace kvmbus::vmm {
namespace {

using tests::FuzzInput;

std::string SoundContainer() {
  Key root;
  root.Make("configuration/properties/version").value = int64_t{0x602};
  root.Make("configuration/properties/name").value = "one";
  root.Make("configuration/flag").value = true;
  root.Make("configuration/object").value = KeyBytes{std::string(3000, 'o')};
  for (int64_t i = 0; i < 150; ++i) root.Make(fmt::format("more/key{}", i)).value = i;
  const Fd fd(::memfd_create("sound", MFD_CLOEXEC));
  KVMBUS_ASSERT(HvsWriter(fd.get()).Finish(root).ok());
  std::string bytes(static_cast<size_t>(::lseek(fd.get(), 0, SEEK_END)), '\0');
  KVMBUS_ASSERT(
      PReadAll(fd.get(), {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}, 0).ok());
  return bytes;
}

template <typename T>
void Mend(std::string* bytes, size_t at) {
  if (at + sizeof(T) > bytes->size()) return;
  T structure = hvs::Load<T>(*bytes, at);
  structure.checksum = hvs::ChecksumOf(structure);
  bytes->replace(at, sizeof(T), hvs::BytesOf(structure));
}

/// As far as the entries make sense; the checksum covers name and data as their types have them.
void MendKeyTable(std::string* bytes, size_t table) {
  Mend<hvs::KeyTableHeader>(bytes, table);
  size_t at = table + sizeof(hvs::KeyTableHeader);
  const size_t end = std::min(bytes->size(), table + hvs::kTableBytes);
  while (at + sizeof(hvs::KeyEntry) < end) {
    auto entry = hvs::Load<hvs::KeyEntry>(*bytes, at);
    if (entry.size < sizeof(entry) || entry.size > end - at) return;
    const size_t data = at + sizeof(entry) + entry.name_size;
    size_t used = entry.type == 9 || (entry.flags & 1) != 0 ? 12 : entry.type < 6 ? 8 : 4;
    if (data + 4 <= end && (entry.type == 6 || entry.type == 7) && (entry.flags & 1) == 0)
      used += hvs::Load<uint32_t>(*bytes, data);
    if (data + used <= at + entry.size) {
      entry.checksum = 0;
      bytes->replace(at, sizeof(entry), hvs::BytesOf(entry));
      entry.checksum = hvs::Crc32(std::string_view(*bytes).substr(at, data + used - at));
      bytes->replace(at, sizeof(entry), hvs::BytesOf(entry));
    }
    at += entry.size;
  }
}

void MendAll(std::string* bytes, size_t log) {
  for (const uint64_t header : hvs::kHeaderOffset) Mend<hvs::Header>(bytes, header);
  for (size_t i = 0; i < hvs::kObjectEntries; ++i)
    Mend<hvs::ObjectEntry>(bytes, hvs::kRootTableOffset + 8 + i * sizeof(hvs::ObjectEntry));
  for (const size_t table : {0x4000, 0x5000}) MendKeyTable(bytes, table);
  Mend<hvs::ReplayLogHeader>(bytes, log);
  const size_t first = log + sizeof(hvs::ReplayLogHeader);
  Mend<hvs::ReplayEntryChecksumFirst>(bytes, first);
  Mend<hvs::ReplayEntryChecksumLast>(bytes, first + sizeof(hvs::ReplayEntryChecksumFirst));
}

bool HasObjects(const Key& key) {
  if (std::holds_alternative<FileObject>(key.value)) return true;
  return std::any_of(key.children.begin(), key.children.end(), HasObjects);
}

/// Numbers that are none compare unequal.
bool HasDoubles(const Key& key) {
  if (std::holds_alternative<double>(key.value)) return true;
  return std::any_of(key.children.begin(), key.children.end(), HasDoubles);
}

void Use(const HvsReader& reader) {
  for (const Key& key : reader.root().children) {
    if (const auto* object = std::get_if<FileObject>(&key.value))
      (void)reader.Read(*object, 1 << 20);
  }
  if (HasObjects(reader.root())) return;
  const Fd copy(::memfd_create("copy", MFD_CLOEXEC));
  KVMBUS_ASSERT(HvsWriter(copy.get()).Finish(reader.root()).ok());
  const auto again = HvsReader::Open(copy.get());
  KVMBUS_ASSERT(again.ok());
  KVMBUS_ASSERT(HasDoubles(reader.root()) || again->root() == reader.root());
}

}  // namespace
}  // namespace kvmbus::vmm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus::vmm;  // NOLINT: a fuzz target is a program
  static const std::string sound = SoundContainer();
  static const size_t log = hvs::Load<hvs::Header>(sound, 0).replay_log_offset;
  const size_t targets[] = {0, 0x1000, 0x2000, 0x2000 + 226 * 18, 0x4000, 0x4000 + 10, 0x5000, log};
  std::string bytes = sound;
  FuzzInput input(data, size);
  const uint8_t how = input.Byte();
  while (!input.empty()) {
    const size_t at = targets[input.Byte() % std::size(targets)] + input.Word() % 4096;
    const std::vector<uint8_t> piece = input.Bytes(1 + input.Byte() % 64);
    for (size_t i = 0; i < piece.size() && at + i < bytes.size(); ++i)
      bytes[at + i] = static_cast<char>(piece[i]);
  }
  if ((how & 1) != 0) MendAll(&bytes, log);
  if ((how & 2) != 0) bytes.resize(bytes.size() / 64 * (how >> 2));
  const Fd fd(::memfd_create("fuzz", MFD_CLOEXEC));
  KVMBUS_ASSERT(
      PWriteAll(fd.get(), {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, 0).ok());
  const bool sound_still = CheckHvs(fd.get()).empty();
  const auto reader = HvsReader::Open(fd.get(), {.tree_bytes = 1 << 20, .inline_bytes = 65536});
  // The judge is stricter than the reader.
  if (sound_still) KVMBUS_ASSERT(reader.ok());
  if (reader.ok()) Use(*reader);
  return 0;
}
