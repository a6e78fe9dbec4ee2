//! The least that the monitor takes for a kernel: one page of code with the header that its architecture asks for. For machines
//! whose CPUs follow a script and never look at it.

use crate::{Architecture, native};

/// Bytes of the code and what is loaded with it.
const SIZE: usize = 4096;

/// The file's bytes.
pub fn bytes() -> Vec<u8> {
    match native() {
        Architecture::X86_64 => elf(),
        Architecture::Aarch64 => image(),
    }
}

/// Where the boot CPU enters it.
pub fn entry() -> u64 {
    match native() {
        Architecture::X86_64 => ELF_ADDRESS,
        // Behind what is kept for the device tree.
        Architecture::Aarch64 => native().ram_start() + (2 << 20),
    }
}

/// The first bytes of its code: a CPU that halts.
pub fn code() -> [u8; 3] {
    match native() {
        // hlt, jmp to it.
        Architecture::X86_64 => [0xf4, 0xeb, 0xfd],
        // wfi, all but its last byte.
        Architecture::Aarch64 => [0x7f, 0x20, 0x03],
    }
}

/// Where the ELF's page is loaded and entered.
const ELF_ADDRESS: u64 = 0x10_0000;
const CODE_AT: usize = 0x200;
const NOTE_AT: usize = 0x100;
const NOTE_SIZE: usize = 20;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the note with the 32-bit entry point of PVH.
const PHYS32_ENTRY: u32 = 18;

/// An ELF with a PVH note.
fn elf() -> Vec<u8> {
    let mut file = vec![0; CODE_AT + SIZE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // ELF header: 64 bits, little endian; executable for x86-64; two program headers.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &ELF_ADDRESS.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0, 64]);
    let mut header = |at: usize, kind: u32, flags: u32, offset: usize, address: u64, size: usize| {
        put(at, &kind.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        let words = [offset as u64, address, address, size as u64, size as u64, 4];
        for (index, word) in words.into_iter().enumerate() {
            put(at + 8 + index * 8, &word.to_le_bytes());
        }
    };
    header(64, 1, 5, CODE_AT, ELF_ADDRESS, SIZE);
    header(120, 4, 4, NOTE_AT, 0, NOTE_SIZE);
    for (index, word) in
        [4, 4, PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), ELF_ADDRESS as u32].into_iter().enumerate()
    {
        put(NOTE_AT + index * 4, &word.to_le_bytes());
    }
    put(CODE_AT, &code());
    file
}

/// An `Image` (Linux, `Documentation/arch/arm64/booting.rst`), of which the header is the first instructions too.
fn image() -> Vec<u8> {
    let mut file = vec![0; SIZE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // wfi, and a jump to it.
    put(0, &0xd503_207f_u32.to_le_bytes());
    put(4, &0x17ff_ffff_u32.to_le_bytes());
    // It has no text offset, needs what the file has, and may be anywhere, with pages of 4 KiB.
    put(16, &(SIZE as u64).to_le_bytes());
    put(24, &0b1010_u64.to_le_bytes());
    put(56, b"ARM\x64");
    file
}
