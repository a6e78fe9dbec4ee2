"""What the guests boot, in the folder that tests find in VIVARIUM_GUESTS, one set per kernel series:

    vmlinuz-6.12              the distribution's bzImage; on Arm its Image
    vmlinux-6.12              the ELF inside it; on Arm the Image compressed by gzip
    zboot-gzip-6.12           on Arm, EFI zboot images with the Image compressed by gzip, zstd and xz
    vmlinuz-6.12-generic      on Arm, the distribution's kernel for any machine, which has more drivers, with its own initramfs
    initramfs-6.12.cpio       busybox, drivers, and the init described in `guest-init`
    initramfs-tools-6.12.cpio the same, with file system, PCI and network tools and their libraries
    initramfs-sve.cpio        on Arm, the smaller one of the newest series with a program that uses scalable vectors, /sve

Sizes matter: in a nested host each megabyte costs boot time. Archives are not compressed, since emulated
decompression costs more than reading."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import firmware
import kernels
import packages
import processors
import rust
from cpio import Archive
from kernels import Modules
from places import CACHE, PROJECT, cache, fingerprint, lock, replace
from report import command_line, note, run, step

INIT = PROJECT / "scripts" / "lib" / "guest-init"

# Programs of the project's own in the larger variant, which no distribution has without a megabyte of libraries.
PROGRAMS = {"vsock": "guest-vsock.rs", "echo-back": "guest-echo.rs"}

# Loaded only for devices that are there; `?`: not in every kernel.
MODULES = [
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "ext4", "crc32c_intel?", "button", "evdev?",
    "pvpanic_mmio?", "pvpanic_pci?", "autofs4?", "virtio_balloon?", "virtio_mem?", "ptp_kvm?", "msr?", "cpuid?", "gpio_keys?", "efivarfs?",
]  # fmt: skip

# And those of the larger variant.
TOOL_MODULES = ["vmw_vsock_virtio_transport", "virtio_pmem", "nd_pmem", "i6300esb?", "qemu_fw_cfg"]

# Programs of the larger variant, and the packages that hold them.
TOOLS = {
    "mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "dumpe2fs": "e2fsprogs",
    "fstrim": "util-linux", "lsblk": "util-linux", "lscpu": "util-linux", "blkdiscard": "util-linux",
    "lspci": "pciutils", "ethtool": "ethtool", "ip": "iproute2", "iperf3": "iperf3",
}  # fmt: skip


def main():
    ensure()
    note(f"guests are in {CACHE}")
    return 0


def folder(processor=None):
    """Where the guests for a processor are; by default this machine's."""
    processor = processor or processors.native()
    return cache() if processor.native else cache(processor.name)


def ensure(tools=True, processor=None):
    """Makes what is missing or out of date, for every series; returns the series, oldest first. Without `tools`, what a person
    boots is enough: the kernel and its smaller initramfs."""
    processor = processor or processors.native()
    if processor.native and tools:
        packages.ensure(sorted(set(TOOLS.values())))
    series = kernels.guest_series(processor)
    with lock("guests" if processor.native else f"guests-{processor.name}"):
        for name in series:
            _ensure_series(name, tools, processor)
    if tools and processor is processors.AARCH64:
        firmware.ensure(folder(processor), processor, series[-1])
        program = _program("sve", PROJECT / "scripts" / "lib" / "guest-sve.rs", processor)
        # The kernel takes archives that follow each other for one.
        smaller = (folder(processor) / f"initramfs-{series[-1]}.cpio").read_bytes()
        _write(folder(processor) / "initramfs-sve.cpio", smaller + Archive().program("sve", program).bytes())
    return series


def _ensure_series(series, tools, processor):
    kernel = kernels.guest(series, processor)
    place = folder(processor)
    _place(place / f"vmlinux-{series}", kernel.vmlinux())
    _ensure_kernel(series, kernel, tools)
    if tools and processor is processors.AARCH64:
        for method in kernels.ZBOOT:
            _place(place / f"zboot-{method}-{series}", kernel.zboot(method))
        _ensure_kernel(f"{series}-generic", kernels.nested_host(processor), tools)


