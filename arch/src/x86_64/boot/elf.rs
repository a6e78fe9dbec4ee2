//! ELF kernels (System V ABI, "ELF-64 Object File Format"): with a PVH note, or entered as Linux's `vmlinux`.

use super::{Kernel, KernelError, LINUX_COMMAND_LINE_LIMIT, Protocol, check_kernel_range};
use crate::boot::fields::{u16_at, u32_at, u64_at};
use crate::boot::{BootFile, Contents, zero};
use crate::x86_64::layout::{COMMAND_LINE_SIZE, MemoryLayout};
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};

const MAGIC: &[u8] = b"\x7fELF";
const HEADER_SIZE: usize = 64;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER_SIZE: usize = 56;
/// More segments than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 64;
const LOAD: u32 = 1;
const INTERPRETER: u32 = 3;
const NOTE: u32 = 4;
/// More bytes of notes than any kernel has.
const MAX_NOTES: u64 = 1 << 20;

/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen, `public/elfnote.h`): where a PVH kernel is entered.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_NAME_XEN: &[u8] = b"Xen\0";

/// Whether a file that starts with `head` is an ELF.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Loads the segments at their physical addresses.
pub(super) fn load(
    memory: &Memory,
    layout: &MemoryLayout,
    contents: &mut Contents<'_, impl BootFile>,
) -> Result<Kernel, KernelError> {
    let mut header = [0; HEADER_SIZE];
    read(contents, "the ELF header", 0, &mut header)?;
    let header = Header::parse(&header)?;
    let mut table = vec![0; usize::from(header.count).saturating_mul(PROGRAM_HEADER_SIZE)];
    read(contents, "the table of program headers", header.table, &mut table)?;
    let (table, _) = table.as_chunks::<PROGRAM_HEADER_SIZE>();

    let mut segments = Vec::with_capacity(table.len());
    let mut pvh_entry = None;
    for entry in table {
        let entry = ProgramHeader::parse(entry)?;
        match entry.kind {
            INTERPRETER => {
                return Err(KernelError::NotAKernel {
                    looks_like: "a program of a running system".into(),
                    wanted: super::WANTED,
                });
            }
            LOAD if entry.memory_size > 0 => segments.push(entry),
            NOTE if pvh_entry.is_none() => pvh_entry = read_pvh_entry(contents, &entry)?,
            _ => {}
        }
    }
    let range = check_segments(layout, &mut segments, contents.size())?;

    let (protocol, entry, command_line_limit) = match pvh_entry {
        Some(entry) => (Protocol::Pvh, entry, COMMAND_LINE_SIZE),
        None => (Protocol::Linux64, header.entry, LINUX_COMMAND_LINE_LIMIT),
    };
    if !segments.iter().any(|segment| segment.contains(entry)) {
        return Err(KernelError::Malformed("its entry point is in none of its segments"));
    }
    for segment in &segments {
        let address = GuestAddress(segment.address);
        contents.load(memory, segment.file_offset, address, segment.file_size).map_err(KernelError::Read)?;
        let rest = segment.memory_size.saturating_sub(segment.file_size);
        let end = GuestAddress(segment.address.saturating_add(segment.file_size));
        // That there is RAM was checked against the layout.
        zero(memory, end, rest).map_err(|error| KernelError::Read(std::io::Error::other(error)))?;
    }
    Ok(Kernel {
        protocol,
        entry,
        range,
        setup_header: Vec::new(),
        initramfs_last: u64::from(u32::MAX),
        command_line_limit,
    })
}

/// Reads what the ELF says is there.
fn read(
    contents: &mut Contents<'_, impl BootFile>,
    what: &'static str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), KernelError> {
    check_in_file(what, offset, buffer.len() as u64, contents.size())?;
    contents.read_exactly(offset, buffer).map_err(KernelError::Read)
}

fn check_in_file(what: &'static str, offset: u64, size: u64, has: u64) -> Result<(), KernelError> {
    let needs = offset.saturating_add(size);
    if needs > has { Err(KernelError::Truncated { what, needs, has }) } else { Ok(()) }
}

/// What is of interest in the ELF header.
struct Header {
    entry: u64,
    /// Offset of the table of program headers.
    table: u64,
    /// Its length.
    count: u16,
}

