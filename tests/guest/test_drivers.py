# SPDX-License-Identifier: Apache-2.0
"""The drivers of an unmodified guest come, go and come back: module reload, kexec, panic, clock."""

import time

from service import LIMIT, Vm
from suite import Group, eventually, expect, expect_equal, group

MIB = 1 << 20


@group
class Reload(Group):
    """A guest with two processors that stays in its initramfs, so that storage may go away.

    hv_vmbus itself stays: Linux stops its direct-mode timers when that module leaves, and the LAPIC's timer of the
    first processor, which could take over, is its broadcast device already. The kexec unloads VMBus all the same.
    """

    def set_up(self):
        self.disk = self.context.new_disk("data", "128M")
        self.vm = Vm(self.service, "two", self.image, vcpus=2, disks=[self.disk], append="kvmbus.modules=none")
        self.vm.boot("initramfs")

    def tear_down(self):
        self.vm.remove()

    def load(self):
        self.vm.run("modprobe hv_vmbus && modprobe hv_storvsc && modprobe sd_mod && modprobe hv_utils")
        self.vm.run("lun 0")

    def test_boots_with_2_vcpus(self):
        expect_equal(self.vm.run("nproc"), "2", "processors")
        self.load()

    def test_storvsc_goes_and_comes_back(self):
        self.vm.run(f"iocheck -t 2 -s 7 $(lun 0) {16 * MIB}")
        before = self.vm.run("dd if=$(lun 0) bs=1M count=16 2>/dev/null | md5sum")
        for _ in range(2):
            self.vm.run("rmmod hv_storvsc && ! ls /dev/sd?")
            self.load()
        expect_equal(self.vm.run("dd if=$(lun 0) bs=1M count=16 2>/dev/null | md5sum"), before, "checksum after reload")

    def test_time_is_set_when_the_service_connects(self):
        offset = lambda: int(self.vm.run("date +%s")) - time.time()
        expect_equal(self.vm.run("cat /sys/class/ptp/ptp0/clock_name"), "hyperv", "the PTP clock")
        self.vm.run("rmmod hv_utils && date -s @$(($(date +%s) - 3600)) && modprobe hv_utils")
        eventually(lambda: abs(offset()) < 10, "the guest's clock is the host's again")

    def test_kexec(self):
        # The initramfs has no room for the kernel, the disk has.
        size = self.context.write_kernel_disk(f"{self.context.scratch}/kexec.raw")
        self.service.vmctl("disk", "attach", "two", f"{self.context.scratch}/kexec.raw", "--location", "5")
        self.vm.run("disk=$(lun 5) && "
                    f"head -c {size} $disk >/tmp/vmlinuz && tail -c +{size + 1} $disk >/tmp/initrd")
        start = self.vm.console.position
        self.vm.console.send("kexec_into /tmp/vmlinuz /tmp/initrd 'console=ttyS0 quiet panic=-1 kexec=done'")
        self.vm.console.wait_agent(LIMIT, "initramfs", start)
        expect("kexec=done" in self.vm.run("cat /proc/cmdline"), "the old kernel runs")
        expect_equal(self.vm.show()["reboots"], 0, "reboots by the machine")
        self.vm.run("lun 0")
        self.vm.run(f"iocheck -t 2 -s 9 $(lun 0) {4 * MIB}")
        self.vm.wait("heartbeat", 120)

    def test_panic_is_reported_with_its_message(self):
        self.vm.console.send("echo c >/proc/sysrq-trigger")
        message = eventually(lambda: self.vm.show()["crash_message"], "a crash with a message in vm show", 300)
        expect("sysrq triggered crash" in message, f"the message is {message[-300:]!r}")
        expect("crash" in self.service.vmctl("vm", "show", "two").lower(), "the table does not show the crash")
