// SPDX-License-Identifier: Apache-2.0
// iocheck - writes a pattern that says where and in which round it was written, reads it back, and
// compares.
//
//   iocheck [-t THREADS] [-b BLOCK_BYTES] [-r ROUNDS] [-o OFFSET] [-s SEED] PATH BYTES
//
// PATH is a block device or a file, opened with O_DIRECT. Each thread sits on a processor of its
// own, so that each one uses its own channel, and has its own part of the range. With ROUNDS 0 it
// goes on until SIGTERM. Ends with "iocheck: N bytes written and read, sum X" or with the first
// difference and status 1.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { kSector = 512, kThreadLimit = 64 };

static int fd;
static uint64_t block = 256 << 10, rounds = 1, seed = 1, base, bytes, threads = 1;
static volatile sig_atomic_t stop;
static atomic_int failed;
static atomic_ullong done, sum;

static void OnTerm(int signal) {
  (void)signal;
  stop = 1;
}

static uint64_t Mix(uint64_t x) {  // a finaliser in the manner of splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Each sector starts with its own place and round; the rest follows from these.
static void Fill(uint64_t* words, uint64_t offset, uint64_t round) {
  for (uint64_t at = 0; at < block; at += kSector, words += kSector / 8) {
    uint64_t state = Mix(seed ^ Mix(offset + at) ^ round << 48);
    words[0] = offset + at;
    words[1] = round;
    for (int i = 2; i < kSector / 8; ++i) words[i] = state += 0x2545f4914f6cdd1du;
  }
}

static int Fault(const char* what, uint64_t offset) {
  fprintf(stderr, "iocheck: %s at byte %llu: %s\n", what, (unsigned long long)offset,
          strerror(errno));
  atomic_store(&failed, 1);
  return 0;
}

static int Compare(const uint64_t* got, const uint64_t* want, uint64_t offset) {
  for (uint64_t i = 0; i < block / 8; ++i) {
    if (got[i] == want[i]) continue;
    fprintf(stderr, "iocheck: byte %llu differs: %016llx, expected %016llx\n",
            (unsigned long long)(offset + i * 8), (unsigned long long)got[i],
            (unsigned long long)want[i]);
    atomic_store(&failed, 1);
    return 0;
  }
  return 1;
}

static int WritePart(uint64_t* buffer, uint64_t from, uint64_t to, uint64_t round) {
  for (uint64_t at = from; at < to && !atomic_load(&failed); at += block) {
    Fill(buffer, at, round);
    if (pwrite(fd, buffer, block, (off_t)at) != (ssize_t)block) return Fault("write failed", at);
    atomic_fetch_xor(&sum, Mix(buffer[2] + round));
  }
  return 1;
}

static int ReadPart(uint64_t* buffer, uint64_t* want, uint64_t from, uint64_t to, uint64_t round) {
  for (uint64_t at = from; at < to && !atomic_load(&failed); at += block) {
    Fill(want, at, round);
    memset(buffer, 0xee, block);
    if (pread(fd, buffer, block, (off_t)at) != (ssize_t)block) return Fault("read failed", at);
    if (!Compare(buffer, want, at)) return 0;
    atomic_fetch_add(&done, block);
  }
  return 1;
}

static void* Run(void* argument) {
  uint64_t index = (uintptr_t)argument;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(index % (uint64_t)sysconf(_SC_NPROCESSORS_ONLN), &set);
  sched_setaffinity(0, sizeof set, &set);
  uint64_t blocks = bytes / block / threads;
  uint64_t from = base + index * blocks * block, to = from + blocks * block;
  void *buffer, *want;
  if (posix_memalign(&buffer, 4096, block) || posix_memalign(&want, 4096, block)) exit(1);
  for (uint64_t round = 0; (rounds == 0 || round < rounds) && !(stop && round > 0); ++round) {
    if (!WritePart(buffer, from, to, round)) break;
    if (fdatasync(fd) != 0) return Fault("flush failed", from), NULL;
    if (!ReadPart(buffer, want, from, to, round)) break;
  }
  return NULL;
}

int main(int argc, char** argv) {
  int option;
  while ((option = getopt(argc, argv, "t:b:r:o:s:")) != -1) {
    uint64_t value = optarg ? strtoull(optarg, NULL, 0) : 0;
    if (option == 't')
      threads = value;
    else if (option == 'b')
      block = value;
    else if (option == 'r')
      rounds = value;
    else if (option == 'o')
      base = value;
    else if (option == 's')
      seed = value;
    else
      return 2;
  }
  if (argc - optind != 2 || threads < 1 || threads > kThreadLimit || block < 4096 || block % 4096) {
    fprintf(stderr,
            "iocheck [-t THREADS] [-b BLOCK] [-r ROUNDS] [-o OFFSET] [-s SEED] PATH BYTES\n");
    return 2;
  }
  bytes = strtoull(argv[optind + 1], NULL, 0);
  fd = open(argv[optind], O_RDWR | O_DIRECT | O_CREAT, 0600);
  if (fd < 0) {
    perror(argv[optind]);
    return 1;
  }
  signal(SIGTERM, OnTerm);
  pthread_t ids[kThreadLimit];
  for (uint64_t i = 0; i < threads; ++i) pthread_create(&ids[i], NULL, Run, (void*)(uintptr_t)i);
  for (uint64_t i = 0; i < threads; ++i) pthread_join(ids[i], NULL);
  if (atomic_load(&failed)) return 1;
  printf("iocheck: %llu bytes written and read, sum %016llx\n",
         (unsigned long long)atomic_load(&done), (unsigned long long)atomic_load(&sum));
  return 0;
}
