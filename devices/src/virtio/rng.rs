//! Entropy device (virtio 1.2, 5.4): fills the driver's buffers with random bytes.

use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use virtio::chain::Chain;
use virtio::device::{ActivateError, Activation, Progress, QueueHandler, QueueTask, VirtioDevice};
use virtio::queue::{Queue, QueueError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

mod kernel;

const DEVICE_TYPE: u16 = 4;
const QUEUE_SIZE: u16 = 256;
/// How much a buffer is filled with at most; the driver asks again for the rest.
const PER_BUFFER: usize = 4096;
/// How many buffers one run fills at most.
const BUDGET: u32 = 16;

/// The device.
pub struct Rng {
    path: PathBuf,
    /// `None` for the kernel's own random numbers, which need no descriptor.
    file: Option<File>,
}

impl Rng {
    /// A device that takes its entropy from `path`: `/dev/urandom`, or another device, FIFO or file. At the end
    /// of a file it goes on with the kernel's random numbers.
    ///
    /// # Errors
    /// When the path cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = if path == Path::new("/dev/urandom") {
            None
        } else {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            // A directory opens, and then every read fails.
            if file.metadata()?.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Some(file)
        };
        Ok(Self { path: path.to_owned(), file })
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let queue = activation.only_queue()?;
        let host = |source| ActivateError::Host { what: "opening the source of entropy again", source };
        let source = match &self.file {
            None => None,
            Some(file) => Some(Source::new(file).map_err(host)?),
        };
        let handler =
            Handler { queue, source, chain: Chain::new(), buffer: [0; PER_BUFFER], bytes: 0, waits: 0 };
        Ok(vec![QueueTask::single("requests", 0, handler)])
    }

    fn reset(&mut self) {}
}

machine::inspect!(Rng, this => {
    source: this.path,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedRng {}

impl SavedFields for SavedRng {
    const KIND: &'static str = "virtio-rng";
    const VERSION: u32 = 1;
}

impl Saved for Rng {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&SavedRng {})
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.read::<SavedRng>().map(drop)
    }
}

/// A source of entropy that may have to be waited for.
struct Source {
    file: File,
    /// Readable when the source is and was found empty before.
    refilled: Epoll,
    waiting: bool,
}

impl Source {
    fn new(file: &File) -> io::Result<Self> {
        Ok(Self { file: file.try_clone()?, refilled: Epoll::new()?, waiting: false })
    }

    fn wait(&mut self, wait: bool) {
        if wait != self.waiting {
            let operation = if wait { ControlOperation::Add } else { ControlOperation::Delete };
            let event = EpollEvent::new(EventSet::IN, 0);
            // What cannot be watched is always readable, so that it is not waited for.
            self.waiting = self.refilled.ctl(operation, self.file.as_raw_fd(), event).is_ok() && wait;
        }
    }
}

struct Handler {
    queue: Queue,
    source: Option<Source>,
    chain: Chain,
    buffer: [u8; PER_BUFFER],
    bytes: u64,
    waits: u64,
}

impl Handler {
    /// Fills the start of the buffer, and returns how much of it; 0: there is nothing now.
    fn fill(&mut self, wanted: usize) -> usize {
        let buffer = self.buffer.get_mut(..wanted).unwrap_or_default();
        if let Some(source) = &mut self.source {
            match source.file.read(buffer) {
                Ok(0) => tracing::warn!("the source of entropy ended; going on with the kernel's"),
                Ok(count) => return count,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    source.wait(true);
                    return 0;
                }
                Err(error) => {
                    tracing::warn!(%error, "the source of entropy failed; going on with the kernel's");
                }
            }
            source.wait(false);
            self.source = None;
        }
        kernel::fill(buffer)
    }
}

impl QueueHandler for Handler {
    fn run(&mut self, _now: u64) -> Progress {
        if let Some(source) = &mut self.source {
            source.wait(false);
        }
        self.queue.disable_notifications();
        let mut progress = Progress::More;
        for _ in 0..BUDGET {
            // A broken queue has told the driver already.
            let Ok(true) = self.queue.pop(&mut self.chain) else {
                progress = Progress::Idle;
                break;
            };
            let wanted = usize::try_from(self.chain.writable_len()).unwrap_or(usize::MAX).min(PER_BUFFER);
            if wanted == 0 {
                self.queue.fail(QueueError::Request("for entropy has no room for any"));
                progress = Progress::Idle;
                break;
            }
            let filled = self.fill(wanted);
            if filled == 0 {
                self.queue.unpop(self.chain.token());
                self.waits = self.waits.saturating_add(1);
                progress = Progress::Idle;
                break;
            }
            let filled = self.chain.write_at(0, self.buffer.get(..filled).unwrap_or_default());
            self.bytes = self.bytes.saturating_add(filled as u64);
            self.queue.push(self.chain.token(), u32::try_from(filled).unwrap_or(0));
        }
        self.queue.notify();
        progress
    }

    fn arm(&mut self) -> bool {
        let available = self.queue.enable_notifications();
        available && self.has_work()
    }

    fn has_work(&self) -> bool {
        let waiting = self.source.as_ref().is_some_and(|source| source.waiting);
        !waiting && self.queue.has_available()
    }

    fn event_sources(&self) -> Vec<RawFd> {
        self.source.iter().map(|source| source.refilled.as_raw_fd()).collect()
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}

machine::inspect!(Handler, this => {
    bytes,
    waits_for_source: this.waits,
    waiting: this.source.as_ref().is_some_and(|source| source.waiting),
    queue,
});

#[cfg(test)]
mod tests;
