# SPDX-License-Identifier: Apache-2.0
"""Power cuts while a guest that runs is saved, gets a checkpoint, or loses one."""

import random

from suite import eventually, expect, expect_equal, group
from test_checkpoints import checkpoints, named, no_merge_is_owed
from test_killed import KilledGroup
from test_power import RecordedGroup


class RunningGroup(RecordedGroup, KilledGroup):
    """A guest of one processor and a disk, with a checkpoint that each round starts from."""

    name = "power"

    def set_up(self):
        RecordedGroup.set_up(self)
        self.begin(f"{self.at}/disks")

    def tear_down(self):
        RecordedGroup.tear_down(self)

    def rounds(self, wanted):
        """For each cut: what it came after, the machine's state, and the names of its checkpoints."""
        for cut in self.each_cut(wanted, random.Random(self.context.options.seed)):
            self.vm.service = self.service
            state = self.settle()
            names = [entry["name"] for entry in checkpoints(self.service, self.name)]
            print(f"       cut {cut.mark}, {cut.end - cut.sure} writes at stake: {state}, {names}", flush=True)
            self.check_files()
            yield cut.mark, state, names

    def settle(self):
        state = super().settle()
        expect(state != "Running", "it runs after a power cut")
        return state


@group
class PowerCutInSave(RunningGroup):
    """It is off as after any power cut, or it is saved."""

    def test_it_is_off_or_saved(self):
        self.marked("save", "vm", "save", self.name)
        for mark, state, names in self.rounds({"in save": 2 * self.context.options.cuts, "after save": 1}):
            expect_equal(names, ["first"], "checkpoints")
            expect(state == "Saved" or mark == "in save", f"{mark} it is {state}")
            if state == "Saved":
                self.vm.start()
                self.mark.check("first", self.count)
            self.go_on_from(self.first)


@group
class PowerCutInRunningCheckpoint(RunningGroup):
    """There is one that applies, or there is none; one that was to go is there whole, or it is gone."""

    def test_checkpoints_apply(self):
        counts = {"first": self.count, "second": self.mark.write("second")}
        self.marked("create", "checkpoint", "create", self.name, "--name", "second")
        self.mark.write("third")
        self.marked("delete", "checkpoint", "delete", self.name, "first")
        eventually(lambda: no_merge_is_owed(self.service), "the disks are merged")
        allowed = {"in create": (["first"], ["first", "second"]), "after create": (["first", "second"],),
                   "in delete": (["first", "second"], ["second"]), "after delete": (["second"],)}
        for mark, state, names in self.rounds({mark: self.context.options.cuts for mark in allowed}):
            expect_equal(state, "Off", "state")
            expect(names in allowed[mark], f"{mark}: checkpoints {names}")
            for name in names:
                self.service.vmctl("checkpoint", "apply", self.name, named(self.service, self.name, name)["id"])
                self.vm.start()
                self.mark.check(name, counts[name])
