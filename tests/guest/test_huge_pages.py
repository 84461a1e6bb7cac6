# SPDX-License-Identifier: Apache-2.0
"""A guest whose memory is of huge pages."""

import json

from service import Vm
from suite import Group, expect, expect_equal, group
from test_saved import Witness

PAGES, OTHERS = 256, 192  # of 2 MiB: the guest's, and what is left for another one


def set_pages_aside(count):
    with open("/proc/sys/vm/nr_hugepages", "w", encoding="ascii") as file:
        file.write(f"{count}\n")


def free_pages():
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["HugePages_Free"]) - int(fields["HugePages_Rsvd"])


@group
class HugePages(Group):
    """All of its memory, the rings of its devices in it, and what checkpoints and saved states make of it."""

    changes_host = True  # sets pages aside

    def set_up(self):
        set_pages_aside(PAGES + OTHERS)
        expect_equal(free_pages(), PAGES + OTHERS, "huge pages of the host")
        self.disk = self.context.new_disk("huge", "64M")
        self.vm = Vm(self.service, "huge", self.image, vcpus=2, memory=f"{2 * PAGES}M", disks=[self.disk],
                     dvds=[f"{self.image}/tools.iso"], options=["--huge-pages"])
        self.service.vmctl("checkpoint", "policy", "huge", "standard")
        self.vm.boot("initramfs")
        self.witness = Witness(self.vm, self.vm.run("tools && lun 0"))

    def tear_down(self):
        self.vm.remove()
        set_pages_aside(0)

    def expect_no_fallback(self):
        with open(f"{self.vm.run_dir}/worker.log", encoding="utf-8") as file:
            log = file.read()
        for line in ("the guest waits until its memory is saved", "all memory is read before the start"):
            expect(line not in log, f"in the log: {line}")

    def test_all_its_memory_is_of_them(self):
        expect_equal(free_pages(), OTHERS, "huge pages that nobody has")
        self.witness.check(rounds=True)

    def test_without_enough_of_them_it_does_not_start(self):
        other = Vm(self.service, "other", self.image, memory="512M", options=["--huge-pages"])
        _, line = self.service.refused("vm", "start", "other")
        expect("vm.nr_hugepages" in line, f"no remedy in: {line}")
        other.remove()

    def test_they_stay_its_own_while_it_is_saved_and_restored_in_place(self):
        self.service.vmctl("vm", "pulse", "huge", "--count", "2")
        expect_equal(free_pages(), OTHERS, "pages for others")
        self.witness.check(rounds=True)

    def test_the_owner_of_a_shared_disk_reaches_them(self):
        other = Vm(self.service, "other", self.image, memory=f"{2 * OTHERS}M", options=["--huge-pages"],
                   shared=[self.context.new_disk("shared", "64M")], dvds=[f"{self.image}/tools.iso"])
        other.boot("initramfs")
        other.run("tools && head -c 8388608 /dev/urandom > /run/noise && "
                  "dd if=/run/noise of=$(lun 0) bs=1M oflag=direct conv=notrunc 2>&1 && "
                  "dd if=$(lun 0) of=/run/read bs=1M count=8 iflag=direct 2>&1 && cmp /run/noise /run/read")
        other.remove()

    def test_a_checkpoint_is_of_an_instant_and_is_gone_back_to(self):
        self.vm.run("(while :; do head -c 50331648 /dev/urandom > /run/dirty; done) >/dev/null 2>&1 & "
                    "echo $! > /run/pid")
        before = self.witness.count()
        job = json.loads(self.service.vmctl("--format", "json", "checkpoint", "create", "huge", "--name", "first"))
        expect(job["pause_ns"] > 0, f"no pause in {job}")
        self.expect_no_fallback()
        self.vm.run("kill $(cat /run/pid)")
        after = self.witness.count()
        self.service.vmctl("checkpoint", "apply", "huge", "first")
        self.vm.start()
        count = self.witness.count()
        expect(before <= count < after + 400, f"the counter went from {before} over {after} to {count}")
        self.vm.run("kill $(cat /run/pid)")  # it runs again
        self.witness.check(rounds=True)
        self.expect_no_fallback()

    def test_it_is_saved_and_goes_on(self):
        for compress in ([], ["--compress"]):
            self.service.vmctl("vm", "save", "huge", *compress)
            expect_equal(free_pages(), PAGES + OTHERS, "huge pages that nobody has")
            self.expect_no_fallback()
            self.vm.start()
            self.witness.check()
            self.expect_no_fallback()
        self.witness.check(rounds=True)
