"""A program run under ptrace(2), to record which of its functions run. x86_64 only."""

import bisect
import ctypes
import os
import signal
import struct
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from report import Failure

# linux/ptrace.h
_TRACEME, _CONT, _SINGLESTEP, _GETREGS, _SETREGS, _SETOPTIONS, _GETSIGINFO = 0, 7, 9, 12, 13, 0x4200, 0x4202
_TRACECLONE, _EXITKILL = 0x8, 0x100000
# waitpid: threads, too.
_WALL = 0x40000000
# asm-generic/siginfo.h: why there is a SIGTRAP, which is the third integer. Of a breakpoint, and of no single step, it is this.
_SI_KERNEL = 0x80
# struct user_regs_struct of x86_64: 27 registers, of which the instruction pointer is the 17th.
_REGISTERS, _POINTER = 27, 16
_BREAKPOINT = b"\xcc"

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long] * 4


def symbols(program):
    """The names of a program's functions, by their addresses in it."""
    listing = subprocess.run(["nm", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = {}
    for line in listing.splitlines():
        address, kind, *name = line.split()
        if name and kind in ("t", "T"):
            found.setdefault(int(address, 16), []).append(name[0])
    return found


class Traced:
    """A running program, with a breakpoint on each function until that runs. A context manager, which ends the program."""

    def __init__(self, command):
        program = os.path.realpath(command[0])
        self._names = symbols(program)
        self._starts = sorted(self._names)
        self.pid = os.fork()
        if self.pid == 0:
            _ptrace(_TRACEME, 0)
            os.execv(program, list(map(str, command)))
        os.waitpid(self.pid, 0)
        _ptrace(_SETOPTIONS, self.pid, _TRACECLONE | _EXITKILL)
        self._base = _base(self.pid, program)
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
        self._code = {start: os.pread(self._memory, 1, self._base + start) for start in self._starts}
        self._waiting = set()
        self._seen = {}
        self._stepping = set()
        self._stopped = [self.pid]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._memory)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, _WALL)

    def record(self, act, stepping=lambda _: False):
        """Runs `act` beside the program. Returns the names of the functions that were entered meanwhile, in the order in which they
        first were. `stepping` tells threads, by their names, of which those are seen, too, that had been entered before: each of
        their instructions is looked at, which is slow."""
        self._seen = {}
        self._place(set(self._starts))
        self._stepping = {thread for thread, name in self._threads() if stepping(name)}
        for thread in self._stepping:
            _LIBC.tgkill(self.pid, thread, signal.SIGSTOP)
        for thread in self._stopped:
            _ptrace(_CONT, thread)
        self._stopped = []
        failures = []
        actor = threading.Thread(target=_run, args=(act, failures), daemon=True)
        actor.start()
        while actor.is_alive():
            if not self._next_event():
                time.sleep(0.0002)
        if failures:
            raise failures[0]
        return [name for start in self._seen for name in self._names[start]]

    def _threads(self):
        """Numbers and names."""
        for entry in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError):
                yield int(entry.name), (entry / "comm").read_text().strip()

    def _place(self, breakpoints):
        for start in self._waiting | breakpoints:
            code = _BREAKPOINT if start in breakpoints else self._code[start]
            os.pwrite(self._memory, code, self._base + start)
        self._waiting = breakpoints

    def _next_event(self):
        """Handles what befell a thread. False: nothing did."""
        thread, status = os.waitpid(-1, _WALL | os.WNOHANG)
        if thread == 0:
            return False
        if not os.WIFSTOPPED(status):
            if thread == self.pid:
                raise Failure(f"the program ended ({status:#x})")
            return True
        cause = os.WSTOPSIG(status)
        if cause == signal.SIGTRAP and status >> 16 == 0:
            self._trapped(thread)
        passed_on = 0 if cause in (signal.SIGTRAP, signal.SIGSTOP) else cause
        # A thread that has ended meanwhile tells so by itself.
        _ptrace(_SINGLESTEP if thread in self._stepping else _CONT, thread, passed_on, may_fail=True)
        return True

    def _trapped(self, thread):
        registers = (ctypes.c_ulonglong * _REGISTERS)()
        _ptrace(_GETREGS, thread, ctypes.addressof(registers))
        pointer = registers[_POINTER] - self._base
        if _trap_code(thread) != _SI_KERNEL:
            if self._starts[0] <= pointer <= self._starts[-1]:
                self._seen.setdefault(self._starts[bisect.bisect(self._starts, pointer) - 1])
            return
        start = pointer - 1
        if start in self._waiting:
            self._waiting.remove(start)
            self._seen.setdefault(start)
            os.pwrite(self._memory, self._code[start], self._base + start)
        registers[_POINTER] -= 1
        _ptrace(_SETREGS, thread, ctypes.addressof(registers))


def _run(act, failures):
    try:
        act()
    except Exception as error:  # Raised where it is waited for.
        failures.append(error)


def _ptrace(request, thread, data=0, may_fail=False):
    if _LIBC.ptrace(request, thread, 0, data) == -1 and not may_fail:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}")


def _trap_code(thread):
    information = ctypes.create_string_buffer(128)
    _ptrace(_GETSIGINFO, thread, ctypes.addressof(information))
    return struct.unpack_from("iii", information)[2]


def _base(pid, program):
    """Where a program is loaded."""
    with open(f"/proc/{pid}/maps") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(program))
