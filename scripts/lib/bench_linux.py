"""Start-up of a stock kernel, from the monitor's exec to the guest's init.

It needs a KVM that runs one. In the nested host every time is that of an emulated processor: only ratios count."""

import json
import sys
import tempfile

import bench_boards
import bench_monitors
import guests
import kernels
from bench_figures import Experiment, Figure
from bench_guest import Running
from bench_monitors import Machine
from cpio import Archive
from ground import DIRECT, ground
import processors
from places import PROJECT, cache, replace
from report import Failure, command_line, run

MARK = "@@ init"
MEMORY_MIB = 256
# Each run takes long.
ROUNDS = 3


def experiments():
    """One for each form of the newest kernel, on this machine's KVM or in the nested host."""
    series = guests.ensure(tools=False)[-1]
    kernel = kernels.guest(series)
    initramfs = cache("bench") / "init.cpio"
    replace(initramfs, _archive())
    found = []
    board = bench_boards.native()
    for image, (form, words) in zip((kernel.image, kernel.vmlinux()), board.forms.items()):
        machine = Machine(image.resolve(), board.command_line, MEMORY_MIB, initramfs=initramfs, stock=True)
        key = f"boot-init-{form}"
        figure = Figure(key, f"exec to init, stock kernel {series}, {words}", "ms", False)
        found.append(Experiment(key, [figure], _measure(key, machine), most_rounds=ROUNDS, machine=machine))
    return found


def _measure(key, machine):
    def here(monitor):
        return {key: milliseconds(monitor, machine)}

    def nested(monitor):
        words = [monitor.name, monitor.path, monitor.kind, machine.kernel, machine.initramfs]
        command = [PROJECT / "scripts" / "nested", "run", "--timeout", "240", "--"]
        command += ["/usr/bin/python3", "-B", PROJECT / "scripts" / "lib" / "bench_linux.py", json.dumps([*map(str, words)])]
        return {key: float(run(command, "measuring in the nested host").split()[-1])}

    return here if ground() == DIRECT else nested


def milliseconds(monitor, machine):
    """One run."""
    with tempfile.TemporaryDirectory() as folder, Running(monitor.command(machine, folder)) as running:
        for text, arrived in running.raw_lines(120):
            if MARK in text:
                return arrived / 1e6
    raise AssertionError("raw_lines ends with a line or a failure")


def _archive():
    """An init that says that it is there, and nothing else."""
    archive = Archive().folder("dev").character_device("dev/console", 5, 1)
    archive.program("bin/busybox", processors.native().busybox())
    archive.program("init", f"#!/bin/busybox sh\necho '{MARK}'\nexec /bin/busybox sleep 1000000\n".encode())
    return archive.bytes()


def inside():
    """In the nested host: one run that only brings the files in, then one that counts."""
    name, path, kind, kernel, initramfs = json.loads(sys.argv[1])
    monitor = bench_monitors.Monitor(name, path, kind)
    machine = Machine(kernel, bench_boards.native().command_line, MEMORY_MIB, initramfs=initramfs, stock=True)
    try:
        milliseconds(monitor, machine)
        print(milliseconds(monitor, machine))
    except Failure as failure:
        raise Failure(f"{name}: {failure}", failure.details) from failure
    return 0


if __name__ == "__main__":
    command_line(inside)
