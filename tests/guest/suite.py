# SPDX-License-Identifier: Apache-2.0
"""Groups of guest tests: one set-up each, tests in the order in which they stand, a line of report a test."""

import re
import time
import traceback

GROUPS = []


def group(cls):
    """Registers a group. Its tests are the methods that start with test_."""
    GROUPS.append(cls)
    return cls


class Group:
    """Tests that share machines. set_up boots them, tear_down removes whatever is left."""

    changes_host = False  # loads modules, mounts, makes devices: runs on a software host wherever it is started

    def __init__(self, context):
        self.context = context
        self.service, self.image = context.service, context.image

    def set_up(self):
        pass

    def tear_down(self):
        pass

    @classmethod
    def tests(cls):
        return [name for name in vars(cls) if name.startswith("test_")]


def full_name(cls, test):
    return f"{cls.__name__}.{test[5:]}"


def choose(pattern, name=None):
    """[(group, tests)] of the tests whose full names match, of the named group or of all."""
    found = [(cls, [test for test in cls.tests() if re.search(pattern, full_name(cls, test))])
             for cls in GROUPS if name in (None, cls.__name__)]
    return [(cls, tests) for cls, tests in found if tests]


class Runner:
    """Runs groups, prints a line for each test, and ends with 'N passed, N failed'.

    With fail_fast a group ends at its first failure: its caller has it run once more (see run).
    """

    def __init__(self, context, fail_fast=False):
        self.context, self.fail_fast = context, fail_fast
        self.passed = self.failed = 0

    def _report(self, name, start, error=None):
        seconds = time.monotonic() - start
        if error is None:
            self.passed += 1
            print(f"ok     {name} ({seconds:.1f} s)", flush=True)
        else:
            self.failed += 1
            print(f"FAILED {name} ({seconds:.1f} s): {describe(error)}", flush=True)

    def run(self, chosen):
        for cls, tests in chosen:
            with self.context.fresh_folder():
                self._run_group(cls, tests)
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 1 if self.failed or not self.passed else 0

    def _run_group(self, cls, names):
        tests, start, broken = cls(self.context), time.monotonic(), None
        try:
            tests.set_up()
        except Exception as error:  # every kind: the others must run
            broken = error
        for index, test in enumerate(names):
            if broken is not None:
                what = describe(broken) if index == 0 else "its group's set-up failed"
                self._report(full_name(cls, test), start, AssertionError(f"set-up: {what}"))
                if self.fail_fast:
                    break
                continue
            start = time.monotonic()
            try:
                getattr(tests, test)()
                self._report(full_name(cls, test), start)
            except Exception as error:
                self._report(full_name(cls, test), start, error)
                if self.fail_fast:
                    break
        start = time.monotonic()
        try:
            tests.tear_down()
        except Exception as error:
            self._report(f"{cls.__name__}.tear_down", start, error)


def describe(error):
    place = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in place if "/test_" in frame.filename]
    where = f" [{ours[-1].filename.rsplit('/', 1)[1]}:{ours[-1].lineno}]" if ours else ""
    return f"{str(error) or type(error).__name__}{where}"


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def expect_equal(found, wanted, what):
    expect(found == wanted, f"{what}: found {found!r}, wanted {wanted!r}")


def eventually(condition, what, timeout=120, pause=0.3):
    """Waits until the condition gives something true, and returns that."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        expect(time.monotonic() < end, f"not within {timeout} s: {what}")
        time.sleep(pause)
