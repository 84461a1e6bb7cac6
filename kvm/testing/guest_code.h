// SPDX-License-Identifier: Apache-2.0
/// \file
/// GuestCode: a few 32-bit instructions put together by hand, for tests and benches of the KVM
/// layer.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace kvmbus::kvm {

class GuestCode {
 public:
  GuestCode& MovEax(uint32_t value) { return Bytes({0xb8}).Word(value); }
  GuestCode& MovEcx(uint32_t value) { return Bytes({0xb9}).Word(value); }
  GuestCode& MovEdx(uint32_t value) { return Bytes({0xba}).Word(value); }
  GuestCode& OutAl(uint16_t port) { return MovEdx(port).Bytes({0xee}); }
  GuestCode& InAl(uint16_t port) { return MovEdx(port).Bytes({0xec}); }
  GuestCode& IncAl() { return Bytes({0xfe, 0xc0}); }
  GuestCode& Wrmsr(uint32_t msr, uint64_t value) {
    return MovEcx(msr)
        .MovEax(static_cast<uint32_t>(value))
        .MovEdx(static_cast<uint32_t>(value >> 32))
        .Bytes({0x0f, 0x30});
  }
  GuestCode& Rdmsr(uint32_t msr) { return MovEcx(msr).Bytes({0x0f, 0x32}); }
  /// mov al, [address]
  GuestCode& LoadAl(uint32_t address) { return Bytes({0xa0}).Word(address); }
  /// mov dword [address], value
  GuestCode& Store(uint32_t address, uint32_t value) {
    return Bytes({0xc7, 0x05}).Word(address).Word(value);
  }
  /// cmp dword [address], 0; je back to the comparison
  GuestCode& WaitNonZero(uint32_t address) {
    return Bytes({0x83, 0x3d}).Word(address).Bytes({0x00, 0x74, 0xf7});
  }
  /// inc dword [address]; jmp back: for ever
  GuestCode& CountForEver(uint32_t address) {
    return Bytes({0xff, 0x05}).Word(address).Bytes({0xeb, 0xf8});
  }
  GuestCode& SpinForEver() { return Bytes({0xeb, 0xfe}); }
  /// An exception without an IDT: a triple fault.
  GuestCode& TripleFault() { return Bytes({0x0f, 0x0b}); }
  GuestCode& Bytes(std::initializer_list<uint8_t> bytes) {
    code_.insert(code_.end(), bytes);
    return *this;
  }
  const std::vector<uint8_t>& code() const { return code_; }

 private:
  GuestCode& Word(uint32_t value) {
    for (int i = 0; i < 4; ++i) code_.push_back(static_cast<uint8_t>(value >> 8 * i));
    return *this;
  }
  std::vector<uint8_t> code_;
};

}  // namespace kvmbus::kvm
