//! Block devices (virtio 1.2, 5.2): one request at a time, for tasks that do not measure.

use super::ring::{Buffer, Ring};
use super::{Device, Doorbell};
use crate::clock::Deadline;
use crate::memory;
use crate::tasks::Failure;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// Most parts of a request's chain.
pub const PARTS: u16 = 4;

/// Feature bits (5.2.3).
pub mod feature {
    /// The device is read-only.
    pub const READ_ONLY: u64 = 1 << 5;
    /// Flush requests.
    pub const FLUSH: u64 = 1 << 9;
    /// Several queues.
    pub const QUEUES: u64 = 1 << 12;
    /// Discard requests.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (5.2.6).
pub mod request {
    /// Read.
    pub const READ: u32 = 0;
    /// Write.
    pub const WRITE: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// The device's serial.
    pub const GET_ID: u32 = 8;
    /// Discard.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// A request's status (5.2.6).
pub mod result {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const IO_ERROR: u8 = 1;
    /// Not known to the device.
    pub const UNSUPPORTED: u8 = 2;
    /// What the driver leaves there: the device has not answered.
    pub const NONE: u8 = 0xff;
}

/// The header that a request begins with.
#[repr(C)]
pub struct Header {
    /// One of [`request`].
    pub kind: u32,
    /// Not used.
    pub reserved: u32,
    /// First sector.
    pub sector: u64,
}

/// A block device with one queue in use.
pub struct Block {
    /// Features agreed on.
    pub features: u64,
    /// Size of the disk in sectors.
    pub capacity: u64,
    /// Its first queue.
    pub ring: Ring,
    doorbell: Doorbell,
    header: *mut Header,
    status: *mut u8,
}

impl Block {
    /// Brings the device up with its first queue, of at most `size` descriptors.
    ///
    /// # Errors
    /// Those of bringing up any device.
    pub fn start(device: Device, size: u16, required: u64, wanted: u64) -> Result<Block, Failure> {
        let features = device.negotiate(required, wanted)?;
        let ring = device.make_queue(0, size, PARTS, features, false)?;
        device.start();
        Ok(Block {
            features,
            capacity: device.config64(0),
            ring,
            doorbell: device.doorbell(0),
            header: memory::take(16, 16).cast(),
            status: memory::take(1, 16),
        })
    }

    /// Makes one request and waits for it; `data` is its address, length, and whether the device writes it.
    /// Returns the status that the device gave.
    ///
    /// # Errors
    /// The device does not complete it within five seconds, or completes something else.
    pub fn request(&mut self, kind: u32, sector: u64, data: Option<Buffer>) -> Result<u8, Failure> {
        // SAFETY: both are this object's, and the device has completed what it was given before.
        unsafe {
            self.header.write_volatile(Header { kind, reserved: 0, sector });
            self.status.write_volatile(result::NONE);
        }
        let header = Buffer::readable(self.header as u64, 16);
        let status = Buffer::writable(self.status as u64, 1);
        match data {
            Some(data) => self.ring.add(0, &[header, data, status]),
            None => self.ring.add(0, &[header, status]),
        }
        if self.ring.publish() {
            self.doorbell.ring();
        }
        let mut completion = None;
        if !Deadline::after(5000).wait(|| {
            completion = self.ring.take();
            completion.is_some()
        }) {
            return Err(Failure::Timeout("completion of a block request"));
        }
        match completion {
            // SAFETY: the device is done with it.
            Some((0, _)) => Ok(unsafe { self.status.read_volatile() }),
            _ => Err(Failure::Device("completed a chain that it was not given")),
        }
    }

    /// The same, but any status other than OK is an error.
    ///
    /// # Errors
    /// As for [`Block::request`].
    pub fn expect(&mut self, kind: u32, sector: u64, data: Option<Buffer>) -> Result<(), Failure> {
        match self.request(kind, sector, data)? {
            result::OK => Ok(()),
            result::UNSUPPORTED => Err(Failure::Device("request is not supported")),
            _ => Err(Failure::Device("request failed")),
        }
    }
}
