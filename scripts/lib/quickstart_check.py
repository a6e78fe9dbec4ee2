"""Tests scripts/quickstart: a script instead of a person types at the guest's shell."""

import subprocess
import tempfile
from pathlib import Path

import packages
from places import PROJECT
from report import Failure, run

NAME = "quickstart"
SECONDS = 240

# What is typed, and how lines begin that answer it. The shell echoes what is typed: no line of that is an answer.
TYPED = """echo "machine: $(uname -m)"
grep ' /data ' /proc/mounts
echo kept >/data/file
ping -c 1 -W 10 "$(ip route | awk '/^default/ { print $3 }')"
"""
ANSWERS = ["machine: {processor}", "/dev/vda /data ext4 rw"]
NETWORK = "64 bytes from "
NO_NETWORK = "no network: "


def run_for(processor):
    """Boots a guest of a processor, with a data disk of the test's own; a Failure says what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "data.ext4")
        command = [PROJECT / "scripts" / "quickstart", "--arch", processor.name, "--data", disk]
        output = _quickstart(command)
        expected = [answer.format(processor=processor.name) for answer in ANSWERS]
        # A person who may not make a tap has none.
        expected += [] if NO_NETWORK in output else [NETWORK]
        lines = [line.strip() for line in output.splitlines()]
        for answer in expected:
            if not any(line.startswith(answer) for line in lines):
                raise Failure(f"the guest's shell says no line `{answer}`", output)
        debugfs = packages.program("debugfs", "e2fsprogs")
        if run([debugfs, "-R", "cat /file", disk], "looking into the data disk") != "kept\n":
            raise Failure("the file that was written to /data is not on the disk", output)


def _quickstart(command):
    try:
        done = subprocess.run(
            command, input=TYPED, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as expired:
        raise Failure(f"quickstart did not end within {SECONDS} s", (expired.output or b"").decode(errors="replace")) from None
    if done.returncode != 0:
        raise Failure(f"quickstart ended with status {done.returncode}", done.stdout)
    return done.stdout
