// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/board.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "cmd/vmm/disk_reservations.h"
#include "firmware/acpi/acpi_tables.h"
#include "firmware/linux/linux_boot.h"
#include "firmware/smbios/smbios.h"
#include "kvm/vm.h"
#include "vmm/config/limits.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Error;
using vmm::Result;

Board::Board(const config::Vm& config, vmm::Loop& loop, Callbacks callbacks)
    : config_(config), loop_(loop), callbacks_(std::move(callbacks)) {}

Board::~Board() = default;

/// A configuration without one has another at each start.
vmm::Guid Board::GenerationIdOf(const config::Vm& config) {
  return vmm::Guid::FromBytes(config.generation_id()).value_or(vmm::Guid::Random());
}

Result<std::unique_ptr<Board>> Board::Build(const config::Vm& config, const std::string& run_dir,
                                            bool unsupported_without_slat, vmm::Loop& loop,
                                            Callbacks callbacks) {
  std::unique_ptr<Board> board(new Board(config, loop, std::move(callbacks)));
  board->run_dir_ = run_dir;
  // The description is what is built: it goes through its written form, as after a restore.
  board->fdt_ = vmm::ToFdt(vmm::CompileMachine(config));
  board->description_ = TRY(vmm::FromFdt(board->fdt_));
  TRY_VOID(board->BuildMachine(unsupported_without_slat));
  TRY_VOID(board->BuildChipset());
  TRY_VOID(board->BuildVmbus());
  return board;
}

Result<void> Board::BuildMachine(bool unsupported_without_slat) {
  layout_ = vmm::ComputeMemoryLayout(description_.memory_bytes);
  vmm::GuestMemory::Options memory_options;
  memory_options.huge_pages = config_.huge_pages();
  memory_ = TRY(vmm::GuestMemory::Create(layout_.ram, memory_options));
  // KVM_CREATE_VM takes milliseconds; the file is read meanwhile.
  if (config_.saved()) StartReadingSavedState();
  kvm::KvmVm::Options vm_options;
  vm_options.vcpu_count = description_.vcpu_count;
  vm_options.unsupported_without_slat = unsupported_without_slat;
  std::unique_ptr<vmm::Vm> vm = TRY(kvm::KvmVm::Create(vm_options, *memory_, loop_));
  machine_ = std::make_unique<vmm::Machine>(loop_, *memory_, std::move(vm), callbacks_.machine);
  machine_->SetBootLoader([this] { return LoadBoot(); });
  return {};
}

namespace {

/// A file or a terminal. A FIFO waits for whoever reads it, first here and then under the guest.
Result<vmm::Fd> OpenConsoleFile(const std::string& path) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY;
  auto file = vmm::OpenFile(path, kFlags, 0640);
  struct stat about = {};
  const bool waits = !file.ok() && file.error().sys_errno() == ENXIO;
  if (!file.ok() && !waits) return file;
  if (waits || ::fstat(file->get(), &about) < 0 ||
      !(S_ISREG(about.st_mode) || S_ISCHR(about.st_mode)))
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "'{}' is neither a file nor a terminal: name another one ('file:PATH')",
                          path);
  return file;
}

}  // namespace

Result<void> Board::BuildConsole() {
  constexpr std::string_view kFilePrefix = "file:";
  const std::string& target = config_.serial().com1();
  virtdev::ConsoleSink sink;
  if (target == "console") {
    console_ =
        TRY(ConsoleServer::Listen(loop_, run_dir_ + "/console.sock",
                                  [this](std::string_view bytes) { com1_->ReceiveBytes(bytes); }));
    sink = [this](std::string_view bytes) { console_->Write(bytes); };
  } else if (target.starts_with(kFilePrefix)) {
    console_file_ =
        TRY_CTX(OpenConsoleFile(target.substr(kFilePrefix.size())), "opening COM1's file");
    sink = [fd = console_file_.get()](std::string_view bytes) {
      (void)!::write(fd, bytes.data(), bytes.size());
    };
  } else {
    return vmm::MakeError(Code::kInvalidArgument,
                          "COM1 is '{}'; it may be 'console' or 'file:PATH'", target);
  }
  com1_ = std::make_unique<virtdev::Uart16550>("com1", machine_->vm().interrupt_line(vmm::kCom1Irq),
                                               std::move(sink));
  TRY_VOID(machine_->ports().Add(vmm::kCom1Port, 8, "com1", *com1_, com1_->lock()));
  machine_->AddUnit(*com1_);
  return {};
}

Result<void> Board::BuildChipset() {
  if (description_.com1) TRY_VOID(BuildConsole());
  rtc_ = std::make_unique<virtdev::Rtc>(loop_.clock());
  TRY_VOID(machine_->ports().Add(vmm::kRtcPort, 2, "rtc", *rtc_, rtc_->lock()));
  machine_->AddUnit(*rtc_);
  virtdev::AcpiPower::Callbacks power;
  power.soft_off = [this] { machine_->RequestPowerOff("guest shut down"); };
  power.reset = [this] { machine_->OnResetRequest("the guest wrote the reset register"); };
  power_ = std::make_unique<virtdev::AcpiPower>(machine_->vm().interrupt_line(vmm::kSciIrq),
                                                loop_.clock(), std::move(power));
  TRY_VOID(machine_->ports().Add(vmm::kPowerPort, vmm::kPowerPortBytes, "acpi-power", *power_,
                                 power_->lock()));
  machine_->AddUnit(*power_);
  generation_id_ = std::make_unique<virtdev::GenerationId>(
      *memory_, GenerationIdOf(config_), [this] { power_->RaiseGpe(vmm::kGenerationIdGpe); });
  machine_->AddUnit(*generation_id_);
  return {};
}

