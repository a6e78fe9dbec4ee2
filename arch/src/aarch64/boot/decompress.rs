//! Reads what gzip compressed (RFC 1952), in constant memory.

use crate::boot::{BootFile, Contents, KernelError, fields};
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

const FLAG_HEADER_CHECKSUM: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0xe0;
/// The only method.
const DEFLATE: u8 = 8;
const HEADER_SIZE: usize = 10;
/// Names and comments are looked for in so many bytes.
const LONGEST_HEADER: usize = 1 << 16;
/// After the compressed data: checksum and size of what was compressed.
const TRAILER_SIZE: usize = 8;
/// How much is read from the file at once.
const BUFFER: usize = 1 << 16;

/// What comes out of a part of a file.
pub(super) struct Gunzip<'a, 'b, F> {
    contents: &'a mut Contents<'b, F>,
    /// Where in the file to read on.
    next: u64,
    /// Where the part ends.
    end: u64,
    state: Box<InflateState>,
    buffer: Vec<u8>,
    /// What in the buffer is still to be used.
    unused: std::ops::Range<usize>,
    checksum: Crc32,
    /// Bytes that came out.
    total: u64,
    finished: bool,
}

fn damaged(reason: impl Into<String>) -> KernelError {
    KernelError::Compressed { method: "gzip", reason: reason.into() }
}

impl<'a, 'b, F: BootFile> Gunzip<'a, 'b, F> {
    /// Of `size` bytes from `start` on.
    pub(super) fn new(contents: &'a mut Contents<'b, F>, start: u64, size: u64) -> Result<Self, KernelError> {
        let end = start.saturating_add(size);
        let wanted = usize::try_from(size).unwrap_or(usize::MAX).min(LONGEST_HEADER);
        let mut head = vec![0; wanted];
        let length = contents.read_at_most(start, &mut head).map_err(KernelError::Read)?;
        let header = header_size(head.get(..length).unwrap_or_default())
            .ok_or_else(|| damaged("its header is cut off or not gzip's"))?;
        Ok(Self {
            contents,
            next: start.saturating_add(header as u64),
            end,
            state: InflateState::new_boxed(DataFormat::Raw),
            buffer: vec![0; BUFFER],
            unused: 0..0,
            checksum: Crc32::default(),
            total: 0,
            finished: false,
        })
    }

    /// Fills `out` as far as there is something, and says how far. 0: all came, and is as it was when it was compressed.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, KernelError> {
        let mut done = 0usize;
        while !self.finished {
            let Some(room) = out.get_mut(done..).filter(|room| !room.is_empty()) else { break };
            if self.unused.is_empty() {
                self.fill()?;
            }
            let input = self.buffer.get(self.unused.clone()).unwrap_or_default();
            let at_end = input.is_empty();
            let result = inflate(&mut self.state, input, room, MZFlush::None);
            self.unused.start = self.unused.start.saturating_add(result.bytes_consumed);
            let fresh = room.get(..result.bytes_written).unwrap_or_default();
            self.checksum.add(fresh);
            self.total = self.total.saturating_add(fresh.len() as u64);
            done = done.saturating_add(fresh.len());
            match result.status {
                Ok(MZStatus::StreamEnd) => {
                    self.check_trailer()?;
                    self.finished = true;
                }
                Ok(_) | Err(MZError::Buf) if at_end && result.bytes_written == 0 => {
                    return Err(damaged("it is cut off: copy the file again"));
                }
                Ok(_) | Err(MZError::Buf) => {}
                Err(error) => return Err(damaged(format!("{error:?}"))),
            }
        }
        Ok(done)
    }

    fn fill(&mut self) -> Result<(), KernelError> {
        let left = usize::try_from(self.end.saturating_sub(self.next)).unwrap_or(usize::MAX);
        let wanted = self.buffer.len().min(left);
        let room = self.buffer.get_mut(..wanted).unwrap_or_default();
        let length = self.contents.read_at_most(self.next, room).map_err(KernelError::Read)?;
        self.next = self.next.saturating_add(length as u64);
        self.unused = 0..length;
        Ok(())
    }

    /// Compares what came out with what went in.
    fn check_trailer(&mut self) -> Result<(), KernelError> {
        let at = self.next.saturating_sub(self.unused.len() as u64);
        let mut trailer = [0; TRAILER_SIZE];
        let left = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let room = trailer.get_mut(..left.min(TRAILER_SIZE)).unwrap_or_default();
        let length = self.contents.read_at_most(at, room).map_err(KernelError::Read)?;
        if length < TRAILER_SIZE {
            return Err(damaged("it is cut off: copy the file again"));
        }
        let expected = (fields::u32_at(&trailer, 0), fields::u32_at(&trailer, 4));
        // The size is kept modulo 2^32.
        if expected != (Some(self.checksum.value()), Some(self.total as u32)) {
            return Err(damaged("what comes out is not what was compressed: copy the file again"));
        }
        Ok(())
    }
}

/// Bytes of the header that `head` starts with.
fn header_size(head: &[u8]) -> Option<usize> {
    let &[0x1f, 0x8b, method, flags, ..] = head else { return None };
    if method != DEFLATE || flags & FLAGS_RESERVED != 0 || head.len() < HEADER_SIZE {
        return None;
    }
    let mut at = HEADER_SIZE;
    if flags & FLAG_EXTRA != 0 {
        let length = fields::u16_at(head, at)?;
        at = at.checked_add(2)?.checked_add(length.into())?;
    }
    for text in [FLAG_NAME, FLAG_COMMENT] {
        if flags & text != 0 {
            let length = head.get(at..)?.iter().position(|&byte| byte == 0)?;
            at = at.checked_add(length)?.checked_add(1)?;
        }
    }
    if flags & FLAG_HEADER_CHECKSUM != 0 {
        at = at.checked_add(2)?;
    }
    (at <= head.len()).then_some(at)
}

/// The checksum of RFC 1952, 8.
#[derive(Default)]
struct Crc32(u32);

impl Crc32 {
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "the compiler evaluates it")]
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let mut value = n as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 != 0 { 0xedb8_8320 ^ value >> 1 } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };

    fn add(&mut self, bytes: &[u8]) {
        self.0 = !bytes.iter().fold(!self.0, |value, &byte| {
            let at = (value as u8 ^ byte) as usize;
            Self::TABLE.get(at).copied().unwrap_or(0) ^ value >> 8
        });
    }

    fn value(&self) -> u32 {
        self.0
    }
}
