// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/xml_tree.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <pugixml.hpp>

#include "vmm/text/base64.h"
#include "vmm/text/utf16.h"

namespace kvmbus::vmm {
namespace {

constexpr uint32_t kMaxDepth = 64;

Error Damage(std::string what) { return Error(Code::kDataLoss, std::move(what)); }

std::span<const uint8_t> AsBytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// ---- reading

/// The text without its mark; a declaration that says something else is wrong about itself.
Result<std::string> DecodeFile(std::string_view file) {
  const auto starts = [&](std::string_view mark) { return file.substr(0, mark.size()) == mark; };
  constexpr std::string_view kUtf8Mark = "\xef\xbb\xbf", kLittle = "\xff\xfe", kBig = "\xfe\xff";
  std::optional<std::string> text;
  if (starts(kLittle) || starts(std::string_view("<\0", 2))) {
    text = Utf16ToUtf8(AsBytes(file.substr(starts(kLittle) ? 2 : 0)), std::endian::little);
  } else if (starts(kBig) || starts(std::string_view("\0<", 2))) {
    text = Utf16ToUtf8(AsBytes(file.substr(starts(kBig) ? 2 : 0)), std::endian::big);
  } else {
    if (starts(kUtf8Mark)) file.remove_prefix(kUtf8Mark.size());
    if (Utf8ToUtf16(file, std::endian::little)) text = std::string(file);
  }
  if (!text) return Damage("it is neither UTF-16 nor UTF-8");
  return std::move(*text);
}

bool IsXmlCharacter(uint32_t code) {
  return code == '\t' || code == '\n' || code == '\r' ||
         (code >= 0x20 && code <= 0x10ffff && (code & ~0x7ffu) != 0xd800 && (code & ~1u) != 0xfffe);
}

/// "amp", "#13", "#xD".
bool IsReference(std::string_view name) {
  for (const char* known : {"amp", "lt", "gt", "quot", "apos"}) {
    if (name == known) return true;
  }
  if (name.empty() || name[0] != '#') return false;
  name.remove_prefix(1);
  const bool hex = !name.empty() && name[0] == 'x';
  if (hex) name.remove_prefix(1);
  uint32_t code = 0;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), code, hex ? 16 : 10);
  return !name.empty() && parsed.ec == std::errc() && parsed.ptr == name.data() + name.size() &&
         IsXmlCharacter(code);
}

/// The parser leaves alone what it does not know; nothing may change in silence.
Result<void> CheckCharacters(std::string_view text) {
  for (size_t at = 0; at < text.size(); ++at) {
    const auto c = static_cast<uint8_t>(text[at]);
    if (c < 0x20 && !IsXmlCharacter(c))
      return MakeError(Code::kDataLoss, "there is a control character ({:#x})", c);
    if (c != '&') continue;
    const size_t end = text.substr(0, at + 12).find(';', at);
    if (end == std::string_view::npos || !IsReference(text.substr(at + 1, end - at - 1)))
      return MakeError(Code::kDataLoss, "'{}' is no reference to a character",
                       text.substr(at, std::min<size_t>(12, end - at)));
  }
  return {};
}

Result<Key::Value> ParseInteger(std::string_view text) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end)
    return MakeError(Code::kDataLoss, "'{}' is no integer", text.substr(0, 40));
  return Key::Value(value);
}

Result<Key::Value> ParseValue(std::string_view type, std::string_view text) {
  if (type == "string") return Key::Value(std::string(text));
  if (type == "integer") return ParseInteger(text);
  if (type == "bool") {
    if (text == "True" || text == "true") return Key::Value(true);
    if (text == "False" || text == "false") return Key::Value(false);
    return MakeError(Code::kDataLoss, "'{}' is neither True nor False", text.substr(0, 40));
  }
  if (type != "bytes")
    return MakeError(Code::kDataLoss, "its type '{}' is unknown", type.substr(0, 40));
  auto bytes = FromBase64(text);
  if (!bytes) return Damage("its bytes are no Base64");
  return Key::Value(KeyBytes{std::move(*bytes)});
}

bool IsBlank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

Result<Key> ParseElement(const pugi::xml_node& element, uint32_t depth);

Result<void> ParseContent(const pugi::xml_node& element, uint32_t depth, std::string_view type,
                          Key* key) {
  std::string text;
  for (const pugi::xml_node& child : element.children()) {
    const auto kind = child.type();
    if (kind == pugi::node_pcdata || kind == pugi::node_cdata) {
      text += child.value();
    } else if (kind == pugi::node_element) {
      if (!type.empty()) return Damage("it has a type and elements within");
      key->children.push_back(TRY(ParseElement(child, depth + 1)));
    }
  }
  if (!type.empty()) {
    key->value = TRY(ParseValue(type, text));
  } else if (!IsBlank(text)) {
    return Damage("it has a text and no type");
  }
  return {};
}

Result<Key> ParseElement(const pugi::xml_node& element, uint32_t depth) {
  if (depth > kMaxDepth)
    return MakeError(Code::kDataLoss, "elements lie more than {} deep", kMaxDepth);
  Key key{element.name(), {}, {}};
  std::string_view type;
  for (const pugi::xml_attribute& attribute : element.attributes()) {
    if (std::string_view(attribute.name()) != "type" || !type.empty() || *attribute.value() == '\0')
      return MakeError(Code::kDataLoss, "'{}' has an unknown attribute '{}'", key.name,
                       attribute.name());
    type = attribute.value();
  }
  TRY_VOID_CTX(ParseContent(element, depth, type, &key), "'{}'", key.name);
  return key;
}

