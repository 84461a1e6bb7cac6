// SPDX-License-Identifier: Apache-2.0
#include "virtdev/chipset/uart16550.h"

#include "state/chipset.pb.h"
#include "virtdev/chipset/uart16550_regs.h"

namespace kvmbus::virtdev {

using namespace uart;

Uart16550::Uart16550(std::string name, vmm::InterruptLine& interrupt, ConsoleSink sink)
    : name_(std::move(name)), interrupt_(interrupt), sink_(std::move(sink)) {}

size_t Uart16550::FifoCapacity() const { return state_.fcr & kFcrEnable ? kFifoBytes : 1; }

void Uart16550::Refill() {
  while (!typed_ahead_.empty() && state_.receive.size() < FifoCapacity() &&
         !(state_.mcr & kMcrLoop)) {
    state_.receive.push_back(typed_ahead_.front());
    typed_ahead_.pop_front();
  }
}

void Uart16550::ReceiveBytes(std::string_view bytes) {
  std::lock_guard guard(mutex_);
  const size_t room = kInputLimit - std::min(kInputLimit, typed_ahead_.size());
  bytes = bytes.substr(0, room);
  typed_ahead_.insert(typed_ahead_.end(), bytes.begin(), bytes.end());
  Refill();
  UpdateOutputs();
}

uint64_t Uart16550::IoRead(uint64_t offset, unsigned size) {
  // Registers are bytes; a wider access reads the first and leaves ones above, as on the ISA bus.
  const uint64_t ones = size > 1 ? ~uint64_t{0xff} : 0;
  return offset > kScr ? ~uint64_t{0} : ones | ReadRegister(static_cast<unsigned>(offset));
}

void Uart16550::IoWrite(uint64_t offset, unsigned, uint64_t value) {
  if (offset <= kScr) WriteRegister(static_cast<unsigned>(offset), static_cast<uint8_t>(value));
}

uint8_t Uart16550::ReadRegister(unsigned offset) {
  const bool divisor = state_.lcr & kLcrDlab;
  uint8_t value = 0;
  switch (offset) {
    case kRbrThr:
      if (divisor) return static_cast<uint8_t>(state_.divisor);
      if (!state_.receive.empty()) {
        value = state_.receive.front();
        state_.receive.pop_front();
      }
      Refill();
      break;
    case kIer:
      return divisor ? static_cast<uint8_t>(state_.divisor >> 8) : state_.ier;
    case kIirFcr:
      value = InterruptId();
      if (value == kIirTransmit) state_.thr_interrupt = false;  // reading it is the acknowledgement
      value |= state_.fcr & kFcrEnable ? kIirFifosEnabled : 0;
      break;
    case kLcr:
      return state_.lcr;
    case kMcr:
      return state_.mcr;
    case kLsr:
      value = LineStatus();
      break;
    case kMsr:
      return ModemStatus();
    case kScr:
      return state_.scr;
  }
  UpdateOutputs();
  return value;
}

void Uart16550::WriteRegister(unsigned offset, uint8_t value) {
  const bool divisor = state_.lcr & kLcrDlab;
  switch (offset) {
    case kRbrThr:
      if (divisor)
        state_.divisor = static_cast<uint16_t>((state_.divisor & 0xff00) | value);
      else
        Transmit(value);
      break;
    case kIer:
      if (divisor) {
        state_.divisor = static_cast<uint16_t>((state_.divisor & 0x00ff) | value << 8);
      } else {
        // The transmitter is always empty: enabling its interrupt raises it.
        if (!(state_.ier & kIerTransmit) && (value & kIerTransmit)) state_.thr_interrupt = true;
        state_.ier = value & 0x0f;
      }
      break;
    case kIirFcr:
      if (value & kFcrClearReceive || ((value ^ state_.fcr) & kFcrEnable)) state_.receive.clear();
      state_.fcr = value & (kFcrTriggerMask | kFcrEnable);
      Refill();
      break;
    case kLcr:
      state_.lcr = value;
      break;
    case kMcr:
      state_.mcr = value & 0x1f;
      Refill();
      break;
    case kScr:
      state_.scr = value;
      break;
    default:
      return;  // LSR and MSR are read-only
  }
  UpdateOutputs();
}

void Uart16550::Transmit(uint8_t byte) {
  state_.thr_interrupt = true;
  if (state_.mcr & kMcrLoop) {
    if (state_.receive.size() < FifoCapacity())
      state_.receive.push_back(byte);
    else
      state_.overrun = true;
    return;
  }
  const char c = static_cast<char>(byte);
  if (sink_) sink_({&c, 1});
}

uint8_t Uart16550::InterruptId() const {
  if ((state_.ier & kIerLine) && state_.overrun) return kIirLine;
  if ((state_.ier & kIerReceive) && !state_.receive.empty()) {
    static constexpr size_t kTriggers[] = {1, 4, 8, 14};
    const bool fifo = state_.fcr & kFcrEnable;
    return !fifo || state_.receive.size() >= kTriggers[state_.fcr >> 6] ? kIirReceive : kIirTimeout;
  }
  if ((state_.ier & kIerTransmit) && state_.thr_interrupt) return kIirTransmit;
  return kIirNone;
}

uint8_t Uart16550::LineStatus() {
  uint8_t value = kLsrThrEmpty | kLsrTransmitterEmpty;
  if (!state_.receive.empty()) value |= kLsrDataReady;
  if (state_.overrun) value |= kLsrOverrun;
  state_.overrun = false;
  return value;
}

uint8_t Uart16550::ModemStatus() const {
  if (!(state_.mcr & kMcrLoop)) return kMsrCts | kMsrDsr | kMsrDcd;
  return static_cast<uint8_t>(
      (state_.mcr & kMcrRts ? kMsrCts : 0) | (state_.mcr & kMcrDtr ? kMsrDsr : 0) |
      (state_.mcr & kMcrOut1 ? kMsrRi : 0) | (state_.mcr & kMcrOut2 ? kMsrDcd : 0));
}

void Uart16550::UpdateOutputs() {
  const bool asserted = InterruptId() != kIirNone;
  if (asserted == asserted_) return;
  asserted_ = asserted;
  interrupt_.Set(asserted);
}

void Uart16550::Reset() {
  std::lock_guard guard(mutex_);
  state_ = State();
  typed_ahead_.clear();
  UpdateOutputs();
}

vmm::Result<std::string> Uart16550::Save() {
  std::lock_guard guard(mutex_);
  state::Uart16550 saved;
  saved.set_ier(state_.ier);
  saved.set_fcr(state_.fcr);
  saved.set_lcr(state_.lcr);
  saved.set_mcr(state_.mcr);
  saved.set_scr(state_.scr);
  saved.set_divisor(state_.divisor);
  saved.set_thr_interrupt(state_.thr_interrupt);
  saved.set_overrun(state_.overrun);
  saved.set_receive_fifo(std::string(state_.receive.begin(), state_.receive.end()));
  return saved.SerializeAsString();
}

vmm::Result<void> Uart16550::Restore(uint32_t, std::string_view bytes) {
  state::Uart16550 saved;
  if (!saved.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) || saved.ier() > 0x0f ||
      (saved.fcr() & ~uint32_t{kFcrTriggerMask | kFcrEnable}) != 0 || saved.lcr() > 0xff ||
      saved.mcr() > 0x1f || saved.scr() > 0xff || saved.divisor() > 0xffff ||
      saved.receive_fifo().size() > kFifoBytes)
    return vmm::Error(vmm::Code::kDataLoss, "saved state of the serial port is not valid");
  std::lock_guard guard(mutex_);
  State state;
  state.ier = static_cast<uint8_t>(saved.ier());
  state.fcr = static_cast<uint8_t>(saved.fcr());
  state.lcr = static_cast<uint8_t>(saved.lcr());
  state.mcr = static_cast<uint8_t>(saved.mcr());
  state.scr = static_cast<uint8_t>(saved.scr());
  state.divisor = static_cast<uint16_t>(saved.divisor());
  state.thr_interrupt = saved.thr_interrupt();
  state.overrun = saved.overrun();
  state.receive.assign(saved.receive_fifo().begin(), saved.receive_fifo().end());
  state_ = std::move(state);
  UpdateOutputs();
  return {};
}

}  // namespace kvmbus::virtdev
