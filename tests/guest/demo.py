# SPDX-License-Identifier: Apache-2.0
"""What scripts/demo shows: one Debian guest from creation to shutdown, with a report from inside it."""

import os
import shutil
import subprocess
import sys
import tempfile

from outside import read_from_image
from service import Service, Vm

TEXT = "written inside the guest"


def say(title, text):
    print(f"  {title:14} {text}", flush=True)


def quote(text):
    print("  " + text.strip().replace("\n", "\n  "), flush=True)


def report(vm, seconds):
    """What an unmodified guest found, in its own words."""
    say("kernel", vm.run("uname -sr"))
    say("hypervisor", vm.run("dmesg | grep -o 'Hypervisor detected: .*'").removeprefix("Hypervisor detected: "))
    say("VMBus", vm.run("dmesg | grep -o 'Vmbus version:[0-9.]*'").removeprefix("Vmbus version:"))
    devices = vm.run("for d in /sys/bus/vmbus/devices/*; do "
                     "echo \"${d##*/} $(basename $(readlink $d/driver) 2>/dev/null || echo -)\"; done")
    for device in devices.splitlines():
        identity, driver = device.split()
        say("device", f"{identity}  driver {driver}")
    say("clock source", vm.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource"))
    say("root", vm.run("awk '$2 == \"/\" {print $1, $3}' /proc/mounts | tail -n 1"))
    say("boot time", f"{seconds:.1f} s from the kernel's start to a shell")


def main():
    bin_dir, image = sys.argv[1:3]
    folder = tempfile.mkdtemp(dir="/scratch" if os.environ.get("TESTHOST") else None, prefix="kvmbus-demo-")
    service = Service(bin_dir, folder)
    service.start()
    disk = shutil.copyfile(f"{image}/root.vhdx", f"{folder}/root.vhdx")
    print("\nA guest with 2 processors; its root is ext4 in a dynamic VHDX\n", flush=True)
    vm = Vm(service, "demo", image, vcpus=2, root=True, disks=[disk])
    seconds = vm.boot("disk")
    vm.wait("heartbeat", 120)
    print("What the guest says:", flush=True)
    report(vm, seconds)
    vm.run(f"echo '{TEXT}' > /proof && sync")
    print("\nWhat vmctl says:", flush=True)
    quote(service.vmctl("vm", "list"))
    print("\nShutting it down through the shutdown service:", flush=True)
    quote(service.vmctl("vm", "stop", "demo", "--timeout", "180"))
    print("\nFrom outside:", flush=True)
    say("vmctl", service.vmctl("disk", "check", disk).strip().replace(f"{folder}/", ""))
    checked = subprocess.run(["qemu-img", "check", disk], check=True, text=True, capture_output=True)
    say("qemu-img", checked.stdout.strip())
    proof = read_from_image(disk, "/proof", folder)
    say("/proof", f"'{proof}'")
    vm.remove()
    service.stop()
    shutil.rmtree(folder)
    if proof != TEXT:
        sys.exit("demo: the file in the image is not what the guest wrote")
    print("\nAll of it worked.", flush=True)


main()
