# SPDX-License-Identifier: Apache-2.0
"""Power cuts in everything that vmmd does to a machine's files: what is left is what was before, or what comes after.

The files lie on a disk that is recorded (logged_disk.py). Then it is cut at flushes and between them, a part of what
was not flushed is lost, and the next vmmd must find, for each cut, all files of the state before the command under way
or all of the state after it, with the contents that the disks had. What a command said is done, is done.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import random

from logged_disk import LoggedDisk
from service import Service, Vm
from suite import Group, eventually, expect_equal, group
from test_checkpoints import checkpoints, no_merge_is_owed

IMAGES = 2  # whose contents are looked at after a cut


@dataclasses.dataclass
class State:
    """Lines that say what there is, and a digest of what each image's disk holds."""

    structure: list
    contents: dict


class RecordedGroup(Group):
    """A service whose files are on the recorded disk."""

    changes_host = True

    def set_up(self):
        self.idle, self.number = self.service, 0
        self.at = f"{self.context.scratch}/cut"
        self.logged = LoggedDisk(self.context.scratch, self.at)
        self.service = self.new_service()
        for folder in ("disks", "out"):
            os.makedirs(f"{self.at}/{folder}")

    def tear_down(self):
        self.stop_service()
        self.service = self.idle
        self.logged.close()

    def new_service(self):
        """Its own folder, with its log and what is gone with the power, is not on that disk."""
        self.number += 1
        service = Service(self.idle.bin_dir, f"{self.context.scratch}/service-{self.number}")
        service.state_dir = f"{self.at}/state"
        service.start()
        return service

    def marked(self, name, *command):
        """A command, between two marks."""
        self.logged.mark(f"in {name}")
        self.service.vmctl(*command)
        self.logged.mark(f"after {name}")

    def stop_service(self):
        if self.service.process.poll() is None:
            for vm in self.service.list():
                if vm["state"] not in ("Off", "Saved"):
                    self.service.try_vmctl("vm", "turn-off", vm["name"])
                    self.service.vmctl("vm", "wait", vm["name"], "--for", "off")
        self.service.stop()

    def each_cut(self, wanted, chance):
        """Ends the recording; then, for each cut after the wanted marks, the cut, when a new service is up and done."""
        self.stop_service()
        self.logged.stop()
        for cut in self.logged.replay(self.logged.cuts(chance, wanted), chance):
            self.service = self.new_service()
            eventually(lambda: no_merge_is_owed(self.service), "no job runs")
            yield cut
            self.stop_service()


