# SPDX-License-Identifier: Apache-2.0
"""Two machines on one shared disk: data, reservations, and the process between them under fire."""

import json
import os
import signal

from service import LIMIT, Vm, processes
from suite import Group, eventually, expect, expect_equal, group

WRITE_EXCLUSIVE, WRITE_EXCLUSIVE_REGISTRANTS = 1, 5


@group
class SharedDisk(Group):
    """Guests in their initramfs with one VHDX and the disc of tools."""

    def set_up(self):
        self.disk = self.context.new_disk("shared", "64M")
        self.vms = [Vm(self.service, name, self.image, memory="384M", shared=[self.disk],
                       dvds=[f"{self.image}/tools.iso"]) for name in ("one", "two")]
        self.boot()

    def boot(self):
        for vm in self.vms:
            vm.boot("initramfs")
        for vm in self.vms:
            vm.run("tools && ln -sf $(lun 0) /dev/shared")

    def tear_down(self):
        for vm in self.vms:
            vm.remove()

    def owner(self, disk=None):
        """The process that owns the disk, or None."""
        disk = (disk or self.disk).encode()
        return next((pid for pid, words in processes() if b"--shared-disk" in words and disk in words), None)

    def attach(self, disk, location):
        """While both run."""
        for vm in self.vms:
            self.service.vmctl("disk", "attach", vm.name, disk, "--location", str(location), "--shared")
            vm.run(f"ln -sf $(lun {location}) /dev/shared", timeout=LIMIT)

    @staticmethod
    def persist(vm, *arguments, check=True):
        """sg_persist. What the guest has not heard yet (a unit attention, status 6) it hears before the command."""
        words = " ".join(arguments)
        return vm.run(f"n=0; while :; do sg_persist -n {words} /dev/shared >/tmp/out 2>&1; s=$?; "
                      f"[ $s = 6 ] && [ $n -lt 3 ] || break; n=$((n+1)); done; cat /tmp/out; echo status=$s; "
                      f"{'[ $s = 0 ]' if check else 'true'}")

    def register(self, vm, key, *arguments):
        self.persist(vm, "--out", "--register-ignore", f"--param-sark={key:#x}", *arguments)

    def keys(self, vm):
        lines = self.persist(vm, "--in", "--read-keys").splitlines()
        return sorted(int(line, 16) for line in lines if line.strip().startswith("0x"))

    @staticmethod
    def write(vm, block, text, check=True):
        """A block of 4 KiB that begins with the text, past the guest's cache."""
        return vm.run(f"printf '%s' '{text}' >/tmp/block && truncate -s 4096 /tmp/block && "
                      f"dd if=/tmp/block of=/dev/shared bs=4096 seek={block} oflag=direct conv=notrunc 2>&1; s=$?; "
                      f"echo status=$s; {'[ $s = 0 ]' if check else 'true'}")

    @staticmethod
    def conflicts(vm, action):
        """The action ends with RESERVATION CONFLICT, by the word of the guest's kernel (its driver, as with Hyper-V,
        hides the status from sg_persist behind a host error)."""
        vm.run("dmesg -c >/dev/null")
        action()
        expect("reservation conflict" in vm.run("dmesg"), "there was no reservation conflict")

    @staticmethod
    def read(vm, block):
        return vm.run(f"dd if=/dev/shared bs=4096 skip={block} count=1 iflag=direct 2>/dev/null | tr -d '\\000'")

    def test_the_disk_is_shown_as_shared(self):
        expect_equal([disk["shared"] for disk in self.vms[0].show()["disks"]], [True, False], "shared")
        expect(self.owner() is not None, "no process owns the disk")

    def test_one_writes_the_other_reads(self):
        one, two = self.vms
        for block, (writer, reader) in enumerate([(one, two), (two, one)]):
            self.write(writer, block, f"block {block}")
            expect_equal(self.read(reader, block), f"block {block}", "what the other reads")
        one.run("dd if=/dev/urandom of=/tmp/data bs=64k count=128 2>/dev/null && "
                "dd if=/tmp/data of=/dev/shared bs=64k seek=1 oflag=direct conv=notrunc,fsync 2>/dev/null")
        wanted = one.run("md5sum </tmp/data")
        found = two.run("dd if=/dev/shared bs=64k skip=1 count=128 iflag=direct 2>/dev/null | md5sum")
        expect_equal(found, wanted, "8 MiB")

    def test_a_reservation_binds_the_other(self):
        one, two = self.vms
        self.register(one, 0xA1)
        self.persist(one, "--out", "--reserve", "--param-rk=0xa1", f"--prout-type={WRITE_EXCLUSIVE}")
        self.write(one, 10, "by its holder")
        self.conflicts(two, lambda: self.write(two, 10, "by another", check=False))
        expect_equal(self.read(two, 10), "by its holder", "the block")
        self.register(two, 0xB2)
        expect_equal(self.keys(one), [0xA1, 0xB2], "keys")
        self.conflicts(two, lambda: self.persist(two, "--out", "--reserve", "--param-rk=0xb2",
                                                 f"--prout-type={WRITE_EXCLUSIVE}", check=False))
        expect("0xa1" in self.persist(two, "--in", "--read-reservation"), "the reservation changed hands")

    def test_the_other_preempts(self):
        one, two = self.vms
        self.persist(two, "--out", "--preempt-abort", "--param-rk=0xb2", "--param-sark=0xa1",
                     f"--prout-type={WRITE_EXCLUSIVE}")
        expect_equal(self.keys(two), [0xB2], "keys")
        self.conflicts(one, lambda: self.write(one, 10, "fenced", check=False))
        self.write(two, 10, "by the new holder")
        expect_equal(self.read(one, 10), "by the new holder", "the block")
        self.persist(two, "--out", "--release", "--param-rk=0xb2", f"--prout-type={WRITE_EXCLUSIVE}")
        self.write(one, 10, "free again")

    def test_it_is_not_attached_otherwise(self):
        vm = Vm(self.service, "three", self.image, disks=[self.disk])
        try:
            status, line = self.service.refused("vm", "start", "three")
            expect("--shared" in line, f"status {status}, and no remedy in: {line}")
        finally:
            vm.remove()

    def test_a_machine_is_pulsed_and_restarted(self):
        one, two = self.vms
        self.register(one, 0xA1)
        self.service.vmctl("vm", "pulse", "one", "--count", "3")
        self.write(one, 11, "after a pulse")
        one.stop()
        expect_equal(self.read(two, 11), "after a pulse", "the block")
        expect_equal(self.keys(two), [0xA1, 0xB2], "keys while one of them is off")
        one.boot("initramfs")
        one.run("tools && ln -sf $(lun 0) /dev/shared")
        expect_equal(self.keys(one), [0xA1, 0xB2], "keys")

    def test_limits_are_of_one_machine_alone(self):
        count = "dd if=/dev/shared of=/dev/null bs=4096 count={} iflag=direct 2>/dev/null"
        one, two = self.vms
        self.service.vmctl("disk", "qos", "one", "--location", "0", "--max-iops", "8")
        one.run(f"({count.format(32)}; touch /tmp/read) >/dev/null 2>&1 &")  # four seconds
        two.run(count.format(100))
        one.run("[ ! -e /tmp/read ] && until [ -e /tmp/read ]; do usleep 100000; done")
        self.service.vmctl("disk", "qos", "one", "--location", "0", "--max-iops", "0")

        def held(vm):
            disks = json.loads(self.service.vmctl("--format", "json", "disk", "list", vm.name))
            return next(disk["latency_ns"]["held"]["count"] for disk in disks if disk["path"] == self.disk)
        expect(held(one) > 10 and held(two) == 0, f"{held(one)} and {held(two)} requests were held back")

    def test_it_is_made_larger(self):
        self.service.vmctl("disk", "resize", self.disk, "--size", "96M")
        blocks = 96 * 1024 * 1024 // 512
        for vm in self.vms:
            eventually(lambda vm=vm: vm.run("blockdev --getsz /dev/shared") == str(blocks),
                       f"{vm.name} sees the new size")
        last = blocks // 8 - 1
        self.write(self.vms[0], last, "the last block")
        expect_equal(self.read(self.vms[1], last), "the last block", "what the other reads")
        status, line = self.service.refused("disk", "resize", self.disk, "--size", "32M")
        expect("shrink" in line, f"status {status}, and no reason in: {line}")

    def test_the_owner_is_killed(self):
        one, two = self.vms
        self.register(one, 0xA1, "--param-aptpl")
        before = self.owner()
        one.run("(for i in $(seq 100 400); do printf '%s' $i | dd of=/dev/shared bs=4096 seek=$i oflag=direct "
                "conv=notrunc,sync 2>/dev/null || { echo $i >/tmp/failed; break; }; done; echo done >/tmp/done) &")
        os.kill(before, signal.SIGKILL)
        after = eventually(lambda: self.owner() not in (None, before) and self.owner(), "there is another owner")
        expect(after != before, "the owner was not killed")
        one.run("n=0; until [ -e /tmp/done ]; do n=$((n+1)); [ $n -lt 600 ] || exit 1; usleep 200000; done")
        expect_equal(one.run("cat /tmp/failed 2>/dev/null || true"), "", "the write that failed")
        expect_equal([self.read(two, block) for block in (100, 250, 400)], ["100", "250", "400"], "blocks")
        expect_equal(self.keys(two), [0xA1, 0xB2], "keys, which are persistent")

    def test_vmmd_finds_the_owner_again(self):
        owner = self.owner()
        self.service.kill()
        self.service.start()
        self.write(self.vms[0], 12, "without vmmd")
        expect_equal(self.owner(), owner, "the owner")
        eventually(lambda: self.vms[1].show()["state"] == "Running", "its machines are found", 60)
        os.kill(owner, signal.SIGKILL)
        eventually(lambda: self.owner() not in (None, owner), "there is another owner")
        self.write(self.vms[0], 12, "with another owner")
        expect_equal(self.read(self.vms[1], 12), "with another owner", "the block")

    def test_reservations_survive_a_restart_of_both(self):
        one, two = self.vms
        self.register(one, 0xA1, "--param-aptpl")
        self.persist(one, "--out", "--reserve", "--param-rk=0xa1", f"--prout-type={WRITE_EXCLUSIVE_REGISTRANTS}")
        for vm in self.vms:
            vm.stop()
        eventually(lambda: self.owner() is None, "the owner ends with its last machine", 60)
        expect_equal(os.path.exists(f"{self.disk}.reservations"), True, "the reservations' file")
        self.service.vmctl("disk", "check", self.disk)
        self.boot()
        expect_equal(self.keys(two), [0xA1, 0xB2], "keys")
        expect("0xa1" in self.persist(two, "--in", "--read-reservation"), "nobody holds the reservation")
        self.register(two, 0)
        self.conflicts(two, lambda: self.write(two, 10, "by another", check=False))
        self.persist(one, "--out", "--clear", "--param-rk=0xa1")
        expect_equal(self.keys(two), [], "keys")

    def test_it_comes_and_goes_while_they_run(self):
        for vm in self.vms:
            self.service.vmctl("disk", "detach", vm.name, "--location", "0")
        eventually(lambda: self.owner() is None, "the owner ends", 60)
        self.attach(self.disk, 5)
        self.write(self.vms[0], 13, "attached")
        expect_equal(self.read(self.vms[1], 13), "attached", "the block")

    def test_raw_and_fixed_images_are_shared_too(self):
        """With all that the dynamic one has; its place in the guests is theirs, one after the other."""
        self.service.vmctl("disk", "create", raw := f"{self.context.scratch}/shared.raw", "--size", "64M")
        for location, disk in enumerate((raw, self.context.new_disk("fixed", "64M", "--fixed")), 6):
            self.attach(disk, location)
            one, two = self.vms
            self.write(one, 3, "by one")
            self.write(two, 4, "by the other")
            expect_equal((self.read(two, 3), self.read(one, 4)), ("by one", "by the other"), f"blocks of '{disk}'")
            self.register(one, 0xA1, "--param-aptpl")
            self.register(two, 0xB2, "--param-aptpl")
            self.persist(one, "--out", "--reserve", "--param-rk=0xa1", f"--prout-type={WRITE_EXCLUSIVE}")
            self.conflicts(two, lambda: self.write(two, 4, "fenced", check=False))
            self.service.vmctl("disk", "resize", disk, "--size", "72M")
            eventually(lambda: two.run("blockdev --getsize64 /dev/shared") == str(72 << 20), "the other sees its size")
            for vm in self.vms:
                self.service.vmctl("disk", "detach", vm.name, "--location", str(location))
            eventually(lambda: self.owner(disk) is None, "the owner ends", 60)
            if disk != raw:
                self.service.judge_image(disk)
            self.attach(disk, location)
            expect_equal(self.keys(two), [0xA1, 0xB2], f"keys of '{disk}'")
            expect("0xa1" in self.persist(two, "--in", "--read-reservation"), "nobody holds the reservation")
            self.conflicts(two, lambda: self.write(two, 4, "fenced", check=False))
            expect_equal((self.read(two, 3), self.read(one, 4)), ("by one", "by the other"), f"blocks of '{disk}'")
