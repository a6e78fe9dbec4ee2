//! `kernel_loader`: files that are given as a kernel of the architecture this is built for.

use crate::kernel_file::{Files, check_error, memory};
use arch::native::boot::load_kernel;
use arch::native::layout::{LayoutRequest, MemoryLayout};
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
    match load_kernel(memory, layout, &mut kernel, initramfs.as_mut(), &command_line) {
        Ok(loaded) => {
            let in_ram =
                |address| layout.ram().iter().any(|range| range.start <= address && address <= range.last());
            let entry = loaded.entry;
            assert!(in_ram(entry.address.0) && in_ram(entry.boot_data.0), "all of it is in RAM: {loaded:?}");
            // A kernel cannot have been loaded over what it is told.
            assert!(entry.boot_data < entry.address, "what the kernel is told lies below it: {loaded:?}");
            assert_eq!(loaded.initramfs.is_some(), initramfs.is_some(), "{loaded:?}");
            if let Some(place) = loaded.initramfs {
                assert!(in_ram(place.start) && in_ram(place.last()), "it is in RAM: {loaded:?}");
            }
        }
        Err(error) => check_error(&error),
    }
}