def _ensure_kernel(name, kernel, tools):
    """A kernel under a name, and what it boots into."""
    processor = kernel.processor
    place = folder(processor)
    _place(place / f"vmlinuz-{name}", kernel.image)
    _write(place / f"initramfs-{name}.cpio", _archive(kernel, MODULES).bytes())
    if tools:
        archive = _archive(kernel, MODULES + TOOL_MODULES)
        _add_tools(archive, processor)
        _write(place / f"initramfs-tools-{name}.cpio", archive.bytes())


def _archive(kernel, modules):
    archive = Archive()
    for name in ("dev", "proc", "sys", "root", "tmp"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.program("bin/busybox", kernel.processor.busybox())
    archive.link("bin/sh", "busybox")
    archive.program("init", INIT.read_bytes())
    archive.file("etc/passwd", "root::0:0:root:/root:/bin/sh\n")
    archive.file("etc/profile", "PS1='vivarium:\\w# '\n")
    _add_modules(archive, kernel, modules)
    return archive


def _add_modules(archive, kernel, wanted):
    modules = Modules(kernel)
    top = f"lib/modules/{kernel.version}"
    with tempfile.TemporaryDirectory() as root:
        for path in modules.closure(wanted):
            plain = re.sub(r"\.ko.*", ".ko", path)
            data = modules.content(path)
            archive.file(f"{top}/{plain}", data)
            file = Path(root, top, plain)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        made = Path(root, top)
        made.mkdir(parents=True, exist_ok=True)
        for name in ("modules.builtin", "modules.order"):
            shutil.copy(kernel.modules / name, made)
        kernels.depmod(root, kernel.version)
        # What busybox's modprobe reads.
        for name in ("modules.dep", "modules.alias"):
            archive.file(f"{top}/{name}", (made / name).read_bytes())


def _add_tools(archive, processor):
    libraries = set()
    for name in TOOLS:
        program = processor.program(name)
        archive.program(f"usr/bin/{name}", processor.read(program))
        libraries.update(processor.libraries(program))
    # At the path the program was linked against, links followed: the loader looks for exactly that name.
    for library in sorted(libraries):
        archive.program(library.lstrip("/"), processor.read(library))
    for name, source in PROGRAMS.items():
        archive.program(f"usr/bin/{name}", _program(name, PROJECT / "scripts" / "lib" / source, processor))
    archive.link("usr/bin/mkfs.ext4", "mke2fs")
    archive.link("sbin/ip", "/usr/bin/ip")
    names = Path("/usr/share/misc/pci.ids")
    if names.exists():
        # Only the vendors that a guest can meet: Red Hat (virtio, bridges) and Intel.
        archive.file("usr/share/misc/pci.ids", _vendors(names.read_text(errors="replace"), ("1af4", "1b36", "8086")))


def _program(name, source, processor):
    """One of the project's own programs, built static."""
    program = cache("work") / f"{name}-{fingerprint(source, *(() if processor.native else (processor.name,)))}"
    if not program.exists():
        compiler = rust.compiler(processor)
        made = program.with_suffix(".new")
        static = ["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"]
        run([*compiler, "--edition", "2024", "-O", *static, "-o", made, source], f"building the guests' program {name}")
        made.rename(program)
    return program.read_bytes()


def _vendors(text, wanted):
    kept, keep = [], False
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            keep = line[:4].lower() in wanted
        # Subsystem names, two tabs deep, are most of the file.
        if keep and not line.startswith("\t\t"):
            kept.append(line)
    return "\n".join(kept) + "\n"


def _place(path, source):
    if path.is_symlink() and Path(os.path.realpath(path)) == source.resolve():
        return
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(source, path.parent))


def _write(path, data):
    if not path.exists() or path.read_bytes() != data:
        with step(f"writing {path.name}"):
            replace(path, data)


if __name__ == "__main__":
    sys.exit(command_line(main))
