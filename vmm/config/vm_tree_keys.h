// SPDX-License-Identifier: Apache-2.0
/// \file
/// Devices in a configuration's tree: each is named in the manifest and has a section of its own.
/// For vm_tree_read.cc and vm_tree_write.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/hvs/key_tree.h"

namespace kvmbus::vmm::vm_tree {

struct DeviceClass {
  std::string_view guid;  ///< lower case
  std::string_view name;
  int64_t version;  ///< of its section; 0: it has none
};

inline constexpr DeviceClass kScsi = {"d422512d-2bf2-4752-809d-7b82b5fcb1b4",
                                      "Synthetic SCSI Controller", 256};
inline constexpr DeviceClass kNetwork = {"2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778",
                                         "Synthetic Ethernet Port", 256};
inline constexpr DeviceClass kIde = {"83f8638b-8dca-4152-9eda-2ca8b33039b4",
                                     "Microsoft Emulated IDE Controller", 1280};
inline constexpr DeviceClass kFloppy = {"8f0d2762-0b00-4e04-af4f-19010527cb93",
                                        "Microsoft Emulated Floppy Controller", 256};
inline constexpr DeviceClass kSerial = {"8e3a359f-559a-4b6a-98a9-1690a6100ed7",
                                        "Microsoft Emulated Serial Controller", 512};
inline constexpr DeviceClass kBios = {"ac6b8dc1-3257-4a70-b1b2-a9c9215659ad",
                                      "Microsoft Virtual BIOS", 512};
inline constexpr DeviceClass kRtc = {"e51b7ef6-4a7f-4780-aaae-d4b291aacd2e",
                                     "Microsoft Emulated Real Time Clock", 256};
inline constexpr DeviceClass kHeartbeat = {"84eaae65-2f2e-45f5-9bb5-0e857dc8eb47",
                                           "Microsoft Heartbeat Component", 256};
inline constexpr DeviceClass kShutdown = {"9f8233ac-be49-4c79-8ee3-e7e1985b2077",
                                          "Microsoft Shutdown Component", 256};
inline constexpr DeviceClass kTimeSync = {"2497f4de-e9fa-4204-80e4-4b75c46419c0",
                                          "Microsoft Time Synchronization Component", 256};
inline constexpr DeviceClass kVss = {"5ced1297-4598-4915-a5fc-ad21bb4d02a4",
                                     "Microsoft VSS Component", 256};
/// Every machine of Windows has these; we have none of them.
inline constexpr DeviceClass kAlwaysThere[] = {
    {"58f75a6d-d949-4320-99e1-a2a2576d581c", "Microsoft Synthetic Mouse", 512},
    {"197f74e3-b84b-46de-8ae6-82f1cd181cdc", "Microsoft Synthetic Keyboard", 0},
    {"f3cf6965-e8d3-44a9-9b7d-a04245ea7525", "Microsoft Synthetic Video", 256},
    {"bc12c717-8898-4688-8ee4-2cd14894f8ea", "Microsoft Hyper-V Activation Component", 0},
    {"6c09bb55-d683-4da0-8931-c9bf705f6480", "Microsoft Guest Interface Component", 256},
    {"2a34b1c2-fd73-4043-8a5b-dd2159bc743f", "Microsoft Key-Value Pair Exchange Component", 256},
    {"6c5addb9-a11a-4e8e-84cb-e6208201db63", "Microsoft RDV Component", 512},
};

/// "_<instance>_".
std::string SectionOf(std::string_view instance);
bool IsSame(std::string_view guid, std::string_view other);  ///< but for case

/// One entry of the manifest.
struct Vdev {
  std::string device, instance, name;
};
struct Manifest {
  std::vector<Vdev> devices;   ///< in their order, each instance once
  std::vector<Vdev> repeated;  ///< whose instance somebody before them has
};
Manifest ReadManifest(const Key& configuration);
bool IsScsi(const Vdev& vdev);
/// With its section, unless it is there.
void AddDevice(Key* configuration, const DeviceClass& device, std::string_view instance);
/// With its section; the entries after it move up.
void RemoveDevice(Key* configuration, std::string_view instance);

/// Sets a value, or only if there is no such key.
void Set(Key* top, std::string_view path, Key::Value value);
void SetIfMissing(Key* top, std::string_view path, Key::Value value);

}  // namespace kvmbus::vmm::vm_tree
