"""scripts/bench: Vivarium beside other monitors, measured in one run."""

import argparse
import os
import platform
import time
from pathlib import Path

import bench_api
import bench_boards
import bench_figures
import bench_host
import bench_hotplug
import bench_linux
import bench_many
import bench_monitors
import bench_network
import bench_plot
import bench_report
import packages
import rust
from bench_monitors import OURS
from bench_report import HOST
from ground import hardware_virtualization, kvm_usable
from places import BARE_GUEST, PROJECT
from report import Failure, command_line, note, run, step

DESCRIPTION = """Measures start-up, memory, exits, virtio-blk and virtio-net of Vivarium and of QEMU's microvm and q35 (on Arm
its virt), and of any other monitor named, with the bare-metal guest of tests/guest on this machine's KVM. Every figure is taken once
in each round, one monitor after the other, and the median counts."""

EXAMPLES = """examples:
  scripts/bench
  scripts/bench --quick --only boot --only randread
  scripts/bench --peer ch=/opt/cloud-hypervisor --peer fc=/opt/firecracker-v1.12:firecracker
  scripts/bench --peer before=/tmp/vivarium-before:vivarium --peer same=/tmp/copy-of-vivarium:vivarium

The last compares two builds. `same` is a copy of the binary that is measured: what it differs by is noise, and on a busy
machine that is easily a fifth. Build both from one commit, with nothing but the change between them.

Written to DIR (default target/bench): figures.json, figures.md, figures.svg, and figures.png if rsvg-convert is there.
"""


def main():
    options = _options()
    os.chdir(PROJECT)
    if not kvm_usable():
        raise Failure("/dev/kvm cannot be opened: this needs KVM; add yourself to its group, or run this as root")
    _prepare(options)
    folder = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    monitors = bench_monitors.chosen(options.peer)
    _go_first()
    for monitor in monitors:
        bench_host.read_anew(monitor.path)
    session = Session(monitors)
    experiments = _experiments(options, folder, session)
    rounds = options.rounds or (2 if options.quick else 5)
    conditions = _conditions(monitors, rounds)
    for number in range(rounds):
        with step(f"round {number + 1} of {rounds}"):
            for experiment in experiments:
                if number < experiment.most_rounds:
                    session.measure(experiment, number)
    conditions["load average"] += " before, " + _load() + " after"
    figures = [figure for experiment in experiments for figure in experiment.figures]
    names = [OURS, HOST, *(monitor.name for monitor in monitors if monitor.name != OURS)]
    result = bench_report.summary(conditions, figures, session.samples, session.missing, names)
    bench_report.write(folder, result)
    bench_plot.write(folder, result)
    print(bench_report.markdown(result))
    note(f"written to {folder}")
    failures = bench_report.failures(result)
    for failure in failures:
        note(f"failed: {failure}")
    return 1 if failures or any(entry["monitor"] == OURS for entry in session.missing) else 0


class Session:
    """The samples of a run."""

    def __init__(self, monitors):
        self.monitors = monitors
        self.samples = {}  # figure key -> monitor -> samples, one per turn, None where there is none
        self.missing = []

    def measure(self, experiment, number):
        """Every monitor's turns of an experiment. Who comes first changes from round to round."""
        turns = [(monitor.name, monitor) for monitor in self.monitors]
        if experiment.measure_host:
            turns.append((HOST, None))
        for repetition in range(experiment.times):
            first = (number + repetition) % len(turns)
            for name, monitor in turns[first:] + turns[:first]:
                values = self._sample(experiment, name, monitor)
                for figure in experiment.figures:
                    taken = self.samples.setdefault(figure.key, {}).setdefault(name, [])
                    taken.append(values.get(figure.key))

    def skip(self, name, experiment, why):
        """Notes why figures are missing, once."""
        entry = {"monitor": name, "experiment": experiment, "why": why}
        if entry not in self.missing:
            self.missing.append(entry)
            note(f"{name}, {experiment}: {why}")

    def _sample(self, experiment, name, monitor):
        if monitor is None:
            return experiment.measure_host()
        if experiment.name in monitor.missing:
            return {}
        lacking = monitor.lacks(experiment.machine)
        if lacking:
            monitor.missing[experiment.name] = lacking
            return {}
        try:
            return experiment.measure(monitor)
        except Failure as failure:
            # It would fail in each round, after the same long wait.
            monitor.missing[experiment.name] = str(failure)
            said = failure.details.strip().splitlines()
            self.skip(name, experiment.name, f"{failure}" + (f" ({said[-1].strip()})" if said else ""))
            return {}


