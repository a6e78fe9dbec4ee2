//! Where a machine's registers are, for guests that are scripts and know no tables. Such a machine has ACPI.

use crate::Architecture::{self, Aarch64, X86_64};

/// Where a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A guest-physical address.
    Memory(u64),
}

impl Register {
    /// The register so many bytes behind this one.
    #[must_use]
    pub fn after(self, bytes: u16) -> Self {
        match self {
            Self::Port(port) => Self::Port(port + bytes),
            Self::Memory(address) => Self::Memory(address + u64::from(bytes)),
        }
    }
}

impl Architecture {
    /// The guest-physical address of the first byte of RAM.
    pub const fn ram_start(self) -> u64 {
        match self {
            X86_64 => 0,
            Aarch64 => 1 << 30,
        }
    }

    /// A register that can be read as often as one likes.
    pub fn idle(self) -> Register {
        match self {
            X86_64 => Register::Port(0x80),
            // The clock.
            Aarch64 => Register::Memory(0x901_0000),
        }
    }

    /// What the monitor calls a CPU's exit for a read of [`Architecture::idle`].
    pub fn idle_exit(self) -> &'static str {
        match self {
            X86_64 => "port_read",
            Aarch64 => "mmio_read",
        }
    }

    /// The serial port's register that takes what is to be sent.
    pub fn serial_data(self) -> Register {
        match self {
            X86_64 => Register::Port(0x3f8),
            Aarch64 => Register::Memory(0x900_0000),
        }
    }

    /// A register of the serial port that keeps a byte and does nothing with it: zero at power-on.
    pub fn serial_scratch(self) -> Register {
        match self {
            X86_64 => Register::Port(0x3ff),
            // Its infrared divisor.
            Aarch64 => Register::Memory(0x900_0020),
        }
    }

    /// The selector and the data of the firmware configuration device.
    pub fn fw_cfg(self) -> [Register; 2] {
        match self {
            X86_64 => [Register::Port(0x510), Register::Port(0x511)],
            Aarch64 => [Register::Memory(0x902_0008), Register::Memory(0x902_0000)],
        }
    }

    /// The PCI hotplug controller.
    pub fn pci_hotplug(self) -> Register {
        match self {
            X86_64 => Register::Port(0x620),
            Aarch64 => Register::Memory(0x908_0000),
        }
    }

    /// The CPU hotplug controller.
    pub fn cpu_hotplug(self) -> Register {
        match self {
            X86_64 => Register::Port(0x640),
            Aarch64 => Register::Memory(0x906_0000),
        }
    }

    /// The memory hotplug controller.
    pub fn memory_hotplug(self) -> Register {
        match self {
            X86_64 => Register::Port(0x660),
            Aarch64 => Register::Memory(0x907_0000),
        }
    }

    /// GDB's names of the register with the address of the next instruction, and of one that can have any value.
    pub fn gdb_registers(self) -> [&'static str; 2] {
        match self {
            X86_64 => ["rip", "rbx"],
            Aarch64 => ["pc", "x3"],
        }
    }
}
