//! What a chain asks for (virtio 1.2, 5.2.6).
//!
//! A request is a 16-byte header, data, and a status byte, which may be spread over descriptors in any way: all that counts is
//! the sequence of readable bytes and the sequence of writable ones.

use super::config::{DISCARD_SECTORS_MAX, RANGES_MAX, ZERO_SECTORS_MAX};
use crate::image::SECTOR;
use virtio::chain::Chain;

/// Size of the header.
pub(super) const HEADER: u64 = 16;
/// Size of a range to discard or zero.
const RANGE: u64 = 16;

/// `VIRTIO_BLK_T_*`
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// What a request ends with (`VIRTIO_BLK_S_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A request whose header makes sense. Offsets and lengths are in bytes and within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Read {
        offset: u64,
        length: u64,
    },
    Write {
        offset: u64,
        length: u64,
    },
    Flush,
    GetId {
        room: u64,
    },
    Discard {
        ranges: u32,
    },
    /// `length`: of all ranges.
    WriteZeroes {
        ranges: u32,
        length: u64,
    },
}

/// A range to discard or zero, in bytes and within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) unmap: bool,
}

/// Where the status goes: the offset of the last writable byte. `None`: there is none.
pub(super) fn status_offset(chain: &Chain) -> Option<u64> {
    chain.writable_len().checked_sub(1)
}

/// Answers a request that the disk is gone. Returns how many bytes were written.
pub(super) fn refuse(chain: &Chain) -> u32 {
    let status = [Status::IoError as u8];
    status_offset(chain).map_or(0, |offset| chain.write_at(offset, &status) as u32)
}

/// Makes sense of a chain that has a status byte, for a disk of `size` bytes.
pub(super) fn parse(chain: &Chain, size: u64, read_only: bool) -> Result<Parsed, Status> {
    let header = u128::from_le_bytes(chain.read_array::<{ HEADER as usize }>(0).ok_or(Status::IoError)?);
    let (kind, sector) = (header as u32, (header >> 64) as u64);
    let room = status_offset(chain).ok_or(Status::IoError)?;
    let data = chain.readable_len().saturating_sub(HEADER);
    match kind {
        kind::IN => {
            let (offset, length) = within(sector, room, size)?;
            Ok(Parsed::Read { offset, length })
        }
        kind::OUT | kind::DISCARD | kind::WRITE_ZEROES if read_only => Err(Status::IoError),
        kind::OUT => {
            let (offset, length) = within(sector, data, size)?;
            Ok(Parsed::Write { offset, length })
        }
        kind::FLUSH => Ok(Parsed::Flush),
        kind::GET_ID => Ok(Parsed::GetId { room }),
        kind::DISCARD | kind::WRITE_ZEROES => {
            let zero = kind == kind::WRITE_ZEROES;
            let ranges = data.checked_div(RANGE).and_then(|ranges| u32::try_from(ranges).ok());
            let ranges = ranges.filter(|ranges| (1..=RANGES_MAX).contains(ranges)).ok_or(Status::IoError)?;
            if !data.is_multiple_of(RANGE) {
                return Err(Status::IoError);
            }
            // All of them before anything is done; each is checked again when its turn comes.
            let mut length = 0_u64;
            for index in 0..ranges {
                length = length.saturating_add(range(chain, index, zero, size)?.length);
            }
            Ok(if zero { Parsed::WriteZeroes { ranges, length } } else { Parsed::Discard { ranges } })
        }
        _ => Err(Status::Unsupported),
    }
}

/// The `index`th range of a request to discard or `zero`.
pub(super) fn range(chain: &Chain, index: u32, zero: bool, size: u64) -> Result<Range, Status> {
    let at = u64::from(index).saturating_mul(RANGE).saturating_add(HEADER);
    let bytes = u128::from_le_bytes(chain.read_array::<{ RANGE as usize }>(at).ok_or(Status::IoError)?);
    let (sector, sectors, flags) = (bytes as u64, (bytes >> 64) as u32, (bytes >> 96) as u32);
    // Bit 0 asks for unmapping, which only makes sense when zeroing.
    let (allowed, most) = if zero { (1, ZERO_SECTORS_MAX) } else { (0, DISCARD_SECTORS_MAX) };
    if flags & !allowed != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > most {
        return Err(Status::IoError);
    }
    let (offset, length) = within(sector, u64::from(sectors).saturating_mul(SECTOR), size)?;
    Ok(Range { offset, length, unmap: flags & 1 != 0 })
}

/// A place on the disk in bytes, if it is whole sectors and within.
fn within(sector: u64, length: u64, size: u64) -> Result<(u64, u64), Status> {
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let end = offset.checked_add(length).ok_or(Status::IoError)?;
    if !length.is_multiple_of(SECTOR) || end > size { Err(Status::IoError) } else { Ok((offset, length)) }
}
