//! `blk_split`, `blk_packed`: the block device, on rings of either layout.

use crate::disk::MemoryDisk;
use crate::input::Input;
use crate::program::{self, QUEUE_STEPS, Subject};
use block::image::SECTOR;
use block::virtio_blk::{Block, BlockControl, BlockOptions};
use machine::clock::ManualClock;
use std::sync::Arc;
use std::time::Duration;
use virtio::rate_limit::{Limit, RateLimiter};
use virtio::testing::{Completion, Driver};

const DISK_SIZE: usize = 32 << 10;

/// `VIRTIO_BLK_T_*`: in, out, flush, get id, discard, write zeroes, and some that are not offered.
const KINDS: &[u32] = &[0, 1, 4, 8, 11, 13, 0, 1, 11, 13, 5, 14, 16, u32::MAX];

/// Split rings.
pub fn blk_split(data: &[u8]) {
    run(data, false);
}

/// Packed rings.
pub fn blk_packed(data: &[u8]) {
    run(data, true);
}

fn run(data: &[u8], packed: bool) {
    let input = &mut Input::new(data);
    let clock = Arc::new(ManualClock::default());
    let choice = input.u8();
    let read_only = choice & 7 == 7;
    let disk = MemoryDisk::new(DISK_SIZE, read_only);
    let limit = Limit { size: 8192, refill_time: Duration::from_millis(1), one_time_burst: 0 };
    let options = BlockOptions {
        queues: 2,
        queue_size: 16,
        write_back: choice & 8 == 0,
        limiter: (choice & 0x30 == 0x30).then(|| RateLimiter::new(Some(limit), None, clock.clone())),
        ..BlockOptions::default()
    };
    let block = Block::new(Arc::new(disk.clone()), options).expect("the options are in range");
    let mut subject = Disk { disk, control: block.control(), read_only };
    let driver = Driver::attach_with(clock, Box::new(block));
    program::run(driver, &mut subject, QUEUE_STEPS, Some(packed), input);
}

struct Disk {
    disk: MemoryDisk,
    control: BlockControl,
    read_only: bool,
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

impl Subject for Disk {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        let queue = input.below(2);
        let kind = input.choose(KINDS);
        let sector = if input.below(8) == 7 { input.u64() } else { u64::from(input.u8() & 0x7f) };
        let header = header(kind, sector);
        let size = if input.below(8) == 7 { input.u16() } else { input.below(9) * SECTOR as u16 };
        let mut data = Vec::new();
        let mut room = 0;
        match kind {
            1 => data.resize(size.into(), input.u8()),
            11 | 13 => {
                for _ in 0..=input.below(4) {
                    data.extend(u64::from(input.u8()).to_le_bytes());
                    data.extend(u32::from(input.u8()).to_le_bytes());
                    data.extend(u32::from(input.u8() & 3).to_le_bytes());
                }
            }
            _ => room = size,
        }
        // However it is cut into buffers.
        let cut = usize::from(input.u8()).min(data.len());
        let (first, second) = data.split_at(cut);
        let readable: Vec<&[u8]> =
            [&header[..], first, second].into_iter().filter(|part| !part.is_empty()).collect();
        let writable = match input.below(4) {
            0 => vec![u32::from(room) + 1],
            1 if room > 1 => vec![1, u32::from(room) - 1, 1],
            _ if room > 0 => vec![room.into(), 1],
            _ => vec![1],
        };
        driver.request(queue, &readable, &writable);
        true
    }

    fn host(&mut self, _driver: &mut Driver, input: &mut Input<'_>) {
        match input.below(5) {
            0 => self.disk.behave(|behaviour| behaviour.delay = input.u8().into()),
            1 => self.disk.behave(|behaviour| behaviour.newest_first = input.flag()),
            // EIO, ENOSPC, EOPNOTSUPP, EAGAIN.
            2 => self.disk.behave(|behaviour| behaviour.fail_next = Some(input.choose(&[5, 28, 95, 11]))),
            3 => self.disk.behave(|behaviour| behaviour.flush_fails = input.flag()),
            _ => {
                let size = u64::from(input.u16()) * 128;
                // Refused where the disk would shrink.
                let _ = self.control.resize(size);
            }
        }
    }

    fn check(&mut self, queue: u16, completion: &Completion) {
        let status = completion.data.last().copied();
        assert!(matches!(status, Some(0..=2)), "queue {queue}: status {status:?}");
    }

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn calm(&mut self, _driver: &mut Driver) {
        self.disk.behave(|behaviour| *behaviour = crate::disk::Behaviour::default());
    }

    fn works(&mut self, driver: &mut Driver) {
        let data = [0x5a; 512];
        let answer = driver.call(1, &[&header(1, 3), &data], &[1]);
        assert_eq!(answer.data, [u8::from(self.read_only)], "a write succeeds");
        let answer = driver.call(0, &[&header(0, 3)], &[512, 1]);
        assert_eq!((answer.written, answer.data[512]), (513, 0), "a read succeeds");
        assert!(self.read_only || answer.data[..512] == data, "what was written is read");
    }
}
