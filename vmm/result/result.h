// SPDX-License-Identifier: Apache-2.0
/// \file
/// Result<T>: how a failure of the host or of the user travels. A programmer's error is
/// KVMBUS_ASSERT; a guest's misbehaviour is neither (see docs/architecture.md, "Three kinds of
/// fault").
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <type_traits>
#include <utility>
#include <vector>

namespace kvmbus::vmm {

/// gRPC's canonical status codes, with their numbers, so that the API maps them one to one.
enum class Code {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
};

/// The code of this number, as a peer or a file gives it; kUnknown for one that is no failure's.
Code CodeFromNumber(uint32_t number);

/// The canonical code that an errno value stands for (ENOENT: kNotFound, EACCES: kPermissionDenied,
/// ...).
Code CodeFromErrno(int sys_errno);

/// One failure: a code, the errno behind it (0 if none), and the chain of what was being done.
class [[nodiscard]] Error {
 public:
  Error(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  /// Reads `errno`'s value as given: "open: No such file or directory".
  static Error FromErrno(int sys_errno, std::string_view what);

  Code code() const { return code_; }
  int sys_errno() const { return sys_errno_; }
  const std::string& message() const { return message_; }

  /// Adds what was being done, outermost last: "starting VM 'web'" before "opening disk 'a.vhdx'".
  Error&& WithContext(std::string context) && {
    contexts_.push_back(std::move(context));
    return std::move(*this);
  }

  /// "starting VM 'web': opening disk 'a.vhdx': No such file or directory", on one line.
  std::string ToString() const;

 private:
  Code code_;
  int sys_errno_ = 0;
  std::string message_;
  std::vector<std::string> contexts_;
};

template <typename T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using Base = tl::expected<T, Error>;
  using Base::Base;
  Result(Base&& base) : Base(std::move(base)) {}  // NOLINT: implicit on purpose
  Result(Error error)
      : Base(tl::make_unexpected(std::move(error))) {}  // NOLINT: implicit on purpose
  bool ok() const { return this->has_value(); }
};

template <typename... Args>
Error MakeError(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Error(code, fmt::format(format, std::forward<Args>(args)...));
}

namespace internal {
[[noreturn]] void AssertFailed(const char* expression, const char* file, int line);
}  // namespace internal

}  // namespace kvmbus::vmm

/// A programmer's error ends the process, in release builds too. Never on what a guest, a peer, a
/// file or a client sent.
#define KVMBUS_ASSERT(expression)      \
  (__builtin_expect(!!(expression), 1) \
       ? (void)0                       \
       : ::kvmbus::vmm::internal::AssertFailed(#expression, __FILE__, __LINE__))

/// Yields the value of a Result, or returns its error from the enclosing function.
#define TRY(expression)                                                \
  ({                                                                   \
    auto try_result = (expression);                                    \
    if (!try_result.has_value()) return std::move(try_result.error()); \
    std::move(try_result).value();                                     \
  })

/// TRY for Result<void>.
#define TRY_VOID(expression)                                           \
  do {                                                                 \
    auto try_result = (expression);                                    \
    if (!try_result.has_value()) return std::move(try_result.error()); \
  } while (false)

/// TRY that adds a context: TRY_CTX(OpenFile(path), "opening disk '{}'", path).
#define TRY_CTX(expression, ...)                                                  \
  ({                                                                              \
    auto try_result = (expression);                                               \
    if (!try_result.has_value())                                                  \
      return std::move(try_result.error()).WithContext(fmt::format(__VA_ARGS__)); \
    std::move(try_result).value();                                                \
  })

#define TRY_VOID_CTX(expression, ...)                                             \
  do {                                                                            \
    auto try_result = (expression);                                               \
    if (!try_result.has_value())                                                  \
      return std::move(try_result.error()).WithContext(fmt::format(__VA_ARGS__)); \
  } while (false)