impl Header {
    fn parse(header: &[u8; HEADER_SIZE]) -> Result<Self, KernelError> {
        let &[_, _, _, _, class, byte_order, ..] = header;
        let machine = u16_at(header, 18).unwrap_or(0);
        let foreign = |looks_like: &'static str| {
            Err(KernelError::NotAKernel { looks_like: looks_like.into(), wanted: super::WANTED })
        };
        match (class, byte_order, machine) {
            (CLASS_64, LITTLE_ENDIAN, MACHINE_X86_64) => {}
            (_, _, 3) => return foreign("an ELF for 32-bit x86"),
            (_, _, 40) => return foreign("an ELF for 32-bit ARM"),
            (_, _, 183) => return foreign("an ELF for aarch64"),
            (_, _, 243) => return foreign("an ELF for RISC-V"),
            _ => return foreign("an ELF for another machine"),
        }
        match u16_at(header, 16) {
            Some(TYPE_EXECUTABLE | TYPE_SHARED) => {}
            Some(1) => return foreign("an ELF object file or kernel module"),
            Some(4) => return foreign("a core dump"),
            _ => return Err(KernelError::Malformed("its ELF type is unknown")),
        }
        let count = u16_at(header, 56).unwrap_or(0);
        if usize::from(u16_at(header, 54).unwrap_or(0)) != PROGRAM_HEADER_SIZE {
            return Err(KernelError::Malformed("its program headers do not have 56 bytes"));
        }
        if count == 0 || count > MAX_PROGRAM_HEADERS {
            return Err(KernelError::Malformed("it does not have 1 to 64 program headers"));
        }
        Ok(Self { entry: u64_at(header, 24).unwrap_or(0), table: u64_at(header, 32).unwrap_or(0), count })
    }
}

/// One entry of the table of program headers.
struct ProgramHeader {
    kind: u32,
    file_offset: u64,
    /// Physical address.
    address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

impl ProgramHeader {
    fn parse(entry: &[u8; PROGRAM_HEADER_SIZE]) -> Result<Self, KernelError> {
        let fields = || {
            Some(Self {
                kind: u32_at(entry, 0)?,
                file_offset: u64_at(entry, 8)?,
                address: u64_at(entry, 24)?,
                file_size: u64_at(entry, 32)?,
                memory_size: u64_at(entry, 40)?,
                alignment: u64_at(entry, 48)?,
            })
        };
        fields().ok_or(KernelError::Malformed("a program header ends early"))
    }

    fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|offset| offset < self.memory_size)
    }

    fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_size)
    }
}

/// Checks that the segments are in the file, apart from each other and in free RAM, and says what they span.
fn check_segments(
    layout: &MemoryLayout,
    segments: &mut [ProgramHeader],
    file_size: u64,
) -> Result<Range, KernelError> {
    segments.sort_by_key(|segment| segment.address);
    let mut span: Option<(u64, u64)> = None;
    for segment in &*segments {
        if segment.file_size > segment.memory_size {
            return Err(KernelError::Malformed("a segment has more bytes in the file than in memory"));
        }
        check_in_file("a segment", segment.file_offset, segment.file_size, file_size)?;
        let start = match span {
            Some((_, end)) if segment.address < end => {
                return Err(KernelError::Malformed("its segments overlap in memory"));
            }
            Some((start, _)) => start,
            None => segment.address,
        };
        span = Some((start, segment.end()));
    }
    let (start, end) = span.ok_or(KernelError::Malformed("it has no segment to load"))?;
    let range = Range { start, size: end.saturating_sub(start) };
    check_kernel_range(layout, range)?;
    Ok(range)
}

/// The entry point that a segment of notes tells, if it does.
fn read_pvh_entry(
    contents: &mut Contents<'_, impl BootFile>,
    segment: &ProgramHeader,
) -> Result<Option<u64>, KernelError> {
    if segment.file_size > MAX_NOTES {
        return Err(KernelError::Malformed("its notes are larger than 1 MiB"));
    }
    let mut notes = vec![0; usize::try_from(segment.file_size).unwrap_or(0)];
    read(contents, "its segment of notes", segment.file_offset, &mut notes)?;
    // Names and descriptors are padded to 4 bytes, or 8 in a segment that says so.
    let alignment = if segment.alignment == 8 { 8 } else { 4 };
    Ok(find_pvh_entry(&notes, alignment))
}

fn find_pvh_entry(mut notes: &[u8], alignment: usize) -> Option<u64> {
    loop {
        let name_size = usize::try_from(u32_at(notes, 0)?).ok()?;
        let size = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let name_end = 12usize.checked_add(name_size)?;
        let start = name_end.checked_next_multiple_of(alignment)?;
        let end = start.checked_add(size)?;
        if kind == NOTE_PHYS32_ENTRY && notes.get(12..name_end)? == NOTE_NAME_XEN {
            return match size {
                4 => u32_at(notes, start).map(u64::from),
                8 => u64_at(notes, start).filter(|&entry| entry <= u64::from(u32::MAX)),
                _ => None,
            };
        }
        notes = notes.get(end.checked_next_multiple_of(alignment)?..)?;
    }
}
