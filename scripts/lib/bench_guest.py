"""One run of a monitor: started with its exact time known, its lines read with the time each arrived, and ended."""

import os
import re
import select
import signal
import struct
import tempfile
import time
from dataclasses import dataclass

import report
from report import Failure

MARK = b"@@ "


@dataclass
class Line:
    """A line of the guest."""

    task: str
    values: dict
    # Nanoseconds from the monitor's exec to the line's last byte.
    arrived: int


class Running:
    """A monitor that runs a guest; a context manager, for it must not outlive its figure."""

    def __init__(self, command):
        self._errors = tempfile.TemporaryFile()
        self._buffer = b""
        self._seen = b""
        self.pid, self._output, self.began = _spawn(command, self._errors.fileno())
        os.set_blocking(self._output, False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._output)
        self._errors.close()

    def raw_lines(self, seconds):
        """Yields (text, nanoseconds since exec) until the output ends, and fails when that takes too long."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                raise Failure(f"no answer within {seconds:g} s", self.said())
            data = os.read(self._output, 65536)
            now = time.monotonic_ns() - self.began
            if not data:
                raise Failure("the monitor ended too early", self.said())
            self._seen += data
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                yield line.strip().decode(errors="replace"), now

    def lines(self, seconds):
        """All report lines of the bare-metal guest, up to its last."""
        found = []
        for text, arrived in self.raw_lines(seconds):
            # Monitors may put messages of their own before it on the same line.
            _, mark, rest = text.partition(MARK.decode())
            if not mark:
                continue
            line = parse(rest, arrived)
            if line.task == "done":
                return found
            if "error" in line.values or line.task in ("panic", "exception"):
                raise Failure(f"the guest reports: {text}", self.said())
            found.append(line)
        raise AssertionError("raw_lines ends with a line or a failure")

    def said(self):
        """What the monitor and its guest wrote, for a message."""
        self._errors.seek(0)
        return report.tail((self._seen + self._errors.read()).decode(errors="replace"), 12)


def parse(text, arrived):
    """A report line without its mark: a task's name, then `key=value` words; numbers are numbers."""
    task, *words = text.split() or [""]
    values = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            values[key] = int(value) if re.fullmatch(r"-?\d+", value) else value
    return Line(task, values, arrived)


def _spawn(command, errors):
    """Starts `command`; returns its process id, its standard output, and the monotonic time just before its exec.

    The child itself tells that time, so that neither the fork nor a late wake-up of this process counts."""
    read_end, write_end = os.pipe()
    clock_read, clock_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(write_end, 1)
            os.dup2(errors, 2)
            os.write(clock_write, struct.pack("q", time.monotonic_ns()))
            os.execv(command[0], command)
        finally:
            os._exit(127)
    os.close(write_end)
    os.close(clock_write)
    (began,) = struct.unpack("q", os.read(clock_read, 8))
    os.close(clock_read)
    return pid, read_end, began
