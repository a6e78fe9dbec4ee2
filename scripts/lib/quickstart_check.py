"""Tests scripts/quickstart: a script instead of a person types at the guest's shell."""

import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import packages
import quickstart
from ground import DIRECT
from places import PROJECT
from report import Failure, run

NAME = "quickstart"
SECONDS = 240
# Further attempts in an emulated host, which goes wrong now and then: see docs/testing.md.
RETRIES = 1

# What is typed, and how lines begin that answer it. The shell echoes what is typed: no line of that is an answer.
TYPED = """echo "machine: $(uname -m)"
grep ' /data ' /proc/mounts
echo kept >/data/file
ping -c 1 -W 10 "$(ip route | awk '/^default/ { print $3 }')"
"""
ANSWERS = ["machine: {processor}", "/dev/vda /data ext4 rw"]
NETWORK = "64 bytes from "
NO_NETWORK = "no network: "
# What quickstart may take to end when it is asked to: its machine ends, and its network is taken down.
ENDING_SECONDS = 20


def run_for(processor):
    """Boots a guest of a processor, with a data disk of the test's own; a Failure says what went wrong."""
    # What is made once is no part of what is timed.
    quickstart.prepare(processor)
    debugfs = packages.program("debugfs", "e2fsprogs")
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "data.ext4")
        output = _quickstart([PROJECT / "scripts" / "quickstart", "--arch", processor.name, "--data", disk])
        judge(output, processor, network_needed(processor))
        if run([debugfs, "-R", "cat /file", disk], "looking into the data disk") != "kept\n":
            raise Failure("the file that was written to /data is not on the disk", output)


def network_needed(processor):
    """Whether the guest has to have a network: always but where this user may make no tap on this machine."""
    return quickstart.ground_of(processor) != DIRECT or quickstart.may_make_tap(new_session=True)


def judge(output, processor, network):
    """A Failure where the guest's shell did not answer as it should; `network` is whether it has to reach its gateway."""
    lines = [line.strip() for line in output.splitlines()]
    for answer in (*ANSWERS, NETWORK if network else NO_NETWORK):
        expected = answer.format(processor=processor.name)
        if not any(line.startswith(expected) for line in lines):
            raise Failure(f"there is no line `{expected}`", output)


def _quickstart(command):
    """What quickstart says. It runs in a session of its own, so that it can be ended with all that it started."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as started:
        try:
            output, _ = started.communicate(TYPED, timeout=SECONDS)
        except BaseException as cause:
            output = end(started)
            if isinstance(cause, subprocess.TimeoutExpired):
                raise Failure(f"quickstart did not end within {SECONDS} s", output) from None
            raise
    if started.returncode != 0:
        raise Failure(f"quickstart ended with status {started.returncode}", output)
    return output


def end(started, seconds=ENDING_SECONDS):
    """Ends the session that a process leads: it is asked to first, since a tap and the like may have to be undone. Returns what it
    has said."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return started.communicate(timeout=seconds)[0]
    return ""
