# SPDX-License-Identifier: Apache-2.0
"""A machine of more processors and more memory than the others here have."""

from service import Vm
from suite import Group, expect, expect_equal, group

GIB = 1 << 30
PROCESSORS = 8


@group
class Wide(Group):
    """Eight processors, and memory on both sides of the hole below 4 GiB, more than the software host has: the guest
    touches little of it."""

    def set_up(self):
        self.vm = Vm(self.service, "wide", self.image, vcpus=PROCESSORS, memory="5G",
                     disks=[self.context.new_disk("wide", "64M")])
        self.service.vmctl("checkpoint", "policy", "wide", "standard")
        self.vm.boot("initramfs")
        self.vm.run("dmesg -c >/dev/null")  # what the boot said on this machine
        self.vm.run("head -c 4194304 /dev/urandom > /run/noise && md5sum /run/noise > /run/sum && "
                    "echo first > /run/name")

    def tear_down(self):
        self.vm.remove()

    def check(self):
        """What it has in memory, and a thread with a part of the disk on each of its processors."""
        self.vm.run(f"md5sum -c /run/sum && iocheck -t {PROCESSORS} -b 0x1000 $(lun 0) 0x400000")
        expect_equal(self.vm.run("nproc"), str(PROCESSORS), "processors")
        expect_equal(self.vm.run("dmesg | grep -i 'bug:\\|call trace\\|stall\\|lockup' || true"), "", "complaints")

    def test_it_has_all_of_it(self):
        memory = int(self.vm.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) * 1024
        expect(4.5 * GIB < memory < 5 * GIB, f"{memory / GIB:.2f} GiB by the guest's word")
        last = self.vm.run("grep 'System RAM' /proc/iomem | tail -n 1").split()[0].split("-")
        expect(int(last[0], 16) >= 4 * GIB, f"the guest's last memory is {last}")

    def test_it_is_saved(self):
        self.service.vmctl("vm", "save", "wide")
        self.vm.start()
        self.check()

    def test_a_checkpoint_of_it_is_gone_back_to(self):
        self.service.vmctl("checkpoint", "create", "wide", "--name", "first")
        self.vm.run("echo second > /run/name")
        self.service.vmctl("checkpoint", "apply", "wide", "first")
        self.vm.start()
        expect_equal(self.vm.run("cat /run/name"), "first", "what the memory holds")
        self.check()
