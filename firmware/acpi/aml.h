// SPDX-License-Identifier: Apache-2.0
/// \file
/// A small writer of AML, the byte code of ACPI's definition blocks (ACPI 6.4, chapter 20). Every
/// function returns the bytes of one term; terms nest by being passed on. Names are checked by
/// assertion: they are constants of this source.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace kvmbus::firmware::aml {

using Bytes = std::vector<uint8_t>;
using Terms = std::initializer_list<Bytes>;

// Data
Bytes Integer(uint64_t value);
Bytes String(std::string_view text);
Bytes EisaId(std::string_view id);  ///< "PNP0501"
Bytes Package(Terms elements);

// Named objects. A name is up to four characters ("_SB", "C000"); a path may start with '\' and has
// dots between its names ("\_SB.GENC").
Bytes Name(std::string_view name, const Bytes& value);
Bytes Scope(std::string_view path, const Bytes& body);
Bytes Device(std::string_view name, const Bytes& body);
Bytes Method(std::string_view name, unsigned arguments, const Bytes& body);
Bytes Path(std::string_view path);  ///< a reference to an object

// Statements
Bytes Return(const Bytes& value);
Bytes And(const Bytes& left, const Bytes& right, const Bytes& target);
Bytes Or(const Bytes& left, const Bytes& right, const Bytes& target);
Bytes Notify(const Bytes& object, uint64_t value);

// Resource descriptors, which ResourceTemplate makes a _CRS's value of
Bytes IoPorts(uint16_t first, uint8_t count);                ///< 16-bit decode, fixed
Bytes Irq(uint8_t irq);                                      ///< edge, active high, exclusive
Bytes DWordMemoryProducer(uint32_t first, uint32_t length);  ///< cacheable, read-write, fixed
Bytes QWordMemoryProducer(uint64_t first, uint64_t length);
Bytes ResourceTemplate(Terms descriptors);

/// The terms one after another.
Bytes Join(Terms terms);
void Append(Bytes* to, const Bytes& more);

}  // namespace kvmbus::firmware::aml
