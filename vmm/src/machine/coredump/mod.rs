//! Core dumps: a machine's memory and registers as an ELF file that `crash` and `gdb` read.
//!
//! The machine is paused while its dump is written, by a thread of its own. Memory that is zero becomes holes of the file. The
//! header is written last: a dump that was cut short is no ELF file.

pub mod notes;

use super::platform::core_notes::{self, CpuState};
use arch::mapping::Mapping;
use arch::native::paging;
use machine::memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegion, Memory};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Memory in the file begins at a multiple of this, and zero is looked for in such units.
const PAGE: u64 = 4096;
/// The most written at once.
const CHUNK: u64 = 1 << 20;
/// The most runs of linear addresses that are told, and the most page table entries looked at for them.
const MAPPINGS: usize = 4096;
const ENTRIES: u64 = 1 << 24;

/// Sizes of an ELF file's header and program headers (64-bit).
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A part of guest memory in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    physical: u64,
    size: u64,
    /// Where it begins in the file.
    offset: u64,
}

/// Writes a dump of a machine that is paused. `kernel_note` is what the kernel's own note contains, if the guest told where it is;
/// otherwise it is looked for in memory.
///
/// # Errors
/// When the file cannot be written.
pub fn write(file: &File, memory: &Memory, cpus: &[CpuState], kernel_note: Option<&[u8]>) -> io::Result<()> {
    let mut offset = PAGE * 64;
    let mut extents = Vec::new();
    for region in memory.iter() {
        extents.push(Extent { physical: region.start_addr().0, size: region.len(), offset });
        offset += region.len().next_multiple_of(PAGE);
    }
    let mut loads = extents.iter().map(|extent| (extent.physical, *extent)).collect::<Vec<_>>();
    loads.extend(linear(memory, cpus, &extents));
    // The headers' room, of which the first extents leave enough for all but this.
    let headers = HEADER_SIZE + PROGRAM_HEADER_SIZE * (loads.len() + 1);
    if headers as u64 > PAGE * 64 {
        loads.truncate((PAGE as usize * 64 - HEADER_SIZE) / PROGRAM_HEADER_SIZE - 1);
    }

    let mut notes = core_notes::of_cpus(cpus);
    if let Some(content) = kernel_note {
        notes::kernel_note(&mut notes, content);
    }
    for (region, extent) in memory.iter().zip(&extents) {
        for data in data(region) {
            write_memory(file, region, extent.offset, data, &mut notes)?;
        }
    }
    file.write_all_at(&notes, offset)?;
    file.set_len(offset + notes.len() as u64)?;
    let mut table = program_header(PT_NOTE, offset, 0, 0, notes.len() as u64);
    for (linear, extent) in &loads {
        table.extend(program_header(PT_LOAD, extent.offset, *linear, extent.physical, extent.size));
    }
    file.write_all_at(&table, HEADER_SIZE as u64)?;
    file.write_all_at(&header(loads.len() + 1), 0)?;
    file.sync_data()
}

/// What the guest's kernel sees at which linear address: by the tables of the CPU that maps most in the upper half, where
/// kernels are.
fn linear(memory: &Memory, cpus: &[CpuState], extents: &[Extent]) -> Vec<(u64, Extent)> {
    let upper_half = |cpu: &CpuState| {
        let Some(from) = paging::kernel_half(cpu.paging()) else { return Vec::new() };
        paging::mappings(memory, cpu.paging(), from, MAPPINGS, ENTRIES)
    };
    let all = cpus.iter().map(upper_half);
    let most = all.max_by_key(|mappings| mappings.iter().map(|run| u128::from(run.size)).sum::<u128>());
    let in_file = |Mapping { linear, physical, size }: Mapping| {
        let parts = extents.iter().filter_map(move |extent| {
            let start = physical.max(extent.physical);
            let end = physical.checked_add(size)?.min(extent.physical + extent.size);
            (start < end).then(|| {
                let offset = extent.offset + (start - extent.physical);
                (linear + (start - physical), Extent { physical: start, size: end - start, offset })
            })
        });
        parts.collect::<Vec<_>>()
    };
    most.into_iter().flatten().flat_map(in_file).collect()
}

