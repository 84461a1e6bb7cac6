# SPDX-License-Identifier: Apache-2.0
"""Machines that leave a host as files, and come to one."""

import json
import os
import shutil

from service import Vm
from suite import Group, eventually, expect, expect_equal, group
from test_checkpoints import Mark, checkpoints, no_merge_is_owed


class TransferGroup(Group):
    """A guest of one processor and a disk that is exported while it runs."""

    disk_size = "64M"

    def set_up(self):
        self.disk = self.context.new_disk("tree", self.disk_size)
        self.vm = Vm(self.service, "tree", self.image, memory="256M", disks=[self.disk],
                     dvds=[f"{self.image}/tools.iso"])
        self.service.vmctl("checkpoint", "policy", "tree", "standard")
        self.vm.boot("initramfs")
        self.mark = Mark(self.vm)
        self.mark.begin()
        self.out = f"{self.context.scratch}/out"
        os.makedirs(self.out)

    def tear_down(self):
        self.vm.remove()

    def export(self, *options):
        shutil.rmtree(f"{self.out}/tree", ignore_errors=True)
        self.service.vmctl("vm", "export", "tree", self.out, *options)

    def import_copy(self, name):
        """Its disc stays where it is."""
        file = f"{self.out}/tree/Virtual Machines/{self.vm.show()['id']}.vmcx"
        self.service.vmctl("vm", "import", file, "--copy", "--name", name, "--folder", self.image)
        return Vm.of(self.service, name)

    def discard(self, copy):
        folder = copy.show()["folder"]
        copy.remove()
        shutil.rmtree(folder)

    def expect_sound(self, folder):
        images = [f"{folder}/Virtual Hard Disks/{name}" for name in os.listdir(f"{folder}/Virtual Hard Disks")]
        expect(images, f"no images in {folder}")
        for image in images:
            self.service.judge_image(image)


@group
class Transfers(TransferGroup):
    """Copies of one that runs go on from there."""

    def test_a_copy_of_a_running_guest_goes_on_beside_it(self):
        count = self.mark.write("exported")
        self.export()
        self.mark.check("exported", count)
        expect_equal(checkpoints(self.service, "tree"), [], "checkpoints of the export's own")
        eventually(lambda: no_merge_is_owed(self.service), "the disks are merged")
        expect_equal(self.vm.show()["disks"][0]["path"], self.disk, "its disk")
        self.expect_sound(f"{self.out}/tree")
        copy = self.import_copy("copy")
        shutil.rmtree(f"{self.out}/tree")
        shown, origin = copy.show(), self.vm.show()
        expect_equal(shown["state"], "Saved", "state of the copy")
        for key in ("id", "generation_id", "bios_guid"):
            expect(shown[key] != origin[key], f"the copy has the same {key}")
        expect_equal(shown["bios_serial_number"], origin["bios_serial_number"], "serial number of the copy")
        copy.start()
        Mark(copy).check("exported", count)
        self.mark.check("exported", eventually(self.mark.counts, "the counter")[0])
        self.discard(copy)

    def test_the_disks_alone_are_those_of_a_crash(self):
        self.mark.write("crash")
        self.service.vmctl("checkpoint", "policy", "tree", "disabled")  # an export is none
        self.export("--capture", "crash-consistent")
        self.service.vmctl("checkpoint", "policy", "tree", "standard")
        copy = self.import_copy("crash")
        expect_equal(copy.show()["state"], "Off", "state")
        jobs = json.loads(self.service.vmctl("--format", "json", "job", "list"))
        expect({"export", "import"} <= {job["kind"] for job in jobs}, f"jobs: {jobs}")
        copy.boot("initramfs")
        copy.run("tools && mkdir -p /mnt && mount $(lun 0) /mnt")
        expect_equal(copy.run("cat /mnt/name"), "crash", "the name on the disk")
        self.discard(copy)

    def test_what_cannot_be_is_refused(self):
        os.makedirs(f"{self.out}/tree", exist_ok=True)
        _, line = self.service.refused("vm", "export", "tree", self.out)
        expect("is there already" in line, f"no reason in: {line}")
        shutil.rmtree(f"{self.out}/tree")
        _, line = self.service.refused("vm", "export", "tree", f"{self.out}/none")
        expect("no folder" in line, f"no reason in: {line}")
        self.export("--capture", "crash-consistent")
        file = f"{self.out}/tree/Virtual Machines/{self.vm.show()['id']}.vmcx"
        _, line = self.service.refused("vm", "import", file, "--restore", "--name", "other")
        expect("--copy" in line, f"no remedy in: {line}")


@group
class TransferredCheckpoints(TransferGroup):
    """Checkpoints that come along, and one that comes alone."""

    def test_checkpoints_come_along(self):
        first = self.mark.write("first")
        self.service.vmctl("checkpoint", "create", "tree", "--name", "first")
        count = self.count = self.mark.write("second")
        self.export()
        self.service.vmctl("vm", "pause", "tree")  # one processor is enough for one of them
        copy = self.import_copy("copy")
        expect_equal([entry["name"] for entry in checkpoints(self.service, "copy")], ["first"], "checkpoints")
        copy.start()
        Mark(copy).check("second", count)
        self.service.vmctl("checkpoint", "apply", "copy", "first")
        copy.start()
        Mark(copy).check("first", first)
        self.discard(copy)

    def test_one_is_exported_alone(self):
        self.export("--checkpoint", "first")
        self.expect_sound(f"{self.out}/tree")
        copy = self.import_copy("alone")
        expect_equal(checkpoints(self.service, "alone"), [], "checkpoints")
        copy.start()
        Mark(copy).check("first", 0)
        self.discard(copy)

    def test_it_comes_back_as_itself(self):
        """From an export of a paused one; what was here goes before."""
        self.export()
        shown = self.vm.show()
        file = f"{self.out}/tree/Virtual Machines/{shown['id']}.vmcx"
        _, line = self.service.refused("vm", "import", file, "--restore", "--folder", self.image)
        expect("--copy" in line, f"no remedy in: {line}")
        self.vm.remove()
        self.service.vmctl("vm", "import", file, "--restore", "--destination", self.context.scratch,
                           "--folder", self.image)
        self.vm = Vm.of(self.service, "tree")
        expect_equal([self.vm.show()[key] for key in ("id", "bios_guid", "state")],
                     [shown["id"], shown["bios_guid"], "Saved"], "what it is")
        self.vm.start()
        Mark(self.vm).check("second", self.count)
        self.service.vmctl("checkpoint", "apply", "tree", "first")
        self.vm.start()
        expect_equal(self.vm.run("cat /run/name /mnt/name").split(), ["first", "first"], "names")
