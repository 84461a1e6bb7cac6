#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a small chain of VHDX files from the published format alone, for the reader's test.

  make_avhdx.py FOLDER SEED

FOLDER gets Base.vhdx, Middle.avhdx, Top.avhdx (the last one with a log that was not replayed) and expected.raw, what
the disk holds. Everything is drawn from SEED: sector and block sizes, the disk's size, states of blocks, bitmaps, the
order in which blocks lie in the file, which of a locator's paths leads to the parent.
"""

import os
import random
import struct
import sys
import uuid

MIB = 1 << 20
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 6, 7
TABLE = []
for number in range(256):
    for _ in range(8):
        number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
    TABLE.append(number)


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def sealed(data):
    """A structure with its checksum, which lies at byte 4."""
    return data[:4] + struct.pack("<I", crc32c(data[:4] + bytes(4) + data[8:])) + data[8:]


def guid(text):
    return uuid.UUID(text).bytes_le


class Disk:
    """What all files of the chain agree on."""

    def __init__(self, rng):
        self.sector = rng.choice([512, 512, 4096])
        self.size = 5 * MIB + rng.randrange(0, 4) * self.sector
        self.page83 = uuid.UUID(int=rng.getrandbits(128))
        self.content = bytearray(self.size)


class Image:
    """One file. `expected` of the disk is changed to what the file makes of it."""

    def __init__(self, disk, rng, parent=None):
        self.disk, self.rng, self.parent = disk, rng, parent
        self.block = rng.choice([1, 2]) * MIB
        self.identity = uuid.UUID(int=rng.getrandbits(128))
        self.ratio = (1 << 23) * disk.sector // self.block
        self.blocks = -(-disk.size // self.block)
        self.pieces = []  # (offset, bytes) of the file
        self.bat = {}
        self.bitmap = bytearray(MIB)

    def fill(self):
        """Chooses states, and lays the blocks and the bitmap out in any order."""
        rng, disk = self.rng, self.disk
        states = [FULL, FULL, ZERO, UNMAPPED, UNDEFINED, NOT_PRESENT]
        if self.parent:
            states = [NOT_PRESENT, NOT_PRESENT, PARTIAL, PARTIAL, PARTIAL, FULL, ZERO, UNMAPPED, UNDEFINED]
        chosen = [rng.choice(states) for _ in range(self.blocks)]
        stored = [number for number in range(self.blocks) if chosen[number] in (FULL, PARTIAL)]
        owners = stored + (["bitmap"] if PARTIAL in chosen else [])
        rng.shuffle(owners)
        place = 5 * MIB
        for owner in owners:
            place += rng.randrange(0, 2) * MIB  # gaps are allowed
            if owner == "bitmap":
                self.bat[self.ratio] = place | FULL
                bitmap_place = place
                place += MIB
                continue
            self.store(owner, chosen[owner], place)
            place += self.block
        for number, state in enumerate(chosen):
            if state in (UNDEFINED, ZERO, UNMAPPED):
                self.bat[number] = state
            if state in (UNDEFINED, ZERO, UNMAPPED) or (state == NOT_PRESENT and not self.parent):
                start = number * self.block
                end = min(start + self.block, disk.size)
                disk.content[start:end] = bytes(end - start)
        if PARTIAL in chosen:
            self.pieces.append((bitmap_place, bytes(self.bitmap)))
        self.end = place

    def store(self, number, state, place):
        rng, disk = self.rng, self.disk
        data = bytearray(rng.randbytes(4096) * (self.block // 4096))
        self.bat[number] = place | state
        self.pieces.append((place, data))
        sectors = self.block // disk.sector
        for index in range(sectors):
            start = number * self.block + index * disk.sector
            if start >= disk.size:
                break
            if state == PARTIAL:
                if rng.randrange(3) == 0:
                    continue
                bit = number * sectors + index
                self.bitmap[bit // 8] |= 1 << bit % 8
            at = index * disk.sector
            data[at:at + disk.sector] = rng.randbytes(8) + data[at + 8:at + disk.sector]
            disk.content[start:start + disk.sector] = data[at:at + disk.sector]

    def metadata(self):
        disk = self.disk
        items = [
            (guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b"), struct.pack("<II", self.block, 2 if self.parent else 0), 4),
            (guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8"), struct.pack("<Q", disk.size), 6),
            (guid("8141bf1d-a96f-4709-ba47-f233a8faab5f"), struct.pack("<I", disk.sector), 6),
            (guid("cda348c7-445d-4471-9cc9-e9885251c556"), struct.pack("<I", 4096), 6),
            (guid("beca12ab-b2e6-4523-93ef-c309e000c746"), disk.page83.bytes_le, 6)]
        if self.parent:
            items.append((guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"), self.locator(), 4))
        self.rng.shuffle(items)
        table, values, at = b"", b"", 65536
        for item, value, flags in items:
            table += item + struct.pack("<IIII", at, len(value), flags, 0)
            value += bytes(-len(value) % 8)
            values += value
            at += len(value)
        head = b"metadata" + struct.pack("<HH", 0, len(items)) + bytes(20) + table
        return head + bytes(65536 - len(head)) + values

    def locator(self):
        image, name = self.parent
        entries = [("parent_linkage", "{%s}" % image.identity),
                   ("parent_linkage2", "{00000000-0000-0000-0000-000000000000}")]
        if self.rng.randrange(2):
            entries.append(("relative_path", ".\\" + name))
        else:
            entries.append(("volume_path", "\\\\?\\Volume{%s}\\VMs\\%s" % (self.disk.page83, name)))
        entries.append(("absolute_win32_path", "C:\\VMs\\" + name))
        self.rng.shuffle(entries)
        head = guid("b04aefb7-d19e-4a81-b789-25b8e9445913") + struct.pack("<HH", 0, len(entries))
        table, texts, start = b"", b"", len(head) + 12 * len(entries)
        for key, value in entries:
            key, value = key.encode("utf-16-le"), value.encode("utf-16-le")
            at = start + len(texts)
            table += struct.pack("<IIHH", at, at + len(key), len(key), len(value))
            texts += key + value
        return head + table + texts

    def log_entry(self, log, pages):
        """One entry that brings pages of 4 KiB to their places."""
        head = b"loge" + bytes(4)
        head += struct.pack("<IIQII", 4096 * (1 + len(pages)), 0, 7, len(pages), 0)
        head += log.bytes_le + struct.pack("<QQ", 5 * MIB, self.end)
        data = b""
        for offset, page in pages:
            head += b"desc" + page[4092:] + page[:8] + struct.pack("<QQ", offset, 7)
            data += b"data" + struct.pack("<I", 0) + page[8:4092] + struct.pack("<I", 7)
        return sealed(head + bytes(4096 - len(head)) + data)

    def write(self, path, dirty):
        log = uuid.UUID(int=self.rng.getrandbits(128)) if dirty else uuid.UUID(int=0)
        bat = bytearray(MIB)
        for index, entry in self.bat.items():
            struct.pack_into("<Q", bat, index * 8, entry)
        with open(path, "wb") as file:
            file.truncate(self.end)

            def put(offset, data):
                file.seek(offset)
                file.write(data)

            put(0, b"vhdxfile" + "a test's writer".encode("utf-16-le"))
            for slot, sequence in ((1, 3), (2, 4)):
                header = b"head" + bytes(4) + struct.pack("<Q", sequence) + self.rng.randbytes(16)
                header += self.identity.bytes_le + log.bytes_le + struct.pack("<HHIQ", 0, 1, MIB, MIB)
                put(slot * 65536, sealed(header + bytes(4096 - len(header))))
            regions = b"regi" + bytes(4) + struct.pack("<II", 2, 0)
            regions += guid("2dc27766-f623-4200-9d64-115e9bfd4a08") + struct.pack("<QII", 4 * MIB, MIB, 1)
            regions += guid("8b7ca206-4790-4b9a-b8fe-575f050f886e") + struct.pack("<QII", 2 * MIB, MIB, 1)
            regions = sealed(regions + bytes(65536 - len(regions)))
            put(3 * 65536, regions)
            put(4 * 65536, regions)
            put(2 * MIB, self.metadata())
            if dirty:
                # The entries are in the log alone; the file has nothing in their place.
                pages = sorted({index * 8 // 4096 for index in self.bat})
                put(MIB, self.log_entry(log, [(4 * MIB + page * 4096, bytes(bat[page * 4096:(page + 1) * 4096]))
                                              for page in pages]))
            else:
                put(4 * MIB, bytes(bat))
            for offset, data in self.pieces:
                put(offset, data)


def main():
    folder, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    disk = Disk(rng)
    below = None
    for name in ("Base.vhdx", "Middle.avhdx", "Top.avhdx"):
        image = Image(disk, rng, below)
        image.fill()
        image.write(os.path.join(folder, name), name == "Top.avhdx")
        below = (image, name)
    with open(os.path.join(folder, "expected.raw"), "wb") as file:
        file.write(disk.content)


if __name__ == "__main__":
    main()
