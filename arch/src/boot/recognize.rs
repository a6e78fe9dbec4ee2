//! Says what a file that is not a kernel looks like, so that the user sees the mistake.

use super::fields;

/// Bytes of a file's start that are looked at.
pub(crate) const HEAD_SIZE: usize = 4096;

const ELF: &[u8] = b"\x7fELF";

/// Magic numbers: offset, bytes, what has them. The first that matches counts.
const MAGIC: &[(usize, &[u8], &str)] = &[
    (0x38, b"ARMd", "an aarch64 kernel Image"),
    (0x202, b"HdrS", "an x86 bzImage"),
    (0, ELF, "an ELF program"),
    (0x38, b"RSC\x05", "a RISC-V kernel Image"),
    (4, b"zimg", "a compressed EFI kernel image (EFI zboot), as Arm machines boot"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x5d\0\0", "an lzma file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"#!", "a script"),
    (0, b"070701", "an initramfs (cpio archive)"),
    (0, b"070702", "an initramfs (cpio archive)"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
    (0, b"!<arch>", "a Debian package or library archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"MZ", "an EFI or Windows program"),
    (0x1fe, b"\x55\xaa", "a disk image or boot sector"),
    (0x438, b"\x53\xef", "an ext4 file system"),
    (0x101, b"ustar", "a tar archive"),
];

/// What a file that starts with `head` looks like, with its article.
pub(crate) fn looks_like(head: &[u8]) -> &'static str {
    for (offset, magic, name) in MAGIC {
        if head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return if *magic == ELF { elf(head) } else { name };
        }
    }
    if head.iter().all(|&byte| byte == 0) {
        "zeroes"
    } else if head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        "a text file"
    } else {
        "unknown data"
    }
}

/// What an ELF that starts with `head` is for.
fn elf(head: &[u8]) -> &'static str {
    match fields::u16_at(head, 18) {
        Some(62) => "an ELF for x86_64",
        Some(183) => "an ELF for aarch64",
        _ => "an ELF program",
    }
}
