"""The processors that guests and nested hosts are made for, and where programs for each of them are.

Programs for this machine's own processor are the ones installed here. Those for another are unpacked, never run here: a folder
like the root of a small Debian, which the nested host of that processor has as its own root."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import disks
import packages
from places import cache, fingerprint, lock
from report import Failure, run, step

# What commands in a nested host of another processor find, and what their guests are given of it.
ROOT_PACKAGES = [
    "busybox-static", "dash", "coreutils", "diffutils", "findutils", "grep", "sed", "tar", "iproute2", "kmod", "e2fsprogs", "util-linux", "mount",
    "nftables", "pciutils", "ethtool", "iperf3", "acpica-tools", "linux-perf", "gdb-minimal", "binutils",
]  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """One of them."""

    name: str  # as `uname -m` prints it
    debian: str  # as Debian calls it

    @property
    def native(self):
        """Whether it is this machine's own."""
        return os.uname().machine == self.name

    @property
    def target(self):
        """What Rust calls it."""
        return f"{self.name}-unknown-linux-gnu"

    def tool(self, name):
        """The compiler, or a program of the binutils."""
        return name if self.native else f"{self.name}-linux-gnu-{name}"

    def root(self):
        """The folder in which its programs are, at the paths they have in a root file system."""
        return Path("/") if self.native else _foreign_root(self)

    def program(self, name):
        """The path of an installed program in the root."""
        if self.native:
            found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
            if found:
                return Path(found)
        else:
            for folder in ("usr/bin", "usr/sbin"):
                if (self.root() / folder / name).exists():
                    return Path("/", folder, name)
        raise Failure(f"there is no program {name} for {self.name}")

    def read(self, path):
        """The bytes of a file of the root, links followed inside it."""
        return _resolved(self.root(), path).read_bytes()

    def busybox(self):
        """The static busybox's bytes."""
        if self.native:
            packages.ensure(["busybox-static"])
        for path in ("/bin/busybox", "/usr/bin/busybox"):
            try:
                return self.read(path)
            except OSError:
                continue
        raise Failure("/bin/busybox is missing although the package busybox-static is installed")

    def libraries(self, program):
        """Paths in the root of the dynamic loader and the libraries that a program is linked against."""
        if self.native:
            return set(re.findall(r"(/\S+) \(0x", run(["ldd", program], f"listing the libraries of {program}")))
        found, waiting = set(), [str(program)]
        while waiting:
            file = _resolved(self.root(), waiting.pop())
            text = run([self.tool("readelf"), "-ldW", file], f"listing the libraries of {file.name}")
            names = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
            for name in {f"/lib/{self.name}-linux-gnu/{name}" for name in names if not name.startswith("ld-")} - found:
                found.add(name)
                waiting.append(name)
            found.update(re.findall(r"program interpreter: (\S+)\]", text))
        return found


X86_64 = Processor("x86_64", "amd64")
AARCH64 = Processor("aarch64", "arm64")


def native():
    """This machine's own."""
    return next((known for known in (X86_64, AARCH64) if known.native), X86_64)


def of_name(name):
    """The one that `uname -m` calls so; a failure where there is none."""
    for known in (X86_64, AARCH64):
        if known.name == name:
            return known
    raise Failure(f"there are guests for x86_64 and aarch64, not for {name}")


def available(processor):
    """Why programs for a processor cannot be had here; None when they can."""
    if processor.native:
        return None
    if processor is X86_64:
        return "machines of x86_64 are not emulated on other processors"
    if packages.is_ubuntu():
        return f"this distribution's mirror has no packages for {processor.name}"
    return None


def know_packages(processor):
    """Has apt know of a foreign processor's packages."""
    if processor.native:
        return
    known = run(["dpkg", "--print-foreign-architectures"], "listing foreign architectures").split()
    if processor.debian not in known:
        with step(f"adding the architecture {processor.debian} to apt"):
            run(packages.as_root(["dpkg", "--add-architecture", processor.debian]), "adding an architecture")
            packages.update()


def _foreign_root(processor):
    # Other working copies of the project, which share the cache, may want others.
    place = cache(processor.name) / f"root-{fingerprint(*ROOT_PACKAGES, packages.codename())}"
    if place.exists():
        return place
    with lock(f"root-{processor.name}"):
        if not place.exists():
            packages.ensure(["mmdebstrap"])
            new = place.with_suffix(".new")
            with step(f"unpacking programs for {processor.name}"):
                disks.unpack(new, processor.debian, ROOT_PACKAGES)
            run(packages.as_root(["mv", str(new), str(place)]), "placing a root file system")
    return place


def _resolved(root, path):
    """The file at `path` in `root`: absolute links, too, lead to places inside."""
    here = root
    parts = [part for part in Path(path).parts if part != "/"]
    hops = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            here = here.parent if here != root else root
            continue
        here = here / part
        if here.is_symlink():
            hops += 1
            if hops > 40:
                raise OSError(f"{path}: too many links")
            link = Path(os.readlink(here))
            here = root if link.is_absolute() else here.parent
            parts = [word for word in link.parts if word != "/"] + parts
    return here
