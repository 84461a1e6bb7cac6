# SPDX-License-Identifier: Apache-2.0
"""A guest with four processors: all drivers, the clock, storage with sub-channels, hot plug, pulses."""

import re
import time

from service import LIMIT, Vm
from suite import Group, eventually, expect, expect_equal, group

MIB = 1 << 20
MODULES = ("hv_vmbus hv_storvsc hv_utils hv_netvsc hv_balloon hv_sock hyperv_keyboard hid_hyperv hyperv_drm "
           "pci_hyperv").split()
SCSI_CLASS = "{ba6163d9-04a1-4d29-b605-72e2ffb1dc7f}"
OURS = re.compile(r"hv_|hyperv|hyper-v|vmbus|storvsc|scsi|\bsd \d|\bsd[a-z]\b|hid|drm|EXT4|I/O error|rcu|lockup|BUG|"
                  r"blk_", re.IGNORECASE)


@group
class FourProcessors(Group):
    """The widest guest here; sub-channels are asked for one a processor."""

    def set_up(self):
        self.root, self.data = self.context.copy_root("four"), self.context.new_disk("four-data", "4G")
        self.vm = Vm(self.service, "four", self.image, vcpus=4, memory="1G", root=True, disks=[self.root, self.data],
                     append="hv_storvsc.storvsc_vcpus_per_sub_channel=1")
        self.vm.start()

    def tear_down(self):
        self.vm.remove()

    def faults(self):
        """Lines of the kernel's log at level warning or worse that have to do with what we emulate.

        A trace of anything, as the software host's processor is worth one, has the hardware's name, which is Hyper-V's.
        """
        lines = self.vm.run("dmesg -r | grep -v '^<[5-7]>' | grep -v 'Hardware name: '", check=False).splitlines()
        return [line for line in lines
                if re.match(r"<\d+>", line) and int(line[1:line.index(">")]) & 7 <= 4 and OURS.search(line)]

    def block_device(self, lun):
        return self.vm.run(f"ls /sys/class/scsi_device/*:{lun}/device/block 2>/dev/null", check=False)

    def test_boots_with_4_vcpus(self):
        self.vm.console.wait_agent(LIMIT, root="disk")
        expect_equal(self.vm.run("nproc"), "4", "processors")

    def test_every_hyperv_module_loads_without_a_complaint(self):
        loaded = self.vm.run("cut -d' ' -f1 /proc/modules").split()
        expect_equal([name for name in MODULES if name not in loaded], [], "modules that are not loaded")
        expect("@@fault" not in self.vm.console.text, "the guest's init reported a fault")
        expect_equal(self.faults(), [], "complaints in the kernel's log")

    def test_the_guest_knows_its_hypervisor(self):
        log = self.vm.run("dmesg | grep -E 'Hypervisor detected|Vmbus version|remote TLB flush'")
        expect("Hypervisor detected: Microsoft Hyper-V" in log, "Hyper-V is not detected")
        expect("Using hypercall for remote TLB flush" in log, "remote TLB flushes are not the hypervisor's")
        version = re.search(r"Vmbus version:(\S+)", log)
        expect(version, "no VMBus version in the log")
        expect_equal(self.vm.show()["vmbus_version"], version.group(1), "the VMBus version in vm show")

    def test_clock_source(self):
        current = self.vm.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
        expect_equal(current, "hyperv_clocksource_tsc_page", "clock source")

    def test_heartbeat_and_time(self):
        self.vm.wait("heartbeat", 120)
        offset = int(self.vm.run("date +%s")) - time.time()
        expect(abs(offset) < 5, f"the guest's clock differs by {offset:.1f} s")

    def test_storage_has_sub_channels(self):
        channels = self.vm.run(f"for d in /sys/bus/vmbus/devices/*; do [ $(cat $d/class_id) = '{SCSI_CLASS}' ] && "
                               "ls $d/channels | wc -l; done; true")
        expect_equal(channels, "4", "channels of the SCSI controller")
        used = self.vm.run("iocheck -t 4 $(lun 1) 0x1000000 && cat /sys/bus/vmbus/devices/*/channels/*/cpu | sort -u")
        expect(len(used.split("\n")) >= 5, f"the channels are not spread over the processors: {used!r}")

    def test_data_comes_back_as_written(self):
        size = self.context.options.io_mib * MIB
        self.vm.run(f"iocheck -t 4 -b 0x80000 -s 11 $(lun 1) {size // 2}", 600)
        self.vm.run(f"iocheck -t 2 -b 0x1000 -s 12 -o {size // 2} $(lun 1) {size // 64}", 600)
        self.vm.run(f"iocheck -t 3 -b 0x30000 -s 13 -o {size} $(lun 1) {size // 2}", 600)
        expect_equal(self.faults(), [], "complaints in the kernel's log")

    def test_pulse_under_load_goes_unnoticed(self):
        before = self.vm.run("cut -d. -f1 /proc/uptime; cat /proc/sys/kernel/random/boot_id").split()
        self.vm.run(f"iocheck -t 4 -b 0x20000 -r 0 -s 14 $(lun 1) {16 * MIB} >/tmp/pulse 2>&1 & echo $! >/tmp/pid")
        for _ in range(2):
            time.sleep(3)
            self.service.vmctl("vm", "pulse", "four", "--count", "2")
        time.sleep(2)
        result = self.vm.run("kill $(cat /tmp/pid); while [ -e /proc/$(cat /tmp/pid) ]; do usleep 200000; done; "
                             "cat /tmp/pulse")
        expect("bytes written and read" in result, f"the test of the data says: {result}")
        after = self.vm.run("cut -d. -f1 /proc/uptime; cat /proc/sys/kernel/random/boot_id").split()
        expect(after[1] == before[1] and int(after[0]) >= int(before[0]), f"the guest was rebooted: {before} {after}")
        expect_equal(self.faults(), [], "complaints in the kernel's log")
        offset = int(self.vm.run("date +%s")) - time.time()
        expect(abs(offset) < 10, f"the guest's clock differs by {offset:.1f} s")
        self.vm.wait("heartbeat", 120)

    def test_pause_and_resume(self):
        self.service.vmctl("vm", "pause", "four")
        expect_equal(self.vm.show()["state"], "Paused", "state")
        time.sleep(3)
        self.service.vmctl("vm", "resume", "four")
        expect_equal(self.vm.run("echo alive"), "alive", "the agent's answer")
        eventually(lambda: abs(int(self.vm.run("date +%s")) - time.time()) < 10, "the guest's clock is the host's")

    def test_hot_added_disk_is_used_and_removed_under_load(self):
        disk = self.context.new_disk("hot", "256M")
        self.service.vmctl("disk", "attach", "four", disk, "--location", "9")
        name = eventually(lambda: self.block_device(9), "the guest sees the new disk")
        self.vm.run(f"printf 'o\\nn\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/{name}; sleep 1; [ -b /dev/{name}1 ]")
        self.vm.run(f"mke2fs /dev/{name}1 >/dev/null && mount -t ext4 /dev/{name}1 /mnt && "
                    "dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null && md5sum </mnt/file >/tmp/sum && "
                    f"umount /mnt && mount -t ext4 /dev/{name}1 /mnt && md5sum </mnt/file | cmp - /tmp/sum && "
                    "umount /mnt")
        self.vm.run(f"iocheck -t 2 -r 0 -s 15 /dev/{name} {64 * MIB} >/tmp/hot 2>&1 & echo $! >/tmp/pid")
        time.sleep(3)
        self.service.vmctl("disk", "detach", "four", "--location", "9")
        eventually(lambda: not self.block_device(9), "the guest lost the disk")
        self.vm.run("n=0; while [ -e /proc/$(cat /tmp/pid) ]; do n=$((n+1)); [ $n -lt 600 ] || exit 1; usleep 200000; "
                    "done")
        expect_equal(self.vm.run("iocheck -t 2 $(lun 1) 0x100000 >/dev/null && echo sound"), "sound", "the other disk")
        self.service.vmctl("disk", "check", disk)
        self.service.vmctl("disk", "attach", "four", disk, "--location", "10")
        eventually(lambda: self.block_device(10), "the guest sees the disk at its other place")
        self.service.vmctl("disk", "detach", "four", "--location", "10")

    def test_shutdown(self):
        self.vm.stop()
        expect_equal(self.vm.show()["state"], "Off", "state")
        for disk in (self.root, self.data):
            self.service.vmctl("disk", "check", disk)
