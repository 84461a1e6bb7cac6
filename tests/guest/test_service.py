# SPDX-License-Identifier: Apache-2.0
"""The service and its workers under fire: refusals in one line, kill -9 of either, nothing left behind."""

import os
import shutil
import signal
import subprocess

from service import LIMIT, Service, Vm, processes
from suite import Group, eventually, expect, expect_equal, group

INVALID, NOT_FOUND, EXISTS, PRECONDITION, LIMIT, UNSUPPORTED, IN_USE, DAMAGED = 13, 15, 16, 19, 21, 22, 24, 25


def workers(service):
    """Processes of workers that this service started."""
    return [pid for pid, words in processes() if words[0].endswith(b"/vmm")
            and any(word.startswith(service.run_dir.encode()) for word in words)]


@group
class Refusals(Group):
    """What cannot be done is refused with one line and a status of its own, and leaves nothing behind."""

    codes = {}

    def tear_down(self):
        for vm in self.service.list():
            self.service.try_vmctl("vm", "delete", vm["name"])

    def refuse_start(self, service, what, wanted, word, **arguments):
        vm = Vm(service, "refused", self.image, **arguments)
        try:
            status, line = service.refused("vm", "start", "refused")
            expect(word in line, f"the line does not name '{word}': {line}")
            expect_equal(status, wanted, f"status for {what} ({line})")
            self.codes[what] = status
            expect_equal(vm.show()["state"], "Off", "state")
            expect_equal(vm.sockets(), [], "sockets left behind")
            eventually(lambda: not workers(service), "no worker is left", 30)
        finally:
            vm.remove()

    def test_missing_image(self):
        self.refuse_start(self.service, "a missing image", NOT_FOUND, "none.vhdx",
                          disks=[f"{self.context.scratch}/none.vhdx"])

    def test_damaged_vhdx(self):
        disk = self.context.new_disk("damaged", "64M")
        with open(disk, "r+b") as file:  # both headers and both region tables
            file.seek(64 << 10)
            file.write(os.urandom(256 << 10))
        self.refuse_start(self.service, "a damaged image", DAMAGED, "damaged.vhdx", disks=[disk])
        status = self.service.try_vmctl("disk", "check", disk).returncode
        expect(status in (1, 2), f"disk check ended with status {status}")

    def test_missing_kernel(self):
        copy = f"{self.context.scratch}/no-kernel"
        os.makedirs(copy, exist_ok=True)
        shutil.copy(f"{self.image}/initrd", copy)
        image, self.image = self.image, copy
        try:
            self.refuse_start(self.service, "a missing kernel", NOT_FOUND, "vmlinuz")
        finally:
            self.image = image

    def test_a_serial_port_to_a_pipe(self):
        """Whoever opens one that nobody reads waits."""
        os.mkfifo(pipe := f"{self.context.scratch}/com1.pipe")
        self.refuse_start(self.service, "a pipe as COM1", INVALID, "com1.pipe", com1=f"file:{pipe}")

    def test_too_many_processors(self):
        status, line = self.service.refused("vm", "create", "wide", "--vcpus", "100000", "--kernel", "/boot/x")
        expect("100000" in line, f"the line does not name the number: {line}")
        expect(status in (INVALID, LIMIT), f"status {status}: {line}")
        self.codes["too many processors"] = status
        expect_equal([vm["name"] for vm in self.service.list()], [], "machines left behind")

    def test_unknown_machine(self):
        status, line = self.service.refused("vm", "start", "nobody")
        expect_equal((status, "nobody" in line), (NOT_FOUND, True), f"status and name in '{line}'")

    def test_no_daemon(self):
        status, _ = Service(self.service.bin_dir, f"{self.context.scratch}/nobody").refused("vm", "list")
        expect_equal(status, 3, "status")

    def on_another_host(self, name, hide, what, wanted, word):
        """A daemon in a mount namespace where the host lacks something."""
        service = Service(self.service.bin_dir, f"{self.context.scratch}/{name}",
                          ["unshare", "--mount", "sh", "-ec", f'{hide}; exec "$@"', "sh"])
        service.start()
        try:
            self.refuse_start(service, what, wanted, word)
        finally:
            service.stop()

    def test_no_kvm(self):
        hide = "mkdir /tmp/no-kvm.$$; mount -t tmpfs none /tmp/no-kvm.$$; cp -a /dev/null /dev/zero /dev/urandom " \
               "/tmp/no-kvm.$$; mount --move /tmp/no-kvm.$$ /dev"
        self.on_another_host("no-kvm", hide, "no /dev/kvm", UNSUPPORTED, "/dev/kvm")

    def test_no_nested_paging(self):
        parameter = next(path for path in ("/sys/module/kvm_amd/parameters/npt", "/sys/module/kvm_intel/parameters/ept")
                         if os.path.exists(path))
        answer = f"{self.context.scratch}/parameter-n"
        with open(answer, "w", encoding="utf-8") as file:
            file.write("N\n")
        self.on_another_host("no-slat", f"mount --bind {answer} {parameter}", "no nested paging", PRECONDITION,
                             os.path.basename(parameter))

    def test_each_has_a_status_of_its_own(self):
        expect(len(self.codes) >= 6, f"not all were refused: {self.codes}")
        wanted = {name: code for name, code in self.codes.items() if name != "a missing kernel"}
        expect_equal(len(set(wanted.values())), len(wanted), f"different statuses in {wanted}")


