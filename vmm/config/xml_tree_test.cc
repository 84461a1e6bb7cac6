// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/xml_tree.h"

#include <gtest/gtest.h>

#include <limits>

#include "vmm/os/file.h"
#include "vmm/text/utf16.h"

namespace kvmbus::vmm {
namespace {

std::string ToUtf8(const std::string& file) {
  EXPECT_EQ(file.substr(0, 2), "\xff\xfe");
  const auto* bytes = reinterpret_cast<const uint8_t*>(file.data());
  return Utf16ToUtf8({bytes + 2, file.size() - 2}, std::endian::little).value();
}
std::string ToUtf16(const std::string& text, std::endian order) {
  const auto wide = Utf8ToUtf16(text, order).value();
  return std::string(wide.begin(), wide.end());
}

Key Sample() {
  Key root;
  Key& top = root.Make("configuration");
  top.Make("bool").value = true;
  top.Make("bytes").value = KeyBytes{std::string("\0\1\2", 3)};
  top.Make("empty").value = "";
  top.Make("integer").value = std::numeric_limits<int64_t>::min();
  top.Make("node");
  top.Make("text").value = "a & b <c> \"d\"\r\n\tGröße \U0001F600 &amp;";
  top.Make("white").value = "  \n ";
  return root;
}

/// What Windows wrote, read and written, is what Windows wrote.
TEST(XmlTree, TheRealFileComesBack) {
  const std::string real = ReadWholeFile(KVMBUS_CONFIG_TESTDATA "/hyperv-2012r2-gen1.xml").value();
  const auto tree = ParseXmlTree(real);
  ASSERT_TRUE(tree.ok()) << tree.error().ToString();
  EXPECT_EQ(tree->IntOr("configuration/properties/version", 0), 1280);
  EXPECT_EQ(tree->StringOr("configuration/properties/name", ""), "2012R2");
  EXPECT_EQ(
      std::get<KeyBytes>(tree->Find("configuration/properties/creation_time")->value).bytes.size(),
      8u);
  std::string written = ToUtf8(FormatXmlTree(*tree).value());
  std::string lines;
  for (const char c : written) {
    if (c != '\r') lines += c;  // the file lost them on its way here
  }
  EXPECT_EQ(lines, real);
  EXPECT_TRUE(ParseXmlTree(FormatXmlTree(*tree).value()).value() == *tree);
}

TEST(XmlTree, EveryTypeComesBack) {
  const auto again = ParseXmlTree(FormatXmlTree(Sample()).value());
  ASSERT_TRUE(again.ok()) << again.error().ToString();
  EXPECT_TRUE(*again == Sample());
}

TEST(XmlTree, SiblingsAreSortedAndListsKeepTheirOrder) {
  Key root;
  Key& top = root.Make("configuration");
  for (const char* name : {"b", "_x_", "B", "a"}) top.Make(name).value = true;
  for (int64_t i = 0; i < 3; ++i) top.children.push_back({"list", i, {}});
  const auto again = ParseXmlTree(FormatXmlTree(root).value()).value();
  std::string names;
  for (const Key& key : again.children[0].children) names += key.name + " ";
  EXPECT_EQ(names, "B _x_ a b list list list ");
  EXPECT_EQ(again.children[0].children[5].value, Key::Value(int64_t{1}));
}

TEST(XmlTree, ReadsEveryEncodingWhateverTheDeclarationSays) {
  const std::string text = ToUtf8(FormatXmlTree(Sample()).value());
  for (const std::string& file :
       {text, "\xef\xbb\xbf" + text, ToUtf16(text, std::endian::little),
        ToUtf16(text, std::endian::big), "\xfe\xff" + ToUtf16(text, std::endian::big),
        "\xff\xfe" + ToUtf16(text, std::endian::little)}) {
    const auto tree = ParseXmlTree(file);
    ASSERT_TRUE(tree.ok()) << tree.error().ToString();
    EXPECT_TRUE(*tree == Sample());
  }
}

TEST(XmlTree, WhatATreeCannotHoldIsRefused) {
  const std::pair<std::string, const char*> kCases[] = {
      {"", "character 0"},
      {"<a>", "character"},
      {"<a/><b/>", "2 elements at the top"},
      {"<a type='float'>1</a>", "its type 'float' is unknown"},
      {"<a other='x'/>", "unknown attribute 'other'"},
      {"<a type='bool' type='bool'>True</a>", "unknown attribute"},
      {"<a type=''/>", "unknown attribute"},
      {"<a>text</a>", "a text and no type"},
      {"<a type='string'>x<b/></a>", "a type and elements"},
      {"<a type='integer'>12x</a>", "no integer"},
      {"<a type='integer'>9223372036854775808</a>", "no integer"},
      {"<a type='integer'></a>", "no integer"},
      {"<a type='bool'>1</a>", "neither True nor False"},
      {"<a type='bytes'>A</a>", "no Base64"},
      {"<a type='string'>\xff</a>", "neither UTF-16 nor UTF-8"},
      {"<a type='string'>\x01</a>", "control character"},
      {"<a type='string'>&#0;</a>", "no reference"},
      {"<a type='string'>&#xD800;</a>", "no reference"},
      {"<a type='string'>&#99999999999;</a>", "no reference"},
      {"<a type='string'>&other;</a>", "no reference"},
      {"<a type='string'>&</a>", "no reference"},
      {"<!DOCTYPE a [<!ENTITY x \"xx\">]><a type='string'>1</a>", "document type"},
      {"<!DOCTYPE a [<!ENTITY x \"xx\">]><a type='string'>&x;</a>", "no reference"},
      {std::string(5 << 20, ' '), "are read"},
  };
  for (const auto& [file, text] : kCases) {
    const auto tree = ParseXmlTree(file);
    ASSERT_FALSE(tree.ok()) << file;
    EXPECT_NE(tree.error().ToString().find(text), std::string::npos) << tree.error().ToString();
    EXPECT_EQ(tree.error().ToString().find('\n'), std::string::npos);
  }
}

TEST(XmlTree, DepthsUpToTheLimit) {
  const auto nested = [](int depth) {
    std::string text;
    for (int i = 0; i < depth; ++i) text += "<a>";
    for (int i = 0; i < depth; ++i) text += "</a>";
    return text;
  };
  const auto tree = ParseXmlTree(nested(64));
  ASSERT_TRUE(tree.ok());
  EXPECT_TRUE(FormatXmlTree(*tree).ok());
  EXPECT_NE(ParseXmlTree(nested(65)).error().ToString().find("more than 64 deep"),
            std::string::npos);
  EXPECT_FALSE(ParseXmlTree(nested(200'000)).ok());
}

TEST(XmlTree, WhatXmlCannotHoldIsNotWritten) {
  const auto refuse = [](const char* name, Key::Value value, const char* text) {
    Key root;
    root.Make("configuration").children.push_back({name, std::move(value), {}});
    const auto file = FormatXmlTree(root);
    ASSERT_FALSE(file.ok()) << text;
    EXPECT_EQ(file.error().code(), Code::kInvalidArgument);
    EXPECT_NE(file.error().ToString().find(text), std::string::npos) << file.error().ToString();
  };
  refuse("a", 0.5, "no floating-point");
  refuse("a", ~uint64_t{0}, "too large");
  refuse("a", FileObject{0, 1}, "in another file");
  refuse("a", "\x01", "control character");
  refuse("a", "\xff", "no UTF-8");
  refuse("1a", true, "no name for an element");
  refuse("a b", true, "no name for an element");
  refuse("", true, "no name for an element");
  EXPECT_FALSE(FormatXmlTree(Key()).ok());
}

}  // namespace
}  // namespace kvmbus::vmm
