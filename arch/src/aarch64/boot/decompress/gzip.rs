//! Reads what gzip compressed (RFC 1952), in constant memory.

use super::{Decompress, Method, Source, cut_off};
use crate::aarch64::boot::crc32::Crc32;
use crate::boot::{BootFile, KernelError, fields};
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};
use std::io::{BufRead, ErrorKind, Read};

const FLAG_HEADER_CHECKSUM: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0xe0;
/// The only method.
const DEFLATE: u8 = 8;
const HEADER_SIZE: usize = 10;
/// After the compressed data: checksum and size of what was compressed.
const TRAILER_SIZE: usize = 8;

/// What comes out.
pub(super) struct Gunzip<'a, 'b, F> {
    source: Source<'a, 'b, F>,
    state: Box<InflateState>,
    checksum: Crc32,
    /// Bytes that came out.
    total: u64,
    finished: bool,
}

fn damaged(reason: impl Into<String>) -> KernelError {
    Method::Gzip.damaged(reason)
}

impl<'a, 'b, F: BootFile> Gunzip<'a, 'b, F> {
    pub(super) fn new(mut source: Source<'a, 'b, F>) -> Result<Self, KernelError> {
        // Names and comments are looked for in as much as is read at once.
        let head = source.fill_buf().map_err(KernelError::Read)?;
        let header = header_size(head).ok_or_else(|| damaged("its header is cut off or not gzip's"))?;
        source.consume(header);
        let state = InflateState::new_boxed(DataFormat::Raw);
        Ok(Self { source, state, checksum: Crc32::default(), total: 0, finished: false })
    }

    /// Compares what came out with what went in.
    fn check_trailer(&mut self) -> Result<(), KernelError> {
        let mut trailer = [0; TRAILER_SIZE];
        self.source.read_exact(&mut trailer).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => cut_off(Method::Gzip),
            _ => KernelError::Read(error),
        })?;
        let expected = (fields::u32_at(&trailer, 0), fields::u32_at(&trailer, 4));
        // The size is kept modulo 2^32.
        if expected != (Some(self.checksum.value()), Some(self.total as u32)) {
            return Err(damaged("what comes out is not what was compressed: copy the file again"));
        }
        Ok(())
    }
}

impl<F: BootFile> Decompress for Gunzip<'_, '_, F> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, KernelError> {
        let mut done = 0usize;
        while !self.finished {
            let Some(room) = out.get_mut(done..).filter(|room| !room.is_empty()) else { break };
            let input = self.source.fill_buf().map_err(KernelError::Read)?;
            let at_end = input.is_empty();
            let result = inflate(&mut self.state, input, room, MZFlush::None);
            self.source.consume(result.bytes_consumed);
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
                    return Err(cut_off(Method::Gzip));
                }
                Ok(_) | Err(MZError::Buf) => {}
                Err(error) => return Err(damaged(format!("{error:?}"))),
            }
        }
        Ok(done)
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