Result<void> Board::BuildVmbus() {
  virtdev::VmbusServer::Options options;
  options.connection_changed = callbacks_.guest_changed;
  vmbus_ = std::make_unique<virtdev::VmbusServer>(loop_, *memory_, machine_->vm().synic(),
                                                  std::move(options));
  for (const vmm::VmbusOffer& offer : description_.offers)
    TRY_VOID_CTX(BuildOffer(offer), "device '{}'", offer.name);
  machine_->AddUnit(*vmbus_);
  return {};
}

Result<void> Board::BuildOffer(const vmm::VmbusOffer& offer) {
  if (offer.compatible == "kvmbus,heartbeat") {
    heartbeat_ = std::make_unique<virtdev::HeartbeatDevice>(offer.name, offer.instance, loop_,
                                                            callbacks_.guest_changed);
    return vmbus_->AddDevice(*heartbeat_);
  }
  if (offer.compatible == "kvmbus,shutdown") {
    shutdown_ = std::make_unique<virtdev::ShutdownDevice>(offer.name, offer.instance, loop_);
    return vmbus_->AddDevice(*shutdown_);
  }
  if (offer.compatible == "kvmbus,timesync") {
    timesync_ = std::make_unique<virtdev::TimesyncDevice>(
        offer.name, offer.instance, loop_,
        [this] { return machine_->vm().synic().ReferenceTime(); });
    return vmbus_->AddDevice(*timesync_);
  }
  if (offer.compatible == "kvmbus,backup") {
    backup_ = std::make_unique<virtdev::VssDevice>(offer.name, offer.instance, loop_,
                                                   virtdev::VssDevice::Options());
    return vmbus_->AddDevice(*backup_);
  }
  if (offer.compatible == "kvmbus,scsi") return BuildController(offer);
  return vmm::MakeError(Code::kUnimplemented, "there is no device '{}'", offer.compatible);
}

Result<void> Board::BuildController(const vmm::VmbusOffer& offer) {
  // As many io threads as processors, up to a few: a channel lives on one of them.
  constexpr uint32_t kMaxIoThreads = 4;
  while (io_threads_.size() < std::min(description_.vcpu_count, kMaxIoThreads))
    io_threads_.push_back(TRY(vmm::LoopThread::Start(fmt::format("io/{}", io_threads_.size()))));
  std::vector<vmm::Loop*> loops;
  for (const auto& thread : io_threads_) loops.push_back(&thread->loop());
  virtdev::SyntheticScsiController::Options options;
  options.name = offer.name;
  options.instance_id = offer.instance;
  options.vcpus = description_.vcpu_count;
  const auto number = static_cast<uint32_t>(controllers_.size());
  controllers_.push_back(std::make_unique<virtdev::SyntheticScsiController>(
      std::move(options), loop_, std::move(loops)));
  for (const config::Disk& disk : config_.disks()) {
    if (disk.controller() == number) TRY_VOID(AttachToController(disk));
  }
  return vmbus_->AddDevice(*controllers_.back());
}

Result<void> Board::AttachToController(const config::Disk& disk) {
  if (disk.controller() >= controllers_.size())
    return vmm::MakeError(Code::kOutOfRange, "there is no SCSI controller {}", disk.controller());
  if (disk.lun() >= vmm::kMaxLuns)
    return vmm::MakeError(Code::kOutOfRange, "location {}: a SCSI controller has 0 to {}",
                          disk.lun(), vmm::kMaxLuns - 1);
  const std::pair<uint32_t, uint32_t> slot{disk.controller(), disk.lun()};
  if (disks_.count(slot) != 0)
    return vmm::MakeError(Code::kAlreadyExists,
                          "SCSI controller {} has a disk at location {} already", slot.first,
                          slot.second);
  if (disk.kind() == config::DVD) return AttachDvd(disk);
  if (disk.shared()) return AttachShared(disk);
  virtdev::DiskOpenOptions options;
  options.read_only = disk.read_only();
  if (disk.caching() == config::BUFFERED) options.caching = virtdev::DiskCaching::kBuffered;
  std::shared_ptr<virtdev::DiskIo> io =
      TRY_CTX(virtdev::OpenDisk(disk.path(), options), "opening disk '{}'", disk.path());
  if (disk.has_qos()) TRY_VOID_CTX(LimitDisk(*io, disk.qos()), "disk '{}'", disk.path());
  virtdev::ScsiDisk::Options scsi;
  scsi.initiator = vmm::Guid::Parse(config_.id()).value_or(vmm::Guid());
  DiskReservations reservations;
  if (!disk.read_only())
    reservations = TRY_CTX(OpenReservations(disk.path()), "reservations of disk '{}'", disk.path());
  scsi.reservations = reservations.state;
  TRY_VOID_CTX(
      controllers_[slot.first]->AttachDisk(static_cast<uint8_t>(slot.second), io, std::move(scsi)),
      "attaching disk '{}'", disk.path());
  Disk& attached = disks_[slot];
  attached.io = std::move(io);
  attached.path = disk.path();
  attached.reservations = std::move(reservations.file);
  return {};
}

