# SPDX-License-Identifier: Apache-2.0
"""A guest's disk seen from outside, with tools that are not ours."""

import os
import subprocess

FIRST_PARTITION = 2048 * 512


def read_from_image(image, path, scratch):
    """A text file of the ext4 in the image's first partition, stripped."""
    raw = f"{scratch}/outside.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    done = subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", f"{raw}?offset={FIRST_PARTITION}"], check=True,
                          text=True, capture_output=True)
    os.unlink(raw)
    return done.stdout.strip()
