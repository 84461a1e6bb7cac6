# SPDX-License-Identifier: Apache-2.0
"""Boot, reboot and orderly end of a guest whose root is ext4 in a dynamic VHDX."""

import subprocess
import time

from outside import read_from_image
from service import LIMIT, Vm
from suite import Group, expect, expect_equal, group


@group
class OneProcessor(Group):
    """A guest with one processor and its root on the synthetic SCSI controller."""

    def set_up(self):
        self.disk = self.context.copy_root("one")
        self.vm = Vm(self.service, "one", self.image, root=True, disks=[self.disk])
        self.vm.start()

    def tear_down(self):
        self.vm.remove()

    def test_boots_with_its_root_on_storvsc(self):
        self.vm.console.wait_agent(LIMIT, root="disk")
        expect_equal(self.vm.run("nproc"), "1", "processors")
        expect_equal(self.vm.run("grep ' / ' /proc/mounts | cut -d' ' -f1,3"), "/dev/sda1 ext4", "root")
        drivers = self.vm.run("for d in /sys/bus/vmbus/devices/*/driver; do basename $(readlink $d); done").split()
        expect_equal(sorted(drivers), ["hv_storvsc"] + 4 * ["hv_utils"], "drivers of VMBus devices")

    def test_heartbeat(self):
        self.vm.wait("heartbeat", 120)
        expect_equal(self.vm.show()["heartbeat"], "OK", "heartbeat")

    def test_reboot_from_inside(self):
        start = self.vm.console.position
        worker = self.vm.show()["worker_pid"]
        self.vm.console.send("reboot")
        uptime = self.vm.console.wait_agent(LIMIT, "disk", start)
        expect(uptime < 300, f"the guest's uptime is {uptime} s: it did not reboot")
        shown = self.vm.show()
        found = (shown["state"], shown["reboots"], shown["worker_pid"])
        expect_equal(found, ("Running", 1, worker), "state, reboots and worker")

    def test_restart_through_the_service(self):
        start = self.vm.console.position
        self.service.vmctl("vm", "stop", "--restart", self.vm.name, "--timeout", "240")
        self.vm.console.wait_agent(LIMIT, "disk", start)
        expect_equal(self.vm.show()["reboots"], 2, "reboots")

    def test_shutdown_through_the_service_keeps_the_data(self):
        text = f"written at {time.time()}"
        self.vm.run(f"echo '{text}' >/written")
        self.vm.stop()
        shown = self.vm.show()
        expect_equal(shown["state"], "Off", "state")
        expect("Power down" in self.vm.console.text, "the guest did not power down in order")
        self.service.vmctl("disk", "check", self.disk)
        subprocess.run(["qemu-img", "check", "-q", self.disk], check=True)
        expect_equal(read_from_image(self.disk, "/written", self.context.scratch), text, "the file in the image")
        expect_equal(self.vm.sockets(), [], "sockets left behind")
