//! The tables for firmware that chooses their place itself: files, and a script that says how to put them into memory and
//! which pointers and checksums to adjust (QEMU, `hw/acpi/bios-linker-loader.c`).
//!
//! The script is a list of 128-byte commands: a code (32 bits, little-endian), then fields after it.

use super::Tables;
use super::table::HEADER_SIZE;

/// The file that holds all tables but the RSDP.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// The file that holds the RSDP.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// The file that holds the script.
pub const SCRIPT_FILE: &str = "etc/table-loader";

const COMMAND_SIZE: usize = 128;
const NAME_SIZE: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

/// Anywhere in memory.
const ZONE_HIGH: u8 = 1;
/// Where an operating system looks for the RSDP.
const ZONE_FSEG: u8 = 2;
const TABLES_ALIGNMENT: u32 = 64;
const RSDP_ALIGNMENT: u32 = 16;

// Offsets in tables (ACPI 6.5, 5.2.5.3, 5.2.6, 5.2.9).
const CHECKSUM: usize = 9;
const X_DSDT: usize = 140;
const RSDP_CHECKSUM: usize = 8;
const RSDP_CHECKSUM_LENGTH: usize = 20;
const RSDP_XSDT: usize = 24;
const RSDP_EXTENDED_CHECKSUM: usize = 32;

/// The tables and the script, as the files that firmware reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderFiles {
    /// [`TABLES_FILE`].
    pub tables: Vec<u8>,
    /// [`RSDP_FILE`].
    pub rsdp: Vec<u8>,
    /// [`SCRIPT_FILE`].
    pub script: Vec<u8>,
}

impl Tables {
    /// The files of these tables.
    pub fn loader_files(&self) -> LoaderFiles {
        let mut files =
            LoaderFiles { tables: self.bytes.clone(), rsdp: self.rsdp.clone(), script: Vec::new() };
        command(
            &mut files.script,
            ALLOCATE,
            &[&name(TABLES_FILE), &TABLES_ALIGNMENT.to_le_bytes(), &[ZONE_HIGH]],
        );
        command(
            &mut files.script,
            ALLOCATE,
            &[&name(RSDP_FILE), &RSDP_ALIGNMENT.to_le_bytes(), &[ZONE_FSEG]],
        );
        for (signature, range) in &self.index {
            let pointers: Vec<usize> = match signature {
                b"FACP" => vec![range.start + X_DSDT],
                b"XSDT" => (range.start + HEADER_SIZE..range.end).step_by(8).collect(),
                _ => continue,
            };
            for pointer in pointers {
                self.relative(&mut files.tables, pointer);
                add_pointer(&mut files.script, TABLES_FILE, pointer);
            }
            files.tables[range.start + CHECKSUM] = 0;
            add_checksum(&mut files.script, TABLES_FILE, range.start + CHECKSUM, range.clone());
        }
        self.relative(&mut files.rsdp, RSDP_XSDT);
        add_pointer(&mut files.script, RSDP_FILE, RSDP_XSDT);
        for (at, length) in
            [(RSDP_CHECKSUM, RSDP_CHECKSUM_LENGTH), (RSDP_EXTENDED_CHECKSUM, files.rsdp.len())]
        {
            files.rsdp[at] = 0;
            add_checksum(&mut files.script, RSDP_FILE, at, 0..length);
        }
        files
    }

    /// Makes the pointer at `at` one from the beginning of the tables.
    fn relative(&self, bytes: &mut [u8], at: usize) {
        let field = &mut bytes[at..at + 8];
        let mut pointer = [0; 8];
        pointer.copy_from_slice(field);
        let pointer = u64::from_le_bytes(pointer) - self.place.start;
        field.copy_from_slice(&pointer.to_le_bytes());
    }
}

fn name(file: &str) -> [u8; NAME_SIZE] {
    let mut name = [0; NAME_SIZE];
    name[..file.len()].copy_from_slice(file.as_bytes());
    name
}

fn command(script: &mut Vec<u8>, code: u32, fields: &[&[u8]]) {
    let end = script.len() + COMMAND_SIZE;
    script.extend(code.to_le_bytes());
    fields.iter().for_each(|field| script.extend_from_slice(field));
    script.resize(end, 0);
}

/// The 8 bytes at `at` of `file` point into the tables.
fn add_pointer(script: &mut Vec<u8>, file: &str, at: usize) {
    command(script, ADD_POINTER, &[&name(file), &name(TABLES_FILE), &(at as u32).to_le_bytes(), &[8]]);
}

/// The byte at `at` of `file` makes those of `range` add up to zero.
fn add_checksum(script: &mut Vec<u8>, file: &str, at: usize, range: std::ops::Range<usize>) {
    let numbers = [at, range.start, range.len()].map(|number| (number as u32).to_le_bytes());
    command(script, ADD_CHECKSUM, &[&name(file), &numbers.concat()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::acpi::build;
    use crate::aarch64::acpi::tests::config;
    use crate::topology::Topology;
    use machine::bus::Range;
    use machine::memory::GuestAddress;

    fn made(start: u64) -> Tables {
        build(&config(Topology::flat(3), 2), Range { start, size: 1 << 20 }, GuestAddress(0xe_0000)).unwrap()
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Does what firmware does with the script, the tables being placed at `base`.
    fn load(files: &LoaderFiles, base: u64) -> (Vec<u8>, Vec<u8>) {
        let mut memory = [(TABLES_FILE, files.tables.clone()), (RSDP_FILE, files.rsdp.clone())];
        for command in files.script.chunks(COMMAND_SIZE) {
            let file = |at: usize| {
                let name = std::str::from_utf8(&command[at..at + NAME_SIZE]).unwrap().trim_end_matches('\0');
                [TABLES_FILE, RSDP_FILE].iter().position(|file| *file == name).unwrap()
            };
            let bytes = &mut memory[file(4)].1;
            match u32_at(command, 0) as u32 {
                ALLOCATE => assert!(command[64] == 1 || command[64] == 2),
                ADD_POINTER => {
                    assert_eq!((file(60), command[120]), (0, 8));
                    let at = u32_at(command, 116);
                    let pointer = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                    bytes[at..at + 8].copy_from_slice(&(pointer + base).to_le_bytes());
                }
                ADD_CHECKSUM => {
                    let (at, start, length) = (u32_at(command, 60), u32_at(command, 64), u32_at(command, 68));
                    let sum =
                        bytes[start..start + length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    bytes[at] = bytes[at].wrapping_sub(sum);
                }
                code => panic!("command {code}"),
            }
        }
        let [(_, tables), (_, rsdp)] = memory;
        (tables, rsdp)
    }

    #[test]
    fn loaded_anywhere_they_are_as_if_made_for_there() {
        let files = made(0xc_0000).loader_files();
        let there = made(0x7f12_3400);
        assert_eq!(load(&files, 0x7f12_3400), (there.bytes, there.rsdp));
    }
}
