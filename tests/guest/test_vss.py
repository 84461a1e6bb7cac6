# SPDX-License-Identifier: Apache-2.0
"""A guest's file systems brought to rest by its own backup service, and never left so."""

import shutil
import time

from service import Vm
from suite import Group, eventually, expect, expect_equal, group

HOLD_SECONDS = 10  # that a guest stays frozen at most
DAEMON = "hv_vss_daemon"


class BackupGroup(Group):
    """A guest in its initramfs with an ext4 that a frozen guest cannot write to, and Debian's backup service."""

    name = ""

    def set_up(self):
        self.disk = self.context.new_disk(self.name, "128M")
        self.vm = Vm(self.service, self.name, self.image, disks=[self.disk], dvds=[f"{self.image}/tools.iso"])
        self.vm.boot("initramfs")
        self.vm.run("tools && mkfs.ext4 -q $(lun 0) && mount -t ext4 $(lun 0) /mnt")
        self.start_daemon()

    def tear_down(self):
        self.vm.remove()

    def start_daemon(self):
        self.vm.run(f"{DAEMON} -n >>/run/vss.log 2>&1 & until ls -l /proc/$!/fd | grep -q hv_vss; do usleep 100000; "
                    "done; usleep 300000")

    def stop_daemon(self):
        self.vm.run(f"killall -9 {DAEMON}; while pidof {DAEMON} >/dev/null; do usleep 100000; done")

    def freeze(self):
        self.service.vmctl("vm", "freeze", self.name)

    def thaw(self):
        self.service.vmctl("vm", "thaw", self.name)

    def refuse_thaw(self, said):
        status, line = self.service.refused("vm", "thaw", self.name)
        expect(said in line, f"status {status}, and '{said}' is not in: {line}")

    def number(self, path):
        """A number that a file of the guest has, also one that is being written, or made."""
        return int(eventually(lambda: self.vm.run(f"cat {path} 2>/dev/null; true"), f"a number in {path}", 60))


@group
class Backup(BackupGroup):
    """Freezes, thaws, and what comes between them."""

    name = "backup"

    def set_up(self):
        super().set_up()
        self.vm.run("(while :; do echo $n >>/mnt/log; n=$((n+1)); echo $n >/run/written; usleep 50000; done) &")

    def written(self):
        return self.number("/run/written")

    def expect_frozen(self):
        before = self.written()
        time.sleep(2)
        expect_equal(self.written(), before, "writes of a frozen guest")
        return before

    def await_writes(self, before, timeout=60):
        eventually(lambda: self.written() > before + 3, "the guest writes again", timeout)

    def test_a_frozen_guest_writes_nothing_until_it_is_thawed(self):
        for _ in range(2):
            self.await_writes(self.written())
            self.freeze()
            before = self.expect_frozen()
            status, line = self.service.refused("vm", "freeze", self.name)
            expect("already" in line, f"status {status}: {line}")
            self.thaw()
            self.await_writes(before)
        self.refuse_thaw("was not frozen")
        expect_equal(self.vm.counters()["vss_freezes_ended_early"], 0, "freezes that did not last until the thaw")

    def test_nobody_holds_it_frozen_for_long(self):
        start = time.monotonic()
        self.freeze()
        frozen = time.monotonic()
        before = self.expect_frozen()
        self.await_writes(before, 30)
        expect(time.monotonic() - start >= HOLD_SECONDS, f"thawed after {time.monotonic() - frozen:.1f} s")
        self.refuse_thaw(f"limit of {HOLD_SECONDS} s")
        expect_equal(self.vm.counters()["vss_freezes_ended_early"], 1, "freezes that did not last until the thaw")

    def test_a_pulse_and_a_pause_end_it(self):
        for verbs in (["pulse"], ["pause", "resume"]):
            self.freeze()
            before = self.written()
            for verb in verbs:
                self.service.vmctl("vm", verb, self.name)
            self.await_writes(before, HOLD_SECONDS - 2)
            self.refuse_thaw("stopped meanwhile")

    def test_a_saved_one_is_thawed_when_it_goes_on(self):
        self.freeze()
        before = self.written()
        self.service.vmctl("vm", "save", self.name)
        self.vm.start()
        self.await_writes(before)
        self.refuse_thaw("was not frozen")

    def test_a_guest_without_its_service_is_not_frozen(self):
        self.stop_daemon()
        status, line = self.service.refused("vm", "freeze", self.name)
        expect(DAEMON in line, f"status {status}, and no remedy in: {line}")
        self.await_writes(self.written())
        self.start_daemon()
        self.freeze()
        self.thaw()

    def test_a_service_that_dies_while_it_is_frozen_is_replaced(self):
        self.freeze()
        self.stop_daemon()
        self.refuse_thaw(DAEMON)
        before = self.expect_frozen()
        with open(f"{self.vm.run_dir}/worker.log", encoding="utf-8") as log:
            expect("did not thaw its file systems" in log.read(), "nothing of it in the worker's log")
        self.start_daemon()
        self.await_writes(before)
        self.freeze()
        self.thaw()

    def test_a_driver_that_is_reloaded_while_it_is_frozen_is_told(self):
        self.freeze()
        before = self.written()
        self.stop_daemon()
        self.vm.run("rmmod hv_utils && modprobe hv_utils")
        self.start_daemon()
        self.await_writes(before)
        self.vm.wait("heartbeat", 60)

    def test_a_wrong_timeout_is_refused(self):
        status, line = self.service.refused("vm", "freeze", self.name, "--timeout", "601")
        expect("600 s" in line, f"status {status}: {line}")


