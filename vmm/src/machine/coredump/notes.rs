//! The notes of a core dump that are the same on all architectures: a thread's state as Linux writes it (`elf_prstatus`), for each
//! CPU; and the kernel's own note (VMCOREINFO), by which tools find their way in its memory.

use machine::memory::{Bytes, GuestRegion};
use vm_memory::MemoryRegionAddress;

/// A thread's general registers.
pub const NT_PRSTATUS: u32 = 1;
/// A thread's floating-point and vector registers.
pub const NT_FPREGSET: u32 = 2;
/// The type of the kernel's note, and of QEMU's.
pub const NT_OTHER: u32 = 0;

/// Adds the kernel's note if it is what the page at `offset` begins with. The guest can put anything there: it is copied, and
/// never read here.
pub fn add_kernel_note(region: &GuestRegion, offset: u64, notes: &mut Vec<u8>) {
    /// `n_namesz` and `n_type`, and the name with its padding.
    const NAME: &[u8; 12] = b"VMCOREINFO\0\0";
    const HEADER: usize = 12 + NAME.len();
    const FIRST: &[u8] = b"OSRELEASE=";
    /// Notes of this many CPUs and more are not looked for.
    const LARGEST: usize = 4096 - HEADER;
    let mut page = [0; 4096];
    // The name alone decides for nearly all pages.
    let mut start = [0; HEADER];
    if region.read_slice(&mut start, MemoryRegionAddress(offset)).is_err() || start[12..] != *NAME {
        return;
    }
    let word = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    let size = word(4) as usize;
    if word(0) != 11 || word(8) != 0 || size > LARGEST {
        return;
    }
    if region.read_slice(&mut page, MemoryRegionAddress(offset)).is_ok()
        && page[HEADER..HEADER + size].starts_with(FIRST)
        && !notes.windows(NAME.len()).any(|window| window == NAME)
    {
        kernel_note(notes, &page[HEADER..HEADER + size]);
    }
}

/// Appends the kernel's own note.
pub fn kernel_note(notes: &mut Vec<u8>, content: &[u8]) {
    note(notes, b"VMCOREINFO", NT_OTHER, content);
}

/// Appends a note.
pub fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    for word in [name.len() as u32 + 1, content.len() as u32, kind] {
        notes.extend(word.to_le_bytes());
    }
    for part in [name, content] {
        notes.extend(part);
        // A name ends with a zero, and both are padded to words.
        let padding = if std::ptr::eq(part, name) {
            4 - part.len() % 4
        } else {
            part.len().next_multiple_of(4) - part.len()
        };
        notes.extend(std::iter::repeat_n(0, padding));
    }
}

/// `struct elf_prstatus` of Linux: the thread of this number, with these general registers in the architecture's order.
pub fn prstatus(number: u32, registers: &[u64]) -> Vec<u8> {
    /// Where the thread's number and the registers are.
    const NUMBER: usize = 32;
    const REGISTERS: usize = 112;
    let mut status = vec![0; REGISTERS];
    status[NUMBER..NUMBER + 4].copy_from_slice(&number.to_le_bytes());
    status.extend(registers.iter().flat_map(|register| register.to_le_bytes()));
    // There is another note with the floating-point registers; and padding.
    status.extend(1_u64.to_le_bytes());
    status
}
