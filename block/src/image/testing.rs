//! Images and engines for tests: files that remove themselves, and an engine that fails on demand.

use super::{Completed, Image, Request, ResizeError, Stream, Topology};
use crate::engine::{Completion, Engine, EngineError, FileIndex, Operation, Segments};
use machine::inspect::{Inspect, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use virtio::chain::Segment;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A file of a name of its own, removed when dropped.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(size: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vivarium-block-{}-{number}", std::process::id()));
        File::create_new(&path).unwrap().set_len(size).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What happens to an operation instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// At most so many bytes are transferred.
    Short(usize),
    /// The operation fails and does nothing.
    Error(i32),
}

/// What a scripted engine works on, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
    /// For the operations to come, in order; then none.
    pub(crate) faults: VecDeque<Fault>,
    /// Operations in words.
    pub(crate) log: Vec<String>,
}

/// Performs operations on bytes in memory.
#[derive(Clone, Default)]
pub(crate) struct ScriptedEngine {
    script: Arc<Mutex<Script>>,
    done: Arc<Mutex<VecDeque<Completion>>>,
}

impl ScriptedEngine {
    pub(crate) fn new(bytes: Vec<u8>, faults: &[Fault]) -> Self {
        let script = Script { bytes, faults: faults.iter().copied().collect(), log: Vec::new() };
        Self { script: Arc::new(Mutex::new(script)), done: Arc::default() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.script.lock().unwrap().bytes.clone()
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.script.lock().unwrap().log.clone()
    }
}

impl Script {
    /// Copies between the bytes from `offset` and the segments, as far as `limit` and the bytes go.
    unsafe fn copy(&mut self, offset: u64, segments: Segments, limit: usize, write: bool) -> u32 {
        let mut offset = offset as usize;
        let mut total = 0;
        // SAFETY: whoever submitted the operation keeps the array valid.
        for segment in unsafe { std::slice::from_raw_parts(segments.first, segments.count as usize) } {
            let length = segment.len().min(limit - total).min(self.bytes.len().saturating_sub(offset));
            let bytes = self.bytes[offset..].as_mut_ptr();
            // SAFETY: as above for the segment; the bytes were just checked to be there.
            unsafe {
                if write {
                    std::ptr::copy_nonoverlapping(segment.as_ptr(), bytes, length);
                } else {
                    std::ptr::copy_nonoverlapping(bytes, segment.as_ptr(), length);
                }
            }
            offset += length;
            total += length;
        }
        total as u32
    }
}

impl Engine for ScriptedEngine {
    fn name(&self) -> &'static str {
        "script"
    }

    unsafe fn submit(&mut self, tag: u32, _file: FileIndex, operation: Operation) {
        let mut script = self.script.lock().unwrap();
        let fault = script.faults.pop_front().unwrap_or(Fault::None);
        let limit = if let Fault::Short(limit) = fault { limit } else { usize::MAX };
        let (words, transfer) = match operation {
            Operation::Read { offset, into, patient } => {
                let patient = if patient { " patient" } else { "" };
                (format!("read {offset} in {}{patient}", into.count), Some((offset, into, false)))
            }
            Operation::Write { offset, from, stable, patient } => {
                let patient = if patient { " patient" } else { "" };
                let stable = if stable { " stable" } else { "" };
                (format!("write {offset} in {}{stable}{patient}", from.count), Some((offset, from, true)))
            }
            Operation::Sync => ("sync".to_owned(), None),
            Operation::Allocate { mode, offset, length } => {
                let word = if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 { "punch" } else { "zero" };
                if fault == Fault::None {
                    script.bytes[offset as usize..][..length as usize].fill(0);
                }
                (format!("{word} {offset}+{length}"), None)
            }
            Operation::DiscardDevice { offset, length } => (format!("discard {offset}+{length}"), None),
        };
        script.log.push(words);
        let result = match (fault, transfer) {
            (Fault::Error(errno), _) => Err(io::Error::from_raw_os_error(errno)),
            (_, None) => Ok(0),
            (_, Some((offset, segments, write))) => {
                // SAFETY: the caller's promise.
                Ok(unsafe { script.copy(offset, segments, limit, write) })
            }
        };
        self.done.lock().unwrap().push_back(Completion { tag, result });
    }

    fn kick(&mut self) {}

