"""The nested host's snapshot: made once, and restored for each command in a fraction of a second.

RAM is a file in shared memory. Saving keeps that file and writes the devices' state beside it; restoring maps the
file copy-on-write, so several machines run from one snapshot at once and none changes it."""

import json
import os
import shlex
import shutil
import tempfile
import time
from pathlib import Path

import nested_image
import nested_kinds
from kernels import nested_host
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

LIBRARY = PROJECT / "scripts" / "lib"
INITRAMFS = "initramfs.cpio"

# A snapshot that no command has used for so long is deleted when another is made. Others may be those of other working copies
# of the project, which share the cache.
UNUSED_SECONDS = 2 * 3600


class Snapshot:
    """A saved nested host."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        saved = json.loads((folder / "snapshot.json").read_text())
        self.ram = Path(saved["ram"])
        self.initramfs = folder / INITRAMFS
        self.kernel = nested_host(kind.processor)

    def restore(self):
        """A machine that goes on from here."""
        (self.folder / "snapshot.json").touch()
        return Machine(self.kind, self.kernel, self.initramfs, self.ram, restore_from=self.folder / "state")


def snapshot(kind=None):
    """The snapshot that fits this machine and these scripts, made when there is none. `kind`: by default, of this processor."""
    kind = kind or nested_kinds.native()
    kind.ensure_qemu()
    with lock(f"nested-{kind.name}"):
        folder = cache("nested") / f"{kind.name}-{_key(kind)}"
        if (folder / "snapshot.json").exists():
            found = Snapshot(kind, folder)
            if found.ram.exists():
                return found
        with step(f"building the nested host {kind.name}"):
            _remove_old()
            kernel, initramfs = nested_image.build(kind)
            # One whose memory is gone may be there.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _build(kind, folder, kernel, initramfs)
        return Snapshot(kind, folder)


def execute(argv, folder, standard_input=None, terminal=None, seconds=None, disks=None, kind=None):
    """Runs `argv` in a fresh nested host, in the outer machine's folder `folder`; returns its exit status. `disks`: raw
    images by the names that replace `{name}` in the words of `argv` with the disk's device."""
    kind = kind or nested_kinds.native()
    with snapshot(kind).restore() if kind.restorable else _booted(kind) as machine:
        for name, path in (disks or {}).items():
            machine.attach_disk(path, name)
        return machine.run(
            job(argv, folder, disks or {}, kind),
            kind.root(),
            kind.folders(),
            nested_host(kind.processor).modules.parent,
            standard_input=standard_input,
            terminal=terminal,
            seconds=seconds,
        )


def _booted(kind):
    """A machine that was just booted, of a kind that cannot be restored."""
    kind.ensure_qemu()
    kernel, initramfs = nested_image.build(kind)
    file = cache("nested") / f"{kind.name}.cpio"
    replace(file, initramfs)
    descriptor, ram = tempfile.mkstemp(prefix=_shared_name(), dir="/dev/shm")
    os.close(descriptor)
    try:
        machine = Machine(kind, kernel, file, ram)
    finally:
        # QEMU has it mapped.
        os.unlink(ram)
    try:
        _prepare(kind, machine)
    except BaseException:
        machine.close()
        raise
    return machine


def _prepare(kind, machine):
    machine.wait_for("ready", 180)
    machine.send(f"prepare {kind.root()}")
    if machine.wait_for("prepared", 120) != "0":
        raise Failure("nested host: its scratch file system could not be made", machine.serial())


def job(argv, folder, disks=(), kind=None):
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
    if kind and not kind.processor.native:
        # Nothing of the outer machine's own programs runs there.
        chosen["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        for name in ("LD_LIBRARY_PATH", "SHELL"):
            chosen.pop(name, None)
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


def _key(kind):
    """Changes when QEMU, the kernel, the initramfs, these scripts or the processor do."""
    version = run([kind.program, "--version"], "asking QEMU's version")
    kernel = nested_host(kind.processor)
    names = ("nested-init", "nested_image.py", "nested_machine.py", "nested_host.py", "nested_kinds.py", "tsc.py")
    return fingerprint(version, kernel.version, *(LIBRARY / name for name in names), _processor())


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
    for folder in cache("nested").iterdir():
        if folder.is_dir() and not _used_lately(folder):
            ram = _saved_ram(folder)
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


def _used_lately(folder):
    try:
        return time.time() - (folder / "snapshot.json").stat().st_mtime < UNUSED_SECONDS
    except OSError:
        # Being made by another process right now, or left behind by one.
        return time.time() - folder.stat().st_mtime < UNUSED_SECONDS


def _build(kind, folder, kernel, initramfs):
    replace(folder / INITRAMFS, initramfs)
    ram = _ram_file(folder)
    ram.unlink(missing_ok=True)
    _owner(ram).write_text(str(folder))
    # Others on this machine have no business in it.
    os.close(os.open(ram, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with Machine(kind, kernel, folder / INITRAMFS, ram) as machine:
            _prepare(kind, machine)
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
    replace(folder / "snapshot.json", json.dumps({"ram": str(ram)}))
