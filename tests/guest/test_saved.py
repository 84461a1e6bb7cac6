# SPDX-License-Identifier: Apache-2.0
"""A guest that is saved to files and goes on from them."""

import os
import shutil

from fio_load import FioLoad
from service import Vm
from suite import Group, eventually, expect, expect_equal, group


class Witness:
    """Programs in the guest that notice a break: a counter in memory, a large file in memory, fio on a disk."""

    def __init__(self, vm, device=None):
        self.vm = vm
        vm.run("dmesg -c >/dev/null")  # what the boot said on this machine
        vm.run("head -c 33554432 /dev/urandom > /run/noise && sha256sum /run/noise > /run/sum")
        vm.run("(n=0; while :; do n=$((n+1)); echo $n > /run/count; sleep 0.05; done) >/dev/null 2>&1 &")
        if device:
            self.load = FioLoad(vm, device)

    def count(self):
        """Of a file that may be being written."""
        return int(eventually(lambda: self.vm.run("cat /run/count 2>/dev/null; true"), "a number", 60))

    def check(self, rounds=False):
        """All is as it was and goes on."""
        first = self.count()
        eventually(lambda: self.count() > first + 10, "the counter goes on")
        self.vm.run("sha256sum -c /run/sum")
        if rounds:
            self.load.await_rounds(2)
        trouble = self.vm.run("dmesg | grep -i 'bug:\\|warning:\\|call trace\\|hung\\|i/o error\\|stall' || true")
        expect_equal(trouble, "", "the kernel's complaints")


class SavedGroup(Group):
    """A guest of two processors and a disk under fio, which is saved."""

    def set_up(self):
        self.disk = self.context.new_disk("saved", "64M")
        self.vm = Vm(self.service, "saved", self.image, vcpus=2, disks=[self.disk], dvds=[f"{self.image}/tools.iso"])
        self.vm.boot("initramfs")
        self.witness = Witness(self.vm, self.vm.run("tools && lun 0"))

    def tear_down(self):
        self.vm.remove()

    def state_file(self):
        return f"{self.service.state_dir}/Virtual Machines/{self.vm.show()['id']}.vmrs"


@group
class Saved(SavedGroup):
    """Memory, processors and devices in files, and the guest that goes on from them."""

    def save_and_start(self):
        boot_id = self.vm.run("cat /proc/sys/kernel/random/boot_id")
        before = self.witness.count()
        self.service.vmctl("vm", "save", "saved")
        expect_equal(self.vm.show()["state"], "Saved", "state")
        expect(os.path.getsize(self.state_file()) > 32 << 20, "the saved state has not even the guest's data")
        self.vm.start()
        expect_equal(self.vm.show()["state"], "Running", "state")
        after = self.witness.count()
        expect(before <= after < before + 400, f"the counter went from {before} to {after}")
        expect_equal(self.vm.run("cat /proc/sys/kernel/random/boot_id"), boot_id, "boot")

    def test_the_guest_goes_on(self):
        self.save_and_start()
        self.witness.check(rounds=True)

    def test_as_often_as_it_is_saved(self):
        for _ in range(2):
            self.save_and_start()
        self.witness.check(rounds=True)

    def test_the_clock_is_right_afterwards(self):
        self.service.vmctl("vm", "save", "saved")
        eventually(lambda: self.vm.show()["state"] == "Saved", "saved")
        self.vm.start()

        def close():
            return abs(int(self.vm.run("date +%s")) - int(os.popen("date +%s").read())) <= 2
        eventually(close, "the guest's clock is the host's", 60)

    def test_a_paused_one_is_saved_too(self):
        self.service.vmctl("vm", "pause", "saved")
        self.service.vmctl("vm", "save", "saved")
        self.vm.start()
        self.witness.check()


@group
class SavedFiles(SavedGroup):
    """What may become of a machine while it is saved."""

    def test_what_would_not_fit_is_refused_while_it_is_saved(self):
        self.service.vmctl("vm", "save", "saved")
        other = self.context.new_disk("other", "16M")
        _, line = self.service.refused("disk", "attach", "saved", other, "--location", "5")
        expect("saved" in line, f"no reason in: {line}")
        self.vm.start()

    def test_vmmd_is_killed_while_it_is_saved(self):
        self.service.vmctl("vm", "save", "saved")
        self.service.kill()
        self.service.start()
        expect_equal(self.vm.show()["state"], "Saved", "state")
        self.vm.start()
        self.witness.check(rounds=True)

    def test_a_damaged_saved_state_is_refused_and_kept(self):
        self.service.vmctl("vm", "save", "saved")
        path = self.state_file()
        with open(path, "r+b") as file:
            saved = file.read(8192)
            file.seek(0)
            file.write(bytes(8192))
        _, line = self.service.refused("vm", "start", "saved")
        expect("damaged" in line and path in line, f"no reason in: {line}")
        expect_equal(self.vm.show()["state"], "Saved", "state")
        with open(path, "r+b") as file:
            file.write(saved)
        self.vm.start()
        self.witness.check()

    def test_a_compressed_one_goes_on_too(self):
        self.service.vmctl("vm", "save", "saved")
        plain = os.stat(self.state_file()).st_blocks
        self.vm.start()
        self.service.vmctl("vm", "save", "saved", "--compress")
        compressed = os.stat(self.state_file()).st_blocks  # what was written anew leaves holes
        expect((32 << 20) // 512 < compressed < plain, f"{compressed} sectors compressed, {plain} as it is")
        self.vm.start()
        self.witness.check(rounds=True)

    def test_it_can_be_given_up(self):
        self.service.vmctl("vm", "save", "saved")
        path = self.state_file()
        self.service.vmctl("vm", "discard", "saved")
        expect_equal(self.vm.show()["state"], "Off", "state")
        # What every machine that is off has in its place is small.
        expect(os.path.getsize(path) < 1 << 20, "the saved state is still there")
        self.vm.boot("initramfs")

    def test_a_disc_that_is_gone_holds_nothing_up(self):
        disc = f"{self.context.scratch}/gone.iso"
        shutil.copy(f"{self.image}/tools.iso", disc)
        self.service.vmctl("dvd", "insert", "saved", disc)
        self.vm.run("echo kept > /run/kept && modprobe -q sr_mod; head -c 2048 /dev/sr0 > /dev/null")
        self.service.vmctl("vm", "save", "saved")
        os.unlink(disc)
        self.vm.start()
        expect_equal(self.vm.run("cat /run/kept"), "kept", "what the memory holds")
        expect_equal(self.vm.run("head -c 2048 /dev/sr0 > /dev/null 2>&1 || echo empty"), "empty", "the drive")
        self.service.vmctl("dvd", "insert", "saved", f"{self.image}/tools.iso")
        self.vm.run("tools")
