// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_journal.h"

namespace kvmbus::virtdev::vhdx {

using vmm::Code;
using vmm::Result;

void Journal::AppendPages(uint64_t file_offset, std::span<const uint8_t> bytes,
                          std::vector<Page>* pages) {
  for (size_t at = 0; at < bytes.size(); at += kLogSector) {
    const auto page = bytes.subspan(at, kLogSector);
    pages->push_back({file_offset + at, std::vector<uint8_t>(page.begin(), page.end())});
  }
}

Result<void> Journal::CheckUsable() const {
  return failed_ ? Result<void>(EarlierFlushFailed()) : Result<void>();
}

Result<void> Journal::Open(bool data_changes) {
  TRY_VOID(CheckUsable());
  if (is_open() && (data_guid_is_new_ || !data_changes)) return {};
  ActiveHeader next = header_;
  std::unique_ptr<LogWriter> log;
  if (!is_open()) {
    next.header.log_guid = vmm::Guid::Random();
    next.header.file_write_guid = vmm::Guid::Random();
    log = std::make_unique<LogWriter>(file_, next.header.log_offset, next.header.log_length,
                                      next.header.log_guid);
    // A log that is named and holds no entry would be a damaged image.
    flushed_bytes_ = TRY(file_.Size());
    TRY_VOID(log->Append({}, flushed_bytes_, flushed_bytes_));
    TRY_VOID(Flush());
    log->Flushed();
  }
  if (data_changes)
    next.header.data_write_guid = next_data_guid_.IsZero() ? vmm::Guid::Random() : next_data_guid_;
  TRY_VOID(PublishHeader(next));
  data_guid_is_new_ = data_guid_is_new_ || data_changes;
  if (log) log_ = std::move(log);
  return {};
}

Result<void> Journal::Flush() {
  TRY_VOID(CheckUsable());
  const auto bytes = file_.Size();
  auto flushed = bytes.ok() ? file_.Flush() : Result<void>(bytes.error());
  if (!flushed.ok()) {
    failed_ = true;
    return std::move(flushed.error()).WithContext("flushing the image");
  }
  flushed_bytes_ = *bytes;
  if (log_) log_->Flushed();
  return {};
}

Result<void> Journal::Commit(const std::vector<Page>& pages, bool flush_first) {
  KVMBUS_ASSERT(is_open());
  TRY_VOID(CheckUsable());
  TRY_VOID(Apply());
  if (flush_first) TRY_VOID(Flush());
  if (!log_->HasRoom(pages.size())) TRY_VOID(MakeRoom());
  std::vector<LogWriter::Page> log_pages;
  for (const Page& page : pages) log_pages.push_back({page.file_offset, page.content});
  const uint64_t file_bytes = TRY(file_.Size());
  TRY_VOID(log_->Append(log_pages, flushed_bytes_, file_bytes));
  TRY_VOID(Flush());
  unapplied_ = pages;
  // The change is durable already: a failure here is the next commit's.
  (void)Apply();
  return {};
}

/// All entries are applied: an empty entry takes their place.
Result<void> Journal::MakeRoom() {
  TRY_VOID(Flush());
  const uint64_t file_bytes = TRY(file_.Size());
  TRY_VOID(log_->Append({}, flushed_bytes_, file_bytes));
  return Flush();
}

Result<void> Journal::Apply() {
  for (const Page& page : unapplied_)
    TRY_VOID_CTX(file_.Write(page.content, page.file_offset), "writing metadata at {:#x}",
                 page.file_offset);
  unapplied_.clear();
  log_->Applied();
  return {};
}

Result<void> Journal::Close() {
  if (!is_open()) return {};
  TRY_VOID(Apply());
  TRY_VOID(Flush());
  ActiveHeader clean = header_;
  clean.header.log_guid = {};
  TRY_VOID(PublishHeader(clean));
  log_.reset();
  data_guid_is_new_ = false;
  return {};
}

Result<void> Journal::PublishHeader(const ActiveHeader& next) {
  ActiveHeader written = next;
  auto published = WriteNextHeader(file_, &written);
  // Nobody knows which header counts now: another log could make it wrong.
  if (!published.ok())
    failed_ = true;
  else
    header_ = written;
  return published;
}

}  // namespace kvmbus::virtdev::vhdx