/// The parts of a region that may hold something, as offsets in it.
fn data(region: &GuestRegion) -> Vec<Range<u64>> {
    let whole = 0..region.len();
    let Some(backing) = region.file_offset() else { return vec![whole] };
    // Looking at a hole of a shared file would fill it.
    let seek = |at: u64, whence: libc::c_int| {
        // SAFETY: only moves the position in a file that is accessed by position nowhere.
        let found = unsafe { libc::lseek(backing.file().as_raw_fd(), at.cast_signed(), whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let (start, end) = (backing.start(), backing.start() + region.len());
    let (mut parts, mut at) = (Vec::new(), start);
    while at < end {
        let data = match seek(at, libc::SEEK_DATA) {
            Ok(data) => data.min(end),
            // There is no more.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            Err(_) => return vec![whole],
        };
        let hole = seek(data, libc::SEEK_HOLE).unwrap_or(end).min(end);
        if hole <= data {
            break;
        }
        parts.push(data - start..hole - start);
        at = hole;
    }
    parts
}

/// Writes what is not zero, and adds the kernel's own note if it is found.
fn write_memory(
    file: &File,
    region: &GuestRegion,
    offset: u64,
    part: Range<u64>,
    notes: &mut Vec<u8>,
) -> io::Result<()> {
    /// Words of a page.
    const WORDS: usize = PAGE as usize / size_of::<u64>();
    let base = region.as_ptr();
    let page_at = |at: u64| {
        // SAFETY: `at` is in the region, which is mapped as long as `region` is.
        unsafe { base.add(at as usize) }
    };
    let is_zero = |at: u64| {
        let words = page_at(at).cast::<u64>();
        // SAFETY: a whole, aligned page of the region; read as what may change, although the machine is paused.
        (0..WORDS).all(|word| unsafe { words.add(word).read_volatile() } == 0)
    };
    let mut at = part.start & !(PAGE - 1);
    while at + PAGE <= part.end {
        if is_zero(at) {
            at += PAGE;
            continue;
        }
        let start = at;
        while at + PAGE <= part.end && at - start < CHUNK && !is_zero(at) {
            notes::add_kernel_note(region, at, notes);
            at += PAGE;
        }
        // SAFETY: the run is in the region. The kernel reads it; nothing of it is taken for more than bytes.
        let bytes = unsafe { std::slice::from_raw_parts(page_at(start), (at - start) as usize) };
        file.write_all_at(bytes, offset + start)?;
    }
    Ok(())
}

/// The file's header (System V ABI, chapter 4): a core file.
fn header(program_headers: usize) -> Vec<u8> {
    const ET_CORE: u16 = 4;
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [ET_CORE, core_notes::MACHINE] {
        header.extend(half.to_le_bytes());
    }
    header.extend(1_u32.to_le_bytes());
    // No entry point; the program headers follow; no sections.
    for word in [0, HEADER_SIZE as u64, 0] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0_u32.to_le_bytes());
    let sizes = [HEADER_SIZE, PROGRAM_HEADER_SIZE, program_headers, 0, 0, 0];
    for half in sizes {
        header.extend((half as u16).to_le_bytes());
    }
    header
}

fn program_header(kind: u32, offset: u64, linear: u64, physical: u64, size: u64) -> Vec<u8> {
    /// Readable, writable, executable.
    const ALL: u32 = 7;
    let mut header = kind.to_le_bytes().to_vec();
    header.extend((if kind == PT_LOAD { ALL } else { 0 }).to_le_bytes());
    for word in [offset, linear, physical, size, size, 0] {
        header.extend(word.to_le_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::memory::{Bytes, GuestAddress, GuestRam};
    use std::io::Read;
    use std::sync::Arc;

    /// A dump of memory that has a note in it.
    fn dump(kernel_note: Option<&[u8]>) -> Vec<u8> {
        let memory: Memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let found = b"\x0b\0\0\0\x10\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=found\n";
        memory.write_slice(found, GuestAddress(0x3000)).unwrap();
        let path = std::env::temp_dir().join(format!(
            "vivarium-core-{}-{}",
            std::process::id(),
            kernel_note.is_some()
        ));
        write(&File::create_new(&path).unwrap(), &memory, &[], kernel_note).unwrap();
        let mut core = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut core).unwrap();
        std::fs::remove_file(&path).unwrap();
        // The notes are what follows memory.
        core.split_off(PAGE as usize * 64 + (1 << 20))
    }

    #[test]
    fn the_note_that_the_guest_tells_of_comes_before_one_that_is_found() {
        let note =
            |content: &[u8; 16]| [&b"\x0b\0\0\0\x10\0\0\0\0\0\0\0VMCOREINFO\0\0"[..], content].concat();
        assert_eq!(dump(None), note(b"OSRELEASE=found\n"));
        assert_eq!(dump(Some(b"OSRELEASE=told!\n")), note(b"OSRELEASE=told!\n"));
    }
}
