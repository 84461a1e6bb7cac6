// SPDX-License-Identifier: Apache-2.0
/// \file
/// The contract that devices keep (vmm/device/device.h), as a typed test suite. A fixture makes the
/// device anew: `Make()`, `unit()`, `io()`, `kIoBytes`.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "vmm/device/device.h"

namespace kvmbus::tests {

template <typename Fixture>
class DeviceContractTest : public testing::Test {
 protected:
  void SetUp() override { fixture_.Make(); }
  void Storm(uint64_t seed, int accesses) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < accesses; ++i) {
      const unsigned size = 1u << random() % 4;
      const uint64_t offset = random() % (Fixture::kIoBytes + 16);  // past the end too
      if (random() % 2 == 0)
        (void)fixture_.io().IoRead(offset, size);
      else
        fixture_.io().IoWrite(offset, size, random());
    }
  }
  Fixture fixture_;
};

TYPED_TEST_SUITE_P(DeviceContractTest);

TYPED_TEST_P(DeviceContractTest, StartAndStopAreIdempotent) {
  vmm::StateUnit& unit = this->fixture_.unit();
  unit.Start();
  unit.Start();
  unit.Stop();
  unit.Stop();
}

TYPED_TEST_P(DeviceContractTest, AnyAccessIsSafeAndTheStateAfterItSavesAndRestores) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    this->Storm(seed, 200);
    const auto saved = this->fixture_.unit().Save();
    ASSERT_TRUE(saved.ok());
    this->Storm(seed + 1000, 50);
    const auto restored = this->fixture_.unit().Restore(1, *saved);
    ASSERT_TRUE(restored.ok()) << restored.error().ToString();
    EXPECT_EQ(*this->fixture_.unit().Save(), *saved) << "seed " << seed;
  }
}

TYPED_TEST_P(DeviceContractTest, ResetEqualsNew) {
  const std::string fresh = *this->fixture_.unit().Save();
  this->Storm(1, 500);
  this->fixture_.unit().Reset();
  if (!TypeParam::kKeepsStateOverReset) {
    EXPECT_EQ(*this->fixture_.unit().Save(), fresh);
  }
}

TYPED_TEST_P(DeviceContractTest, GarbageIsRefusedOrTakenButNeverHalf) {
  this->Storm(2, 200);
  const std::string saved = *this->fixture_.unit().Save();
  std::mt19937_64 random(4);
  for (int round = 0; round < 500; ++round) {
    std::string bad = saved;
    if (round % 3 == 0) bad.resize(random() % (bad.size() + 1));
    for (uint64_t flips = random() % 4; flips != 0 && !bad.empty(); --flips)
      bad[random() % bad.size()] = static_cast<char>(random());
    const std::string before = *this->fixture_.unit().Save();
    if (!this->fixture_.unit().Restore(1, bad).ok()) {
      EXPECT_EQ(*this->fixture_.unit().Save(), before) << "a refused restore changed something";
    }
  }
}

REGISTER_TYPED_TEST_SUITE_P(DeviceContractTest, StartAndStopAreIdempotent,
                            AnyAccessIsSafeAndTheStateAfterItSavesAndRestores, ResetEqualsNew,
                            GarbageIsRefusedOrTakenButNeverHalf);

}  // namespace kvmbus::tests