def _options():
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="two rounds, and one second for each load")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="how often each figure is taken (default 5)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="only experiments with this in their name: boot, exits, blk, randread, net, rx... (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH[:KIND]",
        help="another monitor; kinds: " + ", ".join(bench_monitors.KINDS) + " (default: by the file's name)",
    )  # fmt: skip
    parser.add_argument("--nested", action="store_true", help="also boot a stock kernel, in the nested host if need be")
    parser.add_argument("--out", type=Path, default=PROJECT / "target" / "bench", metavar="DIR", help="where to write")
    parser.add_argument("--no-build", action="store_true", help="measure target/release/vivarium as it is")
    return parser.parse_args()


def _positive(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of rounds: give 1 or more")
    return int(text)


def _prepare(options):
    # Debian 12's own QEMU is too old for the nested host; measure the same one that it needs.
    suite = "bookworm-backports" if packages.codename() == "bookworm" else None
    packages.ensure([bench_boards.native().package], suite=suite)
    packages.ensure(["fio", "iproute2"])
    if options.no_build:
        return
    rust.ensure()
    with step("building the release"):
        run(["cargo", "build", "--release", "--locked", "--bin", "vivarium"], "building the release")
        run([PROJECT / "tests" / "guest" / "build", BARE_GUEST], "building the bare-metal guest")


def _go_first():
    """Takes precedence over other work on the machine, which then disturbs the figures less."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except PermissionError:
        note("not root: the figures are taken at ordinary priority")
        return
    # Linux shares processors between sessions first (autogroup), so that a priority counts only within one. A session
    # that a person works in stays as it is.
    try:
        os.setsid()
        Path("/proc/self/autogroup").write_text("-20")
    except OSError:
        pass


def _experiments(options, folder, session):
    seconds = 1 if options.quick else 2
    why_no_tap = bench_network.why_not()
    tap = bench_network.Tap(f"vivbench{os.getpid() % 10000}")
    found = [bench_figures.boot(), *bench_many.experiments(), bench_api.experiment(), bench_hotplug.experiment()]
    found.append(bench_figures.exits())
    found += bench_figures.blocks(bench_host.test_file(folder), seconds)
    found += bench_figures.networks(tap, seconds)
    # Where it takes a nested host it takes minutes, too: there only when it is asked for.
    if options.nested or hardware_virtualization():
        found += bench_linux.experiments()
    found = [one for one in found if not options.only or any(part in one.name for part in options.only)]
    if not found:
        raise Failure(f"--only {' '.join(options.only)}: no experiment has that in its name")
    if why_no_tap and any(one.needs_tap for one in found):
        session.skip("all", "net", why_no_tap)
        found = [one for one in found if not one.needs_tap]
    return found


def _conditions(monitors, rounds):
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "processor": f"{os.cpu_count()} × {models[0] if models else platform.machine()}",
        "host kernel": platform.release(),
        "KVM": "hardware" if hardware_virtualization() else "software backend",
        "guest": f"bare-metal, 1 vCPU, {bench_figures.MEMORY_MIB} MiB",
        "rounds": str(rounds),
        "load average": _load(),
        "monitors": {**{monitor.name: monitor.version for monitor in monitors}, HOST: "fio, io_uring"},
    }


def _load():
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    command_line(main)
