//! What the monitor tells a guest at its start: the command line, the memory map and the ACPI tables.
//!
//! PVH: `hvm_start_info` (the Xen project's start_info.h). Linux: `boot_params` (the x86 boot protocol's "zero page").

use crate::boot_info::BootInfo;

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

impl Entry {
    /// By the number that `boot.s` gives it.
    pub fn of(number: u32) -> Self {
        if number == 0 { Entry::Pvh } else { Entry::Linux }
    }
}

impl BootInfo {
    /// Copies what lies at `address`.
    ///
    /// # Safety
    /// `address` is that of a structure of `entry`'s protocol in mapped memory.
    pub unsafe fn read(address: u64, entry: Entry) -> BootInfo {
        let mut information = BootInfo::new(entry);
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
            self.keep_text(field(address + 24));
            self.rsdp = field(address + 32);
            if version >= 1 {
                let (map, count) = (field::<u64>(address + 40), field::<u32>(address + 48));
                for index in 0..u64::from(count) {
                    self.keep_entry(map + 24 * index);
                }
            }
        }
    }

    unsafe fn read_linux(&mut self, address: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            self.rsdp = field(address + 0x70);
            self.keep_text(
                u64::from(field::<u32>(address + 0x228)) | u64::from(field::<u32>(address + 0xc8)) << 32,
            );
            for index in 0..u64::from(field::<u8>(address + 0x1e8)) {
                self.keep_entry(address + 0x2d0 + 20 * index);
            }
        }
    }

    /// Keeps the zero-terminated text at `address`, if there is one.
    unsafe fn keep_text(&mut self, address: u64) {
        if address != 0 {
            // SAFETY: the caller's promise.
            unsafe { self.keep_line(address, usize::MAX) };
        }
    }

    /// Keeps an entry of either map: both begin with address, size and type.
    unsafe fn keep_entry(&mut self, entry: u64) {
        // SAFETY: the caller's promise.
        let (start, size, kind) =
            unsafe { (field::<u64>(entry), field::<u64>(entry + 8), field::<u32>(entry + 16)) };
        if kind == 1 {
            self.keep_region(start, size);
        }
    }
}

unsafe fn field<T: Copy>(address: u64) -> T {
    // SAFETY: the caller's promise that the field is there.
    unsafe { (address as *const T).read_unaligned() }
}