class PowerGroup(RecordedGroup):
    """Commands at a machine that is off; then, cut by cut, what the next service finds."""

    def set_up(self):
        super().set_up()
        self.states, self.contents, self.last = {}, {}, None

    # --- recording ---

    def step(self, name, *command):
        """The state before `name` is that after the step before."""
        before = self.last or self.state()
        self.marked(name, *command)
        eventually(lambda: no_merge_is_owed(self.service), "no job runs")
        self.last = self.state()
        self.states[f"in {name}"] = [before, self.last]
        self.states[f"after {name}"] = [self.last]

    def guest_writes(self, vm, command):
        """Not cut: what the disk holds meanwhile nobody knows."""
        self.logged.mark("a guest writes")
        vm.boot("initramfs")
        vm.run(command)
        vm.stop()
        vm.wait("off")
        self.last = None

    # --- what there is ---

    def state(self):
        structure, images = self.structure()
        return State(structure, {path: self.content(path) for path in images})

    def structure(self):
        """Lines of the machines, their checkpoints and all files; and the machines' images."""
        lines, images = [], []
        for listed in sorted(self.service.list(), key=lambda vm: vm["name"]):
            shown = json.loads(self.service.vmctl("--format", "json", "vm", "show", listed["id"]))
            lines.append(" ".join(f"{key}={shown[key]}" for key in ("name", "id", "state", "version", "generation_id")))
            lines += [f"  {disk['path']}" for disk in shown["disks"]]
            images += [disk["path"] for disk in shown["disks"]]
            for entry in checkpoints(self.service, listed["id"]):
                words = ("name", "id", "parent", "kind", "current", "disks")
                lines.append("  " + " ".join(f"{key}={entry[key]}" for key in words))
                images += entry["disks"]
        for folder, folders, files in os.walk(self.at):
            folders[:] = sorted(name for name in folders if f"{folder}/{name}" != f"{self.at}/state/jobs")
            lines += [f"{folder}/{name}" for name in sorted(files)] or [f"{folder}/"]
        return lines, [path for path in images if path.endswith("vhdx")]

    def content(self, path):
        """Of the disk; known of an image that nobody has written to, for a merge below it changes no content."""
        status = os.stat(path)
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in self.contents:
            self.contents[key] = self.read_content(path)
        return self.contents[key]

    def read_content(self, path):
        raw = f"{self.context.scratch}/content.raw"
        self.service.vmctl("disk", "convert", path, raw)
        with open(raw, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        os.unlink(raw)
        return digest

    # --- cutting ---

    def cut_power(self):
        wanted = {mark: self.context.options.cuts if len(states) > 1 else 1 for mark, states in self.states.items()}
        chance = random.Random(self.context.options.seed)
        for cut in self.each_cut(wanted, chance):
            allowed = self.states[cut.mark]
            index = self.judge(cut, allowed, chance)
            print(f"       cut {cut.mark}, {cut.end - cut.sure} writes at stake: "
                  f"{('before', 'behind')[index] if len(allowed) > 1 else 'as said'}", flush=True)

    def judge(self, cut, allowed, chance):
        """Which of the allowed states is there; some of its images are sound and hold what they held."""
        def find():
            structure, _ = self.structure()
            return [number for number, state in enumerate(allowed) if state.structure == structure]
        try:
            index = eventually(find, "state", timeout=20)[0]
        except AssertionError as error:
            raise AssertionError(self.report(cut, allowed)) from error
        contents = allowed[index].contents
        for path in chance.sample(sorted(contents), min(IMAGES, len(contents))):
            self.service.vmctl("disk", "check", path)
            expect_equal(self.read_content(path), contents[path], f"{cut}: content of '{path}'")
        return index

    def report(self, cut, allowed):
        found, _ = self.structure()
        parts = [f"{cut}, seed {self.context.options.seed}:"]
        for number, state in enumerate(allowed):
            parts.append(f"against state {number}:")
            parts += difflib.unified_diff(state.structure, found, "wanted", "found", n=0, lineterm="")
        parts.append(self.service.log()[-3000:])
        return "\n".join(parts)


class TreeGroup(PowerGroup):
    """A machine that is off, with a disk, to which a guest writes between checkpoints."""

    def set_up(self):
        super().set_up()
        disk = f"{self.at}/disks/m.vhdx"
        self.service.vmctl("disk", "create", disk, "--size", "16M")
        self.vm = Vm(self.service, "m", self.image, memory="192M", disks=[disk], dvds=[f"{self.image}/tools.iso"])

    def write(self, mib):
        self.guest_writes(self.vm, f"tools && head -c {mib << 20} /dev/urandom > $(lun 0) && sync")


@group
class PowerCutInCheckpoints(TreeGroup):
    """Checkpoints are made, applied and renamed."""

    def test_before_or_after(self):
        self.step("create one", "checkpoint", "create", "m", "--name", "one")
        self.write(3)
        self.step("create two", "checkpoint", "create", "m", "--name", "two")
        self.step("apply one", "checkpoint", "apply", "m", "one")
        self.step("create branch", "checkpoint", "create", "m", "--name", "branch")
        self.step("rename branch", "checkpoint", "rename", "m", "branch", "b")
        self.step("keep and apply two", "checkpoint", "apply", "m", "two", "--checkpoint-first")
        self.step("eject the disc", "dvd", "eject", "m")
        self.cut_power()


@group
class PowerCutInDeletions(TreeGroup):
    """Checkpoints go, alone and with what grew from them, and their disks are merged; then all of the machine."""

    def test_before_or_after(self):
        for name, mib in (("one", 2), ("two", 4), ("three", 1)):
            self.service.vmctl("checkpoint", "create", "m", "--name", name)
            self.write(mib)
        self.service.vmctl("checkpoint", "apply", "m", "one")
        self.service.vmctl("checkpoint", "create", "m", "--name", "branch")
        self.service.vmctl("checkpoint", "apply", "m", "three")
        self.step("delete two", "checkpoint", "delete", "m", "two")
        self.step("delete branch", "checkpoint", "delete", "m", "branch")
        self.step("delete all", "checkpoint", "delete", "m", "one", "--subtree")
        self.step("delete m", "vm", "delete", "m")
        self.cut_power()


@group
class PowerCutInTransfers(PowerGroup):
    """A machine of version 5.0 that is upgraded, goes and comes back, and copies of it."""

    def test_before_or_after(self):
        disk = f"{self.at}/disks/m.vhdx"
        self.service.vmctl("disk", "create", disk, "--size", "16M")
        vm = Vm(self.service, "m", self.image, memory="192M", disks=[disk], dvds=[f"{self.image}/tools.iso"],
                options=["--version", "5.0"])
        self.guest_writes(vm, "tools && head -c 3145728 /dev/urandom > $(lun 0) && sync")
        self.service.vmctl("checkpoint", "create", "m", "--name", "one")
        self.guest_writes(vm, "tools && head -c 6291456 /dev/urandom > $(lun 0) && sync")
        file = f"{self.at}/out/m/Virtual Machines/{vm.show()['id']}"
        self.step("upgrade", "vm", "upgrade", "m", "--yes")
        self.step("export", "vm", "export", "m", f"{self.at}/out")
        self.step("copy", "vm", "import", f"{file}.vmcx", "--copy", "--name", "copy", "--folder", self.image)
        self.step("delete m", "vm", "delete", "m")
        self.step("restore", "vm", "import", f"{file}.vmcx", "--restore", "--folder", self.image)
        self.service.vmctl("vm", "delete", "m")
        self.last = None
        self.step("register", "vm", "import", f"{file}.vmcx", "--name", "here", "--folder", self.image)
        self.cut_power()
