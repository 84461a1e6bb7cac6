#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks of the source tree that no compiler makes. Prints one line a finding; the exit status says whether any.

  lint.py [--root DIR] [CHECK ...]      default: every check but clang-format

layers    #include runs one way: cmd -> {kvm, virtdev, firmware} -> vmm -> proto; the three in the middle include none
          of each other (a folder 'migration' would be a fourth); vmm/result, vmm/os and vmm/guid are the ground,
          vmm/manager is the roof. Unit tests may reach for fakes.
kvm       linux/kvm.h is included in kvm/ alone, and KVM's ioctls are issued in kvm/uapi alone
license   every source file starts with its SPDX line
pointers  guest RAM as a raw pointer (HostPointer) only in *_unsafe.{h,cc}, each use with a SAFETY comment
paths     no path of somebody's machine
length    lines of at most 120 columns, files of at most 900 lines
format    clang-format has nothing to change (C and C++)
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

LINE_LIMIT = 120
FILE_LIMIT = 900
MIDDLE = {"kvm", "virtdev", "firmware", "migration"}
# What a folder may include beside itself.
ALLOWED = {
    "cmd": MIDDLE | {"vmm", "cmd"},
    **{folder: {"vmm", folder} for folder in MIDDLE},
    "vmm": {"vmm"},
}
# Inside vmm/: a folder that others stand on, and the only folders that it may stand on.
GROUND = {"result": {"result"}, "os": {"result", "os"}, "guid": {"result", "os", "guid"}}
PROTO_FOLDERS = {"config", "state", "worker", "api", "stream"}
TOP_FOLDERS = MIDDLE | {"cmd", "vmm"}
CXX = (".h", ".cc", ".c")
SKIPPED_FOLDERS = {".git", "build", ".cache", "corpus", "__pycache__", "fixtures"}
# Where guest RAM comes from: the type that hands pointers out, and its implementation.
MEMORY_FOLDER = "vmm/memory/"


class Source:
    """A text file of the tree."""

    def __init__(self, root, path):
        self.path = path
        self.name = os.path.basename(path)
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            self.text = file.read()
        self.lines = self.text.splitlines()
        self.parts = path.split("/")

    @property
    def is_cxx(self):
        return self.name.endswith(CXX)

    @property
    def is_test(self):
        """Unit tests, fuzz targets and test helpers; they are not part of what is shipped."""
        stem = os.path.splitext(self.name)[0]
        return bool({"tests", "bench", "testing", "test"} & set(self.parts[:-1])) or bool(
            re.search(r"_(test|fuzz|bench)(_|$)", stem))


def list_files(root):
    """What git tracks or would track; without git, all files."""
    try:
        listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                                capture_output=True, check=True).stdout.decode().split("\0")
        top = subprocess.run(["git", "-C", root, "rev-parse", "--show-prefix"], capture_output=True,
                             check=True).stdout.decode().strip()
        if listed != [""] and not top:
            return sorted({path for path in listed if path})
    except (OSError, subprocess.CalledProcessError):
        pass
    return sorted(os.path.relpath(os.path.join(folder, name), root)
                  for folder, _, names in os.walk(root) for name in names)


def load(root):
    sources = []
    for path in list_files(root):
        full = os.path.join(root, path)
        if set(path.split("/")[:-1]) & SKIPPED_FOLDERS or not os.path.isfile(full):
            continue
        with open(full, "rb") as file:
            if b"\0" in file.read(4096):
                continue
        sources.append(Source(root, path))
    return sources


def includes(source):
    for number, line in enumerate(source.lines, 1):
        match = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
        if match:
            yield number, match.group(1) == '"', match.group(2)


def check_layers(sources):
    for source in sources:
        top = source.parts[0]
        if not source.is_cxx or top not in ALLOWED:
            continue
        for number, quoted, target in includes(source):
            parts = target.split("/")
            if not quoted or parts[0] in PROTO_FOLDERS and target.endswith(".pb.h"):
                continue
            where = f"{source.path}:{number}"
            if parts[0] in ("tests", "bench"):
                if not source.is_test:
                    yield f"{where}: a shipped file includes '{target}'"
            elif len(parts) == 1 or parts[0] not in TOP_FOLDERS:
                yield f"{where}: '{target}' is not written from the top of the tree"
            elif parts[0] not in ALLOWED[top]:
                yield f"{where}: {top}/ must not include '{target}'"
            elif top == "vmm":
                yield from check_ground(source, where, parts)


def check_ground(source, where, parts):
    folder, target = source.parts[1], parts[1]
    if folder in GROUND and target not in GROUND[folder]:
        yield f"{where}: vmm/{folder} is the ground and must not include '{'/'.join(parts)}'"
    if target == "manager" and folder != "manager":
        yield f"{where}: vmm/manager is the roof; vmm/{folder} must not include '{'/'.join(parts)}'"


