# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a guest that runs: a tree of them, applied back and forth."""

import json
import os

from service import Vm
from suite import Group, eventually, expect, expect_equal, group
from test_vss import BackupGroup


def checkpoints(service, vm):
    return json.loads(service.vmctl("--format", "json", "checkpoint", "list", vm))


def named(service, vm, name):
    return next(entry for entry in checkpoints(service, vm) if entry["name"] == name)


def expect_no_leaves(context):
    left = [name for name in os.listdir(context.scratch) if name.endswith(".avhdx")]
    expect_equal(left, [], "files of checkpoints")


def no_merge_is_owed(service):
    jobs = json.loads(service.vmctl("--format", "json", "job", "list"))
    return all(job["state"] != "running" for job in jobs)


class Mark:
    """A counter that the guest writes to a disk, durably, and then to its memory; and a name in both."""

    def __init__(self, vm):
        self.vm = vm

    def begin(self):
        self.vm.run("tools && mkfs.ext4 -q -F $(lun 0) && mkdir -p /mnt && mount $(lun 0) /mnt && touch /mnt/name && "
                    "head -c 33554432 /dev/urandom > /run/noise && sha256sum /run/noise > /run/sum")
        self.vm.run("(n=0; while :; do n=$((n+1)); echo $n > /mnt/count && sync /mnt/count && echo $n > /run/count; "
                    "sleep 0.1; done) >/dev/null 2>&1 &")
        eventually(self.counts, "the counter counts")

    def counts(self):
        """Of the memory and of the disk, read after it."""
        text = self.vm.run("cat /run/count /mnt/count 2>/dev/null || true").split()
        return (int(text[0]), int(text[1])) if len(text) == 2 else None

    def write(self, name):
        self.vm.run(f"echo {name} > /run/name; echo {name} > /mnt/name; head -c 1048576 /dev/urandom > /mnt/{name}; "
                    f"sha256sum /mnt/{name} > /run/{name}.sum; sync")
        return eventually(self.counts, "the counter")[0]

    def check(self, name, count):
        """What is there is of that instant, in memory as on the disk, and goes on."""
        memory, disk = eventually(self.counts, "the counter")
        expect(memory <= disk <= memory + 10, f"the memory says {memory}, the disk {disk}")
        expect(count <= memory < count + 600, f"the counter is {memory}; it was {count} at {name}")
        expect_equal(self.vm.run("cat /run/name /mnt/name").split(), [name, name], "names in memory and on the disk")
        self.vm.run(f"sha256sum -c /run/sum && sha256sum -c /run/{name}.sum")
        eventually(lambda: (self.counts() or (0, 0))[0] > memory + 3, "the counter goes on")
        trouble = self.vm.run("dmesg | grep -i 'ext4-fs error\\|i/o error\\|bug:' || true")
        expect_equal(trouble, "", "the kernel's complaints")


class TreeGroup(Group):
    """A guest of two processors and two disks, and checkpoints of it."""

    def set_up(self):
        self.counts = {}
        self.disk = self.context.new_disk("tree", "64M")
        self.other = self.context.new_disk("other", "64M")
        self.vm = Vm(self.service, "tree", self.image, vcpus=2, disks=[self.disk, self.other],
                     dvds=[f"{self.image}/tools.iso"])
        self.service.vmctl("checkpoint", "policy", "tree", "standard")
        self.vm.boot("initramfs")
        self.mark = Mark(self.vm)
        self.mark.begin()

    def tear_down(self):
        self.vm.remove()

    def create(self, name, *options):
        self.counts[name] = self.mark.write(name)
        self.service.vmctl("checkpoint", "create", "tree", "--name", name, *options)

    def apply(self, name, *options):
        self.service.vmctl("checkpoint", "apply", "tree", name, *options)
        expect_equal(self.vm.show()["state"], "Saved", "state")
        self.vm.start()
        self.mark.check(name, self.counts[name])


