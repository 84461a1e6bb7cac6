#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Boots unmodified Debian guests under kvmbus and lets them judge it. Runs where /dev/kvm is: see run."""

import argparse
import contextlib
import glob
import os
import shutil
import subprocess
import sys
import tempfile

from service import Service
from suite import Runner, choose, full_name
import test_boot  # noqa: F401: registers its groups, as those below
import test_checkpoints  # noqa: F401
import test_crossing  # noqa: F401
import test_disks  # noqa: F401
import test_drivers  # noqa: F401
import test_fio  # noqa: F401
import test_host_programs  # noqa: F401
import test_huge_pages  # noqa: F401
import test_killed  # noqa: F401
import test_live_disks  # noqa: F401
import test_machine  # noqa: F401
import test_options  # noqa: F401
import test_power  # noqa: F401
import test_power_running  # noqa: F401
import test_qos  # noqa: F401
import test_saved  # noqa: F401
import test_service  # noqa: F401
import test_shared  # noqa: F401
import test_transfers  # noqa: F401
import test_version  # noqa: F401
import test_vss  # noqa: F401
import test_wide  # noqa: F401

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


class Context:
    """What the groups share: one service, the guest's image, a folder for disks."""

    def __init__(self, options, scratch):
        self.options, self.scratch, self.root = options, scratch, ROOT
        self.image = options.image
        self.service = Service(options.bin, f"{scratch}/service")

    @contextlib.contextmanager
    def fresh_folder(self):
        """A folder for the files of one group, gone with it; a running service, with nothing left of the last group."""
        self.service.clear()
        base = self.scratch
        self.scratch = tempfile.mkdtemp(prefix="g.", dir=base)
        try:
            yield
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch = base

    def copy_root(self, name):
        """A root disk of its own."""
        path = f"{self.scratch}/{name}.vhdx"
        shutil.copyfile(f"{self.image}/root.vhdx", path)
        return path

    def new_disk(self, name, size, *options):
        path = f"{self.scratch}/{name}.vhdx"
        self.service.vmctl("disk", "create", path, "--size", size, *options)
        return path

    def new_disc(self, name, text):
        """An ISO 9660 image with one file, 'text'."""
        folder, path = f"{self.scratch}/{name}.files", f"{self.scratch}/{name}.iso"
        os.makedirs(folder)
        with open(f"{folder}/text", "w", encoding="utf-8") as file:
            file.write(text)
        subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", path, folder], check=True,
                       capture_output=True)
        return path

    def write_kernel_disk(self, path):
        """The kernel and behind it the initramfs, padded to sectors; the kernel's size."""
        with open(path, "wb") as disk:
            for part in ("vmlinuz", "initrd"):
                with open(f"{self.image}/{part}", "rb") as file:
                    shutil.copyfileobj(file, disk)
                if part == "vmlinuz":
                    size = disk.tell()
            disk.truncate((disk.tell() + 4095) // 4096 * 4096)
        return size


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", default="", help="folder of vmmd, vmm and vmctl")
    parser.add_argument("--image", default="", help="folder made by image/build")
    parser.add_argument("--keep", metavar="DIR", help="where logs and consoles are copied to")
    parser.add_argument("--only", default="", metavar="REGEX", help="run the tests that match")
    parser.add_argument("--group", metavar="NAME", help="run the tests of that group alone")
    parser.add_argument("--fail-fast", action="store_true", help="end a group at its first failure")
    parser.add_argument("--io-mib", type=int, default=1024, help="size of the storage test (default 1024)")
    parser.add_argument("--cuts", type=int, default=1, help="power cuts in each command (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of power cuts (default 1)")
    parser.add_argument("--list", action="store_true", help="print the tests' names")
    parser.add_argument("--changes-host", action="store_true", help="of those groups alone that change the host")
    options = parser.parse_args()
    chosen = choose(options.only, options.group)
    if options.changes_host:
        chosen = [(cls, tests) for cls, tests in chosen if cls.changes_host]
    if options.list:
        for cls, tests in chosen:
            print("\n".join(full_name(cls, test) for test in tests))
        return 0
    if not options.bin or not options.image:
        parser.error("--bin and --image are needed")
    scratch = tempfile.mkdtemp(prefix="guest-tests.", dir="/scratch" if os.environ.get("TESTHOST") else None)
    context = Context(options, scratch)
    status = 1
    try:
        context.service.start()
        status = Runner(context, options.fail_fast).run(chosen)
        context.service.stop()
    finally:
        if options.keep:
            os.makedirs(options.keep, exist_ok=True)
            for log in glob.glob(f"{scratch}/service/*.log"):
                shutil.copy(log, options.keep)
            for log in glob.glob(f"{scratch}/service/run/*/worker.log"):
                shutil.copy(log, f"{options.keep}/worker-{log.split('/')[-2]}.log")
        shutil.rmtree(scratch, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
