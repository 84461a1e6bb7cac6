# SPDX-License-Identifier: Apache-2.0
"""Disks that change under a guest that writes and compares."""

import glob
import os
import pathlib
import signal
import subprocess

from fio_load import FioLoad
from service import Vm
from suite import Group, eventually, expect, expect_equal, group

MIB = 1 << 20
LARGE_PIECES = 24  # of 16 MiB


@group
class LiveDisks(Group):
    """A guest in its initramfs whose disk grows, gets children and is merged, while fio writes to it and verifies."""

    def set_up(self):
        self.base = self.context.new_disk("live", "64M")
        self.large = self.context.new_disk("large", "2G")
        self.vm = Vm(self.service, "live", self.image, vcpus=2, disks=[self.base, self.large],
                     dvds=[f"{self.image}/tools.iso"])
        self.vm.boot("initramfs")
        self.device = self.vm.run("tools && lun 0")
        self.load = FioLoad(self.vm, self.device)

    def tear_down(self):
        self.vm.remove()

    def file(self, name):
        return f"{self.context.scratch}/{name}.avhdx"

    def disk_path(self):
        return self.vm.show()["disks"][0]["path"]

    def is_changing(self):
        """Whether the worker has its thread for that."""
        names = glob.glob(f"/proc/{self.vm.show()['worker_pid']}/task/*/comm")
        return any(pathlib.Path(name).read_text(encoding="utf-8") == "work/change\n" for name in names)

    def test_a_larger_disk_is_seen_while_it_is_written(self):
        self.load.await_rounds(1)
        self.service.vmctl("disk", "resize", self.base, "--size", "96M")
        name = os.path.basename(self.device)
        eventually(lambda: self.vm.run(f"cat /sys/block/{name}/size") == str(96 * MIB // 512), "the guest's new size")
        self.vm.run(f"iocheck -t 1 -b 0x1000 -o {92 * MIB} {self.device} {4 * MIB}")
        self.load.await_rounds(1)
        status, line = self.service.refused("disk", "resize", self.base, "--size", "32M")
        expect("shrink" in line, f"status {status}, and no reason in: {line}")

    def test_new_children_take_what_is_written(self):
        for below, name in ((self.base, "one"), (self.file("one"), "two"), (self.file("two"), "three")):
            self.service.vmctl("disk", "create", self.file(name), "--parent", below, "--live")
            expect_equal(self.disk_path(), self.file(name), "the machine's disk")
            self.load.await_rounds(1)
        status, line = self.service.refused("disk", "create", self.file("two"), "--parent", self.file("three"),
                                            "--live")
        expect("exists" in line, f"status {status}: {line}")

    def test_a_layer_is_merged_while_the_disk_is_written(self):
        self.service.vmctl("disk", "merge", self.file("one"))
        expect(not os.path.lexists(self.file("one")), "the merged file is still there")
        self.load.await_rounds(1)

    def test_the_top_is_merged_while_it_is_written(self):
        self.service.vmctl("disk", "merge", self.file("three"))
        expect_equal(self.disk_path(), self.file("two"), "the machine's disk")
        expect(not os.path.lexists(self.file("three")), "the merged file's name is still there")
        self.load.await_rounds(1)
        self.service.vmctl("disk", "merge", self.file("two"))
        expect_equal(self.disk_path(), self.base, "the machine's disk")
        self.load.await_rounds(1)

    def test_a_merge_that_is_interrupted_can_be_made_again(self):
        child = self.file("large-child")
        self.service.vmctl("disk", "create", child, "--parent", self.large, "--live")
        self.vm.run("dd if=/dev/zero of=$(lun 1) bs=1M count=1 oflag=direct && "
                    f"dd if=/dev/urandom of=/run/piece bs=1M count=16 && for n in $(seq {LARGE_PIECES}); do "
                    "dd if=/run/piece of=$(lun 1) bs=1M seek=$((n*16)) oflag=direct; done 2>/dev/null")
        with subprocess.Popen([f"{self.service.bin_dir}/vmctl", "--socket", self.service.socket, "disk", "merge",
                               child], stderr=subprocess.DEVNULL) as merge:
            eventually(self.is_changing, "the merge", pause=0.01)
            merge.send_signal(signal.SIGINT)
        eventually(lambda: not self.is_changing(), "the end of the merge", pause=0.01)
        expect_equal(self.vm.show()["disks"][1]["path"], child, "the machine's disk")
        self.service.vmctl("disk", "merge", child)
        expect_equal(self.vm.show()["disks"][1]["path"], self.large, "the machine's disk")
        self.vm.run(f"for n in 1 {LARGE_PIECES}; do dd if=$(lun 1) bs=1M skip=$((n*16)) count=16 2>/dev/null | "
                    "cmp - /run/piece || exit 1; done")

    def test_the_disk_is_sound_and_starts_again(self):
        self.vm.run("touch /run/stop; until grep -q over /run/io; do usleep 100000; done", timeout=240)
        self.load.rounds()
        wanted = self.vm.run(f"sync; md5sum <{self.device}")
        self.service.vmctl("vm", "turn-off", "live")
        self.vm.wait("off", 60)
        self.service.vmctl("disk", "check", self.base)
        self.vm.boot("initramfs")
        expect_equal(self.vm.run(f"md5sum <{self.vm.run('lun 0')}"), wanted, "the disk's checksum")