namespace {

firmware::SmbiosParams SmbiosOf(const config::Vm& config) {
  const config::SmbiosIdentity& identity = config.smbios();
  const std::string& guid = identity.bios_guid().empty() ? config.id() : identity.bios_guid();
  firmware::SmbiosParams smbios;
  smbios.generation = config.generation();
  smbios.uuid = vmm::Guid::Parse(guid).value_or(vmm::Guid());
  smbios.bios_serial = identity.bios_serial_number();
  smbios.board_serial = identity.base_board_serial_number();
  smbios.chassis_serial = identity.chassis_serial_number();
  smbios.chassis_asset_tag = identity.chassis_asset_tag();
  smbios.cpu_count = config.vcpu_count();
  smbios.ram_bytes = config.memory_bytes();
  return smbios;
}

}  // namespace

Result<vmm::BootState> Board::LoadBoot() {
  firmware::AcpiParams acpi;
  acpi.cpu_count = description_.vcpu_count;
  acpi.low_mmio = layout_.low_mmio;
  acpi.high_mmio = layout_.high_mmio;
  acpi.com1 = description_.com1;
  TRY_VOID(firmware::WriteAcpiTables(*memory_, acpi));
  TRY_VOID(firmware::WriteSmbios(*memory_, SmbiosOf(config_)));
  firmware::LinuxBootParams boot;
  boot.kernel_path = config_.firmware().kernel();
  boot.initrd_path = config_.firmware().initrd();
  boot.command_line = description_.command_line;
  return firmware::LoadLinux(*memory_, layout_, boot);
}

std::string Board::Heartbeat() const {
  if (!heartbeat_) return "Disabled";
  switch (heartbeat_->status()) {
    case virtdev::HeartbeatStatus::kNoContact:
      return "No contact";
    case virtdev::HeartbeatStatus::kOk:
      return "OK";
    case virtdev::HeartbeatStatus::kLostContact:
      return "Lost contact";
  }
  return "";
}

std::string Board::VmbusVersion() const {
  return vmbus_ ? vmbus_->NegotiatedVersion().value_or("") : "";
}

void Board::RequestShutdown(bool restart, bool force, Done done) {
  if (!shutdown_)
    return done(
        Error(Code::kFailedPrecondition,
              "the shutdown service is disabled for this virtual machine; turn it off instead "
              "('vmctl vm turn-off')"));
  shutdown_->RequestShutdown(restart, force, std::move(done));
}

Error Board::NoBackupService() {
  return Error(Code::kFailedPrecondition,
               "the backup service is disabled for this virtual machine");
}

void Board::FreezeGuest(uint64_t timeout_ns, Done done) {
  if (!backup_) return done(NoBackupService());
  backup_->Freeze(timeout_ns, std::move(done));
}

void Board::ThawGuest(Done done) {
  if (!backup_) return done(NoBackupService());
  backup_->Thaw(std::move(done));
}

Result<void> Board::AttachDisk(const config::Disk& disk) { return AttachToController(disk); }

Error Board::NoDisk(uint32_t controller, uint32_t lun) {
  return vmm::MakeError(Code::kNotFound, "SCSI controller {} has no disk at location {}",
                        controller, lun);
}

void Board::DetachDisk(uint32_t controller, uint32_t lun, Done done) {
  const auto at = disks_.find({controller, lun});
  if (at == disks_.end()) return done(NoDisk(controller, lun));
  if (at->second.change != nullptr) return done(IsChanging(at->second));
  const std::string path = at->second.path;
  disks_.erase(at);
  const auto detached = controllers_[controller]->DetachDisk(
      static_cast<uint8_t>(lun), [path, done](std::shared_ptr<virtdev::DiskIo> io) {
        auto closed = io != nullptr ? io->Close() : Result<void>();
        if (closed.ok()) return done({});
        done(std::move(closed.error()).WithContext(fmt::format("closing disk '{}'", path)));
      });
  if (!detached.ok()) done(detached);
}

Result<void> Board::Close() {
  vmbus_.reset();  // closes the guest's channels
  controllers_.clear();
  Result<void> result;
  for (auto& [slot, disk] : disks_) {
    if (disk.io == nullptr) continue;
    disk.change.reset();
    auto closed = disk.io->Close();
    if (!closed.ok())
      result = std::move(closed.error()).WithContext(fmt::format("closing disk '{}'", disk.path));
  }
  disks_.clear();
  return result;
}

void Board::VisitCounters(const vmm::CounterVisitor& visit) const {
  machine_->VisitCounters(visit);
}

}  // namespace kvmbus::cmd
