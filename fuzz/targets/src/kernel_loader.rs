//! `kernel_loader`: files that are given as a kernel.

use crate::kernel_file::{Files, check_error, memory};
use arch::x86_64::boot::load_kernel;
use arch::x86_64::layout::{ACPI_RSDP, LayoutRequest, MemoryLayout};
use machine::memory::Memory;
use std::sync::OnceLock;

const RAM: u64 = 32 << 20;

/// The input is two bytes of choices, the size of the initramfs and the length of the command line, and the file.
pub fn kernel_loader(data: &[u8]) {
    // What an earlier file left in memory must not matter, so it is made only once.
    static MACHINE: OnceLock<(Memory, MemoryLayout)> = OnceLock::new();
    let (memory, layout) = MACHINE.get_or_init(|| {
        let layout = MemoryLayout::new(&LayoutRequest::new(RAM, 40)).expect("there is enough RAM");
        (memory(layout.ram()), layout)
    });
    let Files { mut kernel, mut initramfs, command_line } = Files::of(data);
    match load_kernel(memory, layout, &mut kernel, initramfs.as_mut(), &command_line, ACPI_RSDP) {
        Ok(entry) => {
            assert!(entry.address.0 < RAM, "the entry is in RAM: {entry:?}");
            assert!(entry.boot_data.0 < 1 << 20, "what the kernel is told lies low: {entry:?}");
        }
        Err(error) => check_error(&error),
    }
}
