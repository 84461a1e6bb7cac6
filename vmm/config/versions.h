// SPDX-License-Identifier: Apache-2.0
/// \file
/// The versions of configurations: of Windows Server 2012 R2 (XML), and the first one in
/// containers.
#pragma once

namespace kvmbus::vmm {

inline constexpr const char* kVersion50 = "5.0";
inline constexpr const char* kVersion62 = "6.2";
inline constexpr const char* kRunningVersions[] = {kVersion50, kVersion62};
inline constexpr const char* kDefaultVersion = kVersion62;
inline constexpr const char* kNewestReadVersion = "12.0";  ///< looked at, not run

}  // namespace kvmbus::vmm
