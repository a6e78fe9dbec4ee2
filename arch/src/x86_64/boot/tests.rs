//! Kernels made here, and files that are none.

use super::layout::{ACPI_RSDP, COMMAND_LINE, GDT, HIGH_RAM, LayoutRequest, PAGE_TABLES};
use super::*;
use machine::memory::{Bytes, GuestRam};
use proptest::prelude::*;
use std::io::Cursor;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn machine(ram: u64) -> (Memory, MemoryLayout) {
    let layout = MemoryLayout::new(&LayoutRequest::new(ram, 40)).unwrap();
    let ranges: Vec<_> =
        layout.ram().iter().map(|range| (GuestAddress(range.start), range.size as usize)).collect();
    (Arc::new(GuestRam::from_ranges(&ranges).unwrap()), layout)
}

fn boot(
    ram: u64,
    kernel: &[u8],
    initramfs: Option<&[u8]>,
    command_line: &str,
) -> (Memory, Result<EntryPoint, BootError>) {
    let (memory, layout) = machine(ram);
    // What was in memory before must not matter.
    memory.write_slice(&vec![0xa5; 0x10_0000], GuestAddress(0)).unwrap();
    let mut initramfs = initramfs.map(Cursor::new);
    let loaded = load_kernel(&memory, &layout, &mut Cursor::new(kernel), initramfs.as_mut(), command_line);
    (memory, loaded.map(|loaded| loaded.entry))
}

