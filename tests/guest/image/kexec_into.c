// SPDX-License-Identifier: Apache-2.0
// kexec_into KERNEL INITRD COMMAND_LINE: boots another kernel from this one, without the machine's
// help. With -p in front it only loads the kernel that runs after a panic.
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int Open(const char* path) {
  int fd = open(path, O_RDONLY);
  if (fd < 0) perror(path);
  return fd;
}

int main(int argc, char** argv) {
  int on_panic = argc > 1 && strcmp(argv[1], "-p") == 0;
  argv += on_panic;
  argc -= on_panic;
  if (argc != 4) {
    fprintf(stderr, "kexec_into [-p] KERNEL INITRD COMMAND_LINE\n");
    return 2;
  }
  int kernel = Open(argv[1]), initrd = Open(argv[2]);
  if (kernel < 0 || initrd < 0) return 1;
  unsigned long flags = on_panic ? KEXEC_FILE_ON_CRASH : 0;
  if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3], flags) != 0) {
    perror("kexec_file_load");
    return 1;
  }
  if (on_panic) return 0;
  sync();
  syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
  perror("reboot");
  return 1;
}
