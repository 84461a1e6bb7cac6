// SPDX-License-Identifier: Apache-2.0
// Merging a layer of a disk in use into the one below it. The order that survives a crash:
//   the layer that is merged learns what identity the one below it is about to take, if it takes
//   another one (a VHD does not);
//   while it is copied, what it has hides what that one gets, so that the chain shows the same at
//   any moment. Of a top, what is written during the copy is copied again, the last of it while no
//   request is under way;
//   when the lower one is durable with all of it, the layer above is linked to it; a top's name
//   leads to it. That is the switch. The file that was merged is of no use any more.
#include <algorithm>

#include "virtdev/disk/live/live_disk.h"
#include "virtdev/disk/tools/image_merge.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

/// So much may be left to copy while the guest waits.
constexpr uint64_t kLittleBytes = 8u << 20;
/// A guest that writes faster than we copy waits longer.
constexpr int kMaxPasses = 12;

class LiveMerge {
 public:
  LiveMerge(LiveChain& live, size_t layer, MergeFiles& files, const Progress& progress)
      : live_(live), chain_(live.chain()), layer_(layer), files_(files), progress_(progress) {}

  Result<void> Run(const TopMoves& top_moves) {
    TRY_VOID(Check());
    auto result = OpenForWriting();
    if (!result.ok()) {
      ReturnLocks();
      return result;
    }
    TRY_VOID(live_.Hold([this] { return Enter(); }));
    result = Copy();
    if (result.ok()) result = is_top() ? SwitchTop(top_moves) : Relink();
    Leave();
    return result;
  }

 private:
  bool is_top() const { return layer_ == 0; }
  Image& child() { return *chain_.layers()[layer_]; }
  Image& parent() { return *chain_.layers()[layer_ + 1]; }

  Result<void> Check() {
    if (layer_ + 1 >= chain_.layers().size())
      return MakeError(Code::kInvalidArgument,
                       "'{}' is no differencing disk: there is nothing to merge",
                       chain_.paths()[layer_]);
    if (child().format() != parent().format())
      return MakeError(Code::kInvalidArgument, "'{}', the parent of '{}', has another format",
                       chain_.paths()[layer_ + 1], chain_.paths()[layer_]);
    if (chain_.info().read_only)
      return Error(Code::kFailedPrecondition,
                   "the disk is attached read-only: merge it while nobody uses it");
    TRY_VOID_CTX(CheckMergePair(child(), parent()), "'{}'", chain_.paths()[layer_]);
    return is_top() ? files_.CheckNextTop(chain_) : Result<void>();
  }

  /// Reopens the layers below the top that the merge writes to: the layer above the merged one,
  /// whose parent changes; the merged layer, where the merge is announced; and the layer below it,
  /// which takes its data.
  Result<void> OpenForWriting() {
    for (size_t i = std::max<size_t>(layer_, 2) - 1; i <= layer_ + 1; ++i) {
      const std::string& path = chain_.paths()[i];
      BlockFile& former = chain_.layers()[i]->file();
      const ImageFormat format = FormatNamed(chain_.layers()[i]->format());
      auto image = OpenForMerge(TRY(files_.Reopen(path, former)), format,
                                i == layer_ + 1 ? next_ : vmm::Guid());
      if (!image.ok()) {
        files_.Share(former, former);  // the lock went with the file
        return std::move(image.error()).WithContext(fmt::format("'{}'", path));
      }
      opened_.push_back({i, image->get(), std::move(image).value()});
    }
    return {};
  }

  void ReturnLocks() {
    for (const Opened& one : opened_)
      files_.Share(one.image->file(), chain_.layers()[one.layer]->file());
  }

  /// Puts the images that were opened for writing into the chain. Requests are held meanwhile.
  Result<void> Enter() {
    for (Opened& one : opened_) one.owned = chain_.ReplaceLayer(one.layer, std::move(one.owned));
    if (is_top()) {
      log_ = std::make_shared<WriteLog>(chain_.info().size_bytes);
      live_.SetWriteLog(log_);
    }
    return {};
  }

