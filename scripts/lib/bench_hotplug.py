"""How long a disk that is added takes until the guest sees it, and whether a machine grows when devices come and go."""

import json
import socket
import statistics
import tempfile
import time
from pathlib import Path

import bench_boards
import bench_memory
from bench_api import answer
from bench_figures import MEMORY_MIB, Experiment, Figure, guest
from bench_guest import MARK, Running, parse
from report import Failure

CYCLES = 200
# What grows up to a bound, such as the events that are kept for who comes late, has grown by then.
SETTLED = 100
DISK_BYTES = 1 << 20
ID = "bench"


def experiment():
    """A guest that watches the place where the disk comes, and lets go of it when it is asked to."""
    machine = guest(f"pci-watch n={CYCLES} {bench_boards.native().hotplug}", acpi=True)

    def measure(monitor):
        if monitor.kind != "vivarium":
            return {}
        with tempfile.TemporaryDirectory() as folder:
            path, disk = Path(folder) / "api.sock", Path(folder) / "disk.img"
            with open(disk, "wb") as file:
                file.truncate(DISK_BYTES)
            with Running([*monitor.command(machine, folder), "--api-socket", str(path)]) as running:
                return cycle(running, path, disk)

    figures = [
        Figure("hotplug-visible", "a disk is added, until the guest sees it", "ms", False),
        Figure("hotplug-gone", "a disk is removed, until the guest misses it", "ms", False),
        Figure("hotplug-growth", f"memory that {CYCLES - SETTLED} such cycles leave behind", "kB", False, goal=64, binding=True),
    ]
    return Experiment("hotplug", figures, measure, machine=machine)


def cycle(running, path, disk):
    """Adds and removes the disk again and again; the figures."""
    lines = running.raw_lines(60)
    _wait(lines, "ready")
    came, gone, before = [], [], 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for number in range(CYCLES):
            if number == SETTLED:
                before = anonymous(running)
            came.append(_until(running, client, lines, "vm.add-disk", {"path": str(disk), "id": ID}, "came"))
            gone.append(_until(running, client, lines, "vm.remove-device", {"id": ID}, "gone"))
        after = anonymous(running)
    return {
        "hotplug-visible": statistics.median(came) / 1e6,
        "hotplug-gone": statistics.median(gone) / 1e6,
        "hotplug-growth": max(after - before, 0) / 1e3,
    }


def anonymous(running):
    """What the monitor holds in bytes, apart from its program's file."""
    return bench_memory.beyond_guest(running.pid, MEMORY_MIB << 20)[0]


def _until(running, client, lines, verb, body, state):
    """Nanoseconds from a call to the guest's line that it saw what was done."""
    text = json.dumps(body).encode()
    head = f"PUT /api/v1/{verb} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    began = time.monotonic_ns() - running.began
    client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(text) + text)
    status, reply = answer(client)
    if status >= 300:
        raise Failure(f"{verb} is answered with {status}", reply.decode(errors="replace"))
    return _wait(lines, state) - began


def _wait(lines, state):
    for text, arrived in lines:
        _, mark, rest = text.partition(MARK.decode())
        if mark and parse(rest, arrived).values.get("state") == state:
            return arrived
    raise AssertionError("raw_lines ends with a line or a failure")