@group
class Checkpoints(TreeGroup):
    """Three checkpoints in a row and a branch from the first, applied back and forth."""

    def test_three_in_a_row(self):
        for name, *options in (("one",), ("two", "--compress"), ("three",)):
            self.create(name, *options)
            self.mark.check(name, self.counts[name])
        tree = [(entry["name"], entry["depth"], entry["kind"], entry["current"])
                for entry in checkpoints(self.service, "tree")]
        expect_equal(tree, [("one", 0, "standard", False), ("two", 1, "standard", False),
                            ("three", 2, "standard", True)], "the tree")

    def test_the_first_is_applied_and_a_branch_grows(self):
        self.mark.write("lost")
        self.apply("one")
        self.create("branch")
        self.mark.check("branch", self.counts["branch"])
        expect_equal([(entry["name"], entry["depth"]) for entry in checkpoints(self.service, "tree")],
                     [("one", 0), ("two", 1), ("three", 2), ("branch", 1)], "the tree")

    def test_back_and_forth(self):
        for name in ("three", "branch", "two"):
            self.apply(name)

    def test_what_is_now_can_be_kept_first(self):
        count = self.mark.write("now")
        self.service.vmctl("checkpoint", "apply", "tree", "two", "--checkpoint-first")
        self.vm.start()
        self.mark.check("two", self.counts["two"])
        kept = next(entry for entry in checkpoints(self.service, "tree") if entry["name"].startswith("tree - ("))
        self.counts["now"] = count
        self.service.vmctl("checkpoint", "rename", "tree", kept["id"], "now")
        self.apply("now")

    def test_the_generation_id_is_another_one_after_an_apply_alone(self):
        def generation():
            return self.vm.show()["generation_id"]
        first = generation()
        self.service.vmctl("vm", "save", "tree")
        self.vm.start()
        self.create("same")
        expect_equal(generation(), first, "generation id")
        before = self.forks()
        self.apply("same")
        expect(generation() != first, "the generation id is the same after an apply")
        expect_equal(self.forks(), before + 1, "times that the guest was told")
        self.vm.run("dmesg -c > /dev/null")
        self.service.vmctl("vm", "save", "tree")
        self.vm.start()
        expect_equal(self.forks(), 0, "times that the guest was told, after a save")

    def forks(self):
        """How often Linux has taken a new generation id for a fork of its machine."""
        return int(self.vm.run("dmesg | grep -c 'virtual machine fork' || true"))

    def test_nobody_merges_or_resizes_what_a_checkpoint_stands_on(self):
        for words in (("merge", self.vm.show()["disks"][0]["path"]), ("merge", self.disk),
                      ("resize", self.disk, "--size", "128M")):
            _, line = self.service.refused("disk", *words)
            expect("vmctl checkpoint delete" in line, f"no remedy in: {line}")

    def test_the_images_are_sound(self):
        self.service.vmctl("vm", "save", "tree")
        files = {disk for entry in checkpoints(self.service, "tree") for disk in entry["disks"]}
        files |= {disk["path"] for disk in self.vm.show()["disks"]}
        for file in sorted(file for file in files if file.endswith("vhdx")):
            self.service.judge_image(file)
        self.vm.start()


