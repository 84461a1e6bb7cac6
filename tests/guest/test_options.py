# SPDX-License-Identifier: Apache-2.0
"""What a machine is created with, and with what it is not, as its guest sees it."""

from service import Vm
from suite import Group, eventually, expect, expect_equal, group

SCSI = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
SERVICES = {"shutdown": "0e0b6031-5213-4934-818b-38d90ced39db", "heartbeat": "57164f39-9115-4e78-ab55-382f3bd5422d",
            "time": "9527e630-d0ae-497b-adce-e80ab0175caf", "backup": "35fa2e29-ea23-4236-96ae-3a6ebacba440"}


@group
class Options(Group):
    """A machine of generation 1 with two SCSI controllers, disks on the second, and no integration service."""

    def set_up(self):
        self.vm = Vm(self.service, "options", self.image, options=[
            "--generation", "1", "--scsi-controllers", "2", "--no-shutdown", "--no-heartbeat", "--no-time-sync",
            "--no-backup"])
        four = self.context.new_disk("four", "64M", "--logical-sector", "4096", "--physical-sector", "4096")
        self.service.vmctl("disk", "attach", "options", four, "--controller", "1", "--location", "2")
        self.vm.boot("initramfs")

    def tear_down(self):
        self.vm.remove()

    def disk(self, location):
        """The guest's name of the disk at that place of the second controller."""
        return eventually(lambda: self.vm.run(
            "for d in /sys/block/sd*; do case $(readlink -f $d/device) in "
            f"*:0:0:{location}) echo ${{d##*/}};; esac; done").strip(), f"a disk at location {location}")

    def test_it_has_the_devices_that_were_asked_for(self):
        classes = self.vm.run("cat /sys/bus/vmbus/devices/*/class_id").replace("{", "").replace("}", "").split()
        expect_equal(classes.count(SCSI), 2, "SCSI controllers")
        for name, service in SERVICES.items():
            expect(service not in classes, f"it has the {name} service")

    def test_a_disk_of_4_kib_sectors_is_one(self):
        disk = self.disk(2)
        expect_equal(self.vm.run(f"cat /sys/block/{disk}/queue/logical_block_size"), "4096", "logical sector")
        self.vm.run(f"iocheck -t 1 -s 3 /dev/{disk} 8388608")

    def test_a_read_only_disk_is_read_alone(self):
        path = self.context.new_disk("locked", "64M")
        self.service.vmctl("disk", "attach", "options", path, "--controller", "1", "--location", "3", "--read-only")
        disk = self.disk(3)
        expect_equal(self.vm.run(f"cat /sys/block/{disk}/ro"), "1", "read-only, by the guest's word")
        self.vm.run(f"dd if=/dev/{disk} of=/dev/null bs=1M count=4 2>&1 && ! dd if=/dev/zero of=/dev/{disk} bs=4096 "
                    "count=1 oflag=direct 2>/dev/null")
        self.service.vmctl("disk", "detach", "options", "--controller", "1", "--location", "3")
        eventually(lambda: self.vm.run(f"[ -e /sys/block/{disk} ] || echo gone") == "gone", "the disk goes")

    def test_a_service_that_is_not_there_is_not_waited_for(self):
        _, line = self.service.refused("vm", "stop", "options", "--timeout", "60")
        expect("vmctl vm turn-off" in line, f"no remedy in: {line}")
