// SPDX-License-Identifier: Apache-2.0
/// \file
/// The machine's devices as ACPI's definition block names them. Its text, as a disassembler shows
/// it, is testdata/dsdt.dsl: what a guest sees there is ABI.
#pragma once

#include <vector>

#include "firmware/acpi/acpi_tables.h"

namespace kvmbus::firmware {

/// The AML after the table's header.
std::vector<uint8_t> MakeDsdtBody(const AcpiParams& params);

}  // namespace kvmbus::firmware
