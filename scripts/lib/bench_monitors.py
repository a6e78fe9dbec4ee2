"""The monitors that are measured: how each is told to run the same machine.

A machine is one serial port on standard output, and what `Machine` says. Vivarium and the peers named on the command
line run with their defaults; QEMU with what makes it fastest."""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import bench_boards
from places import VIVARIUM
from report import Failure

OURS = "vivarium"
KINDS = ("vivarium", "cloud-hypervisor", "firecracker", "qemu", "qemu-microvm", "qemu-q35", "qemu-virt")

# A software KVM backend advertises bits that QEMU's `-cpu host` then asks for and is refused.
QEMU_PC = ["-cpu", "host,arch-capabilities=off", "-bios", "qboot.rom"]


@dataclass
class Machine:
    """What is to run."""

    kernel: Path
    command_line: str
    memory_mib: int = 128
    cpus: int = 1
    initramfs: Path | None = None
    disk: Path | None = None
    disk_queues: int = 1
    tap: str | None = None
    # A stock kernel needs to find its interrupt controllers and devices; the bare-metal guest looks for itself.
    stock: bool = False
    # On Arm, Vivarium's machines that start without firmware have no ACPI unless they are asked to; on a PC they always have it.
    acpi: bool = False


@dataclass
class Monitor:
    """A monitor by the name under which its figures are printed."""

    name: str
    path: Path
    kind: str
    version: str = ""
    # Figures that it cannot have, with the reason.
    missing: dict = field(default_factory=dict)

    def command(self, machine, folder):
        """The words that run `machine`; files that the monitor reads go into `folder`."""
        return [str(word) for word in BUILDERS[self.kind](self.path, machine, Path(folder))]

    def lacks(self, machine):
        """Why this monitor cannot run `machine`, or None."""
        if self.kind == "firecracker" and machine.disk_queues > 1:
            return "it has one queue for each disk"
        if self.kind == "firecracker" and machine.stock and not _is_plain(machine.kernel):
            return "it loads no compressed kernel"
        return None


def chosen(peers):
    """Vivarium, QEMU's machines, then each `NAME=PATH[:KIND]`."""
    found = [Monitor(OURS, VIVARIUM, "vivarium"), *_machines("QEMU", bench_boards.native().qemu)]
    for text in peers:
        for monitor in parse_peer(text):
            if any(monitor.name == other.name for other in found):
                raise Failure(f"--peer {text}: there is already a monitor of the name {monitor.name}")
            found.append(monitor)
    for monitor in found:
        monitor.version = version(monitor.path)
    return found


def parse_peer(text):
    """The monitors that one `--peer` names: QEMU counts once for each machine type."""
    match = re.fullmatch(rf"([^=]+)=(.+?)(?::({'|'.join(KINDS)}))?", text)
    if not match:
        raise Failure(f"--peer {text}: must be NAME=PATH or NAME=PATH:KIND")
    name, path, kind = match[1], Path(match[2]).absolute(), match[3]
    if not path.is_file():
        raise Failure(f"--peer {text}: there is no file {path} (kinds are {', '.join(KINDS)})")
    kind = kind or next((known for known in KINDS if path.name.startswith(known)), None)
    if kind is None:
        raise Failure(f"--peer {text}: the kind is not clear from the file's name; add :KIND ({', '.join(KINDS)})")
    if kind == "qemu":
        return _machines(name, path)
    return [Monitor(name, path, kind)]


def _machines(name, qemu):
    return [Monitor(f"{name} {machine}", qemu, f"qemu-{machine}") for machine in bench_boards.native().machines]


