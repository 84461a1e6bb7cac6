// SPDX-License-Identifier: Apache-2.0
// A new child of a disk in use. The order that survives a crash: the old top is whole and closed,
// the child is whole and durable, then it gets its name.
#include <unistd.h>

#include "virtdev/disk/image_format.h"
#include "virtdev/disk/live/live_disk.h"
#include "virtdev/disk/vhd/vhd_create.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

Result<void> CheckTop(Chain& chain) {
  const Image& top = chain.top();
  if (top.info().read_only)
    return vmm::Error(Code::kFailedPrecondition,
                      "the disk is attached read-only: its image can have children as it is");
  if (top.format() == "raw")
    return MakeError(
        Code::kUnimplemented,
        "'{}' is a raw image, which cannot have a child: while nobody uses it, convert "
        "it to VHDX with 'vmctl disk convert'",
        chain.paths().front());
  if (chain.layers().size() == Chain::kMaxLayers)
    return MakeError(Code::kOutOfRange, "'{}' has {} images below it: merge some of them",
                     chain.paths().front(), Chain::kMaxLayers - 1);
  return {};
}

/// Its name has appeared, and nothing is to come of it.
vmm::Error Withdraw(const std::string& path, vmm::Error error) {
  if (error.code() != Code::kAlreadyExists) ::unlink(path.c_str());
  return error;
}

Result<std::unique_ptr<Image>> PublishChild(NewFile file, const std::string& path,
                                            ImageFormat format) {
  auto published = file.Publish();
  if (!published.ok()) return Withdraw(path, std::move(published.error()));
  auto image = OpenImageFile(file.Take(), format, false);
  if (!image.ok()) return Withdraw(path, std::move(image.error()));
  return image;
}

}  // namespace

Result<LiveChild> PrepareLiveChild(LiveChain& live, const std::string& path) {
  Chain& chain = live.chain();
  TRY_VOID(CheckTop(chain));
  LiveChild child;
  child.path = path;
  child.options.parent = chain.paths().front();
  child.options.format = chain.top().format();
  if (const uint64_t block_bytes = chain.top().block_bytes(); block_bytes != 0)
    child.options.block_bytes = static_cast<uint32_t>(block_bytes);
  TRY_VOID(CheckFindsLayers(path, chain, 0));
  TRY_VOID(chain.top().Flush());  // most of what the flush in the hold would have to do
  // A first write would give the parent another identity meanwhile.
  const auto made = live.Hold([&]() -> Result<void> {
    child.parent = chain.top().identity();
    child.file.emplace(TRY(NewChildFile(path, child.options, chain.top())));
    return {};
  });
  TRY_VOID(made);
  TRY_VOID(child.file->file().Flush());
  return child;
}

Result<void> SwitchToLiveChild(LiveChain& live, LiveChild child, const TopMoves& top_moves) {
  Chain& chain = live.chain();
  return live.Hold([&]() -> Result<void> {
    Image& parent = chain.top();
    TRY_VOID(parent.Close());
    // A VHDX has got another one by the first write since it was opened. Both files may have one
    // temporary name: the former goes first.
    if (parent.identity() != child.parent) {
      child.file.reset();
      child.file.emplace(TRY(NewChildFile(child.path, child.options, parent)));
    }
    if (parent.format() == "vhd")
      TRY_VOID(StampVhdChild(child.file->file(), ModifiedOf(parent.file())));
    if (top_moves) TRY_VOID(top_moves(child.path));
    auto top = TRY(PublishChild(std::move(*child.file), child.path, FormatNamed(parent.format())));
    ApplyCaching(*top, CachingOf(parent), child.path);
    // An exclusive lock would keep readers away, no more.
    (void)ShareLock(parent.file(), parent.file());
    chain.PushTop(std::move(top), child.path);
    return {};
  });
}

Result<void> CreateLiveChild(LiveChain& live, const std::string& path, const TopMoves& top_moves) {
  return SwitchToLiveChild(live, TRY(PrepareLiveChild(live, path)), top_moves);
}

}  // namespace kvmbus::virtdev
