// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/disk_operations.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "vmm/checkpoint/checkpoint_tree.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kFindTimeoutNs = 60'000'000'000;
constexpr uint64_t kChangeTimeoutNs = 600'000'000'000;
constexpr uint64_t kMergeTimeoutNs = 7 * 24 * 3600 * uint64_t{1'000'000'000};  // it has a progress

/// The name that a merged top has left; it leads to the parent.
void RemoveOldName(const std::string& path) {
  struct stat status = {};
  if (::lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode)) ::unlink(path.c_str());
}

/// What a machine that uses the file says, and not that there is none.
Error ByItsUser(Error error) {
  if (error.code() != Code::kNotFound) return error;
  return Error(Code::kFailedPrecondition, error.ToString());
}

bool MayStillHappen(const Error& error) {
  return error.code() == Code::kUnavailable || error.code() == Code::kDeadlineExceeded;
}

}  // namespace

struct DiskOperations::Search {
  worker::Request request;
  Found found;
  std::vector<std::string> left;  // ids of the machines that are still to be asked
};

namespace {

Error StandsInTheWay(const config::Vm& vm, const std::string& path) {
  return MakeError(
      Code::kFailedPrecondition,
      "checkpoints of '{}' stand on '{}': delete them ('vmctl checkpoint delete'), and "
      "vmmd merges what they leave",
      vm.name(), path);
}

}  // namespace

Result<void> DiskOperations::CheckByHand(const std::string& path, ByHand what) const {
  const std::string real = RealPath(path).value_or(path);
  const auto is_it = [&](const std::string& file) { return file == path || file == real; };
  for (const VmView& view : inventory_.List()) {
    const config::Vm& vm = view.config;
    const CheckpointMap checkpoints = inventory_.Checkpoints(vm.id());
    const bool is_merged = what != ByHand::kResize && WritesTo(vm, real);
    if ((is_merged && !checkpoints.empty()) || is_it(vm.merging().file()) ||
        is_it(vm.merging().into()) ||
        std::any_of(vm.unneeded_disks().begin(), vm.unneeded_disks().end(), is_it) ||
        std::any_of(checkpoints.begin(), checkpoints.end(),
                    [&real](const auto& one) { return WritesTo(one.second, real); }))
      return StandsInTheWay(vm, path);
    if (is_merged && what == ByHand::kOfflineMerge && view.status.pid() == 0)
      return MakeError(Code::kFailedPrecondition,
                       "'{}' is a disk of '{}', which would not find it: merge it while that runs, "
                       "or detach it first and attach its parent then",
                       path, vm.name());
  }
  return {};
}

void DiskOperations::Find(const std::string& path, Found found) {
  auto search = std::make_shared<Search>();
  search->request.mutable_find_disk()->set_path(path);
  search->found = std::move(found);
  for (const VmView& view : inventory_.List()) {
    if (view.status.pid() != 0) search->left.push_back(view.config.id());
  }
  AskNext(std::move(search));
}

void DiskOperations::AskNext(std::shared_ptr<Search> search) {
  if (search->left.empty())
    return search->found(MakeError(Code::kNotFound, "no running virtual machine uses '{}'",
                                   search->request.find_disk().path()));
  const std::string id = search->left.back();
  search->left.pop_back();
  inventory_.Call(id, search->request, kFindTimeoutNs,
                  [this, id, search](const Result<worker::Reply>& reply) {
                    if (!reply.ok() || !reply->has_disk_place()) return AskNext(search);
                    search->found(Place{id, reply->disk_place()});
                  });
}

void DiskOperations::Resize(const std::string& path, uint64_t size_bytes, Done done) {
  if (inventory_.ServesShared(path)) return inventory_.GrowShared(path, size_bytes, done);
  Find(path, [this, path, size_bytes, done](const Result<Place>& place) {
    if (!place.ok()) return done(place.error());
    if (place->disk.layer() != 0)
      return done(MakeError(Code::kFailedPrecondition,
                            "'{}' has a child that is in use: the disk is as large as '{}', resize "
                            "that one",
                            path, place->disk.path()));
    worker::Request request;
    request.mutable_resize_disk()->set_controller(place->disk.controller());
    request.mutable_resize_disk()->set_lun(place->disk.lun());
    request.mutable_resize_disk()->set_size_bytes(size_bytes);
    inventory_.Call(place->vm, std::move(request), kChangeTimeoutNs,
                    [done](const Result<worker::Reply>& reply) {
                      done(reply.ok() ? Result<void>() : ByItsUser(reply.error()));
                    });
  });
}

