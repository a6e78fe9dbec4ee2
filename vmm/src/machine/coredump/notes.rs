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
    if region.read_slice(&mut start, MemoryRegionAddress(offset)).is_err() || !start.ends_with(NAME) {
        return;
    }
    // The lengths of name and content, and the type.
    let [11, size, 0] = [0, 4, 8].map(|at| {
        start.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
    }) else {
        return;
    };
    if size as usize <= LARGEST
        && region.read_slice(&mut page, MemoryRegionAddress(offset)).is_ok()
        && let Some(content) = page.get(HEADER..).and_then(|page| page.get(..size as usize))
        && content.starts_with(FIRST)
        && !notes.windows(NAME.len()).any(|window| window == NAME)
    {
        kernel_note(notes, content);
    }
}

/// Appends the kernel's own note.
pub fn kernel_note(notes: &mut Vec<u8>, content: &[u8]) {
    note(notes, b"VMCOREINFO", NT_OTHER, content);
}

/// Appends a note.
pub fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    for word in [(name.len() as u32).saturating_add(1), content.len() as u32, kind] {
        notes.extend(word.to_le_bytes());
    }
    // A name ends with a zero, and both are padded to words.
    for (part, end) in [(name, &[0][..]), (content, &[])] {
        notes.extend(part);
        notes.extend(end);
        let padding = part.len().wrapping_add(end.len()).wrapping_neg() & 3;
        notes.extend(std::iter::repeat_n(0, padding));
    }
}

/// `struct elf_prstatus` of Linux: the thread of this number, with these general registers in the architecture's order.
pub fn prstatus(number: u32, registers: &[u64]) -> Vec<u8> {
    /// Where the thread's number and the registers are.
    const NUMBER: usize = 32;
    const REGISTERS: usize = 112;
    let mut status = vec![0; NUMBER];
    status.extend(number.to_le_bytes());
    status.resize(REGISTERS, 0);
    status.extend(registers.iter().flat_map(|register| register.to_le_bytes()));
    // There is another note with the floating-point registers; and padding.
    status.extend(1_u64.to_le_bytes());
    status
}