@group
class DataBase(BackupGroup):
    """An SQLite data base that is written all the time."""

    name = "database"

    def set_up(self):
        super().set_up()
        self.vm.run("sqlload /mnt/db /run/committed >/run/sqlload 2>&1 &")

    def committed(self):
        return self.number("/run/committed")

    def await_commits(self, before):
        eventually(lambda: self.committed() > before + 10, "more transactions")

    def test_freezes_do_it_no_harm(self):
        for _ in range(3):
            self.await_commits(self.committed())
            self.freeze()
            before = self.committed()
            time.sleep(2)
            expect_equal(self.committed(), before, "the last transaction of a frozen guest")
            self.thaw()
        self.await_commits(before)
        self.vm.run("killall sqlload sqlite3; while pidof sqlite3 >/dev/null; do usleep 100000; done")
        self.vm.run(f"sqlcheck /mnt/db {self.committed()}")
        expect_equal(self.vm.run("cat /run/sqlload"), "", "what sqlite3 complained of")

    def test_a_copy_of_the_frozen_disk_has_all_that_was_committed(self):
        self.vm.run("sqlload /mnt/db /run/committed >/run/sqlload 2>&1 &")
        self.await_commits(self.committed())
        copy = f"{self.context.scratch}/copy.vhdx"
        self.freeze()
        committed = self.committed()
        shutil.copyfile(self.disk, copy)
        self.thaw()
        self.await_commits(committed)
        self.service.vmctl("disk", "attach", self.name, copy, "--location", "5")
        device = self.vm.run("lun 5")
        self.vm.run(f"e2fsck -fn {device} && mkdir -p /run/copy && mount -t ext4 {device} /run/copy")
        rows = int(self.vm.run(f"sqlcheck /run/copy/db {committed}"))
        expect(rows <= committed + 10, f"{rows} rows are in the copy, {committed} were committed")

    def test_a_check_finds_a_missing_and_a_changed_row(self):
        """Else the two before prove nothing."""
        self.vm.run("killall sqlload sqlite3; while pidof sqlite3 >/dev/null; do usleep 100000; done")
        rows = int(self.vm.run("sqlcheck /mnt/db"))
        for change in ("DELETE FROM load WHERE number = 7", "UPDATE load SET text = 'x' WHERE number = 7"):
            said = self.vm.run(f"cp /mnt/db /run/bad && sqlite3 /run/bad \"{change}\" && sqlcheck /run/bad; "
                               "echo status $?")
            expect("status 1" in said, f"after '{change}': {said}")
        expect("status 1" in self.vm.run(f"sqlcheck /mnt/db {rows + 1}; echo status $?"), "a lost row was not missed")
