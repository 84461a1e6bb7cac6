// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/thread.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <thread>

namespace kvmbus::vmm {
namespace {

size_t StackBytesOfANewThread() {
  size_t bytes = 0;
  std::thread([&bytes] {
    pthread_attr_t attributes;
    ASSERT_EQ(::pthread_getattr_np(::pthread_self(), &attributes), 0);
    EXPECT_EQ(::pthread_attr_getstacksize(&attributes, &bytes), 0);
    ::pthread_attr_destroy(&attributes);
  }).join();
  return bytes;
}

TEST(ThreadTest, NewThreadsHaveTheStackThatWasSet) {
  SetThreadStackBytes(4u << 20);
  const size_t large = StackBytesOfANewThread();
  SetThreadStackBytes(512u << 10);
  const size_t small = StackBytesOfANewThread();
  EXPECT_GE(large, size_t{4u << 20});
  EXPECT_GE(small, size_t{512u << 10});
  EXPECT_LT(small, size_t{2u << 20});  // a sanitizer may add to it
}

TEST(ThreadTest, NamesAreCutWhereTheKernelCutsThem) {
  std::thread([] {
    NameThisThread("vcpu/1234567890123456789");
    char name[16] = {};
    ASSERT_EQ(::pthread_getname_np(::pthread_self(), name, sizeof(name)), 0);
    EXPECT_STREQ(name, "vcpu/1234567890");
  }).join();
}

}  // namespace
}  // namespace kvmbus::vmm
