"""What the host itself does with the same file, and the file."""

import json
import os
from pathlib import Path

from report import run

FILE_BYTES = 256 << 20
MODES = {"seqread": "read", "seqwrite": "write"}


def test_file(folder):
    """A file without holes in `folder`, its pages in memory."""
    path = Path(folder) / "disk.img"
    if not path.exists() or path.stat().st_size != FILE_BYTES or path.stat().st_blocks * 512 < FILE_BYTES:
        with open(path, "wb") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    return path


def read_again(path):
    """Brings all of a file back into the page cache, which may have been taken from it since. What a run before has
    written goes to the disk first, or it would do so during the next one."""
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        buffer = bytearray(4 << 20)
        while file.readinto(buffer):
            pass


def read_anew(path):
    """Brings a program into the page cache as it is when it was read from its disk. A linker leaves it there in small pieces, of which
    each is a fault at every start, and which no program has that was installed."""
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read_again(path)


def io_uring(path, mode, size, depth, queues, seconds):
    """(operations, nanoseconds) of fio's io_uring engine with the same load: what the file can give."""
    command = ["fio", "--name=host", f"--filename={path}", "--ioengine=io_uring", f"--rw={MODES.get(mode, mode)}"]
    command += [f"--bs={size}", f"--iodepth={depth}", f"--numjobs={queues}", "--time_based", f"--runtime={seconds}"]
    # fio would drop the file's pages first, and spend much of its time in looking at clocks.
    command += ["--invalidate=0", "--gtod_reduce=1", "--norandommap", "--thread", "--group_reporting"]
    command += ["--output-format=json"]
    output = run(command, "measuring the host's own io_uring")
    job = json.loads(output[output.index("{") :])["jobs"][0]
    part = job["write" if "write" in mode else "read"]
    return part["total_ios"], part["runtime"] * 1_000_000
