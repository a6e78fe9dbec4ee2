"""scripts/quickstart: from a bare machine to the shell of a Linux guest, on this terminal."""

import argparse
import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import disks
import ground
import guests
import monitor
import nested
import nested_host
import nested_kinds
import packages
import processors
import room
import rust
from places import CACHE, PROJECT
from report import Failure, command_line, note, run, step

DESCRIPTION = """Installs what is missing, builds Vivarium, makes a guest from the distribution's own packages and boots it on
this terminal: a stock cloud kernel, a busybox initramfs, an ext4 data disk on /data and a network."""

NETWORK = PROJECT / "scripts" / "lib" / "guest-network"
TAPS = 10
ROOM = 4  # GiB for what is built and fetched
DATA = CACHE / "data.ext4"

# What comes by a pipe ends, and a console has no end of file: leaving the shell is what ends the guest.
LEAVE = "\nexit\n"


def main():
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=DESCRIPTION)
    parser.add_argument("--debian", action="store_true", help="boot a Debian root disk with systemd, to a login")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="processors of the guest (2)")
    parser.add_argument("--memory", default=None, metavar="SIZE", help="memory of the guest (512M; 1G with --debian)")
    parser.add_argument("--arch", metavar="NAME", help="x86_64 or aarch64 (this machine's; another is emulated)")
    parser.add_argument("--data", type=os.path.abspath, metavar="FILE", help=f"the data disk, made when missing ({DATA})")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    os.chdir(PROJECT)

    processor = _check(options)
    program, series = prepare(processor)
    disk = disks.debian() if options.debian else disks.data(Path(options.data or DATA))
    guest = Guest(program, guests.folder(processor), series, disk, options)
    if ground_of(processor) == ground.NESTED:
        why = "This machine's KVM cannot run a stock kernel" if processor.native else f"This machine is not of {processor.name}"
        note(f"{why}: the guest runs in an emulated host with KVM, ten times slower.")
        return _run_nested(guest, nested_kinds.of_processor(processor))
    return _run_here(guest)


def ground_of(processor):
    """Where a guest of a processor is booted."""
    return ground.ground() if processor.native else ground.NESTED


def prepare(processor):
    """All that takes long and is done once: packages, the monitor, its guest and the host that it runs in. Returns the monitor's
    path and the guest's kernel series."""
    rust.ensure()
    packages.ensure(["iproute2", "nftables"])
    program = _build(processor)
    series = guests.ensure(tools=False, processor=processor)[-1]
    if ground_of(processor) == ground.NESTED:
        nested_host.snapshot(nested_kinds.of_processor(processor))
    return program, series


def may_make_tap(new_session=False):
    """Whether there can be a network on this machine, for this user. In a session of its own, a process may have to give sudo a
    password that was given already."""
    return os.path.exists("/dev/net/tun") and (os.geteuid() == 0 or _quiet(["sudo", "-n", "true"], start_new_session=new_session))


class Guest:
    """What is booted, and how it is said to Vivarium."""

    def __init__(self, program, folder, series, disk, options):
        self.program = program
        self.kernel = folder / f"vmlinuz-{series}"
        self.initramfs = folder / f"initramfs-{series}.cpio"
        self.disk = disk
        self.debian = options.debian
        self.cpus = options.cpus
        self.memory = options.memory or ("1G" if options.debian else "512M")

    def command(self, disk, tap=None, number=0, dns=""):
        """Vivarium's command line; `disk` is where the image is, `tap` an interface made by `guest-network`."""
        words = ["console=hvc0", "quiet", "viv.marks=no"]
        # systemd asks for autofs4 before it could load modules of this kernel.
        words += ["viv.root=/dev/vda", "viv.modules=autofs4,evdev"] if self.debian else ["viv.mount=/dev/vda:/data"]
        if tap:
            words.append(f"viv.net=192.168.{126 + number}.2/24,192.168.{126 + number}.1,{dns}")
        command = [str(self.program), "--kernel", str(self.kernel), "--initramfs", str(self.initramfs), "--cmdline", " ".join(words)]
        command += ["--cpus", f"boot={self.cpus}", "--memory", f"size={self.memory}", "--disk", f"path={disk}"]
        command += ["--net", f"tap={tap}"] if tap else []
        return command + ["--rng", "src=/dev/urandom", "--console", "tty", "--serial", "off"]

    def greet(self):
        """Says what is about to appear, and how to leave it."""
        if self.debian:
            note("Booting Debian; log in as root, without a password. `poweroff` ends it.")
        else:
            note("Booting; the data disk is on /data and keeps its files. `poweroff -f`, or leaving the shell, ends it.")