  Result<void> Copy() {
    TRY_VOID_CTX(AnnounceMerge(child(), parent(), next_), "announcing the merge");
    total_ = child().info().size_bytes;
    if (parent().info().size_bytes < total_)
      TRY_VOID(live_.Hold([this] { return parent().Grow(total_); }));
    for (uint64_t at = 0; at < total_; at += kMergePiece) {
      const uint64_t length = std::min(kMergePiece, total_ - at);
      TRY_VOID(CopyRange(at, length));
      TRY_VOID(Report(at + length));
    }
    for (int pass = 0; is_top() && pass < kMaxPasses && log_->marked_bytes() > kLittleBytes; ++pass)
      TRY_VOID(CopyMarked(true));
    // The hold then has little to flush.
    return parent().Flush();
  }

  Result<void> Report(uint64_t done) {
    if (!progress_ || progress_(done, total_)) return {};
    return Error(Code::kCancelled, "cancelled; the chain is whole, and can be merged again");
  }

  /// Within the gate: the guest may give up a place in the top while it is read.
  Result<void> CopyRange(uint64_t offset, uint64_t length) {
    const uint32_t token = chain_.gate().Enter();
    auto result = MergeRange(child(), offset, length, parent());
    chain_.gate().Leave(token);
    return result.ok() && parent().WantsFlush() ? parent().Flush() : result;
  }

  Result<void> CopyMarked(bool may_cancel) {
    Result<void> result;
    log_->Take([&](uint64_t offset, uint64_t length) {
      result = CopyRange(offset, length);
      if (result.ok() && may_cancel) result = Report(total_);
      return result.ok();
    });
    return result;
  }

  Result<void> SwitchTop(const TopMoves& top_moves) {
    return live_.Hold([&]() -> Result<void> {
      const std::string path = chain_.paths()[0], to = chain_.paths()[1];
      TRY_VOID(CopyMarked(false));
      TRY_VOID(parent().Flush());
      if (top_moves) TRY_VOID(top_moves(to));
      TRY_VOID(files_.Redirect(path, to));
      ApplyCaching(parent(), CachingOf(child()), to);
      removed_ = chain_.RemoveLayer(0);
      return {};
    });
  }

  /// The one above goes past the layer.
  Result<void> Relink() {
    const std::string path = chain_.paths()[layer_];
    const std::string &above_path = chain_.paths()[layer_ - 1], &to = chain_.paths()[layer_ + 1];
    ParentReference reference;
    reference.paths = TRY(files_.PathsTo(above_path, to));
    const auto switched = live_.Hold([&]() -> Result<void> {
      Image& above = *chain_.layers()[layer_ - 1];
      TRY_VOID(child().Close());
      TRY_VOID(parent().Close());
      reference.linkage = {parent().identity()};
      reference.modified = ModifiedOf(parent().file());
      TRY_VOID_CTX(above.Relink(reference), "linking '{}' anew", above_path);
      if (layer_ > 1) TRY_VOID(above.Close());
      removed_ = chain_.RemoveLayer(layer_);
      return {};
    });
    return switched.ok() ? files_.Remove(path) : switched;
  }

  /// However it went: what is not the top is closed, and others may read it. Nobody may read a
  /// place that a close cuts off.
  void Leave() {
    (void)live_.Hold([this]() -> Result<void> {
      live_.SetWriteLog(nullptr);
      for (size_t i = 1; i < chain_.layers().size(); ++i) {
        Image& image = *chain_.layers()[i];
        const auto is_it = [&image](const Opened& one) { return one.image == &image; };
        if (std::none_of(opened_.begin(), opened_.end(), is_it)) continue;
        const auto closed = image.Close();
        if (!closed.ok())
          spdlog::error("closing '{}': {}", chain_.paths()[i], closed.error().ToString());
        files_.Share(image.file(), image.file());
      }
      return {};
    });
  }

  /// A layer that was opened for writing.
  struct Opened {
    size_t layer;
    Image* image;
    std::unique_ptr<Image> owned;  // itself; once it is in the chain the one that it replaced
  };

  LiveChain& live_;
  Chain& chain_;
  const size_t layer_;
  MergeFiles& files_;
  const Progress& progress_;
  const vmm::Guid next_ = vmm::Guid::Random();
  uint64_t total_ = 0;
  std::vector<Opened> opened_;
  std::shared_ptr<WriteLog> log_;  // a top's
  std::unique_ptr<Image> removed_;
};

}  // namespace

Result<void> MergeLiveLayer(LiveChain& live, size_t layer, MergeFiles& files,
                            const Progress& progress, const TopMoves& top_moves) {
  return LiveMerge(live, layer, files, progress).Run(top_moves);
}

}  // namespace kvmbus::virtdev
