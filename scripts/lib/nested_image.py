"""What the nested host boots: a stock kernel, and an initramfs with the modules that a KVM host needs."""

import packages
from cpio import Archive
from kernels import Modules, nested_host
from places import PROJECT, cache, replace
from report import Failure

INIT = PROJECT / "scripts" / "lib" / "nested-init"

# Loaded before the snapshot. All others of the kernel's package can be loaded from a test, by modprobe.
MODULES = [
    "virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "9pnet_virtio", "9p", "overlay", "ext4", "crc32c_generic?", "brd", "loop",
    "fuse", "kvm_amd", "tun", "tap", "vhost_net", "vhost_vsock", "bridge", "veth", "vfio_pci", "vfio_iommu_type1",
]  # fmt: skip

# Sizes brd's disk, the ext4 scratch space; pages are taken only as they are written.
MODULE_OPTIONS = {"brd": "rd_nr=1 rd_size=4194304"}

LOAD_MODULE = """#!/bin/sh
# The kernel asks for a module by running this in the first root.
[ -d /newroot/share ] && exec chroot /newroot /sbin/modprobe "$@"
"""

RUN_JOB = """#!/bin/sh
# The outer machine's root becomes that of this mount namespace: merely chrooted into it, nobody could make a user namespace.
cd /newroot && mount -o move . / && exec chroot . /bin/sh /share/job
"""


def build():
    """Returns the kernel and the path of the initramfs, both made when missing or out of date."""
    packages.ensure(["busybox-static"])
    kernel = nested_host()
    modules = Modules(kernel)
    paths = modules.closure(MODULES)
    archive = Archive()
    for folder in ("dev", "proc", "sys", "tmp"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.program("bin/busybox", busybox())
    archive.program("init", INIT.read_bytes())
    archive.program("sbin/load-module", LOAD_MODULE)
    archive.program("sbin/run-job", RUN_JOB)
    order = []
    for path in paths:
        name = path.rsplit("/", 1)[1].split(".ko")[0].replace("-", "_") + ".ko"
        archive.file(f"modules/{name}", modules.content(path))
        order.append(f"{name} {MODULE_OPTIONS.get(name.removesuffix('.ko'), '')}".strip())
    archive.file("modules/order", "\n".join(order) + "\n")
    initramfs = cache("nested") / "initramfs.cpio"
    data = archive.bytes()
    if not initramfs.exists() or initramfs.read_bytes() != data:
        replace(initramfs, data)
    return kernel, initramfs


def busybox():
    """The static busybox's bytes."""
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            continue
    raise Failure("/bin/busybox is missing although the package busybox-static is installed")
