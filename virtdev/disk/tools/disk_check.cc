// SPDX-License-Identifier: Apache-2.0
// Checking a disk: its image and those below it, by what each says of its parent.
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhdx/vhdx_check.h"

namespace kvmbus::virtdev {
namespace {

using check::LayerReport;
using vmm::Result;

class ChainChecker {
 public:
  Result<std::vector<Finding>> Check(const std::string& path) {
    LayerReport report = TRY(CheckLayer(path));
    if (report.has_parent) roots_ = TRY(ParentRoots(path, {}));
    std::string child = path;
    while (report.has_parent) {
      auto parent = FindParent(child, report.parent, roots_);
      if (!parent.ok()) {
        Fail(child, parent.error().ToString());
        break;
      }
      if (!IsNew(*parent) || seen_.size() > Chain::kMaxLayers) {
        Fail(child,
             fmt::format("its parent is '{}', which makes the chain a ring or too long", *parent));
        break;
      }
      auto below = CheckLayer(*parent);
      if (!below.ok()) {
        Fail(child, "its parent cannot be checked: " + below.error().ToString());
        break;
      }
      CheckLink(child, report, *below);
      child = *std::move(parent);
      report = *std::move(below);
    }
    return std::move(findings_);
  }

 private:
  /// The file stays open, and locked, until all is done.
  Result<LayerReport> CheckLayer(const std::string& path) {
    files_.push_back(TRY(OpenBlockFile(path, true)));
    if (!IsVhdxName(path) && !IsVhdName(path))
      return vmm::MakeError(
          vmm::Code::kUnimplemented,
          "'{}' has no format that can be checked (raw images have nothing to check)", path);
    IsNew(path);
    LayerReport report;
    if (IsVhdName(path))
      TRY_VOID(CheckVhdLayer(path, &report));
    else
      report = check::CheckVhdxFile(*files_.back(), TRY(files_.back()->Size()));
    for (Finding& finding : report.findings) {
      finding.file = path;
      findings_.push_back(std::move(finding));
    }
    return report;
  }

  /// The check of VHD files says nothing of parents: what the driver reads of them is followed.
  Result<void> CheckVhdLayer(const std::string& path, LayerReport* report) {
    report->findings = TRY(CheckVhd(*files_.back()));
    const auto image = OpenImage(path, true);
    if (!image.ok()) return {};  // the findings say why
    report->identity = (*image)->identity();
    report->logical_sector = (*image)->info().logical_sector_bytes;
    report->has_parent = (*image)->parent() != nullptr;
    if (report->has_parent) report->parent = *(*image)->parent();
    return {};
  }

  bool IsNew(const std::string& path) {
    struct stat status = {};
    return ::stat(path.c_str(), &status) == 0 &&
           seen_.insert({status.st_dev, status.st_ino}).second;
  }

  void CheckLink(const std::string& child, const LayerReport& report, const LayerReport& parent) {
    const std::vector<vmm::Guid>& linkage = report.parent.linkage;
    if (std::find(linkage.begin(), linkage.end(), parent.identity) == linkage.end())
      Fail(child, fmt::format("it was made on another image, or on an older content of it: it "
                              "expects {} and its parent is {}",
                              linkage.front().ToString(), parent.identity.ToString()));
    if (report.logical_sector != parent.logical_sector)
      Fail(child, fmt::format("its logical sectors have {} bytes, its parent's {}",
                              report.logical_sector, parent.logical_sector));
  }

  void Fail(const std::string& path, const std::string& what) {
    findings_.push_back({Finding::Severity::kError, "parent: " + what, "parent", path});
  }

  std::vector<Finding> findings_;
  std::vector<std::unique_ptr<BlockFile>> files_;
  std::vector<std::string> roots_;
  std::set<std::pair<dev_t, ino_t>> seen_;
};

}  // namespace

Result<std::vector<Finding>> CheckDisk(const std::string& path) {
  return ChainChecker().Check(path);
}

}  // namespace kvmbus::virtdev
