//! A copy of what the monitor tells a guest at its start, so that the memory it is in may be reused.

use crate::native::boot::Entry;

/// Longest command line that is kept, in bytes.
const COMMAND_LINE_MAXIMUM: usize = 4096;
/// Most memory ranges that are kept.
const REGIONS_MAXIMUM: usize = 32;

/// A range of usable RAM.
#[derive(Clone, Copy, Default)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

/// The copy. How it is read is each architecture's business.
pub struct BootInfo {
    /// How the guest was entered.
    pub entry: Entry,
    /// Address of the ACPI RSDP; 0 if the monitor passed none.
    pub rsdp: u64,
    /// ECAM's address, where the monitor tells of it without ACPI tables.
    pub ecam: Option<u64>,
    line: [u8; COMMAND_LINE_MAXIMUM],
    line_length: usize,
    regions: [Region; REGIONS_MAXIMUM],
    regions_count: usize,
}

impl BootInfo {
    /// Nothing is known but how the guest was entered.
    pub fn new(entry: Entry) -> Self {
        Self {
            entry,
            rsdp: 0,
            ecam: None,
            line: [0; COMMAND_LINE_MAXIMUM],
            line_length: 0,
            regions: [Region::default(); REGIONS_MAXIMUM],
            regions_count: 0,
        }
    }

    /// Keeps the command line at `address`, up to its zero byte and at most `size` bytes of it.
    ///
    /// # Safety
    /// They are in mapped memory.
    pub unsafe fn keep_line(&mut self, address: u64, size: usize) {
        while self.line_length < size.min(COMMAND_LINE_MAXIMUM) {
            // SAFETY: the caller's promise. Volatile, so that the compiler does not make a call of strlen out of the loop.
            let byte = unsafe { (address as *const u8).add(self.line_length).read_volatile() };
            if byte == 0 {
                break;
            }
            self.line[self.line_length] = byte;
            self.line_length += 1;
        }
    }

    /// Keeps a range of usable RAM, if there is room.
    pub fn keep_region(&mut self, start: u64, size: u64) {
        if let Some(region) = self.regions.get_mut(self.regions_count) {
            *region = Region { start, end: start.saturating_add(size) };
            self.regions_count += 1;
        }
    }

    /// The kernel command line; empty if it is not UTF-8.
    pub fn command_line(&self) -> &str {
        core::str::from_utf8(&self.line[..self.line_length]).unwrap_or("")
    }

    /// The usable RAM, in the monitor's order.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.regions_count]
    }
}