def check_kvm(sources):
    for source in sources:
        if not source.is_cxx or source.path.startswith("kvm/uapi/"):
            continue
        for number, _, target in includes(source):
            # The structures are needed wherever they are filled in; the calls are not.
            if target == "linux/kvm.h" and source.parts[0] != "kvm":
                yield f"{source.path}:{number}: only kvm/ includes linux/kvm.h"
        for number, line in enumerate(source.lines, 1):
            if re.search(r"\bioctl\s*\([^;]*\bKVM_[A-Z0-9_]+", line):
                yield f"{source.path}:{number}: only kvm/uapi issues KVM's ioctls"


LICENSED = CXX + (".py", ".proto", ".cmake", ".sh")


def check_license(sources):
    for source in sources:
        script = bool(source.lines) and source.lines[0].startswith("#!")
        if not (source.name.endswith(LICENSED) or source.name == "CMakeLists.txt" or script):
            continue
        head = source.lines[:2] if script else source.lines[:1]
        if not any("SPDX-License-Identifier: Apache-2.0" in line for line in head):
            yield f"{source.path}:1: the SPDX line is missing"


def check_pointers(sources):
    for source in sources:
        if not source.is_cxx or source.is_test:
            continue
        unsafe = re.search(r"_unsafe\.(h|cc)$", source.name)
        for number, line in enumerate(source.lines, 1):
            code = line.split("//")[0]
            if not re.search(r"\bHostPointer\s*\(", code):
                continue
            if unsafe:
                around = source.lines[max(0, number - 6):number + 8]  # above the call, or where the pointer is used
                if source.name.endswith(".cc") and "::HostPointer(" not in code and not any(
                        "SAFETY:" in text for text in around):
                    yield f"{source.path}:{number}: no SAFETY comment at this use of HostPointer"
            elif not source.path.startswith(MEMORY_FOLDER):
                yield f"{source.path}:{number}: HostPointer is for *_unsafe files"


def check_paths(sources):
    # A path that only one machine has; the words of a URL or of a longer path are none.
    pattern = re.compile(r"(?<![\w./])/(work|home/\w+|root/\S+|Users)(/|\b)")
    for source in sources:
        if source.path.startswith("tests/lint/"):
            continue
        for number, line in enumerate(source.lines, 1):
            match = pattern.search(line)
            if match:
                yield f"{source.path}:{number}: '{match.group(0)}' is a path of one machine"


def check_length(sources):
    for source in sources:
        if source.name in ("LICENSE",) or source.name.endswith((".json", ".xml", ".txtpb")):
            continue
        if len(source.lines) > FILE_LIMIT:
            yield f"{source.path}:1: {len(source.lines)} lines, the limit is {FILE_LIMIT}"
        for number, line in enumerate(source.lines, 1):
            exempt = source.name.endswith(".md") and line.startswith("|") or re.search(r"https?://", line)
            if len(line) > LINE_LIMIT and not exempt:
                yield f"{source.path}:{number}: {len(line)} columns, the limit is {LINE_LIMIT}"


def check_format(sources, root):
    program = shutil.which("clang-format-14") or shutil.which("clang-format")
    if not program:
        yield "clang-format-14 is missing; run scripts/setup"
        return
    files = [source.path for source in sources if source.is_cxx]
    for start in range(0, len(files), 50):
        run = subprocess.run([program, "--dry-run", "-Werror", *files[start:start + 50]], cwd=root, text=True,
                             capture_output=True, check=False)
        seen = set()
        for match in re.finditer(r"^(\S+?):(\d+):\d+: error:", run.stderr, re.MULTILINE):
            if match.group(1) not in seen:
                seen.add(match.group(1))
                yield f"{match.group(1)}:{match.group(2)}: not as clang-format has it"


CHECKS = {"layers": check_layers, "kvm": check_kvm, "license": check_license, "pointers": check_pointers,
          "paths": check_paths, "length": check_length}


def run_check(name, sources, root):
    if name == "format":
        return list(check_format(sources, root))
    return list(CHECKS[name](sources))


def main():
    here = os.path.dirname(os.path.realpath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.path.dirname(os.path.dirname(here)))
    parser.add_argument("checks", nargs="*", metavar="CHECK")
    arguments = parser.parse_args()
    names = arguments.checks or list(CHECKS)
    unknown = set(names) - set(CHECKS) - {"format"}
    if unknown:
        parser.error(f"there is no check '{unknown.pop()}'")
    sources = load(arguments.root)
    findings = [f"{finding} [{name}]" for name in names for finding in run_check(name, sources, arguments.root)]
    print("\n".join(findings) if findings else f"lint: {len(sources)} files, {', '.join(names)}: nothing found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
