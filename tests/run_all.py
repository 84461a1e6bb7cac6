#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds what each part of the tests needs, runs the parts, and ends with 'N passed, N failed'. See scripts/test."""

import glob
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
FUZZ_SECONDS = os.environ.get("KVMBUS_FUZZ_SECONDS") or "10"


class Part:
    """One part's name, counts and the names of what failed."""

    def __init__(self, name):
        self.name, self.passed, self.failures, self.seconds = name, 0, [], 0.0


def run(command, **options):
    print("+ " + " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False, **options).returncode


def build(part, preset, targets=()):
    """Configures and builds. What does not build counts as one failure, and the part goes on with what does."""
    environment = {**os.environ, "KVMBUS_FUZZ_SECONDS": FUZZ_SECONDS}
    if run(["cmake", "--preset", preset], env=environment, stdout=subprocess.DEVNULL) != 0:
        part.failures.append(f"configure {preset}")
        return False
    command = ["cmake", "--build", "--preset", preset]
    if targets:
        command += ["--target", *targets]
    if run([*command, "--", "-k", "0"], env={**environment, "NINJA_STATUS": "[%f/%t] "}) != 0:
        part.failures.append(f"build {preset}")
    return True


def read_gtest(path):
    """(passed, failed) of one GoogleTest program, or None when it died before it wrote its results."""
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except (OSError, ValueError):
        return None
    failed = results["failures"] + results.get("errors", 0)
    skipped = sum(test.get("result") == "SKIPPED" for suite in results["testsuites"] for test in suite["testsuite"])
    return results["tests"] - results["disabled"] - skipped - failed, failed


def ctest(part, preset, label):
    folder = f"{ROOT}/build/{preset}/results"
    os.makedirs(folder, exist_ok=True)
    for old in glob.glob(f"{folder}/*"):
        os.unlink(old)
    junit = f"{folder}/ctest.xml"
    environment = {**os.environ, "GTEST_OUTPUT": f"json:{folder}/", "ASAN_OPTIONS": "detect_leaks=1",
                   "UBSAN_OPTIONS": "print_stacktrace=1"}
    run(["ctest", "--test-dir", f"build/{preset}", "-L", f"^{label}$", "-j", str(os.cpu_count() or 1), "--output-junit",
         junit, "--output-on-failure"], env=environment)
    if not os.path.exists(junit):
        part.failures.append(f"ctest {preset}")
        return
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue  # this host cannot run it
        name, ok = case.get("name"), case.get("status") == "run"
        counts = read_gtest(f"{folder}/{name}.json")
        if counts:
            part.passed += counts[0]
            part.failures += [name] * counts[1]
        elif ok:
            part.passed += 1
        if not ok and not (counts and counts[1]):
            part.failures.append(name)


def run_unit(part):
    if build(part, "debug"):
        ctest(part, "debug", "unit")


def run_asan(part):
    if build(part, "asan-ubsan"):
        ctest(part, "asan-ubsan", "unit")


def run_tsan(part):
    if build(part, "tsan"):
        ctest(part, "tsan", "unit")


def run_fuzz(part):
    if build(part, "fuzz"):
        ctest(part, "fuzz", "fuzz")


def run_guest(part):
    if not build(part, "debug", ("vmm", "vmmd", "vmctl", "kvm_vm_test", "vmm_memory_test", "vmm_saved_state_test")):
        return
    process = subprocess.Popen([f"{ROOT}/tests/guest/run", "--bin", f"{ROOT}/build/debug/bin"], text=True,
                               stdout=subprocess.PIPE)
    summary = None
    for line in process.stdout:
        print(line, end="", flush=True)
        failed = re.match(r"FAILED (\S+)", line)
        if failed:
            part.failures.append(failed.group(1))
        summary = re.fullmatch(r"(\d+) passed, \d+ failed\n", line) or summary
    part.passed = int(summary.group(1)) if summary else 0
    if process.wait() != 0 and not part.failures or not summary:
        part.failures.append("guest tests did not come to their end")


def run_bench(part):
    if not build(part, "release", ("vmm", "vmctl", "kvmbus-disk-load")):
        return
    for comparison in ("bench/compare/boot", "bench/compare/disk"):
        if run([f"{ROOT}/{comparison}"]) == 0:
            part.passed += 1
        else:
            part.failures.append(comparison)


PARTS = {"unit": run_unit, "asan": run_asan, "tsan": run_tsan, "fuzz": run_fuzz, "guest": run_guest, "bench": run_bench}
DEFAULT = ("unit", "fuzz", "guest")


def main():
    names = sys.argv[1:] or DEFAULT
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        sys.exit(f"test: there is no part '{unknown[0]}'; the parts are {', '.join(PARTS)}")
    parts = []
    for name in names:
        print(f"\n=== {name} ===", flush=True)
        part = Part(name)
        start = time.monotonic()
        PARTS[name](part)
        part.seconds = time.monotonic() - start
        parts.append(part)
    print("\n=== summary ===")
    for part in parts:
        print(f"{part.name:6} {part.passed:5} passed {len(part.failures):4} failed  {part.seconds / 60:5.1f} min")
        for failure in sorted(set(part.failures)):
            print(f"       failed: {failure}")
    failed = sum(len(part.failures) for part in parts)
    print(f"{sum(part.passed for part in parts)} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