def _check(options):
    """Looks whether this machine will do; returns the processor of the machine that is asked for."""
    if platform.system() != "Linux":
        raise Failure(f"this needs Linux; here is {platform.system()}")
    processor = processors.of_name(options.arch or platform.machine())
    why = processors.available(processor)
    if why:
        raise Failure(f"--arch {processor.name}: {why}")
    if options.debian and options.data:
        raise Failure("--data: a Debian has no data disk but its root disk; leave out --debian or --data")
    if options.debian and not processor.native:
        raise Failure(f"--debian: the packages of {processor.name} cannot be installed on this machine; leave out --debian or --arch")
    if os.path.exists("/dev/kvm") and not ground.kvm_usable():
        note("/dev/kvm is there but not yours to open: join the group kvm (`sudo adduser $USER kvm`, then log in again).")
    room.ensure(ROOM, "building Vivarium and its guests")
    return processor


def _build(processor):
    """Builds the monitor; returns the program's path."""
    command, environment, program = monitor.build(processor)
    if program.exists():
        # A second run: cargo only looks whether anything changed.
        run(command, "building Vivarium", cwd=PROJECT, env=environment)
        return program
    note("building Vivarium, which takes a few minutes the first time")
    if subprocess.run(command, cwd=PROJECT, env=os.environ | environment, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise Failure("building Vivarium failed: the compiler's messages are above")
    return program


def _run_here(guest):
    """Boots on this machine. Vivarium has the terminal; this process waits, and clears up the network."""
    tap = number = None
    if may_make_tap():
        tap, number = _make_tap()
    if tap is None:
        note("no network: making a tap takes root (or sudo without a password) and /dev/net/tun")
    try:
        guest.greet()
        # Ctrl-C is for the guest; and whoever ends this process ends the machine, which restores the terminal.
        signal.signal(signal.SIGINT, lambda *_: None)
        command = guest.command(guest.disk, tap, number or 0, _name_server())
        # What ends this process is passed on: the machine is a process of its own, and in no shell's pipe.
        machine = subprocess.Popen(command, stdin=None if sys.stdin.isatty() else subprocess.PIPE)
        for caught in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(caught, lambda *_: machine.terminate())
        if machine.stdin:
            threading.Thread(target=_feed, args=(machine.stdin,), daemon=True).start()
        return machine.wait()
    finally:
        if tap:
            _network("down", tap, number)


def _run_nested(guest, kind):
    """Boots in the nested host, with this terminal passed through both ways."""
    with_network = shlex.join(guest.command("@DISK@", "vivtap0", 0, "10.0.2.3")).replace("@DISK@", "$1")
    without_network = shlex.join(guest.command("@DISK@")).replace("@DISK@", "$1")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        with_network, without_network = _piped(with_network), _piped(without_network)
    # The machine is new and all its own: no name can be taken, nothing needs to be undone.
    script = f"""if {shlex.quote(str(NETWORK))} up vivtap0 0 0 >/run/network.log 2>&1; then
    {with_network}
    exit
fi
echo "no network: $(tail -n 1 /run/network.log)"
{without_network}
"""
    guest.greet()
    return nested.interactive(["sh", "-c", script, "quickstart", "{root}"], disks={"root": guest.disk}, kind=kind)


def _piped(command):
    """A command of the nested host's shell whose input comes by a pipe."""
    return f"{{ cat; printf {shlex.quote(LEAVE)}; }} | {command}"


def _feed(machine):
    """Gives a machine what comes by this process's pipe."""
    with contextlib.suppress(BrokenPipeError), machine:
        while piece := os.read(sys.stdin.fileno(), 1 << 16):
            machine.write(piece)
            machine.flush()
        machine.write(LEAVE.encode())


def _make_tap():
    """A tap with a network behind it: its name and number; None where that is not possible."""
    for number in range(TAPS):
        tap = f"vivtap{number}"
        if not Path("/sys/class/net", tap).exists():
            made = False
            with step(f"making the network interface {tap}"):
                try:
                    made = _network("up", tap, number)
                finally:
                    if not made:
                        _network("down", tap, number)
            return (tap, number) if made else (None, None)
    return None, None


def _network(action, tap, number):
    return _quiet(packages.as_root([str(NETWORK), action, tap, str(number), str(os.getuid())]))


def _name_server():
    """The first of this machine's name servers that a guest can reach."""
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[:1] == ["nameserver"] and len(words) > 1 and ":" not in words[1] and not words[1].startswith("127."):
                return words[1]
    return ""


def _quiet(command, **options):
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False, **options).returncode == 0


def _interrupted(number, _):
    raise KeyboardInterrupt


if __name__ == "__main__":
    command_line(main)
