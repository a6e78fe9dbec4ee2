"""Stock kernels, out of the distribution's own packages: bzImage, ELF `vmlinux` and modules.

Nothing is installed: a package is downloaded and unpacked into the cache. A kernel is asked for by its series
(`6.1`, `6.12`) and its flavour (`cloud` for guests, `generic` for the nested host)."""

import gzip
import lzma
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import packages
import processors
from places import cache, lock, replace
from processors import AARCH64, Processor
from report import Failure, run, step

# Where a Debian release keeps a series: the suite that a machine may lack.
DEBIAN_SUITES = {
    ("bookworm", "6.12"): "bookworm-backports",
    ("trixie", "6.1"): "bookworm",
}


@dataclass
class Kernel:
    """One unpacked kernel package."""

    folder: Path
    version: str  # as `uname -r` prints it
    processor: Processor = processors.native()

    @property
    def image(self):
        """What the distribution ships: a bzImage, or on Arm an Image, uncompressed if it ships that compressed."""
        return self.folder / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self):
        """The folder that holds `modules.dep`."""
        return self.folder / "lib" / "modules" / self.version

    def vmlinux(self):
        """Its other form, made on first use: of a bzImage the uncompressed ELF in it, of an Image one compressed by gzip."""
        path = self.folder / "boot" / f"vmlinux-{self.version}"
        if not path.exists():
            image = self.image.read_bytes()
            replace(path, gzip.compress(image, 6) if self.processor is AARCH64 else extract_vmlinux(image))
        return path

    def zboot(self, method):
        """An Arm kernel as an EFI zboot image, made on first use; `method` is one of `ZBOOT`."""
        path = self.folder / "boot" / f"zboot-{method}-{self.version}"
        if not path.exists():
            with step(f"making a kernel's zboot image with {method}"):
                replace(path, zboot(self.image.read_bytes(), method))
        return path


def guest_series(processor=None):
    """The series that guests are tested with, oldest first."""
    if packages.is_ubuntu():
        return [_ubuntu_series()]
    return ["6.12"] if (processor or processors.native()) is AARCH64 else ["6.1", "6.12"]


def guest(series, processor=None):
    """The newest cloud kernel of a series."""
    processor = processor or processors.native()
    if packages.is_ubuntu():
        return _ubuntu(series)
    return _unpack(processor, series, rf"linux-image-{_quoted(series)}\.[0-9][0-9.+~a-z-]*-cloud-{_flavour(processor)}")


def nested_host(processor=None):
    """The kernel of the nested host: one with KVM, vhost, IOMMU and VFIO drivers."""
    processor = processor or processors.native()
    if packages.is_ubuntu():
        return _ubuntu(_ubuntu_series())
    return _unpack(processor, "6.12", rf"linux-image-6\.12(\.[0-9]+)+[0-9+~.deb]*-{_flavour(processor)}")


def _flavour(processor):
    """The end of kernel packages' names. Those for Arm that have no signature are the first to be there."""
    return "amd64" if processor is processors.X86_64 else f"{processor.debian}-unsigned"


def plain_image(file):
    """The Image in the bytes of an Arm `vmlinuz`: Debian ships it as it is, Ubuntu compressed by gzip."""
    image = gzip.decompress(file) if file.startswith(b"\x1f\x8b") else file
    # Documentation/arch/arm64/booting.rst, `magic`.
    if image[56:60] != b"ARM\x64":
        raise Failure(f"an Arm kernel is neither an Image nor one compressed by gzip (it starts {file[:6].hex()})")
    return image


def extract_vmlinux(image):
    """The ELF inside a bzImage's bytes (Documentation/arch/x86/boot.rst, `payload_offset`)."""
    if image[0x202:0x206] != b"HdrS":
        raise Failure("not a bzImage: the boot header's magic is missing")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    # The build appends the uncompressed size, four bytes, to what some compressors made.
    if payload.startswith(b"\x1f\x8b"):
        elf = zlib.decompressobj(31).decompress(payload)
    elif payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        elf = filtered(["zstd", "-dc"], payload[:-4])
    elif payload.startswith(b"\x02\x21\x4c\x18"):
        elf = filtered(["lz4", "-dc"], payload[:-4])
    else:
        raise Failure(f"bzImage payload of unknown compression (starts {payload[:6].hex()})")
    if not elf.startswith(b"\x7fELF"):
        raise Failure("bzImage payload is not an ELF file")
    return elf


# How kernels' own builds compress what is in an EFI zboot image (Linux, `drivers/firmware/efi/libstub/Makefile.zboot`), and what
# the image calls it.
ZBOOT = {
    "gzip": (["gzip", "-n", "-9"], b"gzip"),
    "zstd": (["zstd", "-22", "--ultra", "-qc"], b"zstd22"),
    "xz": (["xz", "--check=crc32", "--arm64", "--lzma2=dict=128MiB"], b"xzkern"),
}
ZBOOT_HEADER_SIZE = 0x200


def zboot(image, method):
    """An EFI zboot image that holds `image` (Linux, `drivers/firmware/efi/libstub/zboot-header.S`), but for the program with which
    that starts as an EFI program."""
    packages.ensure(["gzip", "xz-utils", "zstd"])
    command, name = ZBOOT[method]
    payload = filtered(command, image)
    if method != "gzip":
        # Which has it in its own trailer.
        payload += struct.pack("<I", len(image))
    header = struct.pack("<4s4s4I32s", b"MZ", b"zimg", ZBOOT_HEADER_SIZE, len(payload), 0, 0, name)
    return header.ljust(ZBOOT_HEADER_SIZE, b"\0") + payload


