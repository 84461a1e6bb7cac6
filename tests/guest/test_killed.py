# SPDX-License-Identifier: Apache-2.0
"""Workers and vmmd that are killed while a machine is saved or a checkpoint of it is made."""

import glob
import os
import signal
import subprocess
import time

from service import Vm, processes
from suite import Group, eventually, expect, expect_equal, group
from test_checkpoints import Mark, checkpoints, no_merge_is_owed

MIB = 1 << 20


class KilledGroup(Group):
    """A guest of one processor and a disk, with a checkpoint that each round starts from."""

    name = ""

    def set_up(self):
        self.begin(self.context.scratch)

    def begin(self, disks):
        """`disks`: the folder of its own."""
        self.disks = disks
        disk = f"{disks}/{self.name}.vhdx"
        self.service.vmctl("disk", "create", disk, "--size", "64M")
        self.vm = Vm(self.service, self.name, self.image, memory="256M", disks=[disk],
                     dvds=[f"{self.image}/tools.iso"])
        self.service.vmctl("checkpoint", "policy", self.name, "standard")
        self.vm.boot("initramfs")
        self.mark = Mark(self.vm)
        self.mark.begin()
        self.count = self.mark.write("first")
        self.service.vmctl("checkpoint", "create", self.name, "--name", "first")
        self.first = checkpoints(self.service, self.name)[0]["id"]

    def tear_down(self):
        self.vm.remove()

    def go_on_from(self, checkpoint):
        """From an earlier one all is as it was."""
        self.service.vmctl("checkpoint", "apply", self.name, checkpoint)
        self.vm.start()
        self.mark.check("first", self.count)

    def folders(self):
        return [f"{self.service.state_dir}/Virtual Machines", f"{self.service.state_dir}/Snapshots",
                f"{self.service.state_dir}/jobs", self.disks]

    def files(self, pattern):
        return [path for folder in self.folders() for path in glob.glob(f"{folder}/{pattern}")]

    def kill(self, victims):
        """The worker, vmmd or both; the worker first, so that vmmd may see it or not."""
        if victims != "vmmd":
            run_dir = f"{self.service.run_dir}/".encode()
            for pid, words in processes():
                if words[0].endswith(b"/vmm") and any(word.startswith(run_dir) for word in words):
                    os.kill(pid, signal.SIGKILL)
        if victims != "worker":
            self.service.kill()

    def kill_during(self, command, moment, victims):
        """Whether the moment came before the command's end."""
        with subprocess.Popen([f"{self.service.bin_dir}/vmctl", "--socket", self.service.socket, *command],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            while not moment() and running.poll() is None:
                time.sleep(0.001)
            in_time = running.poll() is None
            self.kill(victims)
        if victims != "worker":
            self.service.start()
        return in_time

    def litter(self):
        """Files that nobody names. A machine that is not saved has a small one in place of its state."""
        shown = self.vm.show()
        entries = checkpoints(self.service, self.name)
        left = self.files("*.new*")
        named = {disk["path"] for disk in shown["disks"]} | {disk for entry in entries for disk in entry["disks"]}
        left += [path for path in self.files("*.avhdx") if path not in named]
        states = {entry["id"] for entry in entries} | ({shown["id"]} if shown["state"] == "Saved" else set())
        return left + [path for path in self.files("*.vmrs")
                       if os.path.getsize(path) > MIB and os.path.basename(path)[:-5] not in states]

    def settle(self):
        """The machine's state, when whoever is left has done what is to be done."""
        eventually(lambda: no_merge_is_owed(self.service), "no job runs")
        eventually(lambda: self.vm.show()["state"] in ("Off", "Saved", "Running") and not self.litter(),
                   f"nothing is left over; {self.litter()} is, in state {self.vm.show()['state']}")
        return self.vm.show()["state"]

    def check_files(self):
        """Of a machine that does not run."""
        run_dir = f"{self.service.run_dir}/{self.vm.show()['id']}".encode()
        workers = [pid for pid, words in processes() if words[0].endswith(b"/vmm") and run_dir in words]
        expect_equal(workers, [], "workers of a machine that does not run")
        for path in self.files("*vhdx"):
            self.service.vmctl("disk", "check", path)

    def check_what_is_left(self, state):
        """It starts from where it is, whatever that is, and its images are sound."""
        if state == "Off":
            self.check_files()
            self.vm.start()
            self.service.vmctl("vm", "turn-off", self.name)
            return
        if state == "Saved":
            self.check_files()
            self.vm.start()
        self.mark.check("first", self.count)
        self.service.vmctl("vm", "save", self.name)
        self.check_files()


class KilledSave(KilledGroup):
    """Killed while the machine is being saved: it is what it was, or Saved, or Off as after any crash."""

    name = "killed-save"

    def moments(self):
        """As the saved state grows; and when it has its name."""
        path = f"{self.service.state_dir}/Virtual Machines/{self.vm.show()['id']}.vmrs"
        new = f"{path}.new"
        return {
            "begun": lambda: os.path.exists(new),
            "a part": lambda: os.path.exists(new) and os.path.getsize(new) > 8 * MIB,
            "most": lambda: os.path.exists(new) and os.path.getsize(new) > 40 * MIB,
            "whole": lambda: os.path.getsize(path) > MIB,
        }

    def rounds(self, victims, allowed, chosen):
        for when in chosen:
            moment = self.moments()[when]
            in_time = self.kill_during(("vm", "save", self.name), moment, victims)
            state = self.settle()
            print(f"       {victims} killed {when}{'' if in_time else ' (it was over)'}: {state}", flush=True)
            expect(state in allowed, f"{victims} killed {when}: it is {state}")
            self.check_what_is_left(state)
            self.go_on_from(self.first)


@group
class WorkerKilledInSave(KilledSave):
    """See above."""

    def test_it_is_off_or_saved(self):
        self.rounds("worker", ("Off", "Saved"), ("begun", "a part", "whole"))


@group
class ServiceKilledInSave(KilledSave):
    """The worker goes on without vmmd, and waits for one; alone or not."""

    def test_it_runs_or_is_saved(self):
        self.rounds("vmmd", ("Running", "Saved"), ("begun", "most"))

    def test_it_is_off_or_saved_when_both_are_killed(self):
        self.rounds("both", ("Off", "Saved"), ("whole",))


class KilledCheckpoint(KilledGroup):
    """Killed while a checkpoint of the running machine is made: there is one that applies, or there is none."""

    name = "killed-checkpoint"

    def moments(self):
        """As its saved state grows, at the instant, and when all is there."""
        snapshots = f"{self.service.state_dir}/Snapshots"
        before = set(self.files("*.avhdx"))

        def size():
            return max((os.path.getsize(path) for path in glob.glob(f"{snapshots}/*.vmrs.new")), default=-1)
        return {
            "begun": lambda: size() >= 0,
            "a part": lambda: size() > 8 * MIB,
            "the instant": lambda: set(self.files("*.avhdx")) - before,
            "whole": lambda: len(glob.glob(f"{snapshots}/*.vmrs")) > 1,
            "noted": lambda: len(glob.glob(f"{snapshots}/*.vmcx")) > 1,
        }

    def rounds(self, victims, allowed, chosen):
        for when in chosen:
            moment = self.moments()[when]
            in_time = self.kill_during(("checkpoint", "create", self.name, "--name", "second"), moment, victims)
            state = self.settle()
            names = [entry["name"] for entry in checkpoints(self.service, self.name)]
            print(f"       {victims} killed {when}{'' if in_time else ' (it was over)'}: {state}, {names}", flush=True)
            expect(state in allowed, f"{victims} killed {when}: it is {state}")
            expect(names in (["first"], ["first", "second"]), f"{victims} killed {when}: checkpoints {names}")
            self.check_what_is_left(state)
            if "second" in names:
                self.go_on_from("second")
            self.go_on_from(self.first)
            if "second" in names:
                self.service.vmctl("checkpoint", "delete", self.name, "second")
                self.settle()


@group
class WorkerKilledInCheckpoint(KilledCheckpoint):
    """See above."""

    def test_it_is_off(self):
        self.rounds("worker", ("Off",), ("a part", "the instant", "noted"))


@group
class ServiceKilledInCheckpoint(KilledCheckpoint):
    """The worker goes on without vmmd; alone or not."""

    def test_it_runs_on(self):
        self.rounds("vmmd", ("Running",), ("begun", "whole"))

    def test_it_is_off_when_both_are_killed(self):
        self.rounds("both", ("Off",), ("the instant",))
