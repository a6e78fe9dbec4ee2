"""What the nested host boots: a stock kernel, and an initramfs with the modules that a KVM host needs."""

from cpio import Archive
from kernels import Modules, nested_host
from places import PROJECT

INIT = PROJECT / "scripts" / "lib" / "nested-init"

LOAD_MODULE = """#!/bin/sh
# The kernel asks for a module by running this in the first root.
[ -d /newroot/share ] && exec chroot /newroot /sbin/modprobe "$@"
"""

RUN_JOB = """#!/bin/sh
# The outer machine's root becomes that of this mount namespace: merely chrooted into it, nobody could make a user namespace.
cd /newroot && mount -o move . / && exec chroot . /bin/sh /share/job
"""


def build(kind):
    """Returns the kernel, unpacked when missing, and the initramfs's bytes."""
    kernel = nested_host(kind.processor)
    modules = Modules(kernel)
    paths = modules.closure(kind.modules)
    archive = Archive()
    for folder in ("dev", "proc", "sys", "tmp"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.program("bin/busybox", kind.processor.busybox())
    archive.program("init", INIT.read_bytes())
    archive.program("sbin/load-module", LOAD_MODULE)
    archive.program("sbin/run-job", RUN_JOB)
    order = []
    for path in paths:
        name = path.rsplit("/", 1)[1].split(".ko")[0].replace("-", "_") + ".ko"
        archive.file(f"modules/{name}", modules.content(path))
        order.append(f"{name} {kind.module_options.get(name.removesuffix('.ko'), '')}".strip())
    archive.file("modules/order", "\n".join(order) + "\n")
    return kernel, archive.bytes()
