// SPDX-License-Identifier: Apache-2.0
#include "vmm/result/result.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace kvmbus::vmm {

Code CodeFromNumber(uint32_t number) {
  return number >= 1 && number <= 15 ? static_cast<Code>(number) : Code::kUnknown;
}

Code CodeFromErrno(int sys_errno) {
  switch (sys_errno) {
    case 0:
      return Code::kOk;
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return Code::kNotFound;
    case EEXIST:
      return Code::kAlreadyExists;
    case EACCES:
    case EPERM:
    case EROFS:
      return Code::kPermissionDenied;
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
      return Code::kResourceExhausted;
    case EINVAL:
    case EISDIR:
    case ENOTDIR:
    case ENAMETOOLONG:
      return Code::kInvalidArgument;
    case EBUSY:
    case EAGAIN:
    case ETXTBSY:
      return Code::kUnavailable;
    case ETIMEDOUT:
      return Code::kDeadlineExceeded;
    case ECANCELED:
      return Code::kCancelled;
    case ENOSYS:
    case EOPNOTSUPP:
      return Code::kUnimplemented;
    case ERANGE:
    case EFBIG:
      return Code::kOutOfRange;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case ENOTCONN:
      return Code::kUnavailable;
    case EIO:
      return Code::kDataLoss;
    default:
      return Code::kInternal;
  }
}

Error Error::FromErrno(int sys_errno, std::string_view what) {
  char buffer[128];
  const char* text = strerror_r(sys_errno, buffer, sizeof(buffer));
  Error error(CodeFromErrno(sys_errno), fmt::format("{}: {}", what, text));
  error.sys_errno_ = sys_errno;
  return error;
}

std::string Error::ToString() const {
  std::string text;
  for (auto it = contexts_.rbegin(); it != contexts_.rend(); ++it) {
    text += *it;
    text += ": ";
  }
  return text + message_;
}

namespace internal {

void AssertFailed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expression);
  std::abort();
}

}  // namespace internal
}  // namespace kvmbus::vmm
