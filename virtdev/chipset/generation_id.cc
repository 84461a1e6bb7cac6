// SPDX-License-Identifier: Apache-2.0
#include "virtdev/chipset/generation_id.h"

#include "state/chipset.pb.h"
#include "vmm/machine/layout.h"

namespace kvmbus::virtdev {

GenerationId::GenerationId(vmm::GuestMemory& memory, const vmm::Guid& id,
                           std::function<void()> changed)
    : memory_(memory), changed_(std::move(changed)), id_(id) {}

void GenerationId::SetId(const vmm::Guid& id) {
  if (id == id_) return;
  id_ = id;
  WriteToGuest();
  if (changed_) changed_();
}

void GenerationId::WriteToGuest() {
  const bool written = memory_.WriteObject(vmm::kGenerationIdGpa, id_.bytes);
  KVMBUS_ASSERT(written);  // the layout reserves the page in RAM
}

vmm::Result<std::string> GenerationId::Save() {
  state::GenerationId saved;
  saved.set_id(id_.ToBytes());
  return saved.SerializeAsString();
}

vmm::Result<void> GenerationId::Restore(uint32_t, std::string_view bytes) {
  state::GenerationId saved;
  const bool parsed = saved.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
  const auto id = vmm::Guid::FromBytes(saved.id());
  if (!parsed || !id)
    return vmm::Error(vmm::Code::kDataLoss, "saved VM generation id is not valid");
  id_ = *id;
  WriteToGuest();
  return {};
}

}  // namespace kvmbus::virtdev
