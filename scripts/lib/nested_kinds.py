"""The nested hosts there are: what QEMU emulates, and what Linux there is told and given. All have a complete `/dev/kvm`."""

from dataclasses import dataclass, field, replace

import packages
import processors
from places import CACHE, PROJECT, TARGET
from processors import AARCH64, X86_64, Processor
from tsc import kilohertz


@dataclass(frozen=True)
class Kind:
    """One of them."""

    name: str
    processor: Processor
    package: str  # the distribution's, with QEMU
    program: str
    machine: str  # QEMU's -M, without where memory is
    options: list
    memory: str
    serial: str  # the kernel's name of the serial port
    modules: list  # loaded before the snapshot. All others of the kernel's package can be loaded from a test, by modprobe
    module_options: dict = field(default_factory=dict)
    words: str = ""  # more of the kernel's command line
    devices: list = field(default_factory=list)  # more of QEMU's options
    restorable: bool = True  # else it is booted for each command

    def command_line(self):
        """The kernel's."""
        counter = kilohertz() if self.processor is X86_64 else None
        return (
            f"console={self.serial} quiet loglevel=4 mitigations=off nokaslr panic=-1 oops=panic random.trust_cpu=on "
            f"nowatchdog {self.words} {f'tsc_early_khz={counter}' if counter else ''}"
        ).strip()

    def kernel_file(self, kernel):
        """The form of a kernel that QEMU boots fastest."""
        return kernel.vmlinux() if self.processor is X86_64 else kernel.image

    def root(self):
        """The outer machine's folder that is the root of commands in the nested host."""
        return self.processor.root()

    def folders(self):
        """The outer machine's folders that commands see at their own paths, where its root is not theirs."""
        if self.processor.native:
            return []
        wanted = sorted({str(PROJECT), str(TARGET.absolute()), str(CACHE)}, key=len)
        # A folder in another one is there already.
        return [path for path in wanted if not any(path.startswith(f"{other}/") for other in wanted)]

    def ensure_qemu(self):
        """Installs QEMU where it is missing."""
        # Debian 12's own is too old to restore from a file; the newer one comes with its firmware and tools.
        suite = "bookworm-backports" if packages.codename() == "bookworm" else None
        packages.ensure([self.package], suite=suite)


COMMON_MODULES = [
    "virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "9pnet_virtio", "9p", "overlay", "ext4", "crc32c_generic?", "brd", "loop",
    "fuse", "tun", "tap", "vhost_net", "vhost_vsock", "bridge", "veth", "vfio_pci", "vfio_iommu_type1",
]  # fmt: skip

# Sizes brd's disk, the ext4 scratch space; pages are taken only as they are written.
SCRATCH = {"brd": "rd_nr=1 rd_size=4194304"}

# What measured fastest and steady: other CPU models and one-threaded emulation are slower or hang.
PC = Kind(
    name="x86_64",
    processor=X86_64,
    package="qemu-system-x86",
    program="qemu-system-x86_64",
    machine="q35",
    options=["-cpu", "EPYC", "-smp", "2", "-accel", "tcg,thread=multi,tb-size=1024"],
    memory="3G",
    serial="ttyS0",
    modules=[*COMMON_MODULES, "kvm_amd"],
    module_options=SCRATCH,
    words="tsc=reliable no_timer_check",
)

# The kernel is kept out of the hypervisor's exception level: QEMU's saved state has no timer of that, and a kernel that waits for
# one at the time of the snapshot would wait forever.
# Without pointer authentication and vectors, which cost most of the time and are the same to a guest. With more threads than
# one, the emulator spends its time in locks.
ARM = Kind(
    name="aarch64",
    processor=AARCH64,
    package="qemu-system-arm",
    program="qemu-system-aarch64",
    machine="virt,virtualization=on,gic-version=3",
    options=["-cpu", "max,pauth=off,sve=off,sme=off", "-smp", "1", "-accel", "tcg,thread=single,tb-size=1024"],
    memory="3G",
    serial="ttyAMA0",
    modules=COMMON_MODULES,
    module_options=SCRATCH,
    words="kvm-arm.mode=nvhe",
)

# With an IOMMU, and a device behind it that nothing else needs.
ARM_IOMMU = replace(
    ARM,
    name="aarch64-iommu",
    machine=f"{ARM.machine},iommu=smmuv3",
    words=f"{ARM.words} iommu.passthrough=1",
    devices=["-device", "virtio-rng-pci,disable-legacy=on,iommu_platform=on,addr=1e.0"],
)

# With the kernel in the hypervisor's own exception level, as most Arm hosts have it.
ARM_VHE = replace(ARM, name="aarch64-vhe", words="", restorable=False)

# With what the usual one leaves out. Of the algorithms for pointer authentication, the one that is quick to emulate.
ARM_SVE = replace(
    ARM_VHE,
    name="aarch64-sve",
    options=["-cpu", "max,pauth-impdef=on,sve-max-vq=2,sme=off", *ARM.options[2:]],
)

KINDS = {kind.name: kind for kind in (PC, ARM, ARM_IOMMU, ARM_VHE, ARM_SVE)}


def native():
    """The one whose commands are this machine's own programs."""
    return of_processor(processors.native())


def of_processor(processor):
    """The usual one of a processor."""
    return ARM if processor is AARCH64 else PC


def of_program(path):
    """The one that a program is built for, by its ELF header (`e_machine`)."""
    with open(path, "rb") as file:
        start = file.read(20)
    return {62: PC, 183: ARM}.get(int.from_bytes(start[18:20], "little"), native()) if start[:4] == b"\x7fELF" else native()
