# SPDX-License-Identifier: Apache-2.0
"""What a machine is created with, and with what it is not, as its guest sees it."""

import json
import shutil
import subprocess

from service import Vm
from suite import Group, eventually, expect, expect_equal, group
from test_checkpoints import checkpoints, no_merge_is_owed

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

    def test_its_smbios_tables_say_who_it_is(self):
        shown = self.vm.show()
        expected = {"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine",
                    "bios_vendor": "American Megatrends Inc.", "product_uuid": shown["bios_guid"].lower(),
                    "product_serial": shown["bios_serial_number"], "chassis_asset_tag": shown["chassis_asset_tag"]}
        for name, value in expected.items():
            expect_equal(self.vm.run(f"cat /sys/class/dmi/id/{name}"), value, name)
        expect(len(set(expected["product_serial"])) > 3, f"{expected['product_serial']} is no serial number")
        expect_equal(shown["bios_guid"], shown["id"], "BIOS GUID")

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

    def test_a_machine_of_generation_1_is_saved(self):
        self.vm.run("echo kept > /run/kept")
        self.service.vmctl("vm", "save", "options")
        self.vm.start()
        expect_equal(self.vm.run("cat /run/kept"), "kept", "what the memory holds")
        self.service.vmctl("vm", "pulse", "options")
        expect_equal(self.vm.run("cat /run/kept"), "kept", "what the memory holds")

    def test_disks_of_every_shape_have_checkpoints(self):
        """Sectors of 4 KiB, the largest and the smallest blocks, the host's cache; at the last places there are."""
        shapes = {61: ("four-kib", "--logical-sector", "4096", "--physical-sector", "4096", "--block-size", "1M"),
                  62: ("large-blocks", "--block-size", "256M"), 63: ("small-blocks", "--block-size", "1M")}
        for location, (name, *options) in shapes.items():
            path = self.context.new_disk(name, "600M", *options)
            self.service.vmctl("disk", "attach", "options", path, "--controller", "1", "--location", str(location),
                               "--caching", "buffered" if location == 63 else "direct")
        self.service.vmctl("checkpoint", "policy", "options", "standard")
        disks = [self.disk(location) for location in shapes]

        def check():
            for disk in disks:
                self.vm.run(f"sync; echo 3 >/proc/sys/vm/drop_caches; cd /run/{disk} && md5sum -c sums")
        for disk in disks:
            self.vm.run(f"mke2fs -b 4096 /dev/{disk} >/dev/null && mkdir /run/{disk} && "
                        f"mount -t ext4 /dev/{disk} /run/{disk} && cd /run/{disk} && "
                        "head -c 3145728 /dev/urandom > first && md5sum first > sums")
        self.service.vmctl("checkpoint", "create", "options", "--name", "shapes")
        for disk in disks:
            self.vm.run(f"cd /run/{disk} && head -c 3145728 /dev/urandom > second && md5sum second >> sums")
        check()
        self.service.vmctl("vm", "save", "options")  # and another process opens them, in the order that it likes
        self.vm.start()
        check()
        self.service.vmctl("checkpoint", "delete", "options", "shapes")
        eventually(lambda: no_merge_is_owed(self.service) and "avhdx" not in str(self.vm.show()["disks"]), "they merge")
        check()
        caching = {disk["location"]: disk["caching"] for disk in self.vm.show()["disks"]}
        expect_equal([caching[location] for location in shapes], ["direct", "direct", "buffered"], "caching")
        for location, disk in zip(shapes, disks):
            self.vm.run(f"umount /run/{disk}")
            self.service.vmctl("disk", "detach", "options", "--controller", "1", "--location", str(location))
            self.service.judge_image(f"{self.context.scratch}/{shapes[location][0]}.vhdx")
        for options, said in ((("--controller", "1", "--location", "64"), "63"),
                              (("--controller", "2", "--location", "0"), "controller")):
            path = f"{self.context.scratch}/four-kib.vhdx"
            _, line = self.service.refused("disk", "attach", "options", path, *options)
            expect(said in line, f"{options}: {line}")

    def test_a_serial_port_is_a_file(self):
        """It says what the guest says, goes on where a save ended, and stays when the machine goes."""
        path = f"{self.context.scratch}/com1.log"
        vm = Vm(self.service, "written", self.image, memory="192M", com1=f"file:{path}")
        self.service.vmctl("vm", "start", "written")

        def text():
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        eventually(lambda: "@@agent initramfs" in text(), "the agent's words are in the file")
        before = text()
        _, line = self.service.refused("vm", "console", "written")
        expect("--com1 console" in line, f"no remedy in: {line}")
        self.service.vmctl("vm", "save", "written")
        self.service.vmctl("vm", "start", "written")
        vm.stop()
        expect(text().startswith(before) and "Power down" in text()[len(before):], f"in the file: {text()}")
        vm.remove()
        expect(text().startswith(before), "its file went with it")

    def write(self, disk, word):
        """A word of five letters, over and over, in three blocks of a VHD."""
        self.vm.run(f"yes {word} | head -c 6291456 >/dev/{disk}; sync")

    def found(self, disk):
        return self.vm.run(f"sync; echo 3 >/proc/sys/vm/drop_caches; head -c 6291456 /dev/{disk} | uniq").split()

    def disk_path(self, name):
        return next(disk["path"] for disk in self.vm.show()["disks"] if name in disk["path"])

    def disk_info(self, path):
        return json.loads(self.service.vmctl("--format", "json", "disk", "info", path))

    def test_a_vhd_has_checkpoints(self):
        path, raw = f"{self.context.scratch}/vhd-old.vhd", f"{self.context.scratch}/vhd-old.raw"
        self.service.vmctl("disk", "create", path, "--size", "64M")
        self.service.vmctl("disk", "attach", "options", path, "--controller", "1", "--location", "4")
        self.service.vmctl("checkpoint", "policy", "options", "standard")
        disk = self.disk(4)
        self.write(disk, "first")
        self.service.vmctl("checkpoint", "create", "options", "--name", "running")
        leaf = self.disk_path("vhd-old")
        expect(leaf.endswith(".avhd"), f"the machine's disk is {leaf}")
        expect_equal(self.found(disk), ["first"], "the disk through its child")
        self.write(disk, "other")
        expect_equal(self.found(disk), ["other"], "the disk")
        self.service.vmctl("checkpoint", "apply", "options", "running")
        self.vm.start()
        expect_equal(self.found(disk), ["first"], "the disk after the checkpoint was applied")
        expect(self.disk_path("vhd-old") not in (leaf, path), "it has no new child")
        self.write(disk, "third")
        self.service.vmctl("checkpoint", "delete", "options", "running")
        eventually(lambda: self.disk_path("vhd-old") == path and no_merge_is_owed(self.service), "it is merged")
        expect_equal(self.found(disk), ["third"], "the disk after the merge")
        expect_equal(checkpoints(self.service, "options"), [], "checkpoints")
        self.service.vmctl("vm", "turn-off", "options")
        self.vm.wait("off", 60)
        expect_equal((self.disk_info(path)["type"], self.disk_info(path)["chain"]), ("dynamic", []), "the image")
        self.service.vmctl("checkpoint", "create", "options", "--name", "off")
        leaf = self.disk_path("vhd-old")
        expect_equal((self.disk_info(leaf)["format"], self.disk_info(leaf)["chain"]), ("vhd", [path]), "the child")
        self.service.vmctl("disk", "check", leaf)
        self.service.vmctl("checkpoint", "delete", "options", "off")
        eventually(lambda: self.disk_path("vhd-old") == path and no_merge_is_owed(self.service), "it is merged")
        self.service.vmctl("disk", "check", path)
        self.service.vmctl("disk", "convert", path, raw)
        if shutil.which("qemu-img"):
            subprocess.run(["qemu-img", "compare", "-q", "-f", "vpc", "-F", "raw", path, raw], check=True)
