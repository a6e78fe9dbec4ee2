//! Disk images: what a guest's disk is on the host.
//!
//! An [`Image`] is shared by all queues of a disk. Each queue opens a [`Stream`] of its own, which takes requests in
//! terms of the disk and turns them into operations of an [engine](crate::engine) - one to one for raw images, through
//! maps that may have to be read first for others.

mod bounce;
mod lock;
mod open;
mod page_cache;
mod raw;
mod stream;
mod topology;

pub use lock::Locked;
pub use open::{OpenError, OpenOptions, open, same_image};
pub use raw::RawImage;
pub use stream::RawStream;

pub(crate) use page_cache::PageCache;
pub(crate) use stream::Layout;

use crate::engine::EngineError;
use machine::inspect::Inspect;
use std::io;
use std::os::fd::RawFd;
use thiserror::Error;
use virtio::chain::Segment;

/// Bytes in a sector: the unit of virtio-blk, whatever the disk's block size.
pub const SECTOR: u64 = 512;

/// A disk image, opened.
pub trait Image: Send + Sync + Inspect {
    /// Size in bytes, a multiple of 512. May change while in use: see [`Self::resize`].
    fn size(&self) -> u64;

    /// Whether writing was not asked for.
    fn read_only(&self) -> bool;

    /// Block sizes and what else a guest does well to know.
    fn topology(&self) -> Topology;

    /// A way to the image for one queue, which keeps the image open. At most `depth` requests will be in flight.
    ///
    /// # Errors
    /// When the host has no resources for it.
    fn stream(&self, depth: u16) -> Result<Box<dyn Stream>, EngineError>;

    /// Makes all that was written survive a power loss. Waits for it.
    ///
    /// # Errors
    /// The host's, in which case earlier writes may be lost.
    fn flush(&self) -> io::Result<()>;

    /// Makes the image larger, or takes up a new size that a block device has already.
    ///
    /// # Errors
    /// When the image would become smaller, or cannot be extended.
    fn resize(&self, size: u64) -> Result<(), ResizeError>;
}

/// One queue's way to an image.
///
/// All methods are called by one thread at a time, not always the same one. Dropping a stream waits for what is in flight.
pub trait Stream: Send {
    /// What performs the operations, for inspection.
    fn engine(&self) -> &'static str;

    /// Takes a request, to be started at the latest by [`Self::kick`]. `tag` is less than the stream's depth and names no
    /// other request in flight.
    ///
    /// # Safety
    /// The memory that the request's segments point to stays mapped until [`Self::complete`] returned the tag or the
    /// stream is dropped. (The array of segments is copied.)
    unsafe fn submit(&mut self, tag: u16, request: Request<'_>);

    /// Starts all requests taken.
    fn kick(&mut self);

    /// The next request that is over, in any order. What it says of a write is true: the data is where a flush
    /// finds it. Never waits.
    fn complete(&mut self) -> Option<Completed>;

    /// A cheap look, without a system call, whether [`Self::kick`] or [`Self::complete`] has something to do.
    fn has_work(&self) -> bool;

    /// Asks for [`Self::event`] to be readable when there is something to do. `true`: there is already.
    fn arm(&mut self) -> bool;

    /// Undoes [`Self::arm`], and makes the event unreadable. Costs nothing when not armed.
    fn disarm(&mut self);

    /// The descriptor that becomes readable.
    fn event(&self) -> RawFd;
}

/// Something to do with a disk. All offsets and lengths are in bytes, multiples of 512 and within the disk.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// Where to. Their total length is the request's.
        into: &'a [Segment],
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// From where. Their total length is the request's.
        from: &'a [Segment],
        /// Complete only when it survives a power loss.
        stable: bool,
    },
    /// Make all writes that completed, of any stream, survive a power loss.
    Flush,
    /// The guest no longer needs what is there. Reading it afterwards gives anything.
    Discard {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Reading it afterwards gives zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// The range may lose its place on the storage, so that writing it again can run out of space.
        unmap: bool,
        /// As for writing.
        stable: bool,
    },
}

/// A request that is over.
#[derive(Debug)]
pub struct Completed {
    /// What it was submitted under.
    pub tag: u16,
    /// How it went.
    pub result: io::Result<()>,
}

/// What a guest does well to know about a disk. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The smallest unit the disk can address: a power of two from 512.
    pub logical_block: u32,
    /// The smallest unit it writes without having to read: a power of two times the logical block.
    pub physical_block: u32,
    /// Where the first physical block begins.
    pub alignment_offset: u32,
    /// The smallest efficient request, or 0.
    pub minimum_io: u32,
    /// The best size of large requests, or 0.
    pub optimal_io: u32,
    /// Unit in which discarding works, or 0 when it does not.
    pub discard_granularity: u32,
}

/// Why an image's size cannot change.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// The disk was opened for reading only.
    #[error("a read-only disk cannot be resized")]
    ReadOnly,
    /// Data would be cut off.
    #[error("the disk has {from} bytes and would lose data if cut to {to}: a disk can only grow")]
    Smaller {
        /// Size now.
        from: u64,
        /// Size asked for.
        to: u64,
    },
    /// Not whole sectors.
    #[error("{0} bytes is not a multiple of 512")]
    Unaligned(u64),
    /// The host refuses.
    #[error("the image cannot be extended to {to} bytes: {source}")]
    Host {
        /// Size asked for.
        to: u64,
        /// The host's answer.
        source: io::Error,
    },
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
