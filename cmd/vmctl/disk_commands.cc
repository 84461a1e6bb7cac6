// SPDX-License-Identifier: Apache-2.0
// vmctl disk ...: image files, with or without vmmd; and a machine's disks.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>

#include "cmd/vmctl/client.h"
#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"
#include "cmd/vmctl/live_disk_commands.h"
#include "cmd/vmctl/qos_arguments.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "vmm/config/disk_qos.h"

namespace kvmbus::cmd {
namespace {

using virtdev::CreateDiskOptions;

int Report(const vmm::Result<void>& result) {
  if (result.ok()) return kExitDone;
  std::fprintf(stderr, "vmctl: %s\n", result.error().ToString().c_str());
  return ExitCodeOf(result.error().code());
}

struct ImageArguments {
  std::string path, source, size, block = "2M";
  CreateDiskOptions options;
  bool live = false;
  const CLI::App* verb = nullptr;  ///< one that has options of a format

  ImageArguments() { options.format.clear(); }  // as the name says
};

/// Adds what create and convert share.
void AddFormatOptions(CLI::App* verb, const std::shared_ptr<ImageArguments>& arguments) {
  arguments->verb = verb;
  verb->add_option("--format", arguments->options.format,
                   "vhdx, vhd or raw (default: as the name ends)");
  verb->add_flag("--fixed", arguments->options.fixed, "Allocate all of it now");
  verb->add_option("--block-size", arguments->block, "1M to 256M; VHD: 512K or 2M (default 2M)");
  verb->add_option("--logical-sector", arguments->options.logical_sector,
                   "512 or 4096 (default 512)");
  verb->add_option("--physical-sector", arguments->options.physical_sector,
                   "512 or 4096 (default 4096)");
}

bool ParseSizes(ImageArguments& arguments) {
  if (arguments.options.format.empty())
    arguments.options.format = virtdev::FormatOfName(arguments.path);
  const bool is_raw = arguments.verb != nullptr && arguments.options.format == "raw";
  for (const char* option : {"--block-size", "--logical-sector", "--physical-sector", "--fixed"}) {
    if (!is_raw || arguments.verb->count(option) == 0) continue;
    std::fprintf(stderr, "vmctl: a raw image has no %s: leave it out, or make a VHDX\n", option);
    return false;
  }
  uint64_t block = 0;
  const bool sizes =
      arguments.size.empty() || ParseBytes(arguments.size, &arguments.options.size_bytes);
  if (!sizes || !ParseBytes(arguments.block, &block) || block > 0xffffffff) {
    std::fprintf(stderr, "vmctl: '%s' is no size; write 512M or 40G\n",
                 sizes ? arguments.block.c_str() : arguments.size.c_str());
    return false;
  }
  arguments.options.block_bytes = static_cast<uint32_t>(block);
  return true;
}

int Info(const Context& context, const std::string& path) {
  const auto disk = virtdev::DescribeDisk(path);
  if (!disk.ok()) return Report(disk.error());
  if (context.format == Format::kJson) {
    std::vector<Json> chain;
    for (const std::string& below : disk->chain) chain.push_back(Json::Text(below));
    std::printf("%s\n", Json::Object({{"path", Json::Text(path)},
                                      {"format", Json::Text(disk->format)},
                                      {"type", Json::Text(disk->type)},
                                      {"size_bytes", Json::Number(disk->size_bytes)},
                                      {"file_bytes", Json::Number(disk->file_bytes)},
                                      {"block_bytes", Json::Number(disk->block_bytes)},
                                      {"logical_sector", Json::Number(disk->logical_sector)},
                                      {"physical_sector", Json::Number(disk->physical_sector)},
                                      {"blocks", Json::Number(disk->blocks)},
                                      {"allocated_blocks", Json::Number(disk->allocated_blocks)},
                                      {"smallest_bytes", Json::Number(disk->smallest_bytes)},
                                      {"disk_id", Json::Text(disk->disk_id.ToString())},
                                      {"clean", Json::Boolean(disk->clean)},
                                      {"parent", Json::Text(disk->parent)},
                                      {"chain", Json::Array(chain)},
                                      {"chain_error", Json::Text(disk->chain_error)}})
                            .text()
                            .c_str());
    return kExitDone;
  }
  std::vector<std::vector<std::string>> rows = {
      {"Format", disk->type.empty() ? disk->format : disk->format + ", " + disk->type},
      {"Size", HumanBytes(disk->size_bytes)},
      {"File", HumanBytes(disk->file_bytes)}};
  if (disk->smallest_bytes != 0)
    rows.push_back({"Smallest size", fmt::format("{} bytes", disk->smallest_bytes)});
  if (disk->format == "vhdx") {
    rows.push_back({"Blocks", fmt::format("{} of {}, {} each", disk->allocated_blocks, disk->blocks,
                                          HumanBytes(disk->block_bytes))});
    rows.push_back({"Sectors", fmt::format("{} logical, {} physical", disk->logical_sector,
                                           disk->physical_sector)});
    rows.push_back({"Disk id", disk->disk_id.ToString()});
    rows.push_back({"Log", disk->clean ? "empty" : "to be replayed when it is opened"});
  }
  if (disk->format == "vhd") {
    if (disk->blocks != 0)
      rows.push_back({"Blocks", fmt::format("{} of {}, {} each", disk->allocated_blocks,
                                            disk->blocks, HumanBytes(disk->block_bytes))});
    rows.push_back({"Disk id", disk->disk_id.ToString()});
    rows.push_back({"Footers", disk->clean ? "sound" : "mended when it is opened for writing"});
  }
  if (!disk->parent.empty()) rows.push_back({"Parent", disk->parent});
  for (size_t i = 0; i < disk->chain.size(); ++i)
    rows.push_back({i == 0 ? "Chain" : "", disk->chain[i]});
  if (!disk->chain_error.empty()) rows.push_back({"Chain", disk->chain_error});
  PrintTable(rows);
  return kExitDone;
}

/// 0 sound, 1 damaged, 2 cannot judge.
int Check(const Context& context, const std::string& path) {
  const auto findings = virtdev::CheckDisk(path);
  if (!findings.ok()) {
    std::fprintf(stderr, "vmctl: %s\n", findings.error().ToString().c_str());
    return kExitUsage;
  }
  bool sound = true;
  std::vector<Json> items;
  for (const virtdev::Finding& finding : *findings) {
    const bool error = finding.severity == virtdev::Finding::Severity::kError;
    sound = sound && !error;
    items.push_back(Json::Object({{"severity", Json::Text(error ? "error" : "note")},
                                  {"file", Json::Text(finding.file)},
                                  {"text", Json::Text(finding.text)}}));
    if (context.format == Format::kTable)
      std::printf("%s: %s: %s\n", finding.file.c_str(), error ? "error" : "note",
                  finding.text.c_str());
  }
  if (context.format == Format::kJson)
    std::printf("%s\n",
                Json::Object({{"sound", Json::Boolean(sound)}, {"findings", Json::Array(items)}})
                    .text()
                    .c_str());
  else
    std::printf("%s: %s\n", path.c_str(), sound ? "sound" : "damaged");
  return sound ? kExitDone : kExitFailed;
}

/// Percent on a terminal.
virtdev::Progress ShowProgress() {
  return [shown = uint64_t{101}](uint64_t done, uint64_t total) mutable {
    const uint64_t percent = done * 100 / total;
    if (::isatty(STDERR_FILENO) && percent != shown)
      std::fprintf(stderr, "\r%3d %%%s", static_cast<int>(percent), percent == 100 ? "\n" : "");
    shown = percent;
    return true;
  };
}

int Convert(ImageArguments& arguments) {
  if (!ParseSizes(arguments)) return kExitUsage;
  return Report(
      virtdev::ConvertDisk(arguments.source, arguments.path, arguments.options, ShowProgress()));
}

bool IsInUse(const vmm::Result<void>& result) {
  return !result.ok() && result.error().code() == vmm::Code::kUnavailable;
}

int Create(const Context& context, ImageArguments& arguments) {
  if (arguments.live) return CreateChildInUse(context, arguments.path, arguments.options.parent);
  return ParseSizes(arguments) ? Report(virtdev::CreateDisk(arguments.path, arguments.options))
                               : kExitUsage;
}

int Resize(const Context& context, ImageArguments& arguments, bool force) {
  if (!ParseSizes(arguments)) return kExitUsage;
  const uint64_t size = arguments.options.size_bytes;
  if (const int refused = CheckDiskChange(context, arguments.path, false)) return refused;
  const auto resized = virtdev::ResizeDisk(arguments.path, size, force);
  return IsInUse(resized) ? ResizeDiskInUse(context, arguments.path, size, resized.error())
                          : Report(resized);
}

int Merge(const Context& context, const std::string& path) {
  if (const int refused = CheckDiskChange(context, path, true)) return refused;
  const auto merged = virtdev::MergeDisk(path, ShowProgress());
  return IsInUse(merged) ? MergeDiskInUse(context, path, ShowProgress(), merged.error())
                         : Report(merged);
}

void AddImageCommands(CLI::App* disk, Context& context) {
  auto create = std::make_shared<ImageArguments>();
  CLI::App* verb = disk->add_subcommand("create", "Create an image");
  verb->add_option("FILE", create->path)->required();
  auto* size = verb->add_option("--size", create->size, "As 512M or 40G; a child has its parent's");
  auto* parent =
      verb->add_option("--parent", create->options.parent,
                       "A differencing image on this one, which is not written any more");
  size->excludes(parent);
  verb->add_flag("--live", create->live,
                 "The virtual machine that uses the parent writes to the new image from now on")
      ->needs(parent);
  AddFormatOptions(verb, create);
  verb->callback([&context, create] {
    if (create->size.empty() && create->options.parent.empty()) {
      std::fprintf(stderr, "vmctl: an image needs --size or --parent\n");
      context.exit_status = kExitUsage;
      return;
    }
    context.exit_status = Create(context, *create);
  });

  auto convert = std::make_shared<ImageArguments>();
  verb = disk->add_subcommand(
      "convert", "Copy an image into another format; qcow2 and vmdk are read by way of qemu-img");
  verb->add_option("SOURCE", convert->source)->required();
  verb->add_option("TARGET", convert->path)->required();
  AddFormatOptions(verb, convert);
  verb->callback([&context, convert] { context.exit_status = Convert(*convert); });

  struct Link {
    std::string path, parent;
    bool ignore_mismatch = false;
  };
  auto link = std::make_shared<Link>();
  verb = disk->add_subcommand("reparent", "Link a differencing image to another parent");
  verb->add_option("FILE", link->path, "The differencing image")->required();
  verb->add_option("--parent", link->parent, "Its new parent, or its parent's new place")
      ->required();
  verb->add_flag("--ignore-id-mismatch", link->ignore_mismatch,
                 "Even if the parent's content is not what the image was made on");
  verb->callback([&context, link] {
    context.exit_status =
        Report(virtdev::ReparentDisk(link->path, link->parent, link->ignore_mismatch));
  });

  struct Resizing : ImageArguments {
    bool force = false;
  };
  auto resize = std::make_shared<Resizing>();
  verb =
      disk->add_subcommand("resize",
                           "Grow or shrink the disk in an image that has no children; one that a "
                           "running virtual machine uses grows, too");
  verb->add_option("FILE", resize->path)->required();
  verb->add_option("--size", resize->size, "As 512M or 40G; never less than its partitions take")
      ->required();
  verb->add_flag("--force", resize->force, "Cut a disk that has no partition table");
  verb->callback(
      [&context, resize] { context.exit_status = Resize(context, *resize, resize->force); });

  struct Compaction {
    std::string path;
    bool quick = false;
  };
  auto compact = std::make_shared<Compaction>();
  verb = disk->add_subcommand("compact", "Make a VHDX or VHD file as small as its content allows");
  verb->add_option("FILE", compact->path)->required();
  verb->add_flag("--quick", compact->quick, "Do not search for blocks that hold zeroes alone");
  verb->callback([&context, compact] {
    context.exit_status =
        Report(virtdev::CompactDisk(compact->path, compact->quick, ShowProgress()));
  });

  auto path = std::make_shared<std::string>();
  verb = disk->add_subcommand(
      "merge",
      "Write a differencing image into its parent, which must have no other children, and "
      "delete it; also while a virtual machine uses it");
  verb->add_option("FILE", *path, "The differencing image")->required();
  verb->callback([&context, path] { context.exit_status = Merge(context, *path); });
  verb = disk->add_subcommand("info", "What an image is");
  verb->add_option("FILE", *path)->required();
  verb->callback([&context, path] { context.exit_status = Info(context, *path); });
  verb = disk->add_subcommand("check",
                              "Check an image and those below it: exit status 0 sound, 1 damaged, "
                              "2 cannot judge");
  verb->add_option("FILE", *path)->required();
  verb->callback([&context, path] { context.exit_status = Check(context, *path); });
}

}  // namespace

void AddCachingOption(CLI::App& verb, const std::string& name, config::DiskCaching* caching) {
  static const std::map<std::string, config::DiskCaching> kModes = {{"direct", config::DIRECT},
                                                                    {"buffered", config::BUFFERED}};
  verb.add_option(name, *caching,
                  "direct: past the host's page cache, where its file system can (default); "
                  "buffered: through it")
      ->transform(OneOf(kModes));
}

void AddDiskCommands(CLI::App& app, Context& context) {
  CLI::App* disk = app.add_subcommand("disk", "Virtual hard disks");
  disk->require_subcommand(1);
  AddImageCommands(disk, context);
  AddDiskQosCommands(disk, context);

  struct Slot {
    std::string vm, path;
    uint32_t controller = 0, location = 0;
    bool read_only = false, shared = false;
    config::DiskCaching caching = config::DIRECT;
    QosArguments qos;
  };
  auto attach = std::make_shared<Slot>();
  CLI::App* verb =
      disk->add_subcommand("attach", "Attach an image to a virtual machine, running or not");
  verb->add_option("VM", attach->vm, "Name or id")->required();
  verb->add_option("FILE", attach->path, "Image")->required();
  verb->add_option("--controller", attach->controller, "SCSI controller (default 0)");
  verb->add_option("--location", attach->location, "0 to 63")->required();
  verb->add_flag("--read-only", attach->read_only, "The guest may not write");
  verb->add_flag("--shared", attach->shared,
                 "Other virtual machines have it too, each as shared: for guest clusters");
  AddCachingOption(*verb, "--caching", &attach->caching);
  attach->qos.AddTo(verb);
  verb->callback([&context, attach] {
    Client client(context.socket);
    api::AttachDiskRequest request;
    request.set_vm(attach->vm);
    request.mutable_disk()->set_path(
        std::filesystem::absolute(attach->path).lexically_normal().string());
    request.mutable_disk()->set_controller(attach->controller);
    request.mutable_disk()->set_lun(attach->location);
    request.mutable_disk()->set_read_only(attach->read_only);
    request.mutable_disk()->set_shared(attach->shared);
    request.mutable_disk()->set_caching(attach->caching);
    config::DiskQosChange qos;
    if (!attach->qos.Fill(&qos)) {
      context.exit_status = kExitUsage;
      return;
    }
    if (attach->qos.given()) vmm::ChangeDiskQos(qos, request.mutable_disk()->mutable_qos());
    api::VmStatus reply;
    grpc::ClientContext call;
    context.exit_status = client.Check(client.machines().AttachDisk(&call, request, &reply));
  });

  auto detach = std::make_shared<Slot>();
  verb = disk->add_subcommand("detach", "Take a disk out of a virtual machine; the image stays");
  verb->add_option("VM", detach->vm, "Name or id")->required();
  verb->add_option("--controller", detach->controller, "SCSI controller (default 0)");
  verb->add_option("--location", detach->location, "0 to 63")->required();
  verb->callback([&context, detach] {
    Client client(context.socket);
    api::DetachDiskRequest request;
    request.set_vm(detach->vm);
    request.set_controller(detach->controller);
    request.set_lun(detach->location);
    api::VmStatus reply;
    grpc::ClientContext call;
    context.exit_status = client.Check(client.machines().DetachDisk(&call, request, &reply));
  });
}

}  // namespace kvmbus::cmd