    fn complete(&mut self) -> Option<Completion> {
        self.done.lock().unwrap().pop_front()
    }

    fn has_work(&self) -> bool {
        !self.done.lock().unwrap().is_empty()
    }

    fn arm(&mut self) -> bool {
        self.has_work()
    }

    fn disarm(&mut self) {}

    fn event(&self) -> RawFd {
        -1
    }
}

/// An image in memory whose requests end when, and as, the test says.
pub(crate) struct HeldImage {
    pub(crate) size: u64,
    pub(crate) held: Arc<Held>,
}

/// The requests of a [`HeldImage`].
pub(crate) struct Held {
    state: Mutex<HeldState>,
    event: EventFd,
}

#[derive(Default)]
struct HeldState {
    waiting: BTreeMap<u16, String>,
    done: VecDeque<Completed>,
    release_at_kick: bool,
}

impl HeldImage {
    pub(crate) fn new(size: u64) -> Self {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        Self { size, held: Arc::new(Held { state: Mutex::default(), event }) }
    }
}

impl Held {
    /// Requests that were submitted and not released, in words.
    pub(crate) fn waiting(&self) -> Vec<String> {
        self.state.lock().unwrap().waiting.values().cloned().collect()
    }

    /// Ends all requests waiting well when the stream is kicked next.
    pub(crate) fn release_at_kick(&self) {
        self.state.lock().unwrap().release_at_kick = true;
    }

    /// Ends all requests waiting, with an error number or 0.
    pub(crate) fn release(&self, errno: i32) {
        let mut state = self.state.lock().unwrap();
        for (tag, _) in std::mem::take(&mut state.waiting) {
            let result = if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) };
            state.done.push_back(Completed { tag, result });
        }
        self.event.write(1).unwrap();
    }
}

struct HeldStream(Arc<Held>);

impl Stream for HeldStream {
    fn engine(&self) -> &'static str {
        "held"
    }

    unsafe fn submit(&mut self, tag: u16, request: Request<'_>) {
        let words = match request {
            Request::Read { offset, .. } => format!("read {offset}"),
            Request::Write { offset, stable, .. } => format!("write {offset} stable={stable}"),
            Request::Flush => "flush".to_owned(),
            Request::Discard { offset, length } => format!("discard {offset}+{length}"),
            Request::WriteZeroes { offset, length, unmap, stable } => {
                format!("zero {offset}+{length} unmap={unmap} stable={stable}")
            }
        };
        let present = self.0.state.lock().unwrap().waiting.insert(tag, words);
        assert_eq!(present, None, "a tag names one request at a time");
    }

    fn kick(&mut self) {
        if std::mem::take(&mut self.0.state.lock().unwrap().release_at_kick) {
            self.0.release(0);
        }
    }

    fn complete(&mut self) -> Option<Completed> {
        self.0.state.lock().unwrap().done.pop_front()
    }

    fn has_work(&self) -> bool {
        !self.0.state.lock().unwrap().done.is_empty()
    }

    fn arm(&mut self) -> bool {
        self.has_work()
    }

    fn disarm(&mut self) {
        let _ = self.0.event.read();
    }

    fn event(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

impl Image for HeldImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn topology(&self) -> Topology {
        Topology {
            logical_block: 512,
            physical_block: 512,
            alignment_offset: 0,
            minimum_io: 0,
            optimal_io: 0,
            discard_granularity: 512,
        }
    }

    fn stream(&self, _depth: u16) -> Result<Box<dyn Stream>, EngineError> {
        Ok(Box::new(HeldStream(Arc::clone(&self.held))))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), ResizeError> {
        Err(ResizeError::Unaligned(size))
    }
}

impl Inspect for HeldImage {
    fn inspect(&self) -> Value {
        json!({})
    }
}

/// Memory to transfer from and to, as segments of the lengths given.
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
}

impl Memory {
    /// The segments, one after the other from `start`.
    pub(crate) fn segments(&mut self, start: usize, lengths: &[usize]) -> Vec<Segment> {
        let mut at = start;
        let mut segment = |length: &usize| {
            let part = &mut self.bytes[at..at + length];
            at += length;
            Segment::new(part.as_mut_ptr(), *length)
        };
        lengths.iter().map(&mut segment).collect()
    }
}
