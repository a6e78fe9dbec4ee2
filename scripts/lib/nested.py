"""scripts/nested: commands in the nested host."""

import argparse
import os
import signal
import sys

import nested_host
import nested_kinds
from nested_machine import TimedOut
from report import command_line
from terminal import Terminal

DESCRIPTION = """A Linux with a complete /dev/kvm, emulated by QEMU, that sees this machine's files.

Commands run as root in this machine's root file system; where the nested host has another processor, in a small Debian
for that, with the project and its cache at their own paths. What they write goes to memory and is gone afterwards, except
in /share, a folder that lasts as long as the command. /run is a tmpfs, /scratch an ext4 file system."""

EXAMPLES = """examples:
  scripts/nested run ls -l /dev/kvm
  scripts/nested --kind aarch64 run uname -m
  scripts/nested run --timeout 60 -- target/release/vivarium --version
  scripts/nested shell
"""


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/nested",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = ", ".join(nested_kinds.KINDS)
    parser.add_argument("--kind", choices=nested_kinds.KINDS, metavar="KIND", help=f"which machine: {kinds}; by default of this processor")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="build|run|shell")
    verbs.add_parser("build", help="make the snapshot that the other verbs start from, when there is none")
    runner = verbs.add_parser("run", help="run a command; its output and exit status become this one's")
    runner.add_argument("--timeout", type=float, metavar="SECONDS", help="kill everything after so long, with status 124")
    runner.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    verbs.add_parser("shell", help="a shell on this terminal (Ctrl-] three times ends it by force)")
    options = parser.parse_args()
    kind = nested_kinds.KINDS[options.kind] if options.kind else nested_kinds.native()

    if options.verb == "build":
        if kind.restorable:
            nested_host.snapshot(kind)
        return 0
    if options.verb == "shell":
        shell = os.environ.get("SHELL", "/bin/sh") if kind.processor.native else "/bin/sh"
        return interactive([shell, "-i"], kind=kind)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        runner.error("no command given")
    return run(command, standard_input=0, seconds=options.timeout, kind=kind)


def run(argv, standard_input, seconds=None, disks=None, kind=None):
    """Runs `argv` in the nested host on this process's plain streams; returns its exit status. `disks`: see
    `nested_host.execute`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        return nested_host.execute(
            argv, os.getcwd(), standard_input=standard_input, seconds=seconds, disks=disks, kind=kind
        )
    except BrokenPipeError:
        return 141
    except TimedOut as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 124


def interactive(argv, disks=None, kind=None):
    """Runs `argv` on this terminal; without one, on the plain streams."""
    if kind is None or kind.restorable:
        nested_host.snapshot(kind)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return run(argv, standard_input=0, disks=disks, kind=kind)
    with Terminal() as terminal:
        return nested_host.execute(argv, os.getcwd(), standard_input=0, terminal=terminal, disks=disks, kind=kind)


def _interrupted(number, _):
    raise KeyboardInterrupt


if __name__ == "__main__":
    command_line(main)
