//! Names of the registers of a type-0 header, and what identifies a function (PCIe 6.0, 7.5.1).

/// Offsets of the registers of a type-0 header (PCIe 6.0, 7.5.1).
pub mod register {
    /// Vendor ID, 2 bytes.
    pub const VENDOR: u16 = 0x00;
    /// Device ID, 2 bytes.
    pub const DEVICE: u16 = 0x02;
    /// Command, 2 bytes.
    pub const COMMAND: u16 = 0x04;
    /// Status, 2 bytes.
    pub const STATUS: u16 = 0x06;
    /// Revision ID, 1 byte; the class code follows it.
    pub const REVISION: u16 = 0x08;
    /// Header type, 1 byte.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// The first BAR, 4 bytes; five more follow it.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID, 2 bytes; the subsystem ID follows it.
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    /// Expansion ROM base address, 4 bytes.
    pub const ROM: u16 = 0x30;
    /// Offset of the first capability, 1 byte.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 1 byte; software's scratch.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 1 byte: 1 to 4 for INTA to INTD, 0 for none.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register.
pub mod command {
    /// The function answers in its I/O windows.
    pub const IO: u16 = 1;
    /// The function answers in its memory windows.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may make memory accesses.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// The interrupt pin is kept inactive.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// All bits the guest may write; also parity and system error reporting, which never happen.
    pub(crate) const WRITABLE: u16 = IO | MEMORY | BUS_MASTER | 1 << 6 | 1 << 8 | INTX_DISABLE;
}

/// What a function is: the identifying registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, sub-class and programming interface in bits 23:16, 15:8 and 7:0.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}
