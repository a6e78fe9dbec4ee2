"""The nested host's snapshot: made once, and restored for each command in a fraction of a second.

RAM is a file in shared memory. Saving keeps that file and writes the devices' state beside it; restoring maps the
file copy-on-write, so several machines run from one snapshot at once and none changes it."""

import json
import os
import shlex
import shutil
import time
from pathlib import Path

import nested_image
import nested_machine
import packages
from nested_machine import Machine
from places import PROJECT, cache, fingerprint, lock, replace
from report import Failure, run, step

# The file is sparse; this much of it is real once the machine has booted, with room to spare.
RAM_FILE_BYTES = 1 << 30

# Passed on to a command in the nested host; everything else stays outside.
ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "TERM", "LANG", "CI", "LD_LIBRARY_PATH", "TZ")
ENVIRONMENT_PREFIXES = ("LC_", "RUST", "CARGO", "NEXTEST", "VIVARIUM", "INSTA_", "PROPTEST_")

# There is no udev: the disk is known by the serial number it was given.
FIND_DISK = """tries=0
until disk_{name}=$(grep -lx {name} /sys/block/vd*/serial 2>/dev/null); do
    [ $((tries += 1)) -lt 200 ] || {{ echo "the disk {name} did not appear" >&2; exit 125; }}
    sleep 0.05
done
disk_{name}=/dev/$(echo "$disk_{name}" | cut -d/ -f4)"""

# Of earlier snapshots: another checkout that shares the cache may be at work with one.
KEPT = 1

LIBRARY = PROJECT / "scripts" / "lib"


class Snapshot:
    """A saved nested host."""

    def __init__(self, folder):
        self.folder = folder
        saved = json.loads((folder / "snapshot.json").read_text())
        self.ram = Path(saved["ram"])
        self.initramfs = Path(saved["initramfs"])
        self.kernel = nested_image.nested_host()

    def restore(self):
        """A machine that goes on from here."""
        return Machine(self.kernel, self.initramfs, self.ram, restore_from=self.folder / "state")


def snapshot():
    """The snapshot that fits this machine and these scripts, made when there is none."""
    suite = "bookworm-backports" if packages.codename() == "bookworm" else None
    # Debian 12's own QEMU is too old to restore from a file; the newer one comes with its firmware and tools.
    packages.ensure(["qemu-system-x86"], suite=suite)
    with lock("nested"):
        folder = cache("nested") / _key()
        if (folder / "snapshot.json").exists():
            found = Snapshot(folder)
            if found.ram.exists():
                os.utime(folder)
                return found
        with step("building the nested host"):
            _remove_old()
            kernel, initramfs = nested_image.build()
            folder.mkdir()
            # The one that this snapshot was made with, whatever becomes of the other.
            os.link(initramfs, folder / initramfs.name)
            _build(folder, kernel, folder / initramfs.name)
        return Snapshot(folder)


def execute(argv, folder, standard_input=None, terminal=None, seconds=None, disks=None):
    """Runs `argv` in a fresh nested host, in the outer machine's folder `folder`; returns its exit status. `disks`: raw
    images by the names that replace `{name}` in the words of `argv` with the disk's device."""
    saved = snapshot()
    with saved.restore() as machine:
        for name, path in (disks or {}).items():
            machine.attach_disk(path, name)
        return machine.run(
            job(argv, folder, disks or {}),
            saved.kernel.modules.parent,
            standard_input=standard_input,
            terminal=terminal,
            seconds=seconds,
        )


def job(argv, folder, disks=()):
    """The shell script that runs `argv` with this process's chosen environment, once the disks are there."""
    lines = [f"cd {shlex.quote(str(folder))} || exit 125"]
    chosen = {
        name: value
        for name, value in os.environ.items()
        if (name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)) and name.replace("_", "a").isalnum()
    }
    # An ordinary user's PATH lacks the system commands; inside, everything runs as root.
    chosen["PATH"] = chosen.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    # Results put here reach the outer machine, as long as the command runs.
    chosen["VIVARIUM_NESTED_SHARE"] = "/share"
    # Plain file systems, not the overlay: one in memory, and an ext4 for what a tmpfs cannot do.
    chosen["TMPDIR"] = "/run/tmp"
    chosen["VIVARIUM_SCRATCH"] = "/scratch"
    # Inside, the tests find a complete /dev/kvm.
    chosen["VIVARIUM_GROUND"] = "direct"
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(chosen.items())]
    command = shlex.join(argv)
    for name in disks:
        lines.append(FIND_DISK.format(name=name))
        command = command.replace(f"{{{name}}}", f"'\"$disk_{name}\"'")
    return "\n".join([*lines, f"exec {command}", ""])


def _key():
    """Changes when QEMU, the kernel, the initramfs, these scripts or the processor do."""
    version = run(["qemu-system-x86_64", "--version"], "asking QEMU's version")
    kernel = nested_image.nested_host()
    sources = [LIBRARY / name for name in ("nested-init", "nested_image.py", "nested_machine.py", "nested_host.py")]
    return fingerprint(version, kernel.version, *sources, _processor())


def _processor():
    with open("/proc/cpuinfo") as file:
        return [line for line in file if line.startswith("model name")][:1]


def _ram_file(folder):
    shared = Path("/dev/shm")
    try:
        room = shutil.disk_usage(shared).free
    except OSError:
        room = 0
    if room >= RAM_FILE_BYTES and os.access(shared, os.W_OK):
        return shared / f"{_shared_name()}{fingerprint(str(folder))}.ram"
    return folder / "ram"


def _shared_name():
    return f"vivarium-{os.getuid()}-"


def _owner(ram):
    """The file that says whose a file in shared memory is: its project may be deleted without it."""
    return ram.with_suffix(".owner")


def _remove_old():
    for ram in Path("/dev/shm").glob(f"{_shared_name()}*.ram"):
        if not (_owner(ram).is_file() and Path(_owner(ram).read_text()).is_dir()):
            ram.unlink(missing_ok=True)
            _owner(ram).unlink(missing_ok=True)
    folders = [folder for folder in cache("nested").iterdir() if folder.is_dir()]
    folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    kept = 0
    for folder in folders:
        ram = _saved_ram(folder)
        if ram and ram.exists() and kept < KEPT:
            kept += 1
            continue
        if ram:
            ram.unlink(missing_ok=True)
            _owner(ram).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _saved_ram(folder):
    """The RAM file of the snapshot in a folder; None where it was not completed."""
    try:
        return Path(json.loads((folder / "snapshot.json").read_text())["ram"])
    except (OSError, ValueError):
        return None


def _build(folder, kernel, initramfs):
    ram = _ram_file(folder)
    ram.unlink(missing_ok=True)
    _owner(ram).write_text(str(folder))
    # Others on this machine have no business in it.
    os.close(os.open(ram, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with Machine(kernel, initramfs, ram) as machine:
            machine.wait_for("ready", 180)
            machine.send("prepare")
            if machine.wait_for("prepared", 120) != "0":
                raise Failure("nested host: its scratch file system could not be made", machine.serial())
            machine.qmp("migrate", uri=f"file:{folder}/state")
            while (status := machine.qmp("query-migrate"))["status"] not in ("completed", "failed"):
                time.sleep(0.02)
            if status["status"] == "failed":
                raise Failure(f"nested host: saving it failed: {status.get('error-desc', 'QEMU gives no reason')}")
            machine.qmp("quit")
    except BaseException:
        ram.unlink(missing_ok=True)
        _owner(ram).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    replace(folder / "snapshot.json", json.dumps({"ram": str(ram), "initramfs": str(initramfs)}))
