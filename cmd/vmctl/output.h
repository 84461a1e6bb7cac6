// SPDX-License-Identifier: Apache-2.0
/// \file
/// What vmctl prints: tables for people, JSON for programs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace kvmbus::cmd {

enum class Format { kTable, kJson };

/// A JSON value as far as vmctl needs it; objects keep the order of their members.
class Json {
 public:
  static Json Text(std::string_view text) { return Json(Quote(text)); }
  static Json Number(uint64_t value) { return Json(std::to_string(value)); }
  static Json Boolean(bool value) { return Json(value ? "true" : "false"); }
  static Json Array(const std::vector<Json>& items);
  static Json Object(const std::vector<std::pair<std::string, Json>>& members);
  const std::string& text() const { return text_; }

 private:
  explicit Json(std::string text) : text_(std::move(text)) {}
  static std::string Quote(std::string_view text);
  std::string text_;
};

/// Rows of cells, the first row the head; columns as wide as their widest cell.
void PrintTable(const std::vector<std::vector<std::string>>& rows);

/// "512 MiB", "1.5 GiB".
std::string HumanBytes(uint64_t bytes);
/// "512M", "8GiB", "1048576": bytes; false if it is none.
bool ParseBytes(const std::string& text, uint64_t* bytes);
/// "3 s", "2 h 5 min".
std::string HumanDuration(uint64_t ns);

}  // namespace kvmbus::cmd
