// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_file.h"

#include <sys/mman.h>

#include <cerrno>
#include <filesystem>

#include "vmm/config/vm_files.h"
#include "vmm/config/vm_tree_keys.h"
#include "vmm/config/xml_tree.h"
#include "vmm/guid/guid.h"
#include "vmm/hvs/hvs_reader.h"
#include "vmm/hvs/hvs_writer.h"
#include "vmm/os/clock.h"
#include "vmm/os/file.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm {
namespace {

bool IsXml(const std::string& path) { return path.ends_with(kXmlSuffix); }

Result<Key> ReadTree(const std::string& path) {
  const Fd fd = TRY(OpenRegularFile(path));
  if (IsXml(path)) return ParseXmlTree(TRY(ReadWholeFile(NameOfFd(fd.get()), kMaxXmlBytes)));
  constexpr HvsReader::Limits kLimits = {.tree_bytes = 16 << 20, .inline_bytes = 8 << 20};
  return TRY(HvsReader::Open(fd.get(), kLimits)).root();
}

Result<ConfigFile> ReadFile(const std::string& path) {
  ConfigFile file;
  file.tree = TRY(ReadTree(path));
  file.vm = TRY(ReadVmTree(file.tree)).vm;
  file.vm.set_folder(std::filesystem::path(path).parent_path().parent_path().string());
  const bool is_50 = file.vm.version() == kVersion50;
  if (!is_50 && file.vm.version() != kVersion62)
    return MakeError(
        Code::kUnimplemented,
        "its version {} is not run here; 'vmctl vm import --compare' says what it would lose",
        file.vm.version());
  if (ConfigFileOf(file.vm) != path)
    return MakeError(Code::kDataLoss, "a configuration of this id and version belongs in '{}'",
                     ConfigFileOf(file.vm));
  return file;
}

}  // namespace

Result<Key> ReadConfigTree(const std::string& path) {
  return TRY_CTX(ReadTree(path), "configuration '{}'", path);
}

Result<ConfigFile> ReadConfigFile(const std::string& path) {
  return TRY_CTX(ReadFile(path), "configuration '{}'", path);
}

Result<std::string> FormatContainer(const Key& tree) {
  const Fd fd(::memfd_create("container", MFD_CLOEXEC));
  if (!fd.valid()) return Error::FromErrno(errno, "memfd_create");
  TRY_VOID(HvsWriter(fd.get()).Finish(tree));
  std::string content(TRY(FileSize(fd.get())), '\0');
  TRY_VOID(PReadAll(fd.get(), {reinterpret_cast<uint8_t*>(content.data()), content.size()}, 0));
  return content;
}

Result<std::string> FormatConfigTree(const std::string& path, const Key& tree) {
  return IsXml(path) ? FormatXmlTree(tree) : FormatContainer(tree);
}

Key StateMirrorOf(const Key& tree) {
  Key mirror;
  const std::string bios = vm_tree::SectionOf(vm_tree::kBios.guid) + "/VDEVVersion";
  const std::string rtc = vm_tree::SectionOf(vm_tree::kRtc.guid) + "/VDEVVersion";
  for (const std::string& path :
       {std::string("properties/version"), bios, rtc, std::string("global_settings/metrics")}) {
    const Key* key = tree.Find("configuration/" + path);
    if (key != nullptr) mirror.Make("configuration/" + path) = *key;
  }
  return mirror;
}

Result<void> WriteConfigFile(FileOperations& files, const config::Vm& vm, Key tree) {
  const std::string path = ConfigFileOf(vm);
  WriteVmTree(vm, FiletimeOfRealtime(SystemClock().RealtimeNs()), &tree);
  const std::string content = TRY_CTX(FormatConfigTree(path, tree), "writing '{}'", path);
  TRY_VOID(files.Replace(path, content));
  // The mirror once: afterwards it may be a saved state.
  if (!HasStateMirror(vm) || vm.saved() || FileExists(StateFileOf(vm))) return {};
  return ReplaceStateMirror(files, vm, tree);
}

namespace {

/// Of a container, without its large objects.
Result<Key> ReadKeys(const std::string& path) {
  const Fd file = TRY(OpenRegularFile(path));
  constexpr HvsReader::Limits kKeysAlone = {.tree_bytes = 16 << 20, .inline_bytes = 0};
  return TRY(HvsReader::Open(file.get(), kKeysAlone)).root();
}

}  // namespace

bool HasStateMirror(const config::Vm& vm) {
  return vm.version() != kVersion50 && !vm.has_checkpoint();
}

bool IsStateMirror(const std::string& path) {
  const auto keys = ReadKeys(path);
  return keys.ok() && keys->Find("savedstate") == nullptr;
}

bool IsOwnSavedState(const std::string& path) {
  const auto keys = ReadKeys(path);
  return keys.ok() && keys->Find("savedstate/kvmbus") != nullptr;
}

Result<void> ReplaceStateMirror(FileOperations& files, const config::Vm& vm, const Key& tree) {
  return files.Replace(StateFileOf(vm), TRY(FormatContainer(StateMirrorOf(tree))));
}

std::string IdOfConfigFile(const std::string& name) {
  for (const std::string_view suffix : {kVmcxSuffix, kXmlSuffix}) {
    if (!name.ends_with(suffix)) continue;
    const std::string id = name.substr(0, name.size() - suffix.size());
    if (Guid::Parse(id) && id == UpperCase(id) && id.front() != '{') return id;
  }
  return "";
}

}  // namespace kvmbus::vmm