@group
class CheckpointDeletion(TreeGroup):
    """Checkpoints that go, while the guest runs: their disks become one with those that stand on them."""

    def set_up(self):
        super().set_up()
        for name in ("one", "two", "three"):
            self.create(name)
        self.apply("one")
        self.create("branch")

    def test_one_in_the_middle_is_deleted_while_the_guest_runs(self):
        self.apply("three")
        gone = named(self.service, "tree", "two")["disks"]
        self.service.vmctl("checkpoint", "delete", "tree", "two")
        eventually(lambda: no_merge_is_owed(self.service), "the disks are merged")
        self.mark.check("three", self.counts["three"])
        expect_equal(named(self.service, "tree", "three")["parent"], named(self.service, "tree", "one")["id"],
                     "the parent of 'three'")
        for name in ("branch", "three"):
            self.apply(name)
        expect(gone, "it had disks")

    def size(self):
        """Of the second disk, by the guest's word, in MiB."""
        return int(self.vm.run("blockdev --getsize64 $(lun 1)")) >> 20

    def far(self):
        """The sum of what lies behind the second disk's first end."""
        return self.vm.run("dd if=$(lun 1) bs=1M skip=80 count=2 iflag=direct 2>/dev/null | md5sum")

    def test_a_disk_that_grows_above_a_checkpoint_is_of_both_sizes(self):
        self.service.vmctl("disk", "resize", self.vm.show()["disks"][1]["path"], "--size", "96M")
        eventually(lambda: self.size() == 96, "the guest sees the new size")
        self.vm.run("dd if=/dev/urandom of=$(lun 1) bs=1M seek=80 count=2 oflag=direct 2>/dev/null")
        self.grown = self.far()
        self.create("grown")
        self.apply("branch")
        expect_equal(self.size(), 64, "MiB of a disk before it grew")
        self.apply("grown")
        expect_equal((self.size(), self.far()), (96, self.grown), "MiB of the disk that grew, and their end")

    def test_all_are_deleted_and_one_image_is_left(self):
        for entry in checkpoints(self.service, "tree"):
            if entry["depth"] == 0:
                self.service.vmctl("checkpoint", "delete", "tree", entry["id"], "--subtree")
        eventually(lambda: no_merge_is_owed(self.service), "the disks are merged")
        self.mark.check("grown", self.counts["grown"])
        eventually(lambda: [disk["path"] for disk in self.vm.show()["disks"]][:2] == [self.disk, self.other],
                   "the machine is on its first disks again")
        expect_no_leaves(self.context)
        self.vm.run("echo 3 >/proc/sys/vm/drop_caches")
        expect_equal((self.size(), self.far()), (96, self.grown), "MiB of the disk that grew, and their end")
        self.vm.stop()
        for disk in (self.disk, self.other):
            self.service.vmctl("disk", "check", disk)


@group
class AutomaticCheckpoints(Group):
    """One at every start, which is gone after a clean stop, and is there after a run that went wrong."""

    def set_up(self):
        self.disk = self.context.new_disk("automatic", "64M")
        self.vm = Vm(self.service, "automatic", self.image, disks=[self.disk], dvds=[f"{self.image}/tools.iso"])
        self.vm.boot("initramfs")
        self.vm.run("tools && mkfs.ext4 -q -F $(lun 0) && mkdir -p /mnt && mount $(lun 0) /mnt && "
                    "echo first > /mnt/run && umount /mnt")
        self.vm.stop()
        self.service.vmctl("checkpoint", "policy", "automatic", "--automatic", "on")

    def tear_down(self):
        self.vm.remove()

    def boot(self):
        self.vm.boot("initramfs")
        self.vm.run("tools && mkdir -p /mnt && mount $(lun 0) /mnt")
        return self.vm.run("cat /mnt/run")

    def expect_one(self):
        eventually(lambda: no_merge_is_owed(self.service), "the disks are merged")
        made = checkpoints(self.service, "automatic")
        expect_equal([entry["automatic"] for entry in made], [True], "automatic checkpoints")
        return made[0]["id"]

    def test_a_start_makes_one_and_a_clean_stop_removes_it(self):
        expect_equal(self.boot(), "first", "what the disk says")
        self.expect_one()
        self.vm.run("echo second > /mnt/run && umount /mnt")
        self.vm.stop()
        eventually(lambda: not checkpoints(self.service, "automatic") and no_merge_is_owed(self.service), "it goes")
        expect_equal([disk["path"] for disk in self.vm.show()["disks"]][0], self.disk, "the disk of the machine")
        self.service.judge_image(self.disk)

    def test_a_run_that_goes_wrong_is_undone(self):
        expect_equal(self.boot(), "second", "what the disk says")
        first = self.expect_one()
        self.vm.run("echo wrong > /mnt/run && sync")
        self.service.vmctl("vm", "turn-off", "automatic")
        expect_equal(self.expect_one(), first, "the checkpoint")
        self.service.vmctl("checkpoint", "apply", "automatic", first)
        expect_equal(self.boot(), "second", "what the disk says")
        self.expect_one()


