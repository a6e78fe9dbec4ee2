//! `kernel_loader`: files that are given as a kernel.

use crate::input::Input;
use arch::x86_64::boot::load_kernel;
use arch::x86_64::layout::{ACPI_RSDP, LayoutRequest, MemoryLayout};
use machine::memory::{GuestAddress, GuestRam, Memory};
use std::io::Cursor;
use std::sync::{Arc, OnceLock};

const RAM: u64 = 32 << 20;

/// The input is two bytes of choices, the initramfs's size and the command line's length, and the file.
pub fn kernel_loader(data: &[u8]) {
    // What an earlier file left in memory must not matter, so it is made only once.
    static MACHINE: OnceLock<(Memory, MemoryLayout)> = OnceLock::new();
    let (memory, layout) = MACHINE.get_or_init(|| {
        let layout = MemoryLayout::new(&LayoutRequest::new(RAM, 40)).expect("there is enough RAM");
        let ranges: Vec<_> =
            layout.ram().iter().map(|range| (GuestAddress(range.start), range.size as usize)).collect();
        (Arc::new(GuestRam::from_ranges(&ranges).expect("the host has memory")), layout)
    });
    let input = &mut Input::new(data);
    let initramfs = vec![0; usize::from(input.u8()) << 8];
    let mut initramfs = (!initramfs.is_empty()).then(|| Cursor::new(&initramfs[..]));
    let command_line = "c".repeat(usize::from(input.u8()) << 4);
    let kernel = &mut Cursor::new(input.rest());
    let loaded = load_kernel(memory, layout, kernel, initramfs.as_mut(), &command_line, ACPI_RSDP);
    match loaded {
        Ok(entry) => {
            assert!(entry.address.0 < RAM, "the entry is in RAM: {entry:?}");
            assert!(entry.boot_data.0 < 1 << 20, "what the kernel is told lies low: {entry:?}");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        }
    }
}
