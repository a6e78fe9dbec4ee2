"""Many machines at once: what each takes of the host's memory, and when the last of them runs."""

import tempfile
import time
from contextlib import ExitStack

import bench_memory
from bench_figures import MEMORY_MIB, Experiment, Figure, guest
from bench_guest import Running

COUNTS = (1, 16, 64)


def experiments():
    """One for each number of machines."""
    return [_experiment(count) for count in COUNTS]


def _experiment(count):
    machine = guest("hello; entered")
    key = f"many-{count}"

    def measure(monitor):
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            began = time.monotonic_ns()
            all_running = [stack.enter_context(Running(monitor.command(machine, folder))) for _ in range(count)]
            arrived = [one.began + one.lines(120)[0].arrived for one in all_running]
            memory = sum(sum(bench_memory.beyond_guest(one.pid, MEMORY_MIB << 20)) for one in all_running)
        return {f"{key}-start": per_machine(arrived, began) / 1e6, f"{key}-memory": memory / count / 1e6}

    machines = "1 machine" if count == 1 else f"{count} machines at once"
    figures = [
        Figure(f"{key}-start", f"{machines}: until all have printed a line, for each", "ms", False),
        Figure(f"{key}-memory", f"{machines}: memory beyond guest RAM, for each", "MB", False),
    ]
    return Experiment(key, figures, measure, most_rounds=3, machine=machine)


def per_machine(arrived, began):
    """The time until the last line, shared out."""
    return (max(arrived) - began) / len(arrived)