def version(path):
    """The first line of `--version`."""
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except OSError as failure:
        raise Failure(f"{path} does not run: {failure.strerror}") from failure
    lines = (result.stdout or result.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def _is_plain(path):
    """Whether a kernel is an ELF file, or an Arm `Image` (Documentation/arch/arm64/booting.rst)."""
    with open(path, "rb") as file:
        start = file.read(64)
    return start[:4] == b"\x7fELF" or start[56:60] == b"ARM\x64"


def _vivarium(path, machine, _):
    words = [path, "--kernel", machine.kernel, "--cmdline", machine.command_line]
    words += ["--cpus", f"boot={machine.cpus}", "--memory", f"size={machine.memory_mib}M"]
    words += ["--serial", "tty", "--console", "off"]
    if machine.initramfs:
        words += ["--initramfs", machine.initramfs]
    if machine.disk:
        words += ["--disk", f"path={machine.disk},num_queues={machine.disk_queues}"]
    if machine.tap:
        words += ["--net", f"tap={machine.tap}"]
    if machine.acpi:
        words += ["--platform", "acpi=on"]
    return words


# The options above are cloud-hypervisor's own.
_cloud_hypervisor = _vivarium


def _qemu(path, machine, options, disk, net):
    words = [path, "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-smp", machine.cpus, "-m", f"{machine.memory_mib}M", "-kernel", machine.kernel]
    words += ["-append", machine.command_line, "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out", *options]
    if machine.initramfs:
        words += ["-initrd", machine.initramfs]
    if machine.disk:
        words += ["-object", "iothread,id=worker"]
        words += ["-drive", f"if=none,id=disk,file={_escaped(machine.disk)},format=raw,aio=io_uring,cache=writeback"]
        words += ["-device", f"{disk},drive=disk,iothread=worker,num-queues={machine.disk_queues}"]
    if machine.tap:
        words += ["-netdev", f"tap,id=net,ifname={machine.tap},script=no,downscript=no,vhost=off"]
        words += ["-device", f"{net},netdev=net"]
    return words


def _qemu_microvm(path, machine, _):
    # Without ACPI the devices are named on the command line, which the bare-metal guest reads.
    board = "microvm,accel=kvm" if machine.stock else "microvm,accel=kvm,acpi=off,pit=off,pic=off,rtc=off"
    modern = [*QEMU_PC, "-M", board, "-global", "virtio-mmio.force-legacy=false"]
    return _qemu(path, machine, modern, "virtio-blk-device", "virtio-net-device")


def _qemu_q35(path, machine, _):
    return _qemu_pci(path, machine, [*QEMU_PC, "-M", "q35,accel=kvm"])


def _qemu_virt(path, machine, _):
    return _qemu_pci(path, machine, ["-cpu", "host", "-M", "virt,accel=kvm,gic-version=3"])


def _qemu_pci(path, machine, options):
    modern = ",disable-legacy=on"
    return _qemu(path, machine, options, "virtio-blk-pci" + modern, "virtio-net-pci,romfile=" + modern)


def _firecracker(path, machine, folder):
    config = {
        "boot-source": {"kernel_image_path": str(machine.kernel), "boot_args": machine.command_line},
        "machine-config": {"vcpu_count": machine.cpus, "mem_size_mib": machine.memory_mib},
    }
    if machine.initramfs:
        config["boot-source"]["initrd_path"] = str(machine.initramfs)
    if machine.disk:
        drive = {"drive_id": "disk", "path_on_host": str(machine.disk), "is_root_device": False, "is_read_only": False}
        config["drives"] = [{**drive, "cache_type": "Writeback", "io_engine": "Async"}]
    if machine.tap:
        config["network-interfaces"] = [{"iface_id": "net", "host_dev_name": machine.tap}]
    file = folder / "firecracker.json"
    file.write_text(json.dumps(config))
    return [path, "--no-api", "--config-file", file]


def _escaped(path):
    """QEMU doubles commas inside a value."""
    return str(path).replace(",", ",,")


BUILDERS = {
    "vivarium": _vivarium,
    "cloud-hypervisor": _cloud_hypervisor,
    "firecracker": _firecracker,
    "qemu-microvm": _qemu_microvm,
    "qemu-q35": _qemu_q35,
    "qemu-virt": _qemu_virt,
}
