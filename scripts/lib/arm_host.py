"""A Linux with a complete aarch64 /dev/kvm, emulated by QEMU, in which one command runs.

The emulated machine has virtualization extensions (EL2), GICv3 and ITS. It sees this machine's files by 9p, at the paths they
have here; programs for this machine's own processor do not run in it, so a command is a static aarch64 binary or a shell
script for busybox. What it writes goes to memory and is gone afterwards."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import arm_guests
from places import CACHE, PROJECT, TARGET
from report import Failure, command_line, tail

# Without pointer authentication and vectors, which cost most of the time and are the same to a guest.
MACHINE = ["-M", "virt,virtualization=on,gic-version=3", "-cpu", "max,pauth=off,sve=off,sme=off", "-m", "2048"]
# One thread: with more, the emulator spends its time in locks.
ACCELERATOR = ["-accel", "tcg,thread=single,tb-size=512", "-smp", "1"]
COMMAND_LINE = "console=ttyAMA0 quiet loglevel=4 panic=-1 nokaslr mitigations=off audit=0 nowatchdog"

ENVIRONMENT_PREFIXES = ("RUST", "NEXTEST", "VIVARIUM", "PROPTEST_")
SECONDS = 170


def main():
    argv = sys.argv[1:]
    if not argv:
        raise Failure("usage: arm_host.py COMMAND [ARG...]")
    return execute(argv, os.getcwd())


def execute(argv, folder, seconds=SECONDS):
    """Runs `argv` in a fresh machine, its output on this process's own; returns its exit status."""
    kernel, initramfs = arm_guests.host()
    with tempfile.TemporaryDirectory(prefix="vivarium-arm-") as share:
        share = Path(share)
        (share / "job").write_text(job(argv, folder))
        (share / "output").touch()
        # What a job needs of this machine's files, all at their own paths.
        (share / "folders").write_text("".join(f"{path}\n" for path in sorted({str(PROJECT), str(TARGET), str(CACHE)})))
        command = ["qemu-system-aarch64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += [*MACHINE, *ACCELERATOR, "-kernel", str(kernel), "-initrd", str(initramfs), "-append", COMMAND_LINE]
        command += ["-serial", f"file:{share}/serial", "-device", "virtio-serial-pci"]
        command += ["-chardev", "stdio,id=out,signal=off", "-device", "virtserialport,chardev=out,name=output"]
        for tag, path, options in (("outer", "/", ",readonly=on"), ("share", share, "")):
            command += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{options}"]
            command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        try:
            done = subprocess.run(
                ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"error: no end within {seconds} s\n{_serial(share)}", file=sys.stderr)
            return 124
        try:
            return int((share / "status").read_text())
        except (OSError, ValueError):
            raise Failure(f"the nested Arm host ended by itself (QEMU's status {done.returncode})", _serial(share)) from None


def job(argv, folder):
    """The shell script that runs `argv` with this process's chosen environment."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIXES)}
    chosen["PATH"] = "/usr/bin:/bin:/usr/sbin:/sbin"
    chosen["TMPDIR"] = "/tmp"
    chosen["VIVARIUM_SCRATCH"] = "/tmp"
    lines = [f"date -s @{int(time.time())} >/dev/null", f"cd {shlex.quote(str(folder))} || exit 125"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(chosen.items())]
    return "\n".join([*lines, f"exec {shlex.join(argv)}", ""])


def _serial(share):
    try:
        text = (share / "serial").read_text(errors="replace")
    except OSError:
        text = ""
    return f"--- the nested Arm host's kernel log ends:\n{tail(text)}"


if __name__ == "__main__":
    command_line(main)
