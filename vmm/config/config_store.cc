// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_store.h"

#include <dirent.h>
#include <isa-l/crc.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

constexpr std::string_view kMagic = "KVMBCFG1";
constexpr std::string_view kVmSuffix = ".vm";
constexpr std::string_view kCheckpointSuffix = ".checkpoint";
constexpr uint64_t kFileLimit = 1u << 20;

struct FileHeader {
  char magic[8];
  uint32_t crc32c;
  uint32_t bytes;
};

uint32_t Crc32c(const std::string& bytes) {
  auto* data = reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data()));
  return ~crc32_iscsi(data, static_cast<int>(bytes.size()), ~0u);
}

class FileConfigStore final : public ConfigStore {
 public:
  explicit FileConfigStore(std::string folder) : folder_(std::move(folder)) {}

  Result<Listing> List() override {
    Listing listing;
    DIR* folder = ::opendir(folder_.c_str());
    if (folder == nullptr) return Error::FromErrno(errno, fmt::format("opening '{}'", folder_));
    while (const dirent* entry = ::readdir(folder)) {
      const std::string name = entry->d_name;
      if (!name.ends_with(kVmSuffix) && !name.ends_with(kCheckpointSuffix)) continue;
      auto vm = Load(folder_ + "/" + name);
      if (!vm.ok())
        listing.damaged.push_back(std::move(vm.error()));
      else if (vm->has_checkpoint())
        listing.checkpoints.push_back(std::move(vm).value());
      else
        listing.vms.push_back(std::move(vm).value());
    }
    ::closedir(folder);
    return listing;
  }

  Result<void> Save(const config::Vm& vm) override {
    const std::string body = vm.SerializeAsString();
    FileHeader header;
    std::memcpy(header.magic, kMagic.data(), sizeof(header.magic));
    header.crc32c = Crc32c(body);
    header.bytes = static_cast<uint32_t>(body.size());
    const std::string content =
        std::string(reinterpret_cast<const char*>(&header), sizeof(header)) + body;
    return ReplaceFile(PathOf(vm), content, 0640);
  }

  Result<void> Delete(const config::Vm& vm) override {
    if (::unlink(PathOf(vm).c_str()) < 0)
      return Error::FromErrno(errno, fmt::format("deleting '{}'", PathOf(vm)));
    return SyncFolder(folder_);
  }

 private:
  std::string PathOf(const config::Vm& vm) const {
    if (vm.has_checkpoint())
      return fmt::format("{}/{}{}", folder_, vm.checkpoint().id(), kCheckpointSuffix);
    return fmt::format("{}/{}{}", folder_, vm.id(), kVmSuffix);
  }

  static Result<config::Vm> Load(const std::string& path) {
    const std::string content = TRY(ReadWholeFile(path, kFileLimit));
    FileHeader header;
    const Error damaged = MakeError(Code::kDataLoss, "configuration '{}' is damaged", path);
    if (content.size() < sizeof(header)) return damaged;
    std::memcpy(&header, content.data(), sizeof(header));
    const std::string body = content.substr(sizeof(header));
    config::Vm vm;
    if (std::memcmp(header.magic, kMagic.data(), sizeof(header.magic)) != 0 ||
        header.bytes != body.size() || header.crc32c != Crc32c(body) || !vm.ParseFromString(body))
      return damaged;
    return vm;
  }

  const std::string folder_;
};

}  // namespace

Result<std::unique_ptr<ConfigStore>> OpenFileConfigStore(const std::string& folder) {
  TRY_VOID(MakeFolders(folder, 0750));
  return std::unique_ptr<ConfigStore>(std::make_unique<FileConfigStore>(folder));
}

}  // namespace kvmbus::vmm