fn kernel_error(kernel: &[u8]) -> KernelError {
    match boot(64 * MIB, kernel, None, "").1 {
        Err(BootError::Kernel(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn bytes(memory: &Memory, address: u64, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    memory.read_slice(&mut data, GuestAddress(address)).unwrap();
    data
}

fn number(memory: &Memory, address: u64, size: usize) -> u64 {
    bytes(memory, address, size).iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn put(data: &mut [u8], offset: usize, value: u64, size: usize) {
    data[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// A bzImage as of Linux 6.1, with `payload` as the protected-mode kernel. The offsets are boot.rst's.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 5 * 512];
    put(&mut image, 0x1f1, 4, 1); // setup_sects
    put(&mut image, 0x1f4, payload.len().div_ceil(16) as u64, 4); // syssize
    put(&mut image, 0x1fe, 0xaa55, 2); // boot_flag
    put(&mut image, 0x200, 0x6aeb, 2); // jump over the header to 0x26c
    image[0x202..0x206].copy_from_slice(b"HdrS");
    put(&mut image, 0x206, 0x20f, 2); // version 2.15
    put(&mut image, 0x211, 1, 1); // loadflags: LOADED_HIGH
    put(&mut image, 0x22c, 0x7fff_ffff, 4); // initrd_addr_max
    put(&mut image, 0x230, 0x20_0000, 4); // kernel_alignment
    put(&mut image, 0x234, 1, 1); // relocatable
    put(&mut image, 0x236, 0b11, 2); // xloadflags
    put(&mut image, 0x238, 2047, 4); // cmdline_size
    put(&mut image, 0x258, 0x100_0000, 8); // pref_address
    put(&mut image, 0x260, 0x80_0000, 4); // init_size
    put(&mut image, 0x268, 0x1234_5678, 4); // kernel_info_offset, the last field
    put(&mut image, 0x26c, 0xdead_beef, 4); // code, which is no part of the header
    image.extend_from_slice(payload);
    image
}

struct Segment<'a> {
    kind: u32,
    address: u64,
    contents: &'a [u8],
    memory_size: u64,
}

fn load_segment(address: u64, contents: &[u8]) -> Segment<'_> {
    Segment { kind: 1, address, contents, memory_size: contents.len() as u64 }
}

/// An x86-64 ELF with the given segments.
fn elf(entry: u64, segments: &[Segment<'_>]) -> Vec<u8> {
    let mut image = vec![0; 64 + 56 * segments.len()];
    image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, 2, 2);
    put(&mut image, 18, 62, 2);
    put(&mut image, 20, 1, 4);
    put(&mut image, 24, entry, 8);
    put(&mut image, 32, 64, 8);
    put(&mut image, 52, 64, 2);
    put(&mut image, 54, 56, 2);
    put(&mut image, 56, segments.len() as u64, 2);
    for (n, segment) in segments.iter().enumerate() {
        let (at, offset) = (64 + 56 * n, image.len() as u64);
        put(&mut image, at, u64::from(segment.kind), 4);
        put(&mut image, at + 8, offset, 8);
        put(&mut image, at + 24, segment.address, 8);
        put(&mut image, at + 32, segment.contents.len() as u64, 8);
        put(&mut image, at + 40, segment.memory_size, 8);
        put(&mut image, at + 48, 4, 8);
        image.extend_from_slice(segment.contents);
    }
    image
}

fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [name.len() as u32, descriptor.len() as u32, kind] {
        note.extend_from_slice(&field.to_le_bytes());
    }
    for part in [name, descriptor] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn pvh_notes(entry: &[u8]) -> Vec<u8> {
    [note(b"GNU\0", 3, b"build-id"), note(b"Xe\0", 18, &[9; 8]), note(b"Xen\0", 18, entry)].concat()
}

fn pvh_elf(entry: u64, segments: Vec<Segment<'_>>) -> Vec<u8> {
    let notes = pvh_notes(&entry.to_le_bytes());
    let mut all = vec![Segment { kind: 4, address: 0, contents: &notes, memory_size: 0 }];
    all.extend(segments);
    elf(0xffff_ffff_8100_0000, &all)
}

/// The RAM that a memory map of (start, size, type) tells, which must not overlap.
fn check_map(map: &[(u64, u64, u64)], layout: &MemoryLayout) {
    let end = map.iter().fold(0, |end, &(start, size, _)| {
        assert!(start >= end && size > 0, "{map:x?}");
        start + size
    });
    assert!(end > 0xff00_0000 || layout.ram().len() == 1);
    let usable: u64 = map.iter().filter(|entry| entry.2 == 1).map(|entry| entry.1).sum();
    assert_eq!(usable, layout.ram_size() - (HIGH_RAM - 0x9_fc00), "all RAM but the BIOS area");
    let kind = |address: u64| map.iter().find(|e| (e.0..e.0 + e.1).contains(&address)).map(|e| e.2);
    for (address, expected) in [
        (0, Some(1)),
        (0xe_ffc0, Some(2)),
        (0xf_0000, Some(2)),
        (HIGH_RAM, Some(1)),
        (0xe000_0000, Some(2)),
        (0xc000_0000, None),
    ] {
        assert_eq!(kind(address), expected, "{address:#x}");
    }
}

#[test]
fn a_bzimage_is_loaded_where_it_prefers_and_told_everything() {
    let payload: Vec<u8> = (0..70_001u32).map(|n| n as u8).collect();
    let image = bzimage(&payload);
    let initramfs = [7; 5000];
    let (memory, entry) = boot(64 * MIB, &image, Some(&initramfs), "console=ttyS0");
    let entry = entry.unwrap();
    assert_eq!(entry.protocol, Protocol::Linux64);
    assert_eq!(entry.address.0, 0x100_0200);
    assert_eq!(bytes(&memory, 0x100_0000, payload.len()), payload);
    assert_eq!(number(&memory, 0x100_0000 + payload.len() as u64, 1), 0, "nothing beyond the file");

    let page = entry.boot_data.0;
    assert_eq!(bytes(&memory, page + 0x230, 0x3c), image[0x230..0x26c], "the setup header");
    assert_eq!(number(&memory, page + 0x26c, 4), 0, "what follows the header is not copied");
    assert_eq!(number(&memory, page + 0x1ef, 1), 0, "sentinel");
    assert_eq!(number(&memory, page + 0x210, 1), 0xff, "type_of_loader");
    assert_eq!(number(&memory, page + 0x70, 8), ACPI_RSDP.0);
    assert_eq!(number(&memory, page + 0x228, 4), COMMAND_LINE.0);
    assert_eq!(bytes(&memory, COMMAND_LINE.0, 14), b"console=ttyS0\0");
    let (image, size) = (number(&memory, page + 0x218, 4), number(&memory, page + 0x21c, 4));
    assert_eq!((image, size), (64 * MIB - 8192, 5000));
    assert_eq!(bytes(&memory, image, 5000), initramfs);
    let count = number(&memory, page + 0x1e8, 1);
    let map: Vec<_> = (0..count)
        .map(|n| page + 0x2d0 + 20 * n)
        .map(|at| (number(&memory, at, 8), number(&memory, at + 8, 8), number(&memory, at + 16, 4)))
        .collect();
    check_map(&map, &machine(64 * MIB).1);
}

/// Walks the page tables as the CPU does.
fn translate(memory: &Memory, address: u64) -> Option<u64> {
    let mut table = PAGE_TABLES.0;
    for shift in [39, 30, 21] {
        let entry = number(memory, table + (address >> shift & 511) * 8, 8);
        if entry & 1 == 0 {
            return None;
        }
        table = entry & 0x000f_ffff_ffff_f000;
        if entry & 0x80 != 0 {
            return Some(table + (address & ((1 << shift) - 1)));
        }
    }
    panic!("a level-1 table")
}

#[test]
fn the_64_bit_entry_has_identity_mapped_ram_and_flat_segments() {
    let (memory, entry) = boot(2048 * MIB + 4096, &bzimage(&[0x90; 4096]), None, "");
    entry.unwrap();
    for address in [0, 0x7000, 0x100_0200, 0x3fff_ffff, 0x4000_0000, 0x8000_0fff] {
        assert_eq!(translate(&memory, address), Some(address));
    }
    assert_eq!(translate(&memory, 0xc000_0000), None);
    assert_eq!(translate(&memory, 1 << 39), None);
    assert_eq!(number(&memory, GDT.0 + 0x10, 8), 0x00af_9b00_0000_ffff);
    assert_eq!(number(&memory, GDT.0 + 0x18, 8), 0x00cf_9300_0000_ffff);
}

#[test]
fn a_pvh_kernel_is_told_its_modules_and_memory() {
    let text: Vec<u8> = (0..9000u32).map(|n| (n * 7) as u8).collect();
    let data = Segment { memory_size: 200_000, ..load_segment(0x20_0000, &[3; 100]) };
    let (ram, initramfs) = (3072 * MIB + 64 * MIB, [9; 4096]);
    let (memory, entry) =
        boot(ram, &pvh_elf(0x10_0010, vec![data, load_segment(HIGH_RAM, &text)]), Some(&initramfs), "hello");
    let entry = entry.unwrap();
    assert_eq!((entry.protocol, entry.address.0), (Protocol::Pvh, 0x10_0010));
    assert_eq!(bytes(&memory, HIGH_RAM, text.len()), text);
    assert_eq!(bytes(&memory, 0x20_0000, 101), [[3; 100].as_slice(), &[0]].concat());

    let info = entry.boot_data.0;
    assert_eq!(number(&memory, info, 4), 0x336e_c578);
    assert_eq!(number(&memory, info + 4, 4), 1, "version");
    assert_eq!(number(&memory, info + 12, 4), 1, "modules");
    let module = number(&memory, info + 16, 8);
    assert_eq!(number(&memory, module, 8), 3072 * MIB - 4096);
    assert_eq!(number(&memory, module + 8, 8), 4096);
    assert_eq!(bytes(&memory, number(&memory, info + 24, 8), 6), b"hello\0");
    assert_eq!(number(&memory, info + 32, 8), ACPI_RSDP.0);
    let (table, count) = (number(&memory, info + 40, 8), number(&memory, info + 48, 4));
    let map: Vec<_> = (0..count)
        .map(|n| table + 24 * n)
        .map(|at| (number(&memory, at, 8), number(&memory, at + 8, 8), number(&memory, at + 16, 4)))
        .collect();
    check_map(&map, &machine(ram).1);
    assert_eq!(number(&memory, GDT.0 + 0x10, 8), 0x00cf_9b00_0000_ffff, "32-bit code");
}

#[test]
fn without_an_initramfs_there_is_no_module() {
    let (memory, entry) = boot(64 * MIB, &pvh_elf(HIGH_RAM, vec![load_segment(HIGH_RAM, &[0xf4])]), None, "");
    let info = entry.unwrap().boot_data.0;
    assert_eq!((number(&memory, info + 12, 4), number(&memory, info + 16, 8)), (0, 0));
}

#[test]
fn memory_beyond_the_file_is_cleared() {
    let (memory, layout) = machine(64 * MIB);
    memory.write_slice(&[0xa5; 300_000], GuestAddress(HIGH_RAM)).unwrap();
    let segment = Segment { memory_size: 200_000, ..load_segment(HIGH_RAM, &[1; 10]) };
    let image = pvh_elf(HIGH_RAM, vec![segment]);
    let none: Option<&mut Cursor<&[u8]>> = None;
    load_kernel(&memory, &layout, &mut Cursor::new(&image), none, "").unwrap();
    assert!(bytes(&memory, HIGH_RAM + 10, 199_990).iter().all(|&byte| byte == 0));
    assert_eq!(number(&memory, HIGH_RAM + 200_000, 1), 0xa5);
}

#[test]
fn an_elf_without_a_note_is_entered_as_linux() {
    let (memory, entry) =
        boot(64 * MIB, &elf(0x100_0000, &[load_segment(0x100_0000, &[0x90; 64])]), None, "quiet");
    let entry = entry.unwrap();
    assert_eq!((entry.protocol, entry.address.0), (Protocol::Linux64, 0x100_0000));
    let page = entry.boot_data.0;
    assert_eq!(number(&memory, page + 0x1fe, 2), 0xaa55);
    assert_eq!(bytes(&memory, page + 0x202, 4), b"HdrS");
    assert_eq!(number(&memory, page + 0x238, 4), 5, "cmdline_size");
    assert_eq!(number(&memory, page + 0x218, 8), 0, "no initramfs");
}

#[test]
fn what_is_not_a_kernel_is_called_by_its_name() {
    let mut aarch64_image = vec![0; 4096];
    aarch64_image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let mut aarch64_elf = elf(0, &[]);
    put(&mut aarch64_elf, 18, 183, 2);
    let mut boot_sector = vec![0; 512];
    put(&mut boot_sector, 0x1fe, 0xaa55, 2);
    let mut no_64_bit = bzimage(&[0; 4096]);
    put(&mut no_64_bit, 0x236, 0, 2);
    let interpreter = Segment { kind: 3, ..load_segment(0, b"/lib64/ld-linux-x86-64.so.2") };
    let program = elf(HIGH_RAM, &[load_segment(HIGH_RAM, &[0]), interpreter]);
    let cases: [(&[u8], &str); 9] = [
        (&aarch64_image, "an aarch64 kernel Image"),
        (&aarch64_elf, "an ELF for aarch64"),
        (&boot_sector, "a disk image or boot sector"),
        (&no_64_bit, "a bzImage without a 64-bit entry"),
        (&program, "a program of a running system"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "a text file"),
        (&[0; 100], "zeroes"),
    ];
    for (file, expected) in cases {
        match kernel_error(file) {
            KernelError::NotAKernel { looks_like, .. } => assert_eq!(looks_like, expected),
            other => panic!("{expected}: {other}"),
        }
    }
    assert!(matches!(kernel_error(&[]), KernelError::Empty));
}

#[test]
fn damaged_kernels_are_refused() {
    let good = bzimage(&[0x90; 4096]);
    for size in [0x206, 0x28f, 2560, 2560 + 4080] {
        let error = kernel_error(&good[..size]);
        assert!(matches!(error, KernelError::Truncated { .. }), "{size}: {error}");
    }
    let segments = || vec![load_segment(HIGH_RAM, &[0; 4096])];
    let good = pvh_elf(HIGH_RAM, segments());
    for size in [5, 63, 64, 64 + 55, 64 + 112, good.len() - 1] {
        let error = kernel_error(&good[..size]);
        assert!(matches!(error, KernelError::Truncated { .. }), "{size}: {error}");
    }
    for bad in [
        pvh_elf(HIGH_RAM + 4096, segments()),
        pvh_elf(HIGH_RAM, vec![load_segment(HIGH_RAM, &[0; 2]), load_segment(HIGH_RAM + 1, &[0; 2])]),
        pvh_elf(HIGH_RAM, vec![Segment { memory_size: 1, ..load_segment(HIGH_RAM, &[0; 2]) }]),
        pvh_elf(HIGH_RAM, vec![]),
        elf(HIGH_RAM, &[]),
    ] {
        let error = kernel_error(&bad);
        assert!(matches!(error, KernelError::Malformed(_)), "{error}");
    }
    let low = pvh_elf(0x8000, vec![load_segment(0x8000, &[0; 2])]);
    assert!(matches!(kernel_error(&low), KernelError::TooLow { start: 0x8000 }));
}

#[test]
fn a_kernel_needs_its_memory() {
    let mut image = bzimage(&[0x90; 4096]);
    put(&mut image, 0x260, 0x400_0000, 4);
    let error = kernel_error(&image).to_string();
    assert!(error.contains("from 16 MiB up to 80 MiB") && error.contains("ends at 64 MiB"), "{error}");
    let far = pvh_elf(HIGH_RAM, vec![load_segment(HIGH_RAM, &[0]), load_segment(u64::MAX, &[0])]);
    assert!(matches!(kernel_error(&far), KernelError::NeedsMoreMemory { .. }));
}

#[test]
fn an_initramfs_needs_its_room() {
    // 24 MiB is where the kernel's memory ends.
    let fits = vec![1; 40 << 20];
    boot(64 * MIB, &bzimage(&[0x90; 4096]), Some(&fits), "").1.unwrap();
    let error = |initramfs: &[u8]| match boot(64 * MIB, &bzimage(&[0x90; 4096]), Some(initramfs), "").1 {
        Err(BootError::Initramfs(error)) => error,
        other => panic!("{other:?}"),
    };
    let large = error(&vec![1; (40 << 20) + 1]).to_string();
    assert!(large.contains("41943041") && large.contains("41943040"), "{large}");
    assert!(matches!(error(&[]), InitramfsError::Empty));
}

#[test]
fn the_initramfs_is_where_the_kernel_can_reach_it() {
    let mut image = bzimage(&[0x90; 4096]);
    put(&mut image, 0x22c, 0x1fff_ffff, 4);
    let (memory, entry) = boot(1024 * MIB, &image, Some(&[1; 100]), "");
    assert_eq!(number(&memory, entry.unwrap().boot_data.0 + 0x218, 4), 512 * MIB - 4096);
}

#[test]
fn command_lines_that_do_not_fit_are_refused() {
    let error = |line: &str| match boot(64 * MIB, &bzimage(&[0x90; 4096]), None, line).1 {
        Err(BootError::CommandLine(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(boot(64 * MIB, &bzimage(&[0x90; 4096]), None, &"x".repeat(2047)).1.is_ok());
    let long = error(&"x".repeat(2048));
    assert!(long.contains("2048") && long.contains("2047"), "{long}");
    assert!(error("a\0b").contains("byte 1"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is changed in a good kernel, loading it ends with a result, and a kernel that is accepted starts
    /// inside of RAM.
    #[test]
    fn damage_never_panics(
        kind in 0..3,
        cut in prop::option::of(0usize..7000),
        changes in prop::collection::vec((0usize..700, any::<u64>(), 1usize..=8), 0..6),
    ) {
        let mut image = match kind {
            0 => bzimage(&[0x90; 4096]),
            1 => pvh_elf(HIGH_RAM, vec![load_segment(HIGH_RAM, &[0x90; 600])]),
            _ => elf(HIGH_RAM, &[load_segment(HIGH_RAM, &[0x90; 600])]),
        };
        for (offset, value, size) in changes {
            if offset + size <= image.len() {
                put(&mut image, offset, value, size);
            }
        }
        image.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(entry) = boot(64 * MIB, &image, None, "x").1 {
            prop_assert!((HIGH_RAM..64 * MIB).contains(&entry.address.0));
        }
    }

    #[test]
    fn noise_never_panics(data in prop::collection::vec(any::<u8>(), 0..2000), elf: bool) {
        let mut data = data;
        if elf && data.len() > 64 {
            data[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            put(&mut data, 16, 2, 2);
            put(&mut data, 18, 62, 2);
            put(&mut data, 32, 64, 8);
            put(&mut data, 54, 56, 2);
        }
        let _ = boot(64 * MIB, &data, Some(&data), "").1;
    }
}
