# SPDX-License-Identifier: Apache-2.0
"""File systems on dynamic disks under fio, which verifies what it wrote."""

import os
import subprocess

from service import Vm
from suite import Group, expect, group

MIB = 1 << 20
FIO_MIB = 24
# Random places and sizes, each piece with its checksum in it; the seed is what the verifying run needs to find them.
JOB = (f"fio --name=job --filename=/mnt/data --rw=randwrite --size={FIO_MIB}M --bsrange=4k-64k --randseed=71 "
       "--verify=crc32c --verify_fatal=1 --output-format=terse --terse-version=3 --thread")
MOUNTS = {"ext4": ("mkfs.ext4 -q", "e2fsck -fn"), "xfs": ("mkfs.xfs -q -f", "xfs_repair -n")}


@group
class Fio(Group):
    """A guest in its initramfs with an empty dynamic VHDX a file system and the disc of tools."""

    def set_up(self):
        self.disks = {name: self.context.new_disk(f"fio-{name}", "512M") for name in MOUNTS}
        self.vm = Vm(self.service, "fio", self.image, vcpus=2, disks=self.disks.values(),
                     dvds=[f"{self.image}/tools.iso"])
        self.vm.boot("initramfs")
        self.vm.run("tools")

    def tear_down(self):
        self.vm.remove()

    def write_and_verify(self, name):
        """Written past the guest's cache and flushed now and then, verified after the file system was mounted anew."""
        make, check = MOUNTS[name]
        device = self.vm.run(f"lun {list(MOUNTS).index(name)}")
        mount = f"mount -t {name} {device} /mnt"
        self.vm.run(f"{make} {device} && {mount} && "
                    f"{JOB} --ioengine=libaio --iodepth=16 --direct=1 --fdatasync=64 --do_verify=0 && umount /mnt")
        self.vm.run(f"{mount} && {JOB} --ioengine=psync --verify_only && umount /mnt")
        self.vm.run(f"{check} {device}")

    def test_ext4_on_a_dynamic_disk(self):
        self.write_and_verify("ext4")

    def test_xfs_on_a_dynamic_disk(self):
        self.write_and_verify("xfs")

    def test_verification_finds_a_changed_byte(self):
        """Else the two before prove nothing."""
        device = self.vm.run("lun 0")
        self.vm.run(f"mount -t ext4 {device} /mnt && "
                    f"printf x | dd of=/mnt/data bs=1 seek={FIO_MIB * MIB // 2 + 2000} conv=notrunc 2>/dev/null")
        said = self.vm.run(f"{JOB} --ioengine=psync --verify_only; echo status $?; umount /mnt")
        expect("status 0" not in said, f"fio found nothing wrong: {said}")

    def test_images_are_sound_from_outside(self):
        self.service.vmctl("vm", "turn-off", "fio")
        self.vm.wait("off", 60)
        for path in self.disks.values():
            self.service.vmctl("disk", "check", path)
            subprocess.run(["qemu-img", "check", "-q", path], check=True)
            expect(os.path.getsize(path) > FIO_MIB * MIB, f"'{path}' is smaller than what was written")