def filtered(command, data):
    """`data` passed through a command."""
    result = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if result.returncode != 0:
        raise Failure(f"`{' '.join(command)}` failed", result.stderr.decode(errors="replace"))
    return result.stdout


def depmod(root, version):
    """Writes the lists of module dependencies under `root`."""
    run([packages.program("depmod", "kmod"), "-b", root, version], "listing module dependencies")


class Modules:
    """The modules of one kernel: which need which, and their contents without compression and debug data."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.needs = {}  # module name -> (path relative to the modules folder, names it needs)
        self.built_in = set()
        for line in (kernel.modules / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            self.needs[_module_name(path)] = (path, [_module_name(need) for need in needs.split()])
        for line in (kernel.modules / "modules.builtin").read_text().splitlines():
            self.built_in.add(_module_name(line))

    def closure(self, wanted):
        """Relative paths of the wanted modules and all they need, in an order in which they load. A name that
        the kernel has built in costs nothing; one that it does not have is a failure, unless it ends in `?`."""
        order = {}

        def add(name):
            if name in self.built_in:
                return
            if name not in self.needs:
                raise Failure(f"kernel {self.kernel.version} has no module {name}")
            path, needs = self.needs[name]
            # modules.dep lists the nearest need first.
            for need in reversed(needs):
                if need in self.needs:
                    order.setdefault(self.needs[need][0])
            order.setdefault(path)

        for name in wanted:
            optional = name.endswith("?")
            name = name.rstrip("?").replace("-", "_")
            if not optional or name in self.needs:
                add(name)
        return list(order)

    def content(self, path):
        """One module's loadable bytes. Signatures go with the debug data: stock kernels load unsigned modules."""
        plain = cache("modules", self.kernel.version) / (_module_name(path) + ".ko")
        if not plain.exists():
            data = (self.kernel.modules / path).read_bytes()
            if path.endswith(".xz"):
                data = lzma.decompress(data)
            elif path.endswith(".zst"):
                data = filtered(["zstd", "-dc"], data)
            elif path.endswith(".gz"):
                data = gzip.decompress(data)
            replace(plain, data)
            run([self.kernel.processor.tool("strip"), "--strip-debug", plain], f"stripping module {path}")
        return plain.read_bytes()


def _module_name(path):
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _quoted(series):
    return series.replace(".", r"\.")


# Ubuntu's own kernel for virtual machines depends on the image meant. Newer ones, for new hardware, are in the archive too.
UBUNTU_CHOICE = "linux-image-virtual"


def _ubuntu_series():
    image = re.search(r"linux-image-(\d+\.\d+)\.[0-9.]+-\d+-generic", packages.depends(UBUNTU_CHOICE))
    if not image:
        raise Failure(f"apt does not know what {UBUNTU_CHOICE} depends on: is the suite's component main enabled?")
    return image[1]


def _ubuntu(series):
    """Ubuntu has no cloud flavour in its main archive. Its modules are in packages of their own."""
    pattern = rf"linux-image-{_quoted(series)}\.[0-9.]+-[0-9]+-generic"
    return _unpack(processors.native(), series, pattern, ["linux-modules", "linux-modules-extra"])


def _unpack(processor, series, pattern, companions=()):
    """Downloads and unpacks the newest package that matches, and its `companions` with more modules. One already
    in the cache is used as long as it is there, so that a mirror's update does not rebuild everything."""
    packages.ensure(["kmod", "zstd", "lz4", "binutils"])
    if not processor.native:
        packages.ensure([f"binutils-{processor.name}-linux-gnu".replace("_", "-")])
    flavour = "cloud" if "cloud" in pattern else "generic"
    parts = () if processor.native else (processor.name,)
    folder = cache(*parts, "kernels") / f"{series}-{flavour}"
    with lock("-".join(("kernel", *parts, series, flavour))):
        done = folder / "version"
        if not done.exists():
            suite = DEBIAN_SUITES.get((packages.codename(), series))
            if suite:
                packages.ensure_suite(suite)
            processors.know_packages(processor)
            found = packages.names(pattern)
            if not found:
                raise Failure(
                    f"apt has no package like {pattern}: kernel {series} is not offered by this distribution's release"
                )
            _unpack_into(processor, folder, found[-1], companions)
        return Kernel(folder, done.read_text().strip(), processor)


def _unpack_into(processor, folder, name, companions):
    version = name.removeprefix("linux-image-").removesuffix("-unsigned")
    wanted = [name, *(f"{companion}-{version}" for companion in companions)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with step("fetching " + " ".join(wanted)):
        for package in wanted:
            file = packages.download(package, folder, None if processor.native else processor.debian)
            run(["dpkg-deb", "-x", file, folder], f"unpacking {package}")
            file.unlink()
        # Newer packages have modules under /usr only.
        if not (folder / "lib").exists():
            (folder / "lib").symlink_to("usr/lib")
        kernel = Kernel(folder, version, processor)
        if not kernel.image.exists() or not kernel.modules.is_dir():
            raise Failure(f"package {name} holds no boot/vmlinuz-{version} with its modules")
        if processor is AARCH64:
            replace(kernel.image, plain_image(kernel.image.read_bytes()))
        depmod(folder, version)
        replace(folder / "version", version + "\n")
