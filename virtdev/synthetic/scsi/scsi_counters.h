// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a synthetic SCSI controller counts, over all its channels.
#pragma once

#include "vmm/os/counter.h"

namespace kvmbus::virtdev {

/// Any thread; a channel adds once for a batch.
struct ScsiCounters {
  vmm::Counter requests;         ///< EXECUTE_SRB answered
  vmm::Counter bytes_read;       ///< moved to the guest
  vmm::Counter bytes_written;    ///< moved from the guest
  vmm::Counter errors;           ///< requests that did not end GOOD
  vmm::Counter refused_packets;  ///< well-formed, but not now or not here
  vmm::Counter protocol_errors;  ///< each stopped one channel
  vmm::Counter queue_failures;   ///< the back end could not open a queue
};

}  // namespace kvmbus::virtdev
