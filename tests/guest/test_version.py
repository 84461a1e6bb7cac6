# SPDX-License-Identifier: Apache-2.0
"""A machine of configuration version 5.0, which stays one until it is upgraded."""

import os

from service import Vm
from suite import Group, expect, expect_equal, group
from test_checkpoints import Mark, checkpoints


@group
class VersionFive(Group):
    """Saved, checkpointed and gone back to in the files of 5.0; then upgraded, with its checkpoint."""

    def set_up(self):
        self.disk = self.context.new_disk("five", "64M")
        self.vm = Vm(self.service, "five", self.image, vcpus=2, disks=[self.disk], dvds=[f"{self.image}/tools.iso"],
                     options=["--version", "5.0"])
        self.service.vmctl("checkpoint", "policy", "five", "standard")
        self.vm.boot("initramfs")
        self.mark = Mark(self.vm)
        self.mark.begin()

    def tear_down(self):
        self.vm.remove()

    def files(self):
        """Kinds of files, of the machine and its checkpoints."""
        return {os.path.splitext(name)[1] for folder in ("Virtual Machines", "Snapshots")
                for _, _, names in os.walk(f"{self.service.state_dir}/{folder}") for name in names}

    def test_it_is_saved_to_bin_and_vsv(self):
        count = self.mark.write("saved")
        self.service.vmctl("vm", "save", "five")
        expect_equal(self.files(), {".xml", ".bin", ".vsv"}, "kinds of files")
        self.vm.start()
        self.mark.check("saved", count)
        expect_equal(self.vm.show()["version"], "5.0", "version")

    def test_a_checkpoint_of_it_is_gone_back_to(self):
        self.count = self.mark.write("one")
        self.service.vmctl("checkpoint", "create", "five", "--name", "one")
        self.mark.write("two")
        self.service.vmctl("checkpoint", "apply", "five", "one")
        self.vm.start()
        self.mark.check("one", self.count)
        expect_equal(self.files(), {".xml", ".bin", ".vsv"}, "kinds of files")

    def name_on_disk(self):
        self.vm.boot("initramfs")
        return self.vm.run("tools && mkdir -p /mnt && mount $(lun 0) /mnt && cat /mnt/name")

    def test_it_is_upgraded_with_its_checkpoint(self):
        self.mark.write("last")
        self.service.vmctl("vm", "save", "five")
        _, line = self.service.refused("vm", "upgrade", "five")
        expect("--yes" in line, f"no remedy in: {line}")
        self.service.vmctl("vm", "upgrade", "five", "--yes")
        expect_equal((self.vm.show()["version"], self.vm.show()["state"]), ("6.2", "Off"), "version and state")
        expect_equal(self.files(), {".vmcx", ".vmrs"}, "kinds of files")  # each machine of 6.2 has these
        expect_equal(self.name_on_disk(), "last", "what the disk says")
        self.service.vmctl("vm", "turn-off", "five")
        expect_equal([entry["name"] for entry in checkpoints(self.service, "five")], ["one"], "checkpoints")
        self.service.vmctl("checkpoint", "apply", "five", "one")
        expect_equal(self.name_on_disk(), "one", "what the disk says")
