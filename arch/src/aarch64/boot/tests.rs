//! Kernels made here, and files that are none.

use super::*;
use crate::aarch64::layout::{KERNEL, LayoutRequest, RAM_START};
use machine::memory::{Bytes, GuestRam};
use proptest::prelude::*;
use std::io::{Cursor, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn machine(ram: u64) -> (Memory, MemoryLayout) {
    let layout = MemoryLayout::new(&LayoutRequest::new(ram, 40)).unwrap();
    let ranges: Vec<_> =
        layout.ram().iter().map(|range| (GuestAddress(range.start), range.size as usize)).collect();
    (Arc::new(GuestRam::from_ranges(&ranges).unwrap()), layout)
}

fn boot(ram: u64, kernel: &[u8], initramfs: Option<&[u8]>) -> (Memory, Result<Loaded, BootError>) {
    let (memory, layout) = machine(ram);
    let mut initramfs = initramfs.map(Cursor::new);
    let loaded = load_kernel(&memory, &layout, &mut Cursor::new(kernel), initramfs.as_mut(), "quiet");
    (memory, loaded)
}

fn error(kernel: &[u8]) -> String {
    match boot(64 * MIB, kernel, None).1 {
        Err(BootError::Kernel(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn put(data: &mut [u8], offset: usize, value: u64, size: usize) {
    data[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// An image of `stored` bytes that needs `size`. The offsets are booting.rst's.
fn image(stored: usize, text_offset: u64, size: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..stored).map(|n| (n * 7 % 251) as u8).collect();
    put(&mut image, 8, text_offset, 8);
    put(&mut image, 16, size, 8);
    put(&mut image, 24, 0b1010, 8);
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    image
}

/// The same with content that hardly gets smaller, so that a decompressor reads its file in many pieces.
fn dense_image(stored: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut kernel = image(stored, 0, stored as u64);
    for (at, byte) in kernel.iter_mut().enumerate().skip(64) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Now and then something that can be referred to, else a compressor would store it as it is.
        *byte = if at / 300 % 7 == 0 { 0x5a } else { state as u8 };
    }
    kernel
}

/// As gzip does it, with a name in the header.
fn gzip(data: &[u8]) -> Vec<u8> {
    let mut file = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03Image\0".to_vec();
    file.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
    file.extend(checksum(data).to_le_bytes());
    file.extend((data.len() as u32).to_le_bytes());
    file
}

/// Bit by bit, as the standard defines it.
fn checksum(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |mut value, &byte| {
        value ^= u32::from(byte);
        for _ in 0..8 {
            value = value >> 1 ^ if value & 1 != 0 { 0xedb8_8320 } else { 0 };
        }
        value
    })
}

/// What compresses kernels, how a kernel's own build calls it, and the name that a zboot image has for it.
const COMPRESSORS: [(&str, &[&str], &str); 4] = [
    ("gzip", &["-n", "-9"], "gzip"),
    ("zstd", &["-22", "--ultra"], "zstd22"),
    ("xz", &["--check=crc32", "--arm64", "--lzma2=dict=128MiB"], "xzkern"),
    ("xz", &["-1"], "xz"),
];

/// `data` through a program; `None` where there is no such program.
fn compress(program: &str, options: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    let child =
        Command::new(program).args(options).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        crate::testing::skip_without(program);
        return None;
    };
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(data).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}");
    Some(output.stdout)
}

fn zboot(method: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    file[..2].copy_from_slice(b"MZ");
    file[4..8].copy_from_slice(b"zimg");
    put(&mut file, 8, 0x200, 4);
    put(&mut file, 12, payload.len() as u64, 4);
    file[24..24 + method.len()].copy_from_slice(method);
    file.extend(payload);
    file
}

fn in_memory(memory: &Memory, address: u64, expected: &[u8]) -> bool {
    let mut data = vec![0; expected.len()];
    memory.read_slice(&mut data, GuestAddress(address)).unwrap();
    data == expected
}

#[test]
fn an_image_is_loaded_where_it_asks_to_be() {
    for (text_offset, size, expected) in [(0, 2 * MIB, 0), (0x1000, MIB, 0x1000), (0, 0, 0x8_0000)] {
        let kernel = image(300_000, text_offset, size);
        let (memory, loaded) = boot(64 * MIB, &kernel, None);
        let address = KERNEL + expected;
        assert_eq!(
            loaded.unwrap().entry,
            EntryPoint { address: GuestAddress(address), boot_data: layout::FDT }
        );
        assert!(in_memory(&memory, address, &kernel));
    }
}

#[test]
fn compressed_images_come_out_whole() {
    for kernel in [image(700_001, 0, 2 * MIB), dense_image(1_700_001)] {
        let mut files = vec![gzip(&kernel), zboot(b"gzip\0", &gzip(&kernel))];
        for (program, options, method) in COMPRESSORS {
            let Some(packed) = compress(program, options, &kernel) else { continue };
            // A zboot image has the size of what was compressed behind it, which is no part of the stream.
            let sized = [packed.clone(), (kernel.len() as u32).to_le_bytes().to_vec()].concat();
            files.extend([zboot(method.as_bytes(), &sized), packed]);
        }
        for file in files {
            let (memory, loaded) = boot(64 * MIB, &file, None);
            assert_eq!(loaded.unwrap().entry.address.0, KERNEL);
            assert!(in_memory(&memory, KERNEL, &kernel));
        }
    }
}

#[test]
fn an_initramfs_is_at_the_end_of_ram_and_clear_of_the_kernel() {
    let kernel = image(1000, 0, 8 * MIB);
    let data = vec![0x5a; 100_000];
    let (memory, loaded) = boot(64 * MIB, &kernel, Some(&data));
    let place = loaded.unwrap().initramfs.unwrap();
    assert!(place.start % PAGE_SIZE == 0 && place.last() < RAM_START + 64 * MIB);
    assert!(in_memory(&memory, place.start, &data));
    let large = vec![0; 55 << 20];
    let error = boot(64 * MIB, &kernel, Some(&large)).1.unwrap_err().to_string();
    assert!(error.contains("57671680 bytes") && error.contains("more memory"), "{error}");
}

#[test]
fn files_that_are_no_kernel_say_what_they_look_like() {
    let mut x86 = vec![0; 0x400];
    x86[0x202..0x206].copy_from_slice(b"HdrS");
    assert!(error(&x86).contains("x86 bzImage"), "{}", error(&x86));
    assert!(error(&gzip(&x86)).contains("x86 bzImage, compressed by gzip"));
    assert!(error(b"\x7fELF").contains("ELF"));
    let mut vmlinux = vec![0; 64];
    vmlinux[..4].copy_from_slice(b"\x7fELF");
    vmlinux[18] = 62;
    assert!(error(&vmlinux).contains("an ELF for x86_64"));
    for (program, options, _) in COMPRESSORS {
        let Some(packed) = compress(program, options, &x86) else { continue };
        assert!(
            error(&packed).contains(&format!("x86 bzImage, compressed by {program}")),
            "{}",
            error(&packed)
        );
    }
    assert_eq!(error(b""), "is empty: copy the kernel again, or give another one");
    assert!(error(&zboot(b"lz4\0", b"")).contains("compressed by lz4"));
    assert!(error(&zboot(b"?\0", b"")).contains("how the kernel is compressed"));
    let mut big_endian = image(1000, 0, MIB);
    big_endian[24] |= 1;
    assert!(error(&big_endian).contains("big-endian"));
}

#[test]
fn damaged_and_oversized_files_are_refused() {
    let kernel = image(200_000, 0, MIB);
    let good = gzip(&kernel);
    for cut in [11, 100, good.len() - 9, good.len() - 1] {
        assert!(error(&good[..cut]).contains("cut off"), "{}", error(&good[..cut]));
    }
    let mut wrong = good.clone();
    let last = wrong.len() - 8;
    wrong[last] ^= 1;
    assert!(error(&wrong).contains("not what was compressed"));
    assert!(error(&zboot(b"gzip\0", &good)[..1000]).contains("truncated"));
    assert!(error(&image(1000, 0, 1 << 40)).contains("needs memory"));
    assert!(error(&image(1000, 2 * MIB, MIB)).contains("text offset"));
    // A small file that becomes larger than the machine.
    let mut bomb = image(1000, 0, MIB);
    bomb.resize(80 << 20, 0);
    for (program, options) in [("gzip", "-9"), ("zstd", "-1"), ("xz", "-1")] {
        let Some(bomb) = compress(program, &[options], &bomb) else { continue };
        assert!(bomb.len() < 1 << 20 && error(&bomb).contains("needs memory"), "{}", error(&bomb));
    }
}

#[test]
fn every_way_of_compression_notices_damage() {
    let kernel = image(200_000, 0, MIB);
    for (program, options, method) in COMPRESSORS {
        let Some(good) = compress(program, options, &kernel) else { continue };
        for cut in [good.len() / 2, good.len() - 1] {
            let error = error(&good[..cut]);
            assert!(error.contains("cut off"), "{program} {cut}: {error}");
        }
        assert!(error(&good[..good.len().min(11)]).contains("is damaged"), "{program}");
        for at in [good.len() / 3, good.len() - 6] {
            let mut wrong = good.clone();
            wrong[at] ^= 0x10;
            let error = error(&zboot(method.as_bytes(), &wrong));
            assert!(error.contains("is damaged"), "{program} {at}: {error}");
        }
        let error = error(&zboot(method.as_bytes(), &good)[..0x200 + 100]);
        assert!(error.contains("truncated"), "{program}: {error}");
    }
    // Frames that refer further back than kernels do would take so much memory of the host.
    let window = [b"\x28\xb5\x2f\xfd\x00".as_slice(), &[0xb0], &[0; 100]].concat();
    assert!(error(&window).contains("window"), "{}", error(&window));
    if let Some(far) = compress("xz", &["--lzma2=dict=1GiB"], &kernel) {
        assert!(error(&far).contains("is damaged"), "{}", error(&far));
    }
}

proptest! {
    #[test]
    fn any_damage_gives_an_error_or_a_kernel_in_ram(
        which in 0usize..3,
        damage in prop::collection::vec((0usize..4096, any::<u8>()), 0..8),
        cut in 0usize..4096,
    ) {
        let kernel = image(2000, 0, MIB);
        let mut file = vec![kernel.clone(), gzip(&kernel), zboot(b"gzip\0", &gzip(&kernel))].swap_remove(which);
        for (at, value) in damage {
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
        }
        file.truncate(cut);
        if let Ok(loaded) = boot(16 * MIB, &file, None).1 {
            prop_assert!((KERNEL..RAM_START + 16 * MIB).contains(&loaded.entry.address.0));
        }
    }
}
