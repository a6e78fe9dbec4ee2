"""What is measured: the figures, and the experiments that yield them.

An experiment is one run of one monitor (or of the host itself, as far as it can do the same) and gives one sample of
each of its figures. All of them are interleaved, since a machine's speed drifts: see `bench.py`."""

import tempfile
from dataclasses import dataclass

import bench_boards
import bench_host
import bench_memory
from bench_guest import Running
from bench_monitors import Machine
from places import BARE_GUEST

MEMORY_MIB = 128
# The guest stands still when it is done, so that its monitor can be looked at.
SETTINGS = "end=halt"


@dataclass
class Figure:
    """A row of the table."""

    key: str
    title: str
    unit: str
    higher_is_better: bool
    # What Vivarium must reach: a value in `unit`, or a share of the host's own figure.
    goal: float | None = None
    goal_share: float | None = None
    # A run that misses the goal fails: it does not depend on how fast or busy the machine is.
    binding: bool = False


@dataclass
class Experiment:
    """`measure(monitor)` and `measure_host()` return samples by figure key."""

    name: str
    figures: list
    measure: object
    measure_host: object = None
    # How often in each round.
    times: int = 1
    most_rounds: int = 1000
    needs_tap: bool = False
    # The machine that a monitor must be able to run.
    machine: Machine | None = None


def guest(line, **machine):
    """The bare-metal guest doing the tasks of `line`."""
    return Machine(BARE_GUEST, f"{SETTINGS}; {line}", MEMORY_MIB, **machine)


def report_lines(monitor, machine, seconds=30):
    """The report lines of one run."""
    with tempfile.TemporaryDirectory() as folder, Running(monitor.command(machine, folder)) as running:
        return running.lines(seconds)


def boot():
    """Start-up time, and the monitor's memory once the guest runs."""
    machine = guest("hello; entered")

    def measure(monitor):
        with tempfile.TemporaryDirectory() as folder, Running(monitor.command(machine, folder)) as running:
            hello, entered = running.lines(30)[:2]
            anonymous, file = bench_memory.beyond_guest(running.pid, MEMORY_MIB << 20)
        return {
            "boot-first-instruction": (hello.arrived - entered.values["ns"]) / 1e6,
            "boot-first-line": hello.arrived / 1e6,
            "memory": (anonymous + file) / 1e6,
            "memory-anonymous": anonymous / 1e6,
            "memory-file": file / 1e6,
        }

    figures = [
        Figure("boot-first-instruction", "exec to first guest instruction", "ms", False, goal=4.0),
        Figure("boot-first-line", "exec to the guest's first serial line", "ms", False, goal=4.5),
        Figure("memory", "memory beyond guest RAM", "MB", False, goal=3.5),
        Figure("memory-anonymous", "- its anonymous part", "MB", False, goal=0.4),
        Figure("memory-file", "- its file part", "MB", False),
    ]
    return Experiment("boot", figures, measure, times=5, machine=machine)


def exits():
    """What it costs a guest to reach the monitor and come back."""
    ways = bench_boards.native().exits
    machine = guest("; ".join(f"exits {words} n=10000" for words, _ in ways.values()))

    def measure(monitor):
        return {
            f"exit-{line.values['kind']}": line.values["ns"] / line.values["n"] / 1e3
            for line in report_lines(monitor, machine)
        }

    figures = [Figure(f"exit-{way}", f"exit to the monitor, {name}", "µs", False) for way, (_, name) in ways.items()]
    return Experiment("exits", figures, measure, machine=machine)


def blocks(disk, seconds):
    """virtio-blk on a cached file."""
    loads = [
        # mode, block size, depth, queues, goal, goal as a share of the host
        ("randread", 4096, 1, 1, 205, None),
        ("randread", 4096, 32, 1, None, 0.65),
        ("randread", 4096, 32, 2, None, None),
        ("randwrite", 4096, 1, 1, None, None),
        ("randwrite", 4096, 32, 1, None, None),
        ("randwrite", 4096, 32, 2, None, None),
        ("seqread", 131072, 8, 1, None, 1.0),
        ("seqwrite", 131072, 8, 1, None, None),
    ]
    return [_block(disk, seconds, *load) for load in loads]


def _block(disk, seconds, mode, size, depth, queues, goal, goal_share):
    random = mode.startswith("rand")
    key = f"blk-{mode}-qd{depth}" + (f"-q{queues}" if queues > 1 else "")
    line = f"blk-{mode} bs={size} qd={depth} queues={queues} secs={seconds}"
    machine = guest(line, disk=disk, disk_queues=queues)

    def sample(operations, nanoseconds):
        return operations * 1e6 / nanoseconds if random else operations * size * 1e3 / nanoseconds

    def measure(monitor):
        bench_host.read_again(disk)
        values = report_lines(monitor, machine)[0].values
        return {
            key: sample(values["ops"], values["ns"]),
            f"{key}-kicks": values["kicks"] / max(values["ops"], 1),
        }

    def measure_host():
        bench_host.read_again(disk)
        return {key: sample(*bench_host.io_uring(disk, mode, size, depth, queues, seconds))}

    title = {"randread": "random read", "randwrite": "random write", "seqread": "sequential read"}
    title = f"{size >> 10} KiB {title.get(mode, 'sequential write')}, depth {depth}" + f", {queues} queues" * (queues > 1)
    kick_goal = 0.001 if depth >= 32 and mode == "randread" and queues == 1 else None
    figures = [
        Figure(key, title, "kIOPS" if random else "MB/s", True, goal, goal_share),
        Figure(f"{key}-kicks", "- guest kicks per operation", "", False, goal=kick_goal),
    ]
    return Experiment(key, figures, measure, measure_host, machine=machine)


def networks(tap, seconds):
    """virtio-net over a tap, without offloads, so that each frame counts."""
    return [_network(tap, seconds, direction, size) for direction in ("tx", "rx") for size in (60, 1500)]


def _network(tap, seconds, direction, size):
    line = f"net-{direction} secs={seconds}" + (f" size={size}" if direction == "tx" else "")
    machine = guest(line, tap=tap.name if tap else None)
    packets, data = f"net-{direction}-{size}", f"net-{direction}-{size}-bytes"

    def measure(monitor):
        tap.make()
        try:
            with tempfile.TemporaryDirectory() as folder, Running(monitor.command(machine, folder)) as running:
                if direction == "rx":
                    with tap.sending(size):
                        lines = running.lines(30)
                else:
                    lines = running.lines(30)
        finally:
            tap.remove()
        values = lines[-1].values
        return {
            packets: values["packets"] * 1e6 / values["ns"],
            data: values["bytes"] * 1e3 / values["ns"],
        }

    title = f"network, {'guest sends' if direction == 'tx' else 'guest receives'} {size} bytes"
    figures = [Figure(packets, title, "k/s", True), Figure(data, "- in bytes", "MB/s", True)]
    return Experiment(packets, figures, measure, needs_tap=True, machine=machine)