void DiskOperations::CreateChild(const std::string& parent, const std::string& path, Done done) {
  struct stat status = {};
  if (path.empty() || path.front() != '/')
    return done(MakeError(Code::kInvalidArgument, "the child's path '{}' is not absolute", path));
  // A file that is there would be taken for the child if the worker were killed now.
  if (::lstat(path.c_str(), &status) == 0)
    return done(MakeError(Code::kAlreadyExists,
                          "'{}' exists already; choose another name, or delete it first", path));
  Find(parent, [this, parent, path, done](const Result<Place>& place) {
    if (!place.ok()) return done(place.error());
    if (place->disk.layer() != 0)
      return done(MakeError(Code::kFailedPrecondition,
                            "'{}' has a child that is in use: it is '{}' that can get one", parent,
                            place->disk.path()));
    StartChild(*place, path, done);
  });
}

Result<void> DiskOperations::BeginChange(const std::string& vm) {
  return whom_ == For::kUser ? inventory_.BeginChange(vm) : Result<void>();
}

void DiskOperations::EndChange(const std::string& vm) {
  if (whom_ == For::kUser) inventory_.EndChange(vm);
}

void DiskOperations::StartChild(const Place& place, const std::string& path, Done done) {
  if (const auto free = BeginChange(place.vm); !free.ok()) return done(free);
  done = [this, vm = place.vm, done = std::move(done)](const Result<void>& result) {
    EndChange(vm);
    done(result);
  };
  const uint32_t controller = place.disk.controller(), lun = place.disk.lun();
  bool busy = false;
  const auto noted = inventory_.ChangeDisk(place.vm, controller, lun, [&](config::Disk* disk) {
    busy = !disk->next().empty();
    if (!busy) disk->set_next(path);
  });
  if (!noted.ok()) return done(noted);
  if (busy)
    return done(Error(Code::kFailedPrecondition, "another child of this disk is being made"));
  worker::Request request;
  request.mutable_create_child()->set_controller(controller);
  request.mutable_create_child()->set_lun(lun);
  request.mutable_create_child()->set_path(path);
  inventory_.Call(place.vm, std::move(request), kChangeTimeoutNs,
                  [this, place, done](const Result<worker::Reply>& reply) {
                    if (reply.ok()) return done(ChildIsMade(place));
                    // A worker that went may have made it: the next start sees.
                    if (MayStillHappen(reply.error())) {
                      inventory_.FollowChildren(place.vm);
                    } else {
                      (void)inventory_.ChangeDisk(place.vm, place.disk.controller(),
                                                  place.disk.lun(),
                                                  [](config::Disk* disk) { disk->clear_next(); });
                    }
                    done(reply.error());
                  });
}

Result<void> DiskOperations::ChildIsMade(const Place& place) {
  return inventory_.ChangeDisk(place.vm, place.disk.controller(), place.disk.lun(),
                               [](config::Disk* disk) {
                                 disk->set_path(disk->next());
                                 disk->clear_next();
                               });
}

void DiskOperations::Merge(const std::string& path, Done done) {
  Find(path, [this, done](const Result<Place>& place) {
    if (!place.ok()) return done(place.error());
    if (const auto free = BeginChange(place->vm); !free.ok()) return done(free);
    worker::Request request;
    request.mutable_merge_disk()->set_controller(place->disk.controller());
    request.mutable_merge_disk()->set_lun(place->disk.lun());
    request.mutable_merge_disk()->set_layer(place->disk.layer());
    inventory_.Call(place->vm, std::move(request), kMergeTimeoutNs,
                    [this, place = *place, done](const Result<worker::Reply>& reply) {
                      EndChange(place.vm);
                      if (!reply.ok()) return done(ByItsUser(reply.error()));
                      const std::string now = reply->disk_place().path();
                      std::string before;
                      const auto stored =
                          inventory_.ChangeDisk(place.vm, place.disk.controller(), place.disk.lun(),
                                                [&](config::Disk* disk) {
                                                  before = disk->path();
                                                  disk->set_path(now);
                                                });
                      if (stored.ok() && before != now) RemoveOldName(before);
                      done(stored);
                    });
  });
}

void DiskOperations::Cancel(const std::string& path, Done done) {
  Find(path, [this, done](const Result<Place>& place) {
    if (!place.ok()) return done(place.error());
    worker::Request request;
    request.mutable_cancel_disk_change()->set_controller(place->disk.controller());
    request.mutable_cancel_disk_change()->set_lun(place->disk.lun());
    inventory_.Call(place->vm, std::move(request), kFindTimeoutNs,
                    [done](const Result<worker::Reply>& reply) {
                      done(reply.ok() ? Result<void>() : reply.error());
                    });
  });
}

}  // namespace kvmbus::vmm
