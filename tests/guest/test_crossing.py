# SPDX-License-Identifier: Apache-2.0
"""What an administrator asks for, and a guest does, while something else is still being done with the machine."""

import json
import os

from service import LIMIT, Vm
from suite import eventually, expect, expect_equal, group
from test_checkpoints import checkpoints, expect_no_leaves, no_merge_is_owed
from test_transfers import TransferGroup

CANCELLED, NOT_FOUND, PRECONDITION = 11, 15, 19


@group
class Crossing(TransferGroup):
    """A guest of one processor and a disk, and two things at once that become of it."""

    disk_size = "128M"

    def begin(self, *command):
        """The id of a job that goes on by itself."""
        return json.loads(self.service.vmctl("--format", "json", *command, "--detach"))["id"]

    def job_state(self, job):
        jobs = json.loads(self.service.vmctl("--format", "json", "job", "list"))
        return next(entry["state"] for entry in jobs if entry["id"] == job)

    def await_one_image(self):
        eventually(lambda: no_merge_is_owed(self.service) and self.vm.show()["disks"][0]["path"] == self.disk,
                   "the machine is on its first disk again")
        expect_no_leaves(self.context)

    def names(self):
        return [entry["name"] for entry in checkpoints(self.service, "tree")]

    def write_large(self):
        self.vm.run("head -c 25165824 /dev/urandom > /mnt/large && sha256sum /mnt/large > /mnt/sum && sync")

    def check_large(self):
        self.vm.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /mnt/sum")

    def test_an_export_is_cancelled(self):
        job = self.begin("vm", "export", "tree", self.out)
        self.service.vmctl("job", "cancel", job)
        status, line = self.service.refused("job", "wait", job)
        expect_equal((status, "cancelled" in line), (CANCELLED, True), f"status and reason in '{line}'")
        expect_equal(self.job_state(job), "cancelled", "state of the job")
        expect_equal((os.listdir(self.out), self.names()), ([], []), "what is left of it")
        status, line = self.service.refused("job", "cancel", job)
        expect_equal((status, "has ended" in line), (PRECONDITION, True), f"status and reason in '{line}'")
        for verb in ("wait", "cancel"):
            status, line = self.service.refused("job", verb, "none")
            expect_equal((status, "job list" in line), (NOT_FOUND, True), f"status and remedy in '{line}'")

    def test_it_gets_a_checkpoint_and_is_saved_while_it_is_exported(self):
        self.count = self.mark.write("exported")
        job = self.begin("vm", "export", "tree", self.out)
        self.service.vmctl("checkpoint", "create", "tree", "--name", "meanwhile")
        self.write_large()
        self.service.vmctl("vm", "save", "tree")
        self.service.vmctl("job", "wait", job)
        expect_equal(self.job_state(job), "done", "state of the job")
        eventually(lambda: no_merge_is_owed(self.service), "the export's own checkpoint goes")
        expect_equal(self.names(), ["meanwhile"], "checkpoints")
        self.vm.start()

    def test_a_merge_stands_aside_for_a_save(self):
        self.service.vmctl("checkpoint", "delete", "tree", "meanwhile")
        self.service.vmctl("vm", "save", "tree")
        self.vm.start()
        self.check_large()
        self.mark.check("exported", self.count)
        self.await_one_image()
        self.check_large()

    def test_a_checkpoint_goes_while_the_guest_restarts(self):
        self.service.vmctl("checkpoint", "create", "tree", "--name", "below")
        self.write_large()
        start = self.vm.console.position
        self.vm.console.send("reboot -f")
        self.service.vmctl("checkpoint", "delete", "tree", "below")
        self.vm.console.wait_agent(LIMIT, "initramfs", start)
        self.vm.run("tools && mkdir -p /mnt && mount $(lun 0) /mnt")
        self.check_large()
        self.await_one_image()
        self.check_large()

    def test_a_guest_powers_off_in_the_middle_of_a_checkpoint(self):
        """There is one that applies, or there is none. Its guest may know already that it is to power off."""
        job = self.begin("checkpoint", "create", "tree", "--name", "last")
        self.vm.console.send("poweroff -f")
        self.service.try_vmctl("job", "wait", job)
        self.vm.wait("off")
        if self.job_state(job) == "done":
            self.service.vmctl("checkpoint", "apply", "tree", "last")
            self.service.vmctl("vm", "start", "tree")
            self.service.vmctl("vm", "turn-off", "tree")
            self.vm.wait("off")
            self.service.vmctl("checkpoint", "delete", "tree", "last")
        expect_equal(self.names(), [], "checkpoints")
        self.await_one_image()
        self.service.judge_image(self.disk)
        self.vm.boot("initramfs")
        self.vm.run("mkdir -p /mnt && mount -t ext4 $(lun 0) /mnt")
        self.check_large()

    def test_what_is_being_exported_is_not_deleted(self):
        os.makedirs(again := f"{self.out}/again")
        job = self.begin("vm", "export", "tree", again)
        eventually(self.names, "the export's own checkpoint")
        _, line = self.service.refused("checkpoint", "delete", "tree", self.names()[0])
        expect("export" in line and "job" in line, f"no reason or no remedy in: {line}")
        self.service.vmctl("job", "wait", job)

    def test_nobody_writes_to_what_a_checkpoint_stands_on(self):
        """Its machine would not start any more."""
        self.service.vmctl("vm", "turn-off", "tree")
        self.vm.wait("off")
        eventually(lambda: no_merge_is_owed(self.service), "the machine is at rest")
        self.service.vmctl("checkpoint", "create", "tree", "--name", "below")
        base = checkpoints(self.service, "tree")[0]["disks"][0]
        other = Vm(self.service, "other", self.image, memory="192M", disks=[base])
        try:
            _, line = self.service.refused("vm", "start", "other")
            expect("tree" in line and "checkpoint" in line, f"no reason in: {line}")
        finally:
            other.remove()
        self.vm.start()
