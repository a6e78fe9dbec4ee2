//! Persistent memory device (virtio 1.2, 5.19): memory that is a file, which the guest reads and writes without requests.
//!
//! The machine maps the memory where the configuration space says. What remains are requests to flush: to make stable what was
//! written. They are carried out by an I/O engine, one after the other, so that a slow disk keeps nothing else waiting; requests
//! that come meanwhile share the next flush.

mod file;

pub use file::MappedFile;

use crate::engine::EngineError;
use crate::image::{Request, Stream};
use machine::bus::Range;
use machine::memory;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio::chain::Chain;
use virtio::device::{
    ActivateError, Activation, Progress, QueueHandler, QueueTask, VirtioDevice, read_fields,
};
use virtio::queue::{Queue, QueueError};
use virtio::stand_in::Refusal;

const DEVICE_TYPE: u16 = 27;
const QUEUE_SIZE: u16 = 64;
/// The only type of request (5.19.6).
const FLUSH: u32 = 0;
/// Bytes of an answer.
const ANSWER: u64 = 4;
/// Answers.
const DONE: u32 = 0;
const FAILED: u32 = 1;
/// Requests taken before others have their turn.
const BUDGET: u32 = 64;

/// What makes stable what the guest has written.
pub trait Flush: Send + Sync {
    /// A way to the file for one handler, which keeps it open: one [`Request::Flush`] at a time is made, and ends when all that
    /// was written before it is stable.
    ///
    /// # Errors
    /// When the host has no resources for it.
    fn stream(&self) -> Result<Box<dyn Stream>, EngineError>;
}

/// The device.
pub struct Pmem {
    region: Range,
    flush: Option<Arc<dyn Flush>>,
}

impl Pmem {
    /// A device for memory that is mapped at `region` of the guest's address space. Without `flush`, what the guest writes is not
    /// meant to last, and a flush does nothing.
    pub fn new(region: Range, flush: Option<Arc<dyn Flush>>) -> Self {
        Self { region, flush }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// `struct virtio_pmem_config` (5.19.4): start and size.
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let fields = [self.region.start.to_le_bytes(), self.region.size.to_le_bytes()];
        read_fields(fields.into_iter().flatten(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let queue = activation.only_queue()?;
        let stream = self.flush.as_ref().map(|flush| flush.stream()).transpose();
        let stream = stream.map_err(|error| ActivateError::Host {
            what: "cannot start the queue of persistent memory",
            source: io::Error::other(error),
        })?;
        let handler = Handler {
            queue,
            stream,
            waiting: VecDeque::new(),
            covered: 0,
            spare: Vec::new(),
            flushes: 0,
            failures: 0,
        };
        Ok(vec![QueueTask::single("flush", 0, handler)])
    }

    fn refusal(&self) -> Refusal {
        |asked| Some(asked.chain.write_at(0, &FAILED.to_le_bytes()) as u32)
    }

    fn reset(&mut self) {}
}

machine::inspect!(Pmem, this => {
    hex start: this.region.start,
    size: this.region.size,
    lasting: this.flush.is_some(),
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPmem {
    /// Where the guest has found the memory: it has to be there when it goes on.
    start: u64,
    size: u64,
}

impl SavedFields for SavedPmem {
    const KIND: &'static str = "virtio-pmem";
    const VERSION: u32 = 1;
}

impl Saved for Pmem {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedPmem { start: self.region.start, size: self.region.size })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let state: SavedPmem = state.read()?;
        if (state.start, state.size) != (self.region.start, self.region.size) {
            let reason = format!(
                "its memory was {} bytes at {:#x}, and is {} bytes at {:#x} here",
                state.size, state.start, self.region.size, self.region.start
            );
            return Err(StateError::Value { kind: SavedPmem::KIND, reason });
        }
        Ok(())
    }
}

struct Handler {
    queue: Queue,
    /// `None`: nothing is to last.
    stream: Option<Box<dyn Stream>>,
    /// Requests not answered yet, the first `covered` of which the flush under way is for.
    waiting: VecDeque<Chain>,
    covered: usize,
    spare: Vec<Chain>,
    flushes: u64,
    failures: u64,
}

impl Handler {
    /// Takes requests. `true`: there may be more.
    fn take(&mut self) -> bool {
        for _ in 0..BUDGET {
            let mut chain = self.spare.pop().unwrap_or_default();
            // A broken queue has told the driver already.
            if !matches!(self.queue.pop(&mut chain), Ok(true)) {
                self.spare.push(chain);
                return false;
            }
            let kind = chain.read_array(0).filter(|_| chain.writable_len() >= ANSWER);
            let Some(kind) = kind else {
                self.queue.fail(QueueError::Request("to flush is too short"));
                self.spare.push(chain);
                return false;
            };
            if u32::from_le_bytes(kind) != FLUSH {
                self.answer(chain, FAILED);
            } else if self.stream.is_none() {
                self.answer(chain, DONE);
            } else {
                self.waiting.push_back(chain);
            }
        }
        true
    }

    fn answer(&mut self, chain: Chain, result: u32) {
        let written = chain.write_at(0, &result.to_le_bytes());
        self.queue.push(chain.token(), written as u32);
        self.failures = self.failures.saturating_add((result != DONE).into());
        self.spare.push(chain);
    }

    /// Answers what was flushed, and has the rest flushed.
    fn proceed(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        if self.covered > 0 {
            let Some(completed) = stream.complete() else {
                // What it could not do at once.
                stream.kick();
                return;
            };
            self.flushes = self.flushes.saturating_add(1);
            // What the guest wrote to a page that was lost is not in the file.
            let stable = completed.result.is_ok() && !memory::is_lost();
            for _ in 0..std::mem::take(&mut self.covered) {
                if let Some(chain) = self.waiting.pop_front() {
                    self.answer(chain, if stable { DONE } else { FAILED });
                }
            }
        }
        if let Some(stream) = &mut self.stream
            && !self.waiting.is_empty()
        {
            self.covered = self.waiting.len();
            // SAFETY: a flush has no segments.
            unsafe { stream.submit(0, Request::Flush) };
            stream.kick();
        }
    }
}

impl QueueHandler for Handler {
    fn run(&mut self, _now: u64) -> Progress {
        if let Some(stream) = &mut self.stream {
            stream.disarm();
        }
        self.queue.disable_notifications();
        let more = self.take();
        self.proceed();
        self.queue.notify();
        if more { Progress::More } else { Progress::Idle }
    }

    fn arm(&mut self) -> bool {
        // Both of them, whatever the first says.
        let flushed = self.stream.as_mut().is_some_and(|stream| stream.arm());
        self.queue.enable_notifications() || flushed
    }

    fn has_work(&self) -> bool {
        self.queue.has_available() || self.stream.as_ref().is_some_and(|stream| stream.has_work())
    }

    fn event_sources(&self) -> Vec<RawFd> {
        self.stream.iter().map(|stream| stream.event()).collect()
    }

    fn quiesce(&mut self) -> bool {
        if let Some(stream) = &mut self.stream {
            stream.disarm();
        }
        self.proceed();
        while !self.waiting.is_empty() && self.stream.as_mut().is_some_and(|stream| stream.arm()) {
            self.proceed();
        }
        self.queue.notify();
        self.waiting.is_empty()
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}

machine::inspect!(Handler, this => {
    engine: this.stream.as_ref().map(|stream| stream.engine()),
    waiting: this.waiting.len(),
    flushes,
    failures,
    queue,
});

#[cfg(test)]
mod tests;
