#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each check finds what it is for, and is silent about what is right."""

import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import lint  # noqa: E402

SPDX = "// SPDX-License-Identifier: Apache-2.0\n"


class LintTest(unittest.TestCase):
    def findings(self, check, files):
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                    file.write(text)
            return lint.run_check(check, lint.load(root), root)

    def assert_bad(self, check, path, text):
        found = self.findings(check, {path: text})
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(path) or path in found[0], found)

    def assert_good(self, check, path, text):
        self.assertEqual(self.findings(check, {path: text}), [])

    def test_layers(self):
        self.assert_good("layers", "cmd/vmm/board.cc", '#include "kvm/vm.h"\n#include "vmm/os/fd.h"\n')
        self.assert_good("layers", "virtdev/a.cc", '#include "state/scsi.pb.h"\n#include <linux/fs.h>\n')
        self.assert_good("layers", "virtdev/a_test.cc", '#include "tests/fakes/fake_vm.h"\n')
        self.assert_good("layers", "vmm/manager/a.cc", '#include "vmm/config/b.h"\n')
        self.assert_bad("layers", "virtdev/a.cc", '#include "kvm/vm.h"\n')
        self.assert_bad("layers", "firmware/a.h", '#include "virtdev/chipset/rtc.h"\n')
        self.assert_bad("layers", "vmm/bus/a.cc", '#include "cmd/vmm/board.h"\n')
        self.assert_bad("layers", "vmm/machine/a.cc", '#include "kvm/vm.h"\n')
        self.assert_bad("layers", "vmm/os/a.cc", '#include "vmm/event/loop.h"\n')
        self.assert_bad("layers", "vmm/result/a.h", '#include "vmm/os/fd.h"\n')
        self.assert_bad("layers", "vmm/bus/a.cc", '#include "vmm/manager/b.h"\n')
        self.assert_bad("layers", "kvm/a.cc", '#include "tests/fakes/fake_vm.h"\n')
        self.assert_bad("layers", "kvm/a.cc", '#include "vm.h"\n')

    def test_kvm(self):
        self.assert_good("kvm", "kvm/uapi/a.cc", "#include <linux/kvm.h>\nioctl(fd, KVM_RUN, 0);\n")
        self.assert_bad("kvm", "vmm/a.cc", "#include <linux/kvm.h>\n")
        self.assert_bad("kvm", "kvm/vcpu.cc", "r = ::ioctl(fd, KVM_RUN, 0);\n")

    def test_license(self):
        self.assert_good("license", "vmm/a.h", SPDX + "#pragma once\n")
        self.assert_good("license", "scripts/a", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n")
        self.assert_bad("license", "vmm/a.h", "#pragma once\n" + SPDX)
        self.assert_bad("license", "scripts/a", "#!/bin/sh\n")
        self.assert_bad("license", "vmm/CMakeLists.txt", "add_subdirectory(os)\n")

    def test_pointers(self):
        safe = "// SAFETY: checked above.\nuint8_t* p = ram.HostPointer(0, 1);\n"
        self.assert_good("pointers", "virtdev/ring_unsafe.cc", safe)
        self.assert_good("pointers", "vmm/memory/guest_memory.cc", "p = HostPointer(0, 1);\n")
        self.assert_good("pointers", "virtdev/a_test.cc", "p = ram.HostPointer(0, 1);\n")
        self.assert_bad("pointers", "virtdev/ring_unsafe.cc", "p = ram.HostPointer(0, 1);\n")
        self.assert_bad("pointers", "virtdev/ring.cc", safe)

    def test_paths(self):
        self.assert_good("paths", "docs/a.md", "see https://example.org/work/x and build/work/\n")
        self.assert_bad("paths", "docs/a.md", "run /work/main/scripts/test\n")
        self.assert_bad("paths", "vmm/a.cc", 'Open("/home/somebody/x");\n')

    def test_length(self):
        self.assert_good("length", "vmm/a.cc", "x" * 120 + "\n")
        self.assert_bad("length", "vmm/a.cc", "x" * 121 + "\n")
        self.assert_bad("length", "vmm/a.cc", "x\n" * 901)

    def test_format(self):
        style = {".clang-format": "BasedOnStyle: Google\n"}
        self.assertEqual(self.findings("format", {"a.cc": "int a = 1;\n", **style}), [])
        self.assertEqual(len(self.findings("format", {"a.cc": "int  a=1 ;\n", **style})), 1)

    def test_folders_that_are_not_ours_are_skipped(self):
        self.assert_good("license", "build/a.h", "#pragma once\n")


if __name__ == "__main__":
    unittest.main()