@group
class ManyCheckpoints(Group):
    """Of a machine that is off, and has no disks: what they would take is shown elsewhere."""

    def test_fifty_are_allowed(self):
        vm = Vm(self.service, "many", self.image)
        for number in range(50):
            self.service.vmctl("checkpoint", "create", "many", "--name", f"c{number}")
        _, line = self.service.refused("checkpoint", "create", "many", "--name", "c50")
        expect("50" in line, f"no reason in: {line}")
        self.service.vmctl("checkpoint", "delete", "many", "c1", "--subtree")
        expect_equal([entry["name"] for entry in checkpoints(self.service, "many")], ["c0"], "checkpoints")
        vm.remove()


@group
class Production(BackupGroup):
    """Production checkpoints of a guest with a data base, by its backup service; and without it."""

    name = "production"

    def set_up(self):
        super().set_up()
        self.vm.run("sqlload /mnt/db /run/committed >/run/sqlload 2>&1 &")

    def committed(self):
        return self.number("/run/committed")

    def await_commits(self):
        """It writes on."""
        before = self.committed()
        eventually(lambda: self.committed() > before, "more rows", 60)

    def test_the_disks_are_at_rest_in_it(self):
        self.await_commits()
        before = self.committed()
        self.service.vmctl("checkpoint", "create", "production", "--name", "rest")
        expect_equal(named(self.service, "production", "rest")["kind"], "production", "kind")
        self.await_commits()
        after = self.committed()
        self.service.vmctl("checkpoint", "apply", "production", "rest")
        expect_equal(self.vm.show()["state"], "Off", "state")
        self.vm.boot("initramfs")
        # A file system that was frozen is clean without a replay of its journal.
        self.vm.run("tools && e2fsck -fn $(lun 0)")
        rows = int(self.vm.run(f"mount -t ext4 $(lun 0) /mnt && sqlcheck /mnt/db {before}"))
        expect(rows <= after + 10, f"{rows} rows are in it, {after} were committed afterwards")

    def test_the_disks_are_at_rest_in_an_export(self):
        self.start_daemon()
        self.vm.run("sqlload /mnt/db /run/committed >/run/sqlload 2>&1 &")
        self.await_commits()
        before = self.committed()
        self.service.vmctl("vm", "export", "production", self.context.scratch, "--capture", "data-consistent")
        self.await_commits()
        after = self.committed()
        self.service.vmctl("vm", "pause", "production")  # one processor is enough for one of them
        file = f"{self.context.scratch}/production/Virtual Machines/{self.vm.show()['id']}.vmcx"
        self.service.vmctl("vm", "import", file, "--copy", "--name", "copy", "--folder", self.image)
        copy = Vm.of(self.service, "copy")
        expect_equal(copy.show()["state"], "Off", "state")
        copy.boot("initramfs")
        copy.run("tools && e2fsck -fn $(lun 0)")
        rows = int(copy.run(f"mount -t ext4 $(lun 0) /mnt && sqlcheck /mnt/db {before}"))
        expect(rows <= after + 10, f"{rows} rows are in it, {after} were committed afterwards")
        copy.remove()
        self.service.vmctl("vm", "resume", "production")

    def test_without_the_service_the_policy_decides(self):
        self.await_commits()
        self.stop_daemon()
        _, line = self.service.refused("checkpoint", "create", "production", "--production")
        expect("hv_vss_daemon" in line, f"no reason in: {line}")
        self.await_commits()
        self.service.vmctl("checkpoint", "policy", "production", "production-only")
        self.service.refused("checkpoint", "create", "production")
        self.await_commits()
        self.service.vmctl("checkpoint", "policy", "production", "production")
        self.service.vmctl("checkpoint", "create", "production", "--name", "fallback")
        expect_equal(named(self.service, "production", "fallback")["kind"], "standard", "kind")
        self.await_commits()
        self.service.vmctl("checkpoint", "policy", "production", "disabled")
        _, line = self.service.refused("checkpoint", "create", "production")
        expect("disabled" in line, f"no reason in: {line}")

    def test_all_of_them_go(self):
        for entry in checkpoints(self.service, "production"):
            if entry["depth"] == 0:
                self.service.vmctl("checkpoint", "delete", "production", entry["id"], "--subtree")
        eventually(lambda: no_merge_is_owed(self.service), "the disks are merged")
        self.await_commits()
        self.vm.run("killall sqlload sqlite3; while pidof sqlite3 >/dev/null; do usleep 100000; done; sqlcheck /mnt/db")
