// SPDX-License-Identifier: Apache-2.0
// The header takes two sectors, so that writing over it could tear it. Its new content is written
// where nobody is, and the footer's copy at 0, one sector, leads there: the footer at the end is
// another image's from then on and does not count. Then it is written to where it was, and the copy
// leads back.
#include "virtdev/disk/vhd/vhd_relink.h"

#include <algorithm>

#include "virtdev/disk/vhd/vhd_edit.h"

namespace kvmbus::virtdev::vhd {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

/// Where so many bytes fit, in front of the last owner or behind it.
uint64_t RoomFor(uint64_t bytes, const VhdFile& vhd, const BlockTable& table) {
  for (const Gap& gap : GapsOf(vhd, table)) {
    const uint64_t place = RoundUp(gap.offset, kSector);
    if (place + bytes <= gap.end) return place;
  }
  return RoundUp(table.end_of_use(), kSector);
}

/// The header at `place` counts when it returns.
Result<void> SwitchTo(uint64_t place, const DynamicHeader& header, BlockFile& file,
                      Footer* footer) {
  TRY_VOID_CTX(file.Write(BytesOf(header), place), "writing the dynamic header");
  TRY_VOID(file.Flush());
  footer->data_offset = place;
  footer->checksum = ChecksumOf(*footer);
  TRY_VOID_CTX(file.Write(BytesOf(*footer), 0), "writing the footer's copy");
  return file.Flush();
}

}  // namespace

Result<void> ReplaceVhdParent(std::unique_ptr<BlockFile> file, const VhdParent& parent) {
  const VhdFile vhd = TRY(OpenVhdToEdit(std::move(file)));
  if (!vhd.differencing())
    return vmm::Error(Code::kFailedPrecondition, "it is no differencing disk: it has no parent");
  if (parent.size_bytes != vhd.disk_bytes())
    return MakeError(Code::kFailedPrecondition,
                     "it has {} bytes and its new parent {}: they must be equal", vhd.disk_bytes(),
                     parent.size_bytes);
  const BlockTable table = TRY(BlockTable::Read(vhd));
  DynamicHeader header = vhd.header;
  std::vector<uint8_t> texts = TRY(SetVhdParent(&header, parent));
  const uint64_t texts_at = RoomFor(texts.size(), vhd, table);
  PlaceLocators(&header, texts_at);
  header.checksum = ChecksumOf(header);
  TRY_VOID_CTX(vhd.file->Write(texts, texts_at), "writing the parent locators");
  const uint64_t end = std::max(table.end_of_use(), texts_at + texts.size());
  Footer footer = vhd.footer;
  TRY_VOID(SwitchTo(RoundUp(end, kSector), header, *vhd.file, &footer));
  TRY_VOID(SwitchTo(vhd.footer.data_offset, header, *vhd.file, &footer));
  return WriteEndFooter(*vhd.file, footer, end);
}

}  // namespace kvmbus::virtdev::vhd