@group
class Supervision(Group):
    """Two guests, and what happens when the service or a worker dies."""

    def set_up(self):
        self.disks = [self.context.copy_root("first"), self.context.copy_root("second")]
        self.vms = [Vm(self.service, name, self.image, root=True, disks=[disk])
                    for name, disk in zip(("first", "second"), self.disks)]
        for vm in self.vms:
            vm.start()
        for vm in self.vms:
            vm.console.wait_agent(LIMIT, "disk")

    def tear_down(self):
        for vm in self.vms:
            vm.remove()

    def test_second_start_is_refused(self):
        status, line = self.service.refused("vm", "start", "first")
        expect(status in (EXISTS, PRECONDITION), f"status {status}: {line}")

    def test_second_worker_is_refused(self):
        run_dir = self.vms[0].run_dir
        text = f'id: "{self.vms[0].show()["id"]}" name: "first" generation: 2 vcpu_count: 1 memory_bytes: 268435456'
        config = f"{self.context.scratch}/second-worker"
        with open(config, "wb") as file:
            subprocess.run(["protoc", "-I", f"{self.context.root}/proto", "--encode=kvmbus.config.Vm",
                            "config/vm.proto"], input=text.encode(), stdout=file, check=True)
        done = subprocess.run([f"{self.service.bin_dir}/vmm", "--run-dir", run_dir, "--config", config], text=True,
                              capture_output=True, timeout=300, check=False)
        lines = done.stderr.strip().splitlines()
        expect(done.returncode != 0 and len(lines) == 1 and "another worker" in lines[0],
               f"status {done.returncode}: {done.stderr}")
        expect_equal(self.vms[0].run("echo alive"), "alive", "the first worker's guest")
        expect_equal(len(self.vms[0].sockets()), 2, "sockets of the first worker")

    def test_disk_in_use(self):
        vm = Vm(self.service, "third", self.image, disks=[self.disks[0]])
        status, line = self.service.refused("vm", "start", "third")
        expect_equal((status, self.disks[0] in line), (IN_USE, True), f"status and name in '{line}'")
        vm.remove()
        expect_equal(self.vms[0].run("sync; echo alive"), "alive", "the guest that has the disk")

    def test_second_daemon_is_refused(self):
        done = subprocess.run([f"{self.service.bin_dir}/vmmd", "--state-dir", self.service.state_dir, "--run-dir",
                               self.service.run_dir], text=True, capture_output=True, timeout=300, check=False)
        lines = done.stderr.strip().splitlines()
        expect(done.returncode != 0 and len(lines) == 1 and "another vmmd" in lines[0],
               f"status {done.returncode}: {done.stderr}")
        expect_equal(len(self.service.list()), 2, "machines that the first one has")

    def test_guests_outlive_the_daemon(self):
        before = {vm["name"]: vm["worker_pid"] for vm in self.service.list()}
        boot_ids = [vm.run("cat /proc/sys/kernel/random/boot_id") for vm in self.vms]
        self.service.kill()
        for vm in self.vms:
            expect_equal(vm.run("echo alive"), "alive", f"guest '{vm.name}' without the service")
        self.service.start()
        after = {vm["name"]: vm["worker_pid"] for vm in self.service.list() if vm["state"] == "Running"}
        expect_equal(after, before, "machines and their workers")
        expect_equal([vm.run("cat /proc/sys/kernel/random/boot_id") for vm in self.vms], boot_ids, "boots")
        for vm in self.vms:
            vm.wait("heartbeat", 120)

    def test_a_dead_worker_is_noticed_and_its_image_is_sound(self):
        vm = self.vms[1]
        vm.run("(while :; do dd if=/dev/urandom of=/busy bs=64k count=64; sync; done) >/dev/null 2>&1 &")
        os.kill(vm.show()["worker_pid"], signal.SIGKILL)
        vm.wait("off", 60)
        reason = vm.show()["reason"]
        expect("kill" in reason.lower() or "signal 9" in reason, f"the reason is '{reason}'")
        self.service.vmctl("disk", "check", self.disks[1])
        vm.boot("disk")  # its log is replayed, which qemu-img would not do for a mere check
        expect_equal(vm.run("echo alive"), "alive", "the guest after another start")

    def test_the_restarted_daemon_stops_and_deletes(self):
        for vm in self.vms:
            vm.stop()
            expect_equal(vm.show()["state"], "Off", f"state of '{vm.name}'")
            self.service.vmctl("vm", "delete", vm.name)
        for disk in self.disks:
            subprocess.run(["qemu-img", "check", "-q", disk], check=True)
        expect_equal(self.service.list(), [], "machines left")
        eventually(lambda: not workers(self.service), "no worker is left", 30)
        expect(all(os.path.exists(disk) for disk in self.disks), "a disk went with its machine")
