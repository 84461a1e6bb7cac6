# SPDX-License-Identifier: Apache-2.0
"""fio in a guest, round after round, and what it finds."""

from suite import eventually, expect

# One round: writes every piece of the first 3 MiB in a random order, each with its checksum in it, and reads them back.
FIO = ("fio --name=job --rw=randwrite --size=3M --bsrange=4k-64k --verify=crc32c --verify_fatal=1 --direct=1 "
       "--ioengine=libaio --iodepth=8 --fdatasync=32 --output-format=terse --terse-version=3 --thread")


class FioLoad:
    """Runs in the guest from the start on, until there is a file /run/stop or it finds something wrong."""

    def __init__(self, vm, device):
        self.vm = vm
        vm.run("rm -f /run/stop; : >/run/io; (while [ ! -e /run/stop ]; do n=$((n+1)); "
               f"{FIO} --filename={device} --randseed=$n >/run/fio 2>&1 || "
               "{ cat /run/fio >>/run/io; echo failed >>/run/io; break; }; echo round >>/run/io; done; "
               "echo over >>/run/io) &")

    def rounds(self):
        text = self.vm.run("cat /run/io")
        expect("failed" not in text, f"the guest found something else than it wrote: {text[-500:]}")
        return text.count("round")

    def await_rounds(self, count):
        wanted = self.rounds() + count
        eventually(lambda: self.rounds() >= wanted, f"{count} more rounds of writing")
