# SPDX-License-Identifier: Apache-2.0
"""Storage QoS, felt by a guest and changed under it."""

import json

from service import Vm
from suite import Group, eventually, expect, expect_equal, group
from test_checkpoints import no_merge_is_owed

BLOCK = 16384  # bytes: two operations


@group
class Qos(Group):
    """A guest in its initramfs with one disk."""

    def set_up(self):
        self.disk = self.context.new_disk("qos", "256M")
        self.vm = Vm(self.service, "qos", self.image, disks=[self.disk])
        self.vm.boot("initramfs")
        self.device = self.vm.run("lun 0")

    def tear_down(self):
        self.vm.remove()

    def statistics(self):
        [disk] = json.loads(self.service.vmctl("--format", "json", "disk", "list", "qos"))
        return disk

    def qos(self, *options):
        self.service.vmctl("disk", "qos", "qos", "--location", "0", *options)

    def write(self, blocks):
        """Past the guest's cache, one at a time: (the guest's seconds, operations that the disk did)."""
        before = self.statistics()["normalized_ios"]
        text = self.vm.run(f"read a rest </proc/uptime; dd if=/dev/zero of={self.device} bs={BLOCK} count={blocks} "
                           "oflag=direct 2>/dev/null && read b rest </proc/uptime && echo $a $b")
        start, end = (float(word) for word in text.split())
        return end - start, self.statistics()["normalized_ios"] - before

    def rate(self, blocks):
        seconds, done = self.write(blocks)
        expect(2 * blocks <= done <= 2 * blocks + 100, f"{done} operations for {blocks} blocks of two")
        return done / seconds

    def test_a_limit_set_on_a_running_disk_holds_and_is_lifted(self):
        limit = max(8, int(self.rate(300) / 4))  # what this host does at a quarter of its speed
        self.qos("--max-iops", str(limit))
        rate = self.rate(5 * limit)  # ten seconds
        expect(limit * 0.7 <= rate <= limit * 1.1, f"{rate:.0f} operations a second under a limit of {limit}")
        held = self.statistics()["latency_ns"]["held"]
        expect(held["count"] > 4 * limit, f"{held['count']} of {5 * limit} requests were held back")
        self.qos("--max-iops", "0")
        rate = self.rate(5 * limit)
        expect(rate > limit * 1.5, f"{rate:.0f} operations a second after a limit of {limit} was lifted")
        expect_equal(self.statistics()["latency_ns"]["held"]["count"], held["count"], "requests held back")

    def test_bytes_are_limited(self):
        speed = max(16, int(self.rate(300) / 4)) * 8192
        self.qos("--max-bytes", str(speed))
        seconds, _ = self.write(4 * speed // BLOCK)
        expect(3.6 <= seconds <= 8, f"{seconds:.1f} s for what should take 4")
        self.qos("--max-bytes", "0")

    def test_a_pause_and_a_pulse_do_not_wait_for_held_requests(self):
        self.qos("--max-iops", "8")
        self.vm.run(f"for i in 0 1 2 3; do dd if=/dev/zero of={self.device} bs=1M count=1 seek=$i oflag=direct "
                    "2>/dev/null & done; usleep 500000")  # a minute's worth
        self.service.vmctl("vm", "pause", "qos")
        self.service.vmctl("vm", "resume", "qos")
        self.service.vmctl("vm", "pulse", "qos")
        self.qos("--max-iops", "0")
        self.vm.run("while pidof dd >/dev/null; do usleep 100000; done")
        expect_equal(self.statistics()["errors"], 0, "failed requests")

    def test_a_minimum_is_watched(self):
        """Only one that is met: the software host's processor is slower than its disk, which is then asked for too
        little to be judged. Unit tests have one that is missed."""
        expect_equal(self.statistics()["status"], "Not monitored", "the status without a minimum")
        self.qos("--min-iops", "1")
        self.write(200)
        disk = self.statistics()
        expect_equal((disk["status"], disk["insufficient_seconds"]), ("OK", 0), "status and insufficient seconds")
        self.qos("--min-iops", "0")
        expect_equal(self.statistics()["status"], "Not monitored", "the status without a minimum")

    def test_a_limit_outlives_what_opens_the_disk_anew(self):
        """A checkpoint has another image opened, a save another process. After an apply the disk has the limits that
        the checkpoint has: they are the machine's, as all of its configuration is."""
        limit = max(8, int(self.rate(300) / 16))  # a new image, or memory that is still to come, makes the host slower

        def expect_limit(when):
            rate = self.rate(2 * limit)  # four seconds
            expect(limit * 0.6 <= rate <= limit * 1.1, f"{rate:.0f} operations a second {when}, {limit} allowed")
            held = self.statistics()["latency_ns"]["held"]["count"]
            expect(held > limit, f"{held} of {2 * limit} requests were held back {when}")
        self.service.vmctl("checkpoint", "policy", "qos", "standard")
        self.qos("--max-iops", str(limit))
        self.service.vmctl("checkpoint", "create", "qos", "--name", "limited")
        expect_limit("after a checkpoint")
        self.service.vmctl("vm", "save", "qos")
        self.vm.start()
        expect_limit("after a save")
        self.qos("--max-iops", "0")
        self.service.vmctl("checkpoint", "apply", "qos", "limited")
        self.vm.start()
        expect_limit("after an apply")
        self.service.vmctl("checkpoint", "delete", "qos", "limited")
        eventually(lambda: self.statistics()["path"] == self.disk and no_merge_is_owed(self.service), "it is merged")
        expect_limit("after a merge")
        self.qos("--max-iops", "0")

    def test_limits_are_kept_and_bad_ones_are_refused(self):
        self.qos("--min-iops", "50", "--max-iops", "100")
        for options, said in ((("--min-iops", "101"), "above the maximum of 100"), (("--max-iops", "7"), "8 to"),
                              (("--max-bytes", "1"), "64K to 1T"), ((), "nothing to change")):
            _, line = self.service.refused("disk", "qos", "qos", "--location", "0", *options)
            expect(said in line, f"{options}: {line}")
        _, line = self.service.refused("disk", "qos", "qos", "--location", "9", "--max-iops", "100")
        expect("no disk" in line and "disk list" in line, line)
        self.service.vmctl("vm", "turn-off", "qos")
        self.vm.wait("off", 60)
        self.qos("--max-bytes", "1M")
        disk = self.statistics()
        expect_equal((disk["min_iops"], disk["max_iops"], disk["max_bytes_per_second"]), (50, 100, 1 << 20), "limits")
        expect("status" not in disk, "a disk that is not open has no statistics")
        self.vm.boot("initramfs")
        self.device = self.vm.run("lun 0")
        seconds, done = self.write(256)
        expect(done / seconds <= 110, f"{done / seconds:.0f} operations a second after a restart, 100 allowed")
