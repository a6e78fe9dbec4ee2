//! The kernel's image: its header, and loading it from a file that has it plain or compressed.

use super::decompress::{self, Method};
use super::layout::{KERNEL, MemoryLayout};
use crate::boot::fields::{u32_at, u64_at};
use crate::boot::{BootFile, Contents, HEAD_SIZE, KernelError, looks_like};
use machine::bus::Range;
use machine::memory::{Bytes, GuestAddress, Memory};

/// What a kernel should be, for who gives it something else.
const WANTED: &str =
    "an aarch64 kernel Image, plain or compressed by gzip, zstd or xz, or an EFI zboot image";

/// Bytes of the header.
const HEADER_SIZE: usize = 64;
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const FLAGS: usize = 24;
const MAGIC: usize = 0x38;
const MAGIC_VALUE: &[u8] = b"ARM\x64";
const FLAG_BIG_ENDIAN: u64 = 1;
/// Where an image that does not tell its size wants to be.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// Images begin at multiples of this, not counting their text offset.
const ALIGNMENT: u64 = 2 << 20;

/// Of an EFI zboot image (Linux, `drivers/firmware/efi/libstub/zboot-header.S`).
const ZBOOT_MAGIC_AT: usize = 4;
const ZBOOT_MAGIC: &[u8] = b"zimg";
const ZBOOT_PAYLOAD: usize = 8;
const ZBOOT_PAYLOAD_SIZE: usize = 12;
const ZBOOT_METHOD: std::ops::Range<usize> = 24..56;

/// How much is decompressed at once.
const PIECE: usize = 1 << 16;

/// What an image's header says.
struct Header {
    text_offset: u64,
    /// From the image's first byte to the end of what it needs to start; 0 where it does not tell.
    size: u64,
}

impl Header {
    /// Reads the header at the start of `head`; `None` if there is none.
    fn parse(head: &[u8]) -> Result<Option<Self>, KernelError> {
        if !head.get(MAGIC..).is_some_and(|rest| rest.starts_with(MAGIC_VALUE)) {
            return Ok(None);
        }
        let field = |at| u64_at(head, at).ok_or(KernelError::Malformed("its header is cut off"));
        if field(FLAGS)? & FLAG_BIG_ENDIAN != 0 {
            return Err(KernelError::NotAKernel {
                looks_like: "a big-endian kernel Image".into(),
                wanted: WANTED,
            });
        }
        let size = field(IMAGE_SIZE)?;
        let text_offset = if size == 0 { OLD_TEXT_OFFSET } else { field(TEXT_OFFSET)? };
        Ok(Some(Self { text_offset, size }))
    }

    /// Where the image goes, and what it occupies, `stored` bytes of which are in the file.
    fn place(&self, layout: &MemoryLayout, stored: u64) -> Result<Range, KernelError> {
        if self.text_offset >= ALIGNMENT {
            return Err(KernelError::Malformed("its text offset is 2 MiB or more"));
        }
        let start = KERNEL.saturating_add(self.text_offset);
        let range = Range { start, size: self.size.max(stored) };
        check_fits(layout, range)?;
        Ok(range)
    }
}

fn check_fits(layout: &MemoryLayout, range: Range) -> Result<(), KernelError> {
    let end = range.start.saturating_add(range.size);
    if end > layout.ram_end() {
        return Err(KernelError::NeedsMoreMemory { start: range.start, end, ram_end: layout.ram_end() });
    }
    Ok(())
}

