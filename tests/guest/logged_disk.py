# SPDX-License-Identifier: Apache-2.0
"""A disk that remembers every write and flush (the kernel's dm-log-writes), and what a power cut may leave of them.

The log's format: include/linux and drivers/md/dm-log-writes.c of the kernel, Documentation/admin-guide/device-mapper/
log-writes.rst. A write stands in it behind the flush before which it was complete, so that all that precedes a flush
is on the disk once that flush is, and any part of what follows may be.
"""

import contextlib
import dataclasses
import os
import shutil
import struct
import subprocess

SECTOR = 512
PIECE = 4096  # what a disk writes whole or not at all; file systems rely on that
MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
# Nothing is on the disk by luck: no flush of a renamed file's data, no commit by the clock.
MOUNT = "noatime,noauto_da_alloc,commit=600"


def call(*words):
    done = subprocess.run(words, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"'{' '.join(words)}' ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclasses.dataclass
class Entry:
    """One of the log: a write's place on the disk and in the log's file, or the text of a mark."""

    flags: int
    start: int
    length: int
    data: int
    text: str


@dataclasses.dataclass
class Cut:
    """The power went after `end` entries: those before `sure` are on the disk, of the others `kept` says which."""

    sure: int
    end: int
    mark: str


class LoggedDisk:
    """An ext4 file system on a disk of its own, mounted at `at` and recorded from then on. Needs root."""

    NAME = "kvmbus-logged"

    def __init__(self, folder, at, mib=768, log_mib=8192):
        self.folder, self.at, self.loops, self.entries = folder, at, [], []
        self.disk, self.base, self.log = (f"{folder}/{name}" for name in ("disk", "base", "log"))
        for path, size in ((self.disk, mib), (self.log, log_mib)):
            with open(path, "wb") as file:
                file.truncate(size << 20)
        extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
        call("mkfs.ext4", "-q", "-F", "-J", "size=4", "-E", extended, self.disk)
        self._copy(self.disk, self.base)
        for module in ("loop", "dm-log-writes"):
            call("modprobe", module)
        self.loops = [call("losetup", "--find", "--show", path) for path in (self.disk, self.log)]
        sectors = (mib << 20) // SECTOR
        call("dmsetup", "create", self.NAME, "--table", f"0 {sectors} log-writes {self.loops[0]} {self.loops[1]}")
        call("dmsetup", "mknodes", self.NAME)  # a software host has no udev
        os.makedirs(at, exist_ok=True)
        call("mount", "-o", MOUNT, f"/dev/mapper/{self.NAME}", at)

    @staticmethod
    def _copy(source, target):
        call("cp", "--sparse=always", source, target)

    def mark(self, text):
        """All that is flushed by now stands before it in the log. A message to the kernel takes words only."""
        call("dmsetup", "message", self.NAME, "0", "mark", text.replace(" ", "_"))

    def stop(self):
        """Ends the recording; the disk is gone, and its log is whole."""
        call("umount", self.at)
        call("dmsetup", "remove", "--retry", self.NAME)
        for loop in self.loops:
            call("losetup", "-d", loop)
        os.unlink(self.disk)
        self.entries = list(self._read_log())

    def close(self):
        """Whatever became of the recording."""
        for words in (("umount", self.at), ("dmsetup", "remove", "--retry", self.NAME),
                      *(("losetup", "-d", loop) for loop in self.loops)):
            subprocess.run(words, capture_output=True, check=False)

    def _read_log(self):
        with open(self.log, "rb") as file:
            magic, version, count, sector_size = struct.unpack("<QQQI", file.read(28))
            if (magic, version, sector_size) != (MAGIC, 1, SECTOR):
                raise AssertionError(f"the log of {self.NAME} begins with {magic:#x}, {version}, {sector_size}")
            at = SECTOR
            for _ in range(count):
                file.seek(at)
                start, length, flags, extra = struct.unpack("<QQQQ", file.read(32))
                text = file.read(extra).decode().replace("_", " ") if flags & MARK else ""
                at += SECTOR
                yield Entry(flags, start * SECTOR, length * SECTOR, at, text)
                if not flags & DISCARD:
                    at += length * SECTOR

    def cuts(self, random, wanted):
        """After each mark of {text: number} so many, or as many as there are, at flushes and between them."""
        after, flush, mark = {text: [] for text in wanted}, 0, None
        for index, entry in enumerate(self.entries):
            if entry.flags & MARK:
                mark = entry.text
            elif entry.flags & FLUSH:
                flush = index + 1
            if mark in after:
                after[mark].append(Cut(flush, index + 1, mark))
        chosen = [cut for text, cuts in after.items() for cut in random.sample(cuts, min(len(cuts), wanted[text]))]
        return sorted(chosen, key=lambda cut: cut.end)

    def replay(self, cuts, random):
        """For each cut, which stand in order, the cut while what it left is mounted."""
        done = 0
        with open(self.log, "rb") as log:
            for cut in cuts:
                with open(self.base, "r+b") as base:
                    for entry in self.entries[done:cut.sure]:
                        self._write(log, base, entry, None)
                done = cut.sure
                with self._mounted(log, cut, random):
                    yield cut

    @contextlib.contextmanager
    def _mounted(self, log, cut, random):
        self._copy(self.base, self.disk)
        with open(self.disk, "r+b") as disk:
            for entry in self.entries[cut.sure:cut.end]:
                self._write(log, disk, entry, random)
        call("mount", "-o", f"loop,{MOUNT}", self.disk, self.at)
        try:
            yield
        finally:
            call("umount", self.at)
            os.unlink(self.disk)

    @staticmethod
    def _write(log, disk, entry, random):
        """With `random`: all of it, nothing, or some of its pieces, unless it is forced to the disk (FUA)."""
        if entry.flags & (DISCARD | MARK) or not entry.length:
            return
        lost = random and not entry.flags & FUA
        fate = random.choice(("all", "all", "none", "none", "some")) if lost else "all"
        if fate == "none":
            return
        log.seek(entry.data)
        disk.seek(entry.start)
        if fate == "all":
            shutil.copyfileobj(_Part(log, entry.length), disk)
            return
        for at in range(0, entry.length, PIECE):
            piece = log.read(min(PIECE, entry.length - at))
            if random.random() < 0.5:
                disk.seek(entry.start + at)
                disk.write(piece)


class _Part:
    """The next `left` bytes of a file."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def read(self, size):
        piece = self.file.read(min(size, self.left))
        self.left -= len(piece)
        return piece
