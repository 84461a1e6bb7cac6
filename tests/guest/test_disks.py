# SPDX-License-Identifier: Apache-2.0
"""Types of disks and DVD drives, judged by a guest's own drivers."""

import os
import subprocess

from service import Vm
from suite import Group, expect, expect_equal, group

MIB = 1 << 20
KINDS = ("dynamic", "fixed", "child")


@group
class Disks(Group):
    """A guest in its initramfs with a VHDX of each type and an empty DVD drive."""

    def set_up(self):
        context = self.context
        self.disks = {name: context.new_disk(f"kind-{name}", "96M") for name in ("dynamic", "base")}
        self.disks["fixed"] = context.new_disk("kind-fixed", "96M", "--fixed")
        self.disks["child"] = f"{context.scratch}/kind-child.avhdx"
        self.service.vmctl("disk", "create", self.disks["child"], "--parent", self.disks["base"])
        self.base_before = self.checksum(self.disks["base"])
        self.discs = {name: context.new_disc(name, f"disc {name}") for name in ("one", "two")}
        self.vm = Vm(self.service, "disks", self.image, vcpus=2, disks=[self.disks[name] for name in KINDS],
                     dvds=["none"])
        self.vm.boot("initramfs")

    def tear_down(self):
        self.vm.remove()

    @staticmethod
    def checksum(path):
        return subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout.split()[0]

    def test_every_type_keeps_a_file_system(self):
        for index, name in enumerate(KINDS):
            device = self.vm.run(f"lun {index}")
            self.vm.run(f"mke2fs {device} >/dev/null && mount -t ext4 {device} /mnt && "
                        f"dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null && "
                        f"md5sum </mnt/file >/tmp/sum && umount /mnt && echo 3 >/proc/sys/vm/drop_caches && "
                        f"mount -t ext4 {device} /mnt && md5sum </mnt/file | cmp - /tmp/sum && umount /mnt")
            self.vm.run(f"iocheck -t 2 -b 0x3000 -s {index + 1} {device} {12 * MIB}")

    def read_disc(self, wanted):
        self.vm.run("n=0; until mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null; do n=$((n+1)); [ $n -lt 100 ] || "
                    "exit 1; usleep 200000; done")
        expect_equal(self.vm.run("cat /mnt/text"), wanted, "the disc's file")

    def test_a_disc_is_inserted_read_and_changed(self):
        expect(self.vm.run("mount -t iso9660 -o ro /dev/sr0 /mnt 2>&1 || echo refused").endswith("refused"),
               "an empty drive was mounted")
        for name in ("one", "two"):
            self.service.vmctl("dvd", "insert", "disks", self.discs[name])
            self.read_disc(f"disc {name}")
            self.vm.run("umount /mnt")

    def test_a_disc_in_use_is_not_torn_out(self):
        self.read_disc("disc two")
        status, line = self.service.refused("dvd", "eject", "disks")
        expect("--force" in line, f"status {status}, and no remedy in: {line}")
        expect_equal(self.vm.run("cat /mnt/text"), "disc two", "the disc's file")
        self.vm.run("umount /mnt")
        self.service.vmctl("dvd", "eject", "disks")
        expect(self.vm.run("mount -t iso9660 -o ro /dev/sr0 /mnt 2>&1 || echo refused").endswith("refused"),
               "an empty drive was mounted")

    def test_a_disc_in_use_is_torn_out_by_force(self):
        """The guest keeps a program that has it open, and a drive that takes the next disc."""
        self.service.vmctl("dvd", "insert", "disks", self.discs["one"])
        self.read_disc("disc one")
        self.vm.run("sleep 1000 < /mnt/text & echo $! > /run/pid; echo 3 >/proc/sys/vm/drop_caches")
        self.service.vmctl("dvd", "eject", "disks", "--force")
        read = self.vm.run("dd if=/dev/sr0 of=/dev/null bs=2048 count=1 iflag=direct 2>&1 || echo gone")
        expect(read.endswith("gone"), "a disc that was torn out is read")
        # It has the file open for a moment after kill has returned.
        self.vm.run("kill $(cat /run/pid); until umount /mnt 2>/dev/null; do usleep 100000; done")
        self.service.vmctl("dvd", "insert", "disks", self.discs["two"])
        self.read_disc("disc two")
        self.vm.run("umount /mnt")
        self.service.vmctl("dvd", "eject", "disks")
        _, line = self.service.refused("dvd", "eject", "disks", "--location", "7")
        expect("no DVD drive" in line, line)

    def test_discard_lets_the_file_shrink(self):
        disk, device = self.disks["dynamic"], self.vm.run("lun 0")
        self.vm.run(f"mke2fs {device} >/dev/null && mount -t ext4 {device} /mnt && "
                    "dd if=/dev/urandom of=/mnt/large bs=1M count=40 2>/dev/null && sync && "
                    "dd if=/dev/urandom of=/mnt/small bs=1M count=4 2>/dev/null && sync")
        wanted = self.vm.run("md5sum </mnt/small")
        full = os.path.getsize(disk)
        self.vm.run("rm /mnt/large && fstrim /mnt && umount /mnt")
        self.service.vmctl("vm", "turn-off", "disks")
        self.vm.wait("off", 60)
        trimmed = os.path.getsize(disk)
        self.service.vmctl("disk", "compact", disk)
        compact = os.path.getsize(disk)
        expect(compact < trimmed and compact <= full - 30 * MIB,
               f"{full >> 20} MiB, trimmed {trimmed >> 20} MiB, compact {compact >> 20} MiB")
        self.service.vmctl("disk", "check", disk)
        self.vm.boot("initramfs")
        device = self.vm.run("lun 0")
        found = self.vm.run(f"mount -t ext4 {device} /mnt && md5sum </mnt/small && umount /mnt")
        expect_equal(found, wanted, "the file that stayed")

    def test_images_are_sound_from_outside(self):
        self.service.vmctl("vm", "turn-off", "disks")
        self.vm.wait("off", 60)
        for name in KINDS:
            self.service.vmctl("disk", "check", self.disks[name])
        for name in ("dynamic", "fixed"):
            subprocess.run(["qemu-img", "check", "-q", self.disks[name]], check=True)
        expect_equal(self.checksum(self.disks["base"]), self.base_before, "the parent's checksum")
