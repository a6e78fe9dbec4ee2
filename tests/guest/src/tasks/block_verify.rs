//! `blk-checksum` and `blk-verify`: what a disk holds, and whether it keeps what it is given.

use super::block::wanted_features;
use super::{Context, Failure, Outcome};
use crate::command_line::Task;
use crate::virtio::block::{Block, SECTOR, feature, request, result};
use crate::virtio::ring::Buffer;
use crate::virtio::{self, Kind};
use crate::{cpu, memory, report};

/// Bytes moved by one request.
const CHUNK: u64 = 64 * 1024;

/// The word at `word` of `sector`: both are mixed in, so that no two places and no two salts hold the same.
fn pattern(sector: u64, word: u64, salt: u64) -> u64 {
    (sector * 64 + word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Writes the pattern of `length` bytes from `sector` on to `address`.
pub fn fill_pattern(address: u64, length: u64, sector: u64, salt: u64) {
    for word in 0..length / 8 {
        cpu::write64(address + 8 * word, pattern(sector + word / 64, word % 64, salt));
    }
}

/// Compares memory with the pattern.
///
/// # Errors
/// The offset of the first word that differs.
pub fn check_pattern(address: u64, length: u64, sector: u64, salt: u64) -> Result<(), u64> {
    match (0..length / 8)
        .find(|&word| cpu::read64(address + 8 * word) != pattern(sector + word / 64, word % 64, salt))
    {
        Some(word) => Err(8 * word),
        None => Ok(()),
    }
}

/// CRC-32 as of ISO 3309 (that of zlib and gzip), a byte at a time.
struct Checksum {
    table: [u32; 256],
    state: u32,
}

impl Checksum {
    fn new() -> Checksum {
        let mut table = [0; 256];
        for (index, entry) in table.iter_mut().enumerate() {
            *entry = (0..8)
                .fold(index as u32, |value, _| value >> 1 ^ if value & 1 != 0 { 0xedb8_8320 } else { 0 });
        }
        Checksum { table, state: u32::MAX }
    }

    fn add(&mut self, address: u64, length: u64) {
        for offset in 0..length {
            let index = (self.state ^ u32::from(cpu::read8(address + offset))) & 0xff;
            self.state = self.state >> 8 ^ self.table[index as usize];
        }
    }

    fn value(&self) -> u32 {
        !self.state
    }
}

/// `blk-checksum dev=0 size=`: reads the disk (or its first bytes) and prints its CRC-32.
pub fn checksum(context: &Context, task: &Task) -> Outcome {
    let device = virtio::find(context.line, Kind::Block, task.number("dev", 0)?)?;
    let (required, wanted) = wanted_features(task)?;
    let mut block = Block::start(device, 16, required, wanted)?;
    let bytes = (block.capacity * SECTOR).min(task.number("size", u64::MAX)?) & !(SECTOR - 1);
    let buffer = memory::take(CHUNK, 4096) as u64;
    let mut sum = Checksum::new();
    let mut offset = 0;
    while offset < bytes {
        let length = CHUNK.min(bytes - offset);
        block.expect(request::READ, offset / SECTOR, Some(Buffer::writable(buffer, length as u32)))?;
        sum.add(buffer, length);
        offset += length;
    }
    device.reset()?;
    report!("blk-checksum bytes={bytes} crc32={:08x}", sum.value());
    Ok(())
}

/// `blk-verify dev=0 size=4M salt=1`: writes a pattern, flushes, reads it back, then discards and zeroes a part of it,
/// asks for the serial and for things that no device may grant.
pub fn verify(context: &Context, task: &Task) -> Outcome {
    let device = virtio::find(context.line, Kind::Block, task.number("dev", 0)?)?;
    let (required, wanted) = wanted_features(task)?;
    let own = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES | feature::READ_ONLY;
    let mut block = Block::start(device, 16, required, wanted | own)?;
    let salt = task.number("salt", 1)?;
    let bytes = (block.capacity * SECTOR).min(task.number("size", 4 << 20)?) & !(CHUNK - 1);
    let buffer = memory::take(CHUNK, 4096) as u64;
    let outcome = verify_on(&mut block, bytes, salt, buffer);
    device.reset()?;
    outcome
}

fn verify_on(block: &mut Block, bytes: u64, salt: u64, buffer: u64) -> Outcome {
    let length = CHUNK as u32;
    let read = Buffer::writable(buffer, length);
    let write = Buffer::readable(buffer, length);
    if block.features & feature::READ_ONLY != 0 {
        fill_pattern(buffer, CHUNK, 0, salt);
        let refused = block.request(request::WRITE, 0, Some(write))? == result::IO_ERROR;
        report!("blk-verify read_only=1 write_refused={}", u8::from(refused));
        return if refused { Ok(()) } else { Err(Failure::Checks(1)) };
    }
    for offset in (0..bytes).step_by(CHUNK as usize) {
        fill_pattern(buffer, CHUNK, offset / SECTOR, salt);
        block.expect(request::WRITE, offset / SECTOR, Some(write))?;
    }
    let flush = block.features & feature::FLUSH != 0;
    if flush {
        block.expect(request::FLUSH, 0, None)?;
    }
    for offset in (0..bytes).step_by(CHUNK as usize) {
        clear(buffer);
        block.expect(request::READ, offset / SECTOR, Some(read))?;
        check_pattern(buffer, CHUNK, offset / SECTOR, salt).map_err(|at| Failure::Mismatch(offset + at))?;
    }
    let mut failed = 0;
    let mut note = |right: bool| {
        failed += u64::from(!right);
        u8::from(right)
    };

    // The second chunk is zeroed; its neighbours must keep what they have.
    let mut zeroed = "-";
    if block.features & feature::WRITE_ZEROES != 0 && bytes >= 3 * CHUNK {
        range_request(block, request::WRITE_ZEROES, buffer, CHUNK / SECTOR)?;
        block.expect(request::READ, CHUNK / SECTOR, Some(read))?;
        let zero = (0..CHUNK).step_by(8).all(|offset| cpu::read64(buffer + offset) == 0);
        let mut neighbours = true;
        for chunk in [0, 2] {
            block.expect(request::READ, chunk * CHUNK / SECTOR, Some(read))?;
            neighbours &= check_pattern(buffer, CHUNK, chunk * CHUNK / SECTOR, salt).is_ok();
        }
        zeroed = if note(zero && neighbours) != 0 { "1" } else { "0" };
    }
    let mut discarded = "-";
    if block.features & feature::DISCARD != 0 && bytes >= 3 * CHUNK {
        range_request(block, request::DISCARD, buffer, CHUNK / SECTOR)?;
        // What a discarded range reads as is the device's choice; its neighbours' content is not.
        block.expect(request::READ, 2 * CHUNK / SECTOR, Some(read))?;
        let right = check_pattern(buffer, CHUNK, 2 * CHUNK / SECTOR, salt).is_ok();
        discarded = if note(right) != 0 { "1" } else { "0" };
    }
    clear(buffer);
    let has_id = block.request(request::GET_ID, 0, Some(Buffer::writable(buffer, 20)))? == result::OK;
    // SAFETY: the buffer is this task's and the device is done with it.
    let id = unsafe { core::slice::from_raw_parts(buffer as *const u8, 20) };
    let mut text = [b'-'; 20];
    let mut used = 0;
    for &byte in id.iter().take_while(|&&byte| byte != 0) {
        text[used] = if byte.is_ascii_graphic() { byte } else { b'_' };
        used += 1;
    }
    let serial = core::str::from_utf8(&text[..used]).unwrap_or("");

    let end = block.capacity;
    let past_end = note(block.request(request::READ, end, Some(read))? == result::IO_ERROR);
    let across_end = note(block.request(request::READ, end - 1, Some(read))? == result::IO_ERROR);
    let wrapped = note(block.request(request::READ, u64::MAX - 3, Some(read))? == result::IO_ERROR);
    let unknown = note(block.request(0x7777, 0, Some(read))? == result::UNSUPPORTED);
    report!(
        "blk-verify bytes={bytes} salt={salt} match=1 flush={} zeroes={zeroed} discard={discarded} id={} serial={serial:?} \
         past_end_refused={past_end} across_end_refused={across_end} wrapped_refused={wrapped} unknown_refused={unknown}",
        u8::from(flush),
        u8::from(has_id)
    );
    if failed > 0 { Err(Failure::Checks(failed)) } else { Ok(()) }
}

/// Discards or zeroes the second chunk of the disk (5.2.6: sector, count, flags).
fn range_request(block: &mut Block, kind: u32, buffer: u64, sectors: u64) -> Result<(), Failure> {
    cpu::write64(buffer, sectors);
    cpu::write32(buffer + 8, sectors as u32);
    cpu::write32(buffer + 12, 0);
    block.expect(kind, 0, Some(Buffer::readable(buffer, 16)))
}

fn clear(buffer: u64) {
    // SAFETY: the buffer is this task's, and no request is in flight.
    unsafe { (buffer as *mut u8).write_bytes(0, CHUNK as usize) };
}