/// Loads a kernel and says what memory it needs; its first byte is its entry.
pub(super) fn load(
    memory: &Memory,
    layout: &MemoryLayout,
    file: &mut impl BootFile,
) -> Result<Range, KernelError> {
    let mut contents = Contents::new(file).map_err(KernelError::Read)?;
    let mut head = [0; HEAD_SIZE];
    let head_size = contents.read_at_most(0, &mut head).map_err(KernelError::Read)?;
    let head = head.get(..head_size).unwrap_or_default();
    if head.is_empty() {
        return Err(KernelError::Empty);
    }
    // A kernel of this kind is an EFI program too, so the more particular comes first.
    if head.get(ZBOOT_MAGIC_AT..).is_some_and(|rest| rest.starts_with(ZBOOT_MAGIC)) {
        return load_zboot(memory, layout, &mut contents, head);
    }
    if let Some(method) = Method::of(head) {
        let size = contents.size();
        return load_compressed(memory, layout, &mut contents, method, 0, size);
    }
    let Some(header) = Header::parse(head)? else {
        return Err(KernelError::NotAKernel { looks_like: looks_like(head).into(), wanted: WANTED });
    };
    let size = contents.size();
    let range = header.place(layout, size)?;
    contents.load(memory, 0, GuestAddress(range.start), size).map_err(KernelError::Read)?;
    Ok(range)
}

fn load_zboot<F: BootFile>(
    memory: &Memory,
    layout: &MemoryLayout,
    contents: &mut Contents<'_, F>,
    head: &[u8],
) -> Result<Range, KernelError> {
    let field = |at| u32_at(head, at).map(u64::from).ok_or(KernelError::Malformed("its header is cut off"));
    let (start, size) = (field(ZBOOT_PAYLOAD)?, field(ZBOOT_PAYLOAD_SIZE)?);
    let needs = start.saturating_add(size);
    if needs > contents.size() {
        return Err(KernelError::Truncated { what: "the compressed kernel", needs, has: contents.size() });
    }
    let method = head.get(ZBOOT_METHOD).unwrap_or_default();
    let method = method.split(|&byte| byte == 0).next().unwrap_or_default();
    let method = match method {
        b"gzip" => Method::Gzip,
        b"zstd" | b"zstd22" => Method::Zstd,
        b"xz" | b"xzkern" => Method::Xz,
        b"lz4" => return Err(unsupported("lz4")),
        b"lzma" => return Err(unsupported("lzma")),
        b"lzo" => return Err(unsupported("lzo")),
        _ => return Err(KernelError::Malformed("its header does not tell how the kernel is compressed")),
    };
    load_compressed(memory, layout, contents, method, start, size)
}

fn unsupported(method: &str) -> KernelError {
    KernelError::NotAKernel {
        looks_like: format!("an EFI zboot image compressed by {method}").into(),
        wanted: "the Image that is in it, or one compressed by gzip, zstd or xz",
    }
}

/// Decompresses an image in `size` bytes of the file from `start` on, straight to where it belongs.
fn load_compressed<F: BootFile>(
    memory: &Memory,
    layout: &MemoryLayout,
    contents: &mut Contents<'_, F>,
    method: Method,
    start: u64,
    size: u64,
) -> Result<Range, KernelError> {
    let mut image = decompress::open(method, contents, start, size)?;
    let mut piece = vec![0; PIECE];
    let mut length = 0usize;
    while let Some(room) = piece.get_mut(length..).filter(|_| length < HEAD_SIZE) {
        match image.read(room)? {
            0 => break,
            more => length = length.saturating_add(more),
        }
    }
    let head = piece.get(..length).unwrap_or_default();
    let header = if length < HEADER_SIZE { None } else { Header::parse(head)? };
    let Some(header) = header else {
        let looks_like = format!("{}, compressed by {}", looks_like(head), method.name()).into();
        return Err(KernelError::NotAKernel { looks_like, wanted: WANTED });
    };
    let Range { start, .. } = header.place(layout, 0)?;
    let mut done = 0u64;
    while length > 0 {
        let range = Range { start, size: done.saturating_add(length as u64) };
        check_fits(layout, range)?;
        memory
            .write_slice(piece.get(..length).unwrap_or_default(), GuestAddress(start.saturating_add(done)))
            .map_err(|error| KernelError::Read(std::io::Error::other(error)))?;
        done = range.size;
        length = image.read(&mut piece)?;
    }
    header.place(layout, done)
}
