# SPDX-License-Identifier: Apache-2.0
"""Unit tests of what few machines that build have: KVM, userfaultfd, huge pages. Without these they skip, here not."""

import os
import subprocess

from service import LIMIT
from suite import Group, expect, expect_equal, group
from test_huge_pages import set_pages_aside


@group
class HostPrograms(Group):
    """Programs of unit tests, on the host itself."""

    changes_host = True  # sets pages aside

    def set_up(self):
        set_pages_aside(64)

    def tear_down(self):
        set_pages_aside(0)

    def run_all_of(self, program):
        path = f"{os.path.dirname(self.context.options.bin)}/tests/{program}"
        done = subprocess.run([path, "--gtest_brief=1"], capture_output=True, text=True, timeout=LIMIT, check=False,
                              env={**os.environ, "KVMBUS_REQUIRE_KVM": "1"})
        said = f"{done.stdout[-1500:]}{done.stderr[-500:]}"
        expect_equal(done.returncode, 0, f"status of {program}, which said {said}")
        expect("[  PASSED  ]" in done.stdout and "[  SKIPPED ]" not in done.stdout, f"{program} said {said}")

    def test_virtual_machines_and_processors(self):
        self.run_all_of("kvm_vm_test")

    def test_guest_memory_and_its_faults(self):
        self.run_all_of("vmm_memory_test")

    def test_memory_saved_and_loaded_beside_the_guest(self):
        self.run_all_of("vmm_saved_state_test")
