"""How fast this machine's time stamp counter runs. An emulated x86_64 machine has the same counter.

A kernel that boots in an emulator finds its rate by comparing it with another emulated clock, and is far out when the outer machine
is busy just then: all its time limits then end early or late, for as long as its snapshot is used.
"""

import ctypes
import mmap
import os
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
READ = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
# Apart by that much, two readings that are each exact to a microsecond give a rate exact to 0.01 %.
SECONDS = 0.05


def kilohertz():
    """The rate, in tens of kHz so that it is the same each time; `None` on another processor."""
    if os.uname().machine != "x86_64":
        return None
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(READ)
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    start, first = _reading(counter)
    time.sleep(SECONDS)
    end, second = _reading(counter)
    return round((second - first) * 1e5 / (end - start)) * 10


def _reading(counter):
    """A time in nanoseconds and the counter at that time: of many, the one that took least."""
    readings = []
    for _ in range(50):
        before = time.monotonic_ns()
        value = counter()
        after = time.monotonic_ns()
        readings.append((after - before, (before + after) // 2, value))
    return min(readings)[1:]
