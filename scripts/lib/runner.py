"""scripts/nested-runner: runs one test binary where its tests can work."""

import os
import sys

import nested
import nested_kinds
from ground import DIRECT, ground
from report import command_line


def main():
    argv = sys.argv[1:]
    kind = nested_kinds.of_program(argv[0])
    if ground() != DIRECT or not kind.processor.native:
        return nested.run(argv, standard_input=None, kind=kind)
    if os.geteuid() == 0:
        os.execv(argv[0], argv)
    # Taps, mounts and huge pages take root here as they do in the nested host.
    path = os.environ.get("PATH", "")
    os.execvp("sudo", ["sudo", "-n", "-E", "env", f"PATH={path}:/usr/sbin:/sbin", *argv])


if __name__ == "__main__":
    command_line(main)
