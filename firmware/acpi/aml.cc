// SPDX-License-Identifier: Apache-2.0
#include "firmware/acpi/aml.h"

#include "vmm/result/result.h"

namespace kvmbus::firmware::aml {
namespace {

enum Opcode : uint8_t {
  kZeroOp = 0x00,
  kOneOp = 0x01,
  kNameOp = 0x08,
  kBytePrefix = 0x0a,
  kWordPrefix = 0x0b,
  kDWordPrefix = 0x0c,
  kStringPrefix = 0x0d,
  kQWordPrefix = 0x0e,
  kScopeOp = 0x10,
  kBufferOp = 0x11,
  kPackageOp = 0x12,
  kMethodOp = 0x14,
  kDualNamePrefix = 0x2e,
  kMultiNamePrefix = 0x2f,
  kExtOpPrefix = 0x5b,
  kAndOp = 0x7b,
  kOrOp = 0x7d,
  kDeviceOp = 0x82,  // after kExtOpPrefix
  kNotifyOp = 0x86,
  kReturnOp = 0xa4,
};

// Resource descriptors (ACPI 6.4, 6.4.2 and 6.4.3)
constexpr uint8_t kIrqNoFlags = 0x22;
constexpr uint8_t kIoPort = 0x47;
constexpr uint8_t kEndTag = 0x79;
constexpr uint8_t kDWordAddressSpace = 0x87;
constexpr uint8_t kQWordAddressSpace = 0x8a;
constexpr uint8_t kMemoryType = 0;
constexpr uint8_t kMinAndMaxFixed = 0x0c;      // producer, positive decode
constexpr uint8_t kCacheableReadWrite = 0x03;  // type-specific flags of memory

template <typename T>
void Put(Bytes* to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to->push_back(static_cast<uint8_t>(value >> (8 * i)));
}

/// PkgLength counts itself, so that its own size depends on what it says.
Bytes WithLength(Bytes opcode, const Bytes& body) {
  size_t length_bytes = 1;
  if (body.size() + 1 > 0x3f) length_bytes = 2;
  if (body.size() + 2 > 0xfff) length_bytes = 3;
  if (body.size() + 3 > 0xfffff) length_bytes = 4;
  const size_t length = body.size() + length_bytes;
  KVMBUS_ASSERT(length < 1u << 28);
  if (length_bytes == 1) {
    opcode.push_back(static_cast<uint8_t>(length));
  } else {
    opcode.push_back(static_cast<uint8_t>((length_bytes - 1) << 6 | (length & 0xf)));
    for (size_t i = 1; i < length_bytes; ++i)
      opcode.push_back(static_cast<uint8_t>(length >> (8 * i - 4)));
  }
  Append(&opcode, body);
  return opcode;
}

void PutNameSegment(Bytes* to, std::string_view name) {
  KVMBUS_ASSERT(!name.empty() && name.size() <= 4);
  for (size_t i = 0; i < 4; ++i) {
    const char c = i < name.size() ? name[i] : '_';
    KVMBUS_ASSERT((c >= 'A' && c <= 'Z') || c == '_' || (i > 0 && c >= '0' && c <= '9'));
    to->push_back(static_cast<uint8_t>(c));
  }
}

Bytes Binary(uint8_t opcode, const Bytes& left, const Bytes& right, const Bytes& target) {
  return Join({{opcode}, left, right, target});
}

template <typename T>
Bytes MemoryProducer(uint8_t tag, T first, T length) {
  Bytes body = {kMemoryType, kMinAndMaxFixed, kCacheableReadWrite};
  Put<T>(&body, 0);  // granularity
  Put<T>(&body, first);
  Put<T>(&body, first + (length - 1));
  Put<T>(&body, 0);  // translation
  Put<T>(&body, length);
  Bytes descriptor = {tag};
  Put(&descriptor, static_cast<uint16_t>(body.size()));
  Append(&descriptor, body);
  return descriptor;
}

}  // namespace

void Append(Bytes* to, const Bytes& more) { to->insert(to->end(), more.begin(), more.end()); }

Bytes Join(Terms terms) {
  Bytes all;
  for (const Bytes& term : terms) Append(&all, term);
  return all;
}

Bytes Integer(uint64_t value) {
  if (value == 0) return {kZeroOp};
  if (value == 1) return {kOneOp};
  Bytes bytes;
  if (value <= 0xff) {
    bytes = {kBytePrefix, static_cast<uint8_t>(value)};
  } else if (value <= 0xffff) {
    bytes = {kWordPrefix};
    Put(&bytes, static_cast<uint16_t>(value));
  } else if (value <= 0xffffffff) {
    bytes = {kDWordPrefix};
    Put(&bytes, static_cast<uint32_t>(value));
  } else {
    bytes = {kQWordPrefix};
    Put(&bytes, value);
  }
  return bytes;
}

Bytes String(std::string_view text) {
  Bytes bytes = {kStringPrefix};
  for (const char c : text) {
    KVMBUS_ASSERT(c > 0);  // ASCII, no terminator within
    bytes.push_back(static_cast<uint8_t>(c));
  }
  bytes.push_back(0);
  return bytes;
}

Bytes EisaId(std::string_view id) {
  KVMBUS_ASSERT(id.size() == 7);
  const auto letter = [id](size_t i) {
    KVMBUS_ASSERT(id[i] >= 'A' && id[i] <= 'Z');
    return static_cast<uint32_t>(id[i] - '@');
  };
  uint32_t value = letter(0) << 26 | letter(1) << 21 | letter(2) << 16;
  for (size_t i = 3; i < 7; ++i) {
    const char c = id[i];
    KVMBUS_ASSERT((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'));
    value |= static_cast<uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10) << (4 * (6 - i));
  }
  Bytes bytes = {kDWordPrefix};
  Put(&bytes, __builtin_bswap32(value));
  return bytes;
}

Bytes Package(Terms elements) {
  Bytes body = {static_cast<uint8_t>(elements.size())};
  Append(&body, Join(elements));
  return WithLength({kPackageOp}, body);
}

Bytes Path(std::string_view path) {
  Bytes bytes;
  if (!path.empty() && path[0] == '\\') {
    bytes.push_back('\\');
    path.remove_prefix(1);
  }
  std::vector<std::string_view> names;
  for (size_t start = 0; start <= path.size();) {
    const size_t dot = std::min(path.find('.', start), path.size());
    names.push_back(path.substr(start, dot - start));
    start = dot + 1;
  }
  if (names.size() == 2) bytes.push_back(kDualNamePrefix);
  if (names.size() > 2) {
    bytes.push_back(kMultiNamePrefix);
    bytes.push_back(static_cast<uint8_t>(names.size()));
  }
  for (const std::string_view name : names) PutNameSegment(&bytes, name);
  return bytes;
}

Bytes Name(std::string_view name, const Bytes& value) {
  return Join({{kNameOp}, Path(name), value});
}

Bytes Scope(std::string_view path, const Bytes& body) {
  return WithLength({kScopeOp}, Join({Path(path), body}));
}

Bytes Device(std::string_view name, const Bytes& body) {
  return WithLength({kExtOpPrefix, kDeviceOp}, Join({Path(name), body}));
}

Bytes Method(std::string_view name, unsigned arguments, const Bytes& body) {
  KVMBUS_ASSERT(arguments <= 7);
  return WithLength({kMethodOp}, Join({Path(name), {static_cast<uint8_t>(arguments)}, body}));
}

Bytes Return(const Bytes& value) { return Join({{kReturnOp}, value}); }

Bytes And(const Bytes& left, const Bytes& right, const Bytes& target) {
  return Binary(kAndOp, left, right, target);
}

Bytes Or(const Bytes& left, const Bytes& right, const Bytes& target) {
  return Binary(kOrOp, left, right, target);
}

Bytes Notify(const Bytes& object, uint64_t value) {
  return Join({{kNotifyOp}, object, Integer(value)});
}

Bytes IoPorts(uint16_t first, uint8_t count) {
  Bytes bytes = {kIoPort, 1};  // decodes 16 bits
  Put(&bytes, first);
  Put(&bytes, first);
  bytes.push_back(1);  // alignment
  bytes.push_back(count);
  return bytes;
}

Bytes Irq(uint8_t irq) {
  KVMBUS_ASSERT(irq < 16);
  Bytes bytes = {kIrqNoFlags};
  Put(&bytes, static_cast<uint16_t>(1u << irq));
  return bytes;
}

Bytes DWordMemoryProducer(uint32_t first, uint32_t length) {
  KVMBUS_ASSERT(length != 0);
  return MemoryProducer<uint32_t>(kDWordAddressSpace, first, length);
}

Bytes QWordMemoryProducer(uint64_t first, uint64_t length) {
  KVMBUS_ASSERT(length != 0);
  return MemoryProducer<uint64_t>(kQWordAddressSpace, first, length);
}

Bytes ResourceTemplate(Terms descriptors) {
  Bytes data = Join(descriptors);
  data.push_back(kEndTag);
  data.push_back(0);  // no checksum
  Bytes body = Integer(data.size());
  Append(&body, data);
  return WithLength({kBufferOp}, body);
}

}  // namespace kvmbus::firmware::aml
