// SPDX-License-Identifier: Apache-2.0
/// \file
/// Files: opening, whole reads, atomic replacement, and locks of open files.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "vmm/os/fd.h"

namespace kvmbus::vmm {

/// open(2) with O_CLOEXEC. The error names the path.
Result<Fd> OpenFile(const std::string& path, int flags, mode_t mode = 0644);

/// To read what somebody else may have put there: never waits, as a FIFO would, and follows no
/// symbolic link in place of the file. Refuses whatever is no regular file.
Result<Fd> OpenRegularFile(const std::string& path);

/// Reads a whole file; refuses one over `limit_bytes` (kOutOfRange).
Result<std::string> ReadWholeFile(const std::string& path, uint64_t limit_bytes = 16u << 20);

/// New file, fsync, rename over the old, fsync of the folder: a reader sees the old or the new.
Result<void> ReplaceFile(const std::string& path, std::string_view content, mode_t mode = 0644);

/// A file without a name: of it nothing is left, whatever happens, unless it gets one. Not every
/// file system has them.
Result<Fd> OpenNameless(const std::string& folder, int flags, mode_t mode);
/// Where a descriptor is a name.
std::string NameOfFd(int fd);
/// Gives a file without a name one that nobody has. < 0: errno says why not (EEXIST).
int GiveName(int fd, const std::string& path);

/// What follows the name of a large file while it is written, by somebody who renames it when it
/// is whole; who is killed leaves it.
inline constexpr std::string_view kUnfinishedSuffix = ".new";

/// Of what is to get the name `path` when it is whole; no other process's.
std::string TemporaryName(const std::string& path);
/// The files with such a name for `path`: their writers run yet, or were killed.
std::vector<std::string> UnfinishedOf(const std::string& path);
/// Removes what had such a name, in the folder or for the one path, when its writer was killed.
/// Only where nobody can be writing.
void RemoveUnfinished(const std::string& folder);
void RemoveUnfinishedOf(const std::string& path);

/// A second name for a file, in place of what has that name; where the file system has no second
/// names, a copy. Done twice it is done once, for `from` stays; kNotFound if it is not there.
Result<void> LinkFile(const std::string& from, const std::string& to);
/// Removes a name, durably; it need not be there.
Result<void> RemoveFile(const std::string& path);

bool FileExists(const std::string& path);
/// "." for a name alone.
std::string FolderOf(const std::string& path);
Result<uint64_t> FileSize(int fd);
Result<void> SyncFile(int fd);  ///< fdatasync
Result<void> SyncFolder(const std::string& path);
Result<void> MakeFolders(const std::string& path, mode_t mode = 0755);  ///< mkdir -p
/// One that is not there yet (kAlreadyExists), in a folder that is, durably.
Result<void> MakeNewFolder(const std::string& path, mode_t mode);
/// The path of what is there, without symbolic links.
Result<std::string> RealPath(const std::string& path);

enum class LockKind { kShared, kExclusive };
/// An OFD lock on the whole file, without waiting: kUnavailable if another holder has it. Held
/// until the last descriptor of this open file is closed, so that it survives being passed to
/// another process.
Result<void> LockFile(int fd, LockKind kind);
/// A shared lock that `from` has becomes a lock of `to`, another open of the same file, with no
/// moment in between at which a third could take it. kUnavailable: a third shares it; all stays as
/// it was.
Result<void> HandOverLock(int from, int to, LockKind kind);

}  // namespace kvmbus::vmm
