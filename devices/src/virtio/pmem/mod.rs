//! Persistent memory device (virtio 1.2, 5.19): memory that is a file, which the guest reads and writes without requests.
//!
//! The machine maps the memory where the configuration space says. What remains are requests to flush: to make stable what was
//! written. They are carried out by a thread of their own, one after the other, so that a slow disk keeps nothing else waiting;
//! requests that come meanwhile share the next flush.

mod flusher;

use flusher::Flusher;
use machine::bus::Range;
use machine::inspect::{Inspect, Value, hex, json, size};
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio::chain::Chain;
use virtio::device::{ActivateError, Activation, Progress, QueueHandler, QueueTask, VirtioDevice};
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
    /// Returns when all that was written before the call is stable.
    ///
    /// # Errors
    /// The host's, when that failed.
    fn flush(&self) -> io::Result<()>;
}

impl Flush for File {
    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The device.
pub struct Pmem {
    region: Range,
    flush: Option<Arc<dyn Flush>>,
    thread_start: fn(),
}

impl Pmem {
    /// A device for memory that is mapped at `region` of the guest's address space. Without `flush`, what the guest writes is not
    /// meant to last, and a flush does nothing. `thread_start` is called first by the thread that flushes.
    pub fn new(region: Range, flush: Option<Arc<dyn Flush>>, thread_start: fn()) -> Self {
        Self { region, flush, thread_start }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// `struct virtio_pmem_config` (5.19.4): start and size.
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let fields = [self.region.start.to_le_bytes(), self.region.size.to_le_bytes()];
        let bytes = fields.iter().flatten().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let Some((0, queue)) = activation.queues.into_iter().next() else {
            return Err(ActivateError::QueueMissing(0));
        };
        let start = |flush: &Arc<dyn Flush>| Flusher::start(Arc::clone(flush), self.thread_start);
        let flusher = self.flush.as_ref().map(start).transpose();
        let flusher = flusher
            .map_err(|source| ActivateError::Host { what: "starting a thread that flushes", source })?;
        let handler = Handler {
            queue,
            flusher,
            waiting: VecDeque::new(),
            covered: 0,
            spare: Vec::new(),
            flushes: 0,
            failures: 0,
        };
        Ok(vec![QueueTask { name: "flush".to_owned(), queues: vec![0], handler: Box::new(handler) }])
    }

    fn refusal(&self) -> Refusal {
        |asked| Some(asked.chain.write_at(0, &FAILED.to_le_bytes()) as u32)
    }

    fn reset(&mut self) {}
}

impl Inspect for Pmem {
    fn inspect(&self) -> Value {
        json!({
            "start": hex(&self.region.start),
            "size": size(&self.region.size),
            "lasting": self.flush.is_some(),
        })
    }
}

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
    flusher: Option<Flusher>,
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
            } else if self.flusher.is_none() {
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
        let Some(flusher) = &self.flusher else { return };
        if self.covered > 0 {
            let Some(result) = flusher.finished() else { return };
            self.flushes = self.flushes.saturating_add(1);
            if let Err(error) = &result {
                tracing::error!(%error, "what a guest wrote to persistent memory could not be made stable");
            }
            for _ in 0..std::mem::take(&mut self.covered) {
                if let Some(chain) = self.waiting.pop_front() {
                    self.answer(chain, if result.is_ok() { DONE } else { FAILED });
                }
            }
        }
        if let Some(flusher) = &self.flusher
            && !self.waiting.is_empty()
        {
            self.covered = self.waiting.len();
            flusher.begin();
        }
    }
}

impl QueueHandler for Handler {
    fn run(&mut self) -> Progress {
        self.queue.disable_notifications();
        let more = self.take();
        self.proceed();
        self.queue.notify();
        if more { Progress::More } else { Progress::Idle }
    }

    fn arm(&mut self) -> bool {
        self.queue.enable_notifications()
    }

    fn has_work(&self) -> bool {
        self.queue.has_available()
    }

    fn event_sources(&self) -> Vec<RawFd> {
        self.flusher.iter().map(Flusher::descriptor).collect()
    }

    fn quiesce(&mut self) -> bool {
        self.proceed();
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

impl Inspect for Handler {
    fn inspect(&self) -> Value {
        json!({
            "waiting": self.waiting.len(),
            "flushes": self.flushes,
            "failures": self.failures,
            "queue": self.queue.inspect(),
        })
    }
}

#[cfg(test)]
mod tests;
