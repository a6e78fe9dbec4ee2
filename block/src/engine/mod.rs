//! Engines: what performs operations on files without making the caller wait.
//!
//! An engine belongs to one queue and knows nothing of disks: it takes operations under a tag, and gives back each tag
//! once with what the kernel said. Short transfers and retries are its caller's business.

mod pool;
mod uring;

pub use pool::{Pool, PoolEngine};
pub use uring::UringEngine;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use thiserror::Error;
use virtio::chain::Segment;

/// The most segments that one operation takes (`IOV_MAX`).
pub const SEGMENTS_MAX: usize = 1024;

/// The most bytes that Linux transfers in one operation (`MAX_RW_COUNT`).
pub const TRANSFER_MAX: u32 = 0x7fff_f000;

/// Performs operations on files.
///
/// All methods are called by one thread at a time, not always the same one. Dropping an engine waits for what is in
/// flight.
pub trait Engine: Send {
    /// What it is called when looked at.
    fn name(&self) -> &'static str;

    /// Takes an operation, to be started at the latest by [`Self::kick`]. At most as many as the engine's depth may be in
    /// flight, under different tags.
    ///
    /// # Safety
    /// The array of segments and the memory they point to stay valid, and are not used otherwise, until
    /// [`Self::complete`] returned the tag or the engine is dropped.
    unsafe fn submit(&mut self, tag: u32, file: FileIndex, operation: Operation);

    /// Starts all operations taken.
    fn kick(&mut self);

    /// The next operation that is over, in any order, and the number of bytes transferred. Never waits.
    fn complete(&mut self) -> Option<Completion>;

    /// A cheap look, without a system call, whether [`Self::kick`] or [`Self::complete`] has something to do.
    fn has_work(&self) -> bool;

    /// Asks for [`Self::event`] to be readable once an operation is over. `true`: one is over already.
    fn arm(&mut self) -> bool;

    /// Undoes [`Self::arm`], and makes the event unreadable. Costs nothing when not armed.
    fn disarm(&mut self);

    /// The descriptor that becomes readable.
    fn event(&self) -> RawFd;
}

/// Which of an engine's files, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIndex(pub u16);

/// Something to do with a file.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Read from a position.
    Read {
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// Where to.
        into: Segments,
        /// Leave it to a thread that may sleep from the start: a try without sleeping did not get on.
        patient: bool,
    },
    /// Write to a position.
    Write {
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// From where.
        from: Segments,
        /// Complete only when it survives a power loss (`RWF_DSYNC`).
        stable: bool,
        /// As for reading.
        patient: bool,
    },
    /// Make everything written survive a power loss (`fdatasync`).
    Sync,
    /// Change how a range is allocated (`fallocate(2)`).
    Allocate {
        /// Its mode.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Throw away a range of a block device (`BLKDISCARD`).
    DiscardDevice {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

/// An array of segments that outlives the operation: see [`Engine::submit`].
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    pub(crate) first: *const Segment,
    pub(crate) count: u32,
}

// SAFETY: a pointer and a length; `Engine::submit` is where its validity is promised.
unsafe impl Send for Segments {}

impl Segments {
    /// The array, or its first [`SEGMENTS_MAX`].
    pub fn of(segments: &[Segment]) -> Self {
        let count = segments.len().min(SEGMENTS_MAX);
        Self { first: segments.as_ptr(), count: count as u32 }
    }

    /// The array, as the kernel takes it.
    fn iovecs(self) -> *const libc::iovec {
        self.first.cast()
    }

    /// The only segment, when there is no other.
    ///
    /// # Safety
    /// The array is valid.
    unsafe fn single(self) -> Option<Segment> {
        // SAFETY: the caller says that the array is valid, and it has an element.
        (self.count == 1).then(|| unsafe { *self.first })
    }
}

/// An operation that is over.
#[derive(Debug)]
pub struct Completion {
    /// What it was submitted under.
    pub tag: u32,
    /// The bytes transferred, which may be fewer than asked for; 0 where nothing is transferred.
    pub result: io::Result<u32>,
}

impl Completion {
    fn from_kernel(tag: u32, result: i32) -> Self {
        let result = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()));
        Self { tag, result }
    }
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring where the host allows it, else threads.
    #[default]
    Auto,
    /// io_uring; an error where the host does not allow it.
    IoUring,
    /// Threads that make ordinary system calls.
    Threads,
}

/// Called by each thread that an engine starts, before it does anything else: for its system call filter.
pub type ThreadStart = Arc<dyn Fn() + Send + Sync>;

/// Why the engine asked for cannot be had.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The kernel has no io_uring, or does not let this process use it.
    #[error(
        "io_uring cannot be used here: {0}; allow it (sysctl kernel.io_uring_disabled, container policy) or let the \
         disk use threads"
    )]
    Uring(#[source] io::Error),
    /// Threads cannot be started.
    #[error("the threads that do a disk's input and output cannot be started: {0}")]
    Threads(#[source] io::Error),
}

/// Makes engines of one kind for the queues of one image.
pub struct Engines {
    uring: bool,
    pool: Arc<Pool>,
    /// Operations that io_uring does not have go to the pool.
    discards: bool,
}

impl Engines {
    /// Decides what engines will be made. `discards`: operation [`Operation::DiscardDevice`] will be used.
    ///
    /// # Errors
    /// When the kind asked for cannot be had.
    pub fn new(kind: EngineKind, discards: bool, start: Option<ThreadStart>) -> Result<Self, EngineError> {
        let uring = match kind {
            EngineKind::Threads => false,
            EngineKind::IoUring => {
                uring::probe().map_err(EngineError::Uring)?;
                true
            }
            EngineKind::Auto => match uring::probe() {
                Ok(()) => true,
                Err(error) => {
                    tracing::info!("disks use threads, since io_uring cannot be used here: {error}");
                    false
                }
            },
        };
        Ok(Self { uring, pool: Pool::new(start), discards })
    }

    /// Whether they use io_uring.
    pub fn uses_uring(&self) -> bool {
        self.uring
    }

    /// A new engine for up to `depth` operations at once on `files`.
    ///
    /// # Errors
    /// When the host is out of descriptors, memory or threads.
    pub fn engine(&self, files: Vec<EngineFile>, depth: u32) -> Result<Box<dyn Engine>, EngineError> {
        let files: Arc<[EngineFile]> = files.into();
        if self.uring {
            let pool = self.discards.then_some(&self.pool);
            let engine = UringEngine::new(files, depth, pool).map_err(EngineError::Uring)?;
            Ok(Box::new(engine))
        } else {
            let engine = PoolEngine::new(&self.pool, files, depth).map_err(EngineError::Threads)?;
            Ok(Box::new(engine))
        }
    }
}

/// A file to operate on.
#[derive(Clone)]
pub struct EngineFile {
    /// The file, or something that keeps it open.
    pub file: Arc<dyn AsRawFd + Send + Sync>,
    /// Whether it was opened for direct I/O, where trying to read from the page cache is of no use.
    pub direct: bool,
}

#[cfg(test)]
mod tests;
