//! A disk in memory, which does requests when asked for their completion, and checks what the device asks of it.

use block::engine::EngineError;
use block::image::{Completed, Image, Request, ResizeError, SECTOR, Stream, Topology};
use machine::inspect::{Inspect, Value, json};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use virtio::chain::Segment;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// No disk grows beyond this, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// How the disk behaves.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// How often it is asked for a completion before it gives one.
    pub(crate) delay: u32,
    /// The request that came last is done first.
    pub(crate) newest_first: bool,
    /// What the next request fails with.
    pub(crate) fail_next: Option<i32>,
    /// Flushing the image as a whole fails.
    pub(crate) flush_fails: bool,
}

struct State {
    bytes: Vec<u8>,
    behaviour: Behaviour,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct MemoryDisk {
    state: Arc<Mutex<State>>,
    read_only: bool,
}

impl MemoryDisk {
    /// A disk of zeroes; `size` is in bytes.
    pub(crate) fn new(size: usize, read_only: bool) -> Self {
        let state = State { bytes: vec![0; size], behaviour: Behaviour::default() };
        Self { state: Arc::new(Mutex::new(state)), read_only }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.lock().behaviour);
    }
}

impl Image for MemoryDisk {
    fn size(&self) -> u64 {
        self.lock().bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn topology(&self) -> Topology {
        Topology {
            logical_block: 512,
            physical_block: 4096,
            alignment_offset: 0,
            minimum_io: 4096,
            optimal_io: 0,
            discard_granularity: 512,
        }
    }

    fn stream(&self, depth: u16) -> Result<Box<dyn Stream>, EngineError> {
        Ok(Box::new(MemoryStream { disk: self.clone(), depth, pending: Vec::new() }))
    }

    fn flush(&self) -> io::Result<()> {
        if self.lock().behaviour.flush_fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn resize(&self, size: u64) -> Result<(), ResizeError> {
        let mut state = self.lock();
        let from = state.bytes.len() as u64;
        if size < from {
            return Err(ResizeError::Smaller { from, to: size });
        }
        if !size.is_multiple_of(SECTOR) || size > MAX_SIZE {
            return Err(ResizeError::Unaligned(size));
        }
        state.bytes.resize(size as usize, 0);
        Ok(())
    }
}

impl Inspect for MemoryDisk {
    fn inspect(&self) -> Value {
        json!({"size": self.size()})
    }
}

/// What a request needs done, kept until its completion is asked for.
enum Deed {
    Read { offset: usize, into: Vec<Segment> },
    Write { offset: usize, from: Vec<Segment> },
    Zero { offset: usize, length: usize },
    Nothing,
}

struct MemoryStream {
    disk: MemoryDisk,
    depth: u16,
    pending: Vec<(u16, Deed)>,
}

impl MemoryStream {
    /// Checks a request's place on the disk.
    fn place(&self, offset: u64, length: u64) -> usize {
        assert!(offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR), "{offset}+{length}");
        let end = offset.checked_add(length).expect("a request does not wrap");
        assert!(end <= self.disk.size(), "{offset}+{length} is past the end of the disk");
        offset as usize
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len() as u64).sum()
}

impl Stream for MemoryStream {
    fn engine(&self) -> &'static str {
        "memory"
    }

    unsafe fn submit(&mut self, tag: u16, request: Request<'_>) {
        assert!(tag < self.depth, "tag {tag} of {}", self.depth);
        assert!(self.pending.iter().all(|(other, _)| *other != tag), "a tag names one request at a time");
        let writes = !matches!(request, Request::Read { .. } | Request::Flush);
        assert!(!writes || !self.disk.read_only, "a read-only disk is not written to: {request:?}");
        let deed = match request {
            Request::Read { offset, into } => {
                Deed::Read { offset: self.place(offset, total(into)), into: into.to_vec() }
            }
            Request::Write { offset, from, .. } => {
                Deed::Write { offset: self.place(offset, total(from)), from: from.to_vec() }
            }
            Request::Flush => Deed::Nothing,
            Request::Discard { offset, length } | Request::WriteZeroes { offset, length, .. } => {
                Deed::Zero { offset: self.place(offset, length), length: length as usize }
            }
        };
        self.pending.push((tag, deed));
    }

    fn kick(&mut self) {}

    fn complete(&mut self) -> Option<Completed> {
        if self.pending.is_empty() {
            return None;
        }
        let mut state = self.disk.lock();
        if state.behaviour.delay > 0 {
            state.behaviour.delay -= 1;
            return None;
        }
        let at = if state.behaviour.newest_first { self.pending.len() - 1 } else { 0 };
        let (tag, deed) = self.pending.remove(at);
        if let Some(errno) = state.behaviour.fail_next.take() {
            return Some(Completed { tag, result: Err(io::Error::from_raw_os_error(errno)) });
        }
        match deed {
            Deed::Read { offset, into } => {
                let mut from = &state.bytes[offset..];
                for segment in into {
                    let (bytes, rest) = from.split_at(segment.len());
                    // SAFETY: whoever submitted the request keeps the segment mapped until it completes.
                    unsafe { std::ptr::copy(bytes.as_ptr(), segment.as_ptr(), bytes.len()) };
                    from = rest;
                }
            }
            Deed::Write { offset, from } => {
                let mut to = &mut state.bytes[offset..];
                for segment in from {
                    let (bytes, rest) = to.split_at_mut(segment.len());
                    // SAFETY: as for reading.
                    unsafe { std::ptr::copy(segment.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
                    to = rest;
                }
            }
            Deed::Zero { offset, length } => state.bytes[offset..][..length].fill(0),
            Deed::Nothing => {}
        }
        Some(Completed { tag, result: Ok(()) })
    }

    fn has_work(&self) -> bool {
        !self.pending.is_empty()
    }

    fn arm(&mut self) -> bool {
        self.has_work()
    }

    fn disarm(&mut self) {}

    fn event(&self) -> RawFd {
        always_ready()
    }
}

/// A descriptor that is readable at any time, one for the whole process: making one costs a system call.
pub(crate) fn always_ready() -> RawFd {
    static EVENT: OnceLock<EventFd> = OnceLock::new();
    EVENT
        .get_or_init(|| {
            let event = EventFd::new(EFD_NONBLOCK).expect("the host has descriptors");
            event.write(1).expect("a new event takes a write");
            event
        })
        .as_raw_fd()
}
