//! Base address registers (PCIe 6.0, 7.5.1.2.1): kinds of window, and windows as mapped.

use machine::bus::Range;

/// What kind of window a BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports; 4 to 256 of them.
    Io,
    /// Memory below 4 GiB; 16 bytes to 2 GiB.
    Memory32 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
    /// Memory anywhere; 16 bytes to 2^63 bytes. Takes two registers.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
    /// The expansion ROM, below 4 GiB; 2 KiB to 16 MiB. Always number [`ROM_BAR`].
    Rom,
}

/// Which address space a window is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Memory.
    Memory,
    /// I/O ports.
    Io,
}

impl BarKind {
    /// The address space of such a window.
    pub fn space(self) -> Space {
        if self == Self::Io { Space::Io } else { Space::Memory }
    }

    /// Its name, for inspection: `io`, `memory32`, `memory64` or `rom`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Memory32 { .. } => "memory32",
            Self::Memory64 { .. } => "memory64",
            Self::Rom => "rom",
        }
    }

    /// Whether reads have no side effects and writes may be merged.
    pub fn prefetchable(self) -> bool {
        matches!(self, Self::Memory32 { prefetchable: true } | Self::Memory64 { prefetchable: true })
    }

    /// The sizes such a window may have, in bytes; always a power of two.
    pub(crate) fn sizes(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::Io => 4..=256,
            Self::Memory32 { .. } => 16..=1 << 31,
            Self::Memory64 { .. } => 16..=1 << 63,
            Self::Rom => 2048..=16 << 20,
        }
    }

    /// The read-only low bits of the register.
    pub(crate) fn flags(self) -> u32 {
        match self {
            Self::Io => 1,
            Self::Memory32 { prefetchable } => u32::from(prefetchable) << 3,
            Self::Memory64 { prefetchable } => 4 | u32::from(prefetchable) << 3,
            Self::Rom => 0,
        }
    }
}

/// The number of the expansion ROM's BAR.
pub const ROM_BAR: u8 = 6;

/// A BAR: a window a function asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5, or [`ROM_BAR`].
    pub number: u8,
    /// The kind of window.
    pub kind: BarKind,
    /// Its size in bytes, a power of two.
    pub size: u64,
}

/// A window where the function answers now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappedBar {
    /// The BAR's number, 0 to 5, or [`ROM_BAR`].
    pub bar: u8,
    /// The address space it is in.
    pub space: Space,
    /// Its first address; a multiple of the size, and not zero.
    pub address: u64,
    /// Its size in bytes (or ports). The window does not run over the end of its space.
    pub size: u64,
}

impl MappedBar {
    /// The addresses it takes.
    pub fn range(self) -> Range {
        Range { start: self.address, size: self.size }
    }
}
