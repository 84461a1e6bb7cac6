# SPDX-License-Identifier: Apache-2.0
"""vmmd and its virtual machines, as an administrator has them: through vmctl."""

import glob
import json
import os
import shutil
import signal
import subprocess
import time

from console import Console

LIMIT = 240  # seconds for one command: the software host on a busy machine is slow


def processes():
    """(pid, command line's words) of each process; one that ends meanwhile is left out."""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        yield int(path.split("/")[2]), words


class CommandError(Exception):
    """vmctl ended with a status that is not 0."""

    def __init__(self, command, status, text):
        super().__init__(f"'{command}' ended with status {status}: {text}")
        self.status, self.text = status, text


class Service:
    """One vmmd with folders of its own."""

    def __init__(self, bin_dir, folder, wrapper=()):
        """`wrapper` is a command in front of vmmd, which then sees another host."""
        self.bin_dir, self.folder, self.wrapper = bin_dir, folder, list(wrapper)
        self.state_dir, self.run_dir = f"{folder}/state", f"{folder}/run"
        self.socket = f"{self.run_dir}/vmmd.sock"
        self.process = None
        os.makedirs(folder, exist_ok=True)

    def start(self):
        with open(f"{self.folder}/vmmd.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, f"{self.bin_dir}/vmmd", "--state-dir", self.state_dir, "--run-dir", self.run_dir],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + LIMIT
        while True:
            listed = self.try_vmctl("vm", "list")
            if listed.returncode == 0:
                return
            if self.process.poll() is not None or time.monotonic() > end:
                raise CommandError("vmmd", self.process.returncode, self.log()[-2000:])
            time.sleep(0.2)

    def log(self):
        with open(f"{self.folder}/vmmd.log", encoding="utf-8", errors="replace") as file:
            return file.read()

    def kill(self):
        """As the out-of-memory killer does it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LIMIT)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(LIMIT)

    def clear(self):
        """Runs, and has no virtual machines."""
        if self.process.poll() is not None:
            self.start()
        for vm in self.list():
            self.try_vmctl("vm", "turn-off", vm["name"])
            self.try_vmctl("vm", "wait", vm["name"], "--for", "off", "--timeout", "60")
            self.vmctl("vm", "delete", vm["name"])

    def try_vmctl(self, *arguments):
        return subprocess.run([f"{self.bin_dir}/vmctl", "--socket", self.socket, *arguments], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False)

    def vmctl(self, *arguments):
        done = self.try_vmctl(*arguments)
        if done.returncode != 0:
            raise CommandError("vmctl " + " ".join(arguments), done.returncode, (done.stdout + done.stderr).strip())
        return done.stdout

    def refused(self, *arguments):
        """For a command that must fail: its status and its one line. More or fewer lines are a failure of the test."""
        done = self.try_vmctl(*arguments)
        lines = done.stderr.strip().splitlines()
        if done.returncode == 0:
            raise AssertionError(f"'vmctl {' '.join(arguments)}' was not refused")
        if len(lines) != 1:
            raise AssertionError(f"'vmctl {' '.join(arguments)}' said {len(lines)} lines, not one: {done.stderr}")
        return done.returncode, lines[0]

    def list(self):
        return json.loads(self.vmctl("--format", "json", "vm", "list"))

    def judge_image(self, path):
        """A VHDX is sound: our check says so, and 7-Zip, where it is."""
        self.vmctl("disk", "check", path)
        if shutil.which("7zz"):
            done = subprocess.run(["7zz", "t", "-tvhdx", path], capture_output=True, text=True, check=False)
            if "Everything is Ok" not in done.stdout:
                raise AssertionError(f"7zz t {path}: {done.stdout[-300:]}{done.stderr}")


class Vm:
    """A virtual machine of a Service, with its console."""

    def __init__(self, service, name, image, vcpus=1, memory="512M", root=False, disks=(), dvds=(), shared=(),
                 append="", com1="console", quiet=True, options=()):
        self.service, self.name, self.console = service, name, None
        words = ["console=ttyS0", "panic=-1"] + (["quiet"] if quiet else [])
        words += (["kvmbus.root=0"] if root else []) + ([append] if append else [])
        arguments = ["--vcpus", str(vcpus), "--memory", memory, "--kernel", f"{image}/vmlinuz", "--initrd",
                     f"{image}/initrd", "--append", " ".join(words), "--com1", com1]
        arguments += options
        for disk in disks:
            arguments += ["--disk", disk]
        for disk in shared:
            arguments += ["--shared-disk", disk]
        for dvd in dvds:
            arguments += ["--dvd", dvd]
        service.vmctl("vm", "create", name, *arguments)

    @classmethod
    def of(cls, service, name):
        """One that is there, as an import makes one."""
        vm = cls.__new__(cls)
        vm.service, vm.name, vm.console = service, name, None
        return vm

    def show(self):
        return json.loads(self.service.vmctl("--format", "json", "vm", "show", self.name))

    def counters(self):
        return json.loads(self.service.vmctl("--format", "json", "vm", "counters", self.name))

    @property
    def run_dir(self):
        return f"{self.service.run_dir}/{self.show()['id']}"

    def start(self):
        self.service.vmctl("vm", "start", self.name)
        self.connect()

    def connect(self):
        if self.console:
            self.console.close()
        self.console = Console(f"{self.run_dir}/console.sock", f"{self.service.folder}/console-{self.name}.log")

    def boot(self, root=None):
        """Starts it and waits for the agent; its uptime then."""
        self.start()
        return self.console.wait_agent(LIMIT, root)

    def run(self, command, timeout=LIMIT, check=True):
        return self.console.run(command, timeout, check)

    def wait(self, condition, timeout=LIMIT):
        self.service.vmctl("vm", "wait", self.name, "--for", condition, "--timeout", str(timeout))

    def stop(self):
        self.service.vmctl("vm", "stop", self.name, "--timeout", str(LIMIT))

    def remove(self):
        """Off and deleted, whatever state it is in."""
        if self.console:
            self.console.close()
            self.console = None
        if any(vm["name"] == self.name for vm in self.service.list()):
            self.service.try_vmctl("vm", "turn-off", self.name)
            self.wait("off")
            self.service.vmctl("vm", "delete", self.name)

    def sockets(self):
        return glob.glob(f"{self.run_dir}/*.sock")
