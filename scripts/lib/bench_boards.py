"""What differs from processor to processor in what is measured: QEMU's machines, and what guests find in a machine."""

from dataclasses import dataclass
from pathlib import Path

import processors


@dataclass(frozen=True)
class Board:
    """The machines of one processor."""

    package: str  # the distribution's, with QEMU
    qemu: Path
    machines: tuple  # of QEMU; `qemu-` and one of them is a kind of monitor
    hotplug: str  # words of the bare-metal guest: where Vivarium's machines with ACPI have the PCI hotplug controller
    exits: dict  # by the name of a way to the monitor and back: the words of the bare-metal guest's task, and what it is called
    command_line: str  # a stock kernel's
    forms: dict  # the forms of a stock kernel: what each is called


PC = Board(
    package="qemu-system-x86",
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    machines=("microvm", "q35"),
    hotplug="hotplug=0x620",
    exits={"pio": ("kind=pio", "port write"), "mmio": ("kind=mmio", "memory write")},
    command_line="console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check",
    forms={"bzimage": "bzImage", "vmlinux": "uncompressed"},
)

# The write is to a register of the serial port (UARTICR) that does nothing with it: nothing else is at the same place in all
# monitors' machines, and a place that is empty has QEMU raise an abort.
ARM = Board(
    package="qemu-system-arm",
    qemu=Path("/usr/bin/qemu-system-aarch64"),
    machines=("virt",),
    # And configuration space, of which the guest would be told by a device tree (both: `arch/src/aarch64/layout.rs`).
    hotplug="at=0x9080000 ecam=0x30000000",
    exits={"mmio": ("kind=mmio at=0x9000044", "memory write")},
    command_line="console=ttyAMA0 quiet panic=-1",
    forms={"image": "Image", "gzip": "compressed by gzip"},
)

BOARDS = {processors.X86_64: PC, processors.AARCH64: ARM}


def native():
    """Those of this machine's processor."""
    return BOARDS[processors.native()]
