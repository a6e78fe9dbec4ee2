//! The least that the monitor takes for a kernel: an ELF with a PVH note and one page of code. For machines whose CPUs
//! follow a script and never look at it.

/// Where its page is loaded and entered.
const ADDRESS: u64 = 0x10_0000;
const CODE_AT: usize = 0x200;
const NOTE_AT: usize = 0x100;
const NOTE_SIZE: usize = 20;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the note with the 32-bit entry point of PVH.
const PHYS32_ENTRY: u32 = 18;

/// The file's bytes.
pub fn bytes() -> Vec<u8> {
    let mut file = vec![0; CODE_AT + 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // ELF header: 64 bits, little endian; executable for x86-64; two program headers.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &ADDRESS.to_le_bytes());
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
    header(64, 1, 5, CODE_AT, ADDRESS, 4096);
    header(120, 4, 4, NOTE_AT, 0, NOTE_SIZE);
    for (index, word) in
        [4, 4, PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), ADDRESS as u32].into_iter().enumerate()
    {
        put(NOTE_AT + index * 4, &word.to_le_bytes());
    }
    // A loop that halts.
    put(CODE_AT, &[0xf4, 0xeb, 0xfd]);
    file
}
