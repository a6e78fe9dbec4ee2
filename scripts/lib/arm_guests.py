"""What Arm machines boot, in the folder that tests find in VIVARIUM_GUESTS when they run in the nested Arm host:

    vmlinuz-6.12              the distribution's kernel, a plain Image
    vmlinux-6.12              the same, compressed by gzip
    initramfs-6.12.cpio       busybox, drivers, and the init described in `guest-init`

and the nested Arm host's own kernel and initramfs. Everything is out of the distribution's arm64 packages, which are downloaded
and unpacked, not installed."""

import gzip
import lzma
import re
import shutil
import subprocess
from pathlib import Path

import packages
from cpio import Archive
from kernels import Kernel, Modules, depmod
from places import PROJECT, cache, lock, replace
from report import Failure, run, step

LIBRARY = PROJECT / "scripts" / "lib"
SERIES = "6.12"
SUITE = {"bookworm": "bookworm-backports"}

HOST_MODULES = ["9pnet_virtio", "9p", "tun", "vhost_net", "virtio_blk?"]
GUEST_MODULES = [
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "ext4", "evdev?", "gpio_keys?", "pvpanic_mmio?",
    "pvpanic_pci?", "virtio_balloon?",
]  # fmt: skip

def folder():
    """Where guests are."""
    return cache("aarch64")


def ensure():
    """Makes what is missing or out of date."""
    packages.ensure(["kmod", "binutils-aarch64-linux-gnu"])
    packages.ensure(["qemu-system-arm"], suite=SUITE.get(packages.codename()))
    with lock("arm-guests"):
        _foreign_packages()
        kernel = _kernel(rf"linux-image-{re.escape(SERIES)}\.[0-9][0-9.+~a-z]*-cloud-arm64-unsigned", "cloud")
        _place(f"vmlinuz-{SERIES}", kernel.bzimage)
        packed = folder() / f"vmlinux-{SERIES}"
        if not packed.exists():
            replace(packed, gzip.compress(kernel.bzimage.read_bytes(), 6))
        _write(f"initramfs-{SERIES}.cpio", _guest_archive(kernel))
    host()


def host():
    """The nested host's kernel and initramfs."""
    with lock("arm-host"):
        _foreign_packages()
        kernel = _kernel(rf"linux-image-{re.escape(SERIES)}\.[0-9][0-9.+~a-z]*-arm64-unsigned", "generic")
        archive = _common_archive()
        archive.program("init", (LIBRARY / "arm-init").read_bytes())
        modules = Modules(kernel)
        order = []
        for path in modules.closure(HOST_MODULES):
            name = Path(path).name.split(".ko")[0] + ".ko"
            archive.file(f"modules/{name}", _module(kernel, path))
            order.append(name)
        archive.file("modules/order", "".join(f"{name}\n" for name in order))
        return kernel.bzimage, _write("host.cpio", archive)


def _common_archive():
    archive = Archive()
    for name in ("dev", "proc", "sys", "root", "tmp"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.program("bin/busybox", (_unpacked("busybox-static:arm64") / "bin" / "busybox").read_bytes())
    archive.link("bin/sh", "busybox")
    archive.file("etc/passwd", "root::0:0:root:/root:/bin/sh\n")
    return archive


def _guest_archive(kernel):
    archive = _common_archive()
    archive.program("init", (LIBRARY / "guest-init").read_bytes())
    archive.file("etc/profile", "PS1='vivarium:\\w# '\n")
    modules = Modules(kernel)
    top = f"lib/modules/{kernel.version}"
    chosen = folder() / "guest-modules"
    shutil.rmtree(chosen, ignore_errors=True)
    for path in modules.closure(GUEST_MODULES):
        plain = re.sub(r"\.ko.*", ".ko", path)
        data = _module(kernel, path)
        archive.file(f"{top}/{plain}", data)
        file = chosen / top / plain
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (chosen / top).mkdir(parents=True, exist_ok=True)
    for name in ("modules.builtin", "modules.order"):
        shutil.copy(kernel.modules / name, chosen / top)
    depmod(chosen, kernel.version)
    for name in ("modules.dep", "modules.alias"):
        archive.file(f"{top}/{name}", (chosen / top / name).read_bytes())
    return archive


def _module(kernel, path):
    """One module's loadable bytes, without debug data."""
    plain = cache("aarch64", "modules", kernel.version) / (Path(path).name.split(".ko")[0] + ".ko")
    if not plain.exists():
        data = (kernel.modules / path).read_bytes()
        replace(plain, lzma.decompress(data) if path.endswith(".xz") else data)
        run(["aarch64-linux-gnu-strip", "--strip-debug", plain], f"stripping module {path}")
    return plain.read_bytes()


def _kernel(pattern, flavour):
    """The newest kernel package that matches, unpacked; one already there is kept."""
    place = cache("aarch64", "kernels") / flavour
    done = place / "version"
    if not done.exists():
        suite = SUITE.get(packages.codename())
        if suite:
            packages.ensure_suite(suite)
        found = packages.names(pattern)
        if not found:
            raise Failure(f"apt has no arm64 package like {pattern}: kernel {SERIES} is not offered by this release")
        shutil.rmtree(place, ignore_errors=True)
        _unpack(f"{found[-1]}:arm64", place)
        if not (place / "lib").exists():
            (place / "lib").symlink_to("usr/lib")
        version = found[-1].removeprefix("linux-image-").removesuffix("-unsigned")
        depmod(place, version)
        replace(done, version + "\n")
    return Kernel(place, done.read_text().strip())


def _unpacked(name):
    place = cache("aarch64", "packages") / name.split(":")[0]
    if not place.exists():
        _unpack(name, place)
    return place


def _unpack(name, place):
    with step(f"fetching {name}"):
        place.mkdir(parents=True)
        # The file's name has no architecture in front of the version.
        packages_before = set(place.glob("*.deb"))
        sandbox = ["-o", "APT::Sandbox::User=root"]
        run(["apt-get", "download", "-q", *sandbox, name], f"downloading {name}", cwd=place)
        for file in set(place.glob("*.deb")) - packages_before:
            run(["dpkg-deb", "-x", file, place], f"unpacking {name}")
            file.unlink()


def _foreign_packages():
    """Has apt know of arm64 packages."""
    known = subprocess.run(["dpkg", "--print-foreign-architectures"], capture_output=True, text=True, check=False).stdout
    if "arm64" not in known.split():
        run(packages.as_root(["dpkg", "--add-architecture", "arm64"]), "adding the architecture arm64")
        packages.update()


def _place(name, source):
    path = folder() / name
    path.unlink(missing_ok=True)
    path.symlink_to(source)


def _write(name, archive):
    path = folder() / name
    data = archive.bytes()
    if not path.exists() or path.read_bytes() != data:
        with step(f"writing {name}"):
            replace(path, data)
    return path
