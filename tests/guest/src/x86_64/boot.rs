//! What the monitor tells a guest at its start: the command line, the memory map and the ACPI tables.
//!
//! PVH: `hvm_start_info` (the Xen project's start_info.h). Linux: `boot_params` (the x86 boot protocol's "zero page").

/// Longest command line that is kept, in bytes.
const COMMAND_LINE_MAXIMUM: usize = 4096;
/// Most memory map entries that are kept.
const REGIONS_MAXIMUM: usize = 32;
const PVH_MAGIC: u32 = 0x336e_c578;

/// The protocol by which the guest was entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// XEN_ELFNOTE_PHYS32_ENTRY.
    Pvh,
    /// The 64-bit entry of a Linux kernel.
    Linux,
}

impl Entry {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Entry::Pvh => "pvh",
            Entry::Linux => "linux",
        }
    }
}

/// A range of usable RAM.
#[derive(Clone, Copy, Default)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

impl Entry {
    /// By the number that `boot.s` gives it.
    pub fn of(number: u32) -> Self {
        if number == 0 { Entry::Pvh } else { Entry::Linux }
    }
}

/// A copy of the boot information, so that low memory may be reused.
pub struct BootInfo {
    /// How the guest was entered.
    pub entry: Entry,
    /// Address of the ACPI RSDP; 0 if the monitor passed none.
    pub rsdp: u64,
    /// ECAM's address, where the monitor tells of it without ACPI tables: never.
    pub ecam: Option<u64>,
    line: [u8; COMMAND_LINE_MAXIMUM],
    line_length: usize,
    regions: [Region; REGIONS_MAXIMUM],
    regions_count: usize,
}

impl BootInfo {
    /// Copies what lies at `address`.
    ///
    /// # Safety
    /// `address` is that of a structure of `entry`'s protocol in mapped memory.
    pub unsafe fn read(address: u64, entry: Entry) -> BootInfo {
        let mut information = BootInfo {
            entry,
            rsdp: 0,
            ecam: None,
            line: [0; COMMAND_LINE_MAXIMUM],
            line_length: 0,
            regions: [Region::default(); REGIONS_MAXIMUM],
            regions_count: 0,
        };
        // SAFETY: the caller's promise covers the fields of the structure and what they point to.
        unsafe {
            match entry {
                Entry::Pvh => information.read_pvh(address),
                Entry::Linux => information.read_linux(address),
            }
        }
        information
    }

    unsafe fn read_pvh(&mut self, address: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            if field::<u32>(address) != PVH_MAGIC {
                return;
            }
            let version = field::<u32>(address + 4);
            self.keep_line(field(address + 24));
            self.rsdp = field(address + 32);
            if version >= 1 {
                let (map, count) = (field::<u64>(address + 40), field::<u32>(address + 48));
                for index in 0..u64::from(count) {
                    self.keep_region(map + 24 * index);
                }
            }
        }
    }

    unsafe fn read_linux(&mut self, address: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            self.rsdp = field(address + 0x70);
            self.keep_line(
                u64::from(field::<u32>(address + 0x228)) | u64::from(field::<u32>(address + 0xc8)) << 32,
            );
            for index in 0..u64::from(field::<u8>(address + 0x1e8)) {
                self.keep_region(address + 0x2d0 + 20 * index);
            }
        }
    }

    unsafe fn keep_line(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        while self.line_length < COMMAND_LINE_MAXIMUM {
            // SAFETY: the caller's promise: the line ends with a zero byte. Volatile, so that the compiler does not
            // make a call of strlen out of the loop.
            let byte = unsafe { (address as *const u8).add(self.line_length).read_volatile() };
            if byte == 0 {
                break;
            }
            self.line[self.line_length] = byte;
            self.line_length += 1;
        }
    }

    /// Keeps an entry of either map: both begin with address, size and type.
    unsafe fn keep_region(&mut self, entry: u64) {
        // SAFETY: the caller's promise.
        let (start, size, kind) =
            unsafe { (field::<u64>(entry), field::<u64>(entry + 8), field::<u32>(entry + 16)) };
        if kind == 1 && self.regions_count < REGIONS_MAXIMUM {
            self.regions[self.regions_count] = Region { start, end: start.saturating_add(size) };
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

unsafe fn field<T: Copy>(address: u64) -> T {
    // SAFETY: the caller's promise that the field is there.
    unsafe { (address as *const T).read_unaligned() }
}