// ---- writing

bool IsElementName(std::string_view name) {
  const auto is_first = [](unsigned char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' || c >= 0x80;
  };
  return !name.empty() && is_first(static_cast<unsigned char>(name[0])) &&
         std::all_of(name.begin(), name.end(), [&](unsigned char c) {
           return is_first(c) || (c >= '0' && c <= '9') || c == '-' || c == '.';
         });
}

Result<std::string> Escape(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '&')
      escaped += "&amp;";
    else if (c == '<')
      escaped += "&lt;";
    else if (c == '>')
      escaped += "&gt;";
    else if (c == '\r')
      escaped += "&#xD;";  // else it is taken for a part of the line's end
    else if (!IsXmlCharacter(static_cast<uint8_t>(c)))
      return Error(Code::kInvalidArgument, "it has a control character, which XML cannot hold");
    else
      escaped += c;
  }
  return escaped;
}

struct Formatted {
  const char* type;
  std::string text;
};

struct Formatter {
  Result<Formatted> operator()(std::monostate) const { return Formatted{"", ""}; }
  Result<Formatted> operator()(int64_t value) const {
    return Formatted{"integer", std::to_string(value)};
  }
  Result<Formatted> operator()(uint64_t value) const {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return Error(Code::kInvalidArgument, "its number is too large for XML");
    return Formatted{"integer", std::to_string(value)};
  }
  Result<Formatted> operator()(double) const {
    return Error(Code::kInvalidArgument, "XML has no floating-point numbers");
  }
  Result<Formatted> operator()(const std::string& value) const {
    return Formatted{"string", TRY(Escape(value))};
  }
  Result<Formatted> operator()(const KeyBytes& value) const {
    return Formatted{"bytes", ToBase64(value.bytes) + "\r\n"};
  }
  Result<Formatted> operator()(bool value) const {
    return Formatted{"bool", value ? "True" : "False"};
  }
  Result<Formatted> operator()(const FileObject&) const {
    return Error(Code::kInvalidArgument, "its bytes lie in another file");
  }
};

Result<void> FormatElement(const Key& key, uint32_t depth, std::string* out) {
  if (depth > kMaxDepth)
    return MakeError(Code::kInvalidArgument, "keys lie more than {} deep", kMaxDepth);
  if (!IsElementName(key.name))
    return MakeError(Code::kInvalidArgument, "'{}' is no name for an element", key.name);
  const std::string indent(2 * (depth - 1), ' ');
  *out += indent + "<" + key.name;
  if (!key.is_node()) {
    const Formatted value = TRY_CTX(std::visit(Formatter(), key.value), "key '{}'", key.name);
    *out += fmt::format(" type=\"{}\">{}</{}>\r\n", value.type, value.text, key.name);
    return {};
  }
  std::vector<const Key*> children;
  for (const Key& child : key.children) children.push_back(&child);
  std::stable_sort(children.begin(), children.end(),
                   [](const Key* a, const Key* b) { return a->name < b->name; });
  *out += ">\r\n";
  for (const Key* child : children) TRY_VOID(FormatElement(*child, depth + 1, out));
  *out += indent + "</" + key.name + ">\r\n";
  return {};
}

}  // namespace

Result<Key> ParseXmlTree(std::string_view file) {
  if (file.size() > kMaxXmlBytes)
    return MakeError(Code::kOutOfRange, "it has {} bytes; up to {} are read", file.size(),
                     kMaxXmlBytes);
  const std::string text = TRY(DecodeFile(file));
  TRY_VOID(CheckCharacters(text));
  pugi::xml_document document;
  constexpr unsigned kHow = pugi::parse_cdata | pugi::parse_escapes | pugi::parse_eol |
                            pugi::parse_ws_pcdata | pugi::parse_doctype;
  const auto parsed =
      document.load_buffer(text.data(), text.size(), kHow, pugi::xml_encoding::encoding_utf8);
  if (!parsed)
    return MakeError(Code::kDataLoss, "character {}: {}", parsed.offset, parsed.description());
  Key root;
  for (const pugi::xml_node& child : document.children()) {
    if (child.type() == pugi::node_doctype)
      return Damage("it has a document type, which is not read");
    if (child.type() == pugi::node_element) root.children.push_back(TRY(ParseElement(child, 1)));
  }
  if (root.children.size() != 1)
    return MakeError(Code::kDataLoss, "it has {} elements at the top", root.children.size());
  return root;
}

Result<std::string> FormatXmlTree(const Key& root) {
  if (root.children.size() != 1)
    return Error(Code::kInvalidArgument, "XML has one element at the top");
  std::string text = "<?xml version=\"1.0\" encoding=\"UTF-16\" standalone=\"yes\"?>\r\n";
  TRY_VOID(FormatElement(root.children[0], 1, &text));
  const auto wide = Utf8ToUtf16(text, std::endian::little);
  if (!wide) return Error(Code::kInvalidArgument, "a text is no UTF-8");
  return "\xff\xfe" + std::string(wide->begin(), wide->end());
}

}  // namespace kvmbus::vmm
