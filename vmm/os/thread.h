// SPDX-License-Identifier: Apache-2.0
/// \file
/// Threads have names ("vcpu/3") and an owner that joins them.
#pragma once

#include <cstddef>
#include <string>

namespace kvmbus::vmm {

/// Names the calling thread; the kernel keeps the first 15 characters.
void NameThisThread(const std::string& name);

/// The calling thread's work can wait: others are served first where processors are short.
void LetOthersFirst();

/// A few times what a thread needs.
inline constexpr size_t kThreadStackBytes = 512u << 10;
/// The stack of each thread started from now on, in place of the 8 MiB that the shell allows: those
/// take whole huge pages, 2 MiB that are zeroed for a thread.
void SetThreadStackBytes(size_t bytes);

}  // namespace kvmbus::vmm
