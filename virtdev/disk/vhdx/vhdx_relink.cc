// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_relink.h"

#include "virtdev/disk/vhdx/vhdx_journal.h"
#include "virtdev/disk/vhdx/vhdx_locator.h"
#include "virtdev/disk/vhdx/vhdx_metadata_edit.h"

namespace kvmbus::virtdev::vhdx {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

Result<std::vector<Journal::Page>> LocatorPages(const VhdxFile& vhdx,
                                                const ParentReference& parent) {
  std::vector<uint8_t> item = TRY(BuildParentLocator(parent));
  const auto length = static_cast<uint32_t>(item.size());
  const Region& region = vhdx.regions.metadata;
  MetadataEditor table = TRY(MetadataEditor::Read(vhdx));
  const auto index = table.Find(kParentLocatorItem);
  if (!index) return MakeError(Code::kFailedPrecondition, "it is no differencing disk");
  item.resize((length + kLogSector - 1) / kLogSector * kLogSector, 0);
  const auto room = table.FindRoom(static_cast<uint32_t>(item.size()), *index, region.length);
  if (!room)
    return MakeError(Code::kOutOfRange,
                     "its metadata region of {} KiB has no room for a parent locator of {} bytes: "
                     "use a shorter path",
                     region.length / 1024, length);
  std::vector<Journal::Page> pages;
  auto [page, content] = table.Move(*index, *room, length);
  pages.push_back({region.offset + page, std::move(content)});
  Journal::AppendPages(region.offset + *room, item, &pages);
  return pages;
}

Result<void> ReplaceParentLocator(const VhdxFile& vhdx, const ParentReference& parent) {
  const std::vector<Journal::Page> pages = TRY(LocatorPages(vhdx, parent));
  Journal journal(*vhdx.file, vhdx.header);
  TRY_VOID(journal.Open(false));
  TRY_VOID(journal.Commit(pages, false));
  return journal.Close();
}

}  // namespace kvmbus::virtdev::vhdx
