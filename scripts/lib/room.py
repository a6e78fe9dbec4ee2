"""Whether there is disk space for what is about to be made."""

import os
import shutil

from places import CACHE, PROJECT, TARGET
from report import Failure


def ensure(gib, what):
    """Makes sure that there is room for what takes `gib` GiB when nothing of it was made yet. What is there counts for it; something
    is always left for what a run writes and removes.

    Raises Failure where the disk would be full in the middle of it."""
    need = max((gib << 30) - _held({TARGET, CACHE, PROJECT / "fuzz" / "target"}), 512 << 20)
    free = shutil.disk_usage(PROJECT).free
    if free < need:
        raise Failure(f"{what} needs {need >> 20} MiB more of disk space, and {PROJECT} has {free >> 20} MiB left; make room there")


def _held(folders):
    """The bytes that what is below some folders takes on the disk."""
    blocks = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    file = os.lstat(os.path.join(place, name))
                except FileNotFoundError:
                    continue  # what is built meanwhile is renamed
                blocks[file.st_dev, file.st_ino] = file.st_blocks
    return 512 * sum(blocks.values())
