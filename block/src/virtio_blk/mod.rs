//! The virtio block device (virtio 1.2, 5.2).
//!
//! Each queue is run by a handler of its own with its own way to the image, so queues share nothing but the image, the
//! cache mode and the rate limit.

mod cache;
pub mod config;
mod counters;
mod handler;
mod request;

use crate::image::{Image, ResizeError};
use cache::Cache;
use config::{FLUSH, Space};
use counters::Counters;
use handler::{BlockHandler, Terms};
use machine::doorbell::Doorbell;
use machine::metrics::Reading;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use virtio::device::{ActivateError, Activation, ConfigChange, QueueTask, VirtioDevice};
use virtio::rate_limit::RateLimiter;
use virtio::stand_in::Refusal;

/// Length of the identification string, `VIRTIO_BLK_ID_BYTES`.
pub const ID_BYTES: usize = 20;

/// Most queues of one disk.
pub const QUEUES_MAX: u16 = 256;

/// Largest queue of a disk. A driver may have as many requests in flight, of each of which up to 256 segments are kept track
/// of in three lists: that bounds the memory that a queue can take (12 MiB).
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// What a disk looks like to the guest, beyond its image.
#[derive(Clone)]
pub struct BlockOptions {
    /// For messages.
    pub name: String,
    /// What the guest sees as the disk's serial number, up to 20 bytes.
    pub serial: String,
    /// Number of queues, 1 to 256.
    pub queues: u16,
    /// Entries in each queue, a power of two from 4 to 1024.
    pub queue_size: u16,
    /// Whether writes may stay in the host's cache until flushed, until the driver says otherwise.
    pub write_back: bool,
    /// Limit on bytes and requests. Disks given clones of one limiter share the limit.
    pub limiter: Option<RateLimiter>,
    /// Told of requests that the host failed: of the 1st, 2nd, 4th, 8th..., since a broken disk fails each. Must not block.
    pub on_error: Option<OnError>,
}

/// A request that the host failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// What was being done: `read`, `write`, `flush`, `discard`, `write zeroes`.
    pub operation: String,
    /// The host's answer.
    pub reason: String,
    /// How many requests it failed on this queue so far.
    pub errors: u64,
}

/// Takes what is told of [`HostError`]s.
pub type OnError = Arc<dyn Fn(&HostError) + Send + Sync>;

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            name: "disk".into(),
            serial: String::new(),
            queues: 1,
            queue_size: 256,
            write_back: true,
            limiter: None,
            on_error: None,
        }
    }
}

/// Why a disk cannot be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BlockError {
    /// Too many queues, or none.
    #[error("num_queues={0}: a disk has 1 to 256 queues")]
    Queues(u16),
    /// A queue size out of range.
    #[error("queue_size={0}: a disk's queue size is a power of two from 4 to 1024")]
    QueueSize(u16),
    /// A serial number that does not fit.
    #[error("serial={0}: a serial number has at most 20 bytes")]
    Serial(String),
}

/// What the device, its handlers and its controls share.
struct Shared {
    name: String,
    image: Arc<dyn Image>,
    id: [u8; ID_BYTES],
    cache: Cache,
    limiter: Option<RateLimiter>,
    on_error: Option<OnError>,
    config_changed: Mutex<Option<ConfigChange>>,
    /// Wakes the first queue's handler, while there is one, to settle.
    settle: Mutex<Option<Doorbell>>,
}

impl Shared {
    fn limit(&self, bytes: u64) -> Result<(), u64> {
        self.limiter.as_ref().map_or(Ok(()), |limiter| limiter.consume(bytes))
    }

    /// Gives back what [`Self::limit`] took for a request that is to be begun anew.
    fn refund(&self, bytes: u64) {
        if let Some(limiter) = &self.limiter {
            limiter.restore(bytes);
        }
    }

    fn settle(&self) -> MutexGuard<'_, Option<Doorbell>> {
        self.settle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config_changed(&self) -> MutexGuard<'_, Option<ConfigChange>> {
        self.config_changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A virtio block device.
pub struct Block {
    shared: Arc<Shared>,
    queues: u16,
    queue_size: u16,
    write_back_default: bool,
    /// Of each queue, over all activations.
    counters: Vec<Arc<Counters>>,
}

impl Block {
    /// A disk of `image`.
    ///
    /// # Errors
    /// When the options are out of range.
    pub fn new(image: Arc<dyn Image>, options: BlockOptions) -> Result<Self, BlockError> {
        let BlockOptions { name, serial, queues, queue_size, write_back, limiter, on_error } = options;
        if !(1..=QUEUES_MAX).contains(&queues) {
            return Err(BlockError::Queues(queues));
        }
        if !queue_size.is_power_of_two() || !(4..=QUEUE_SIZE_MAX).contains(&queue_size) {
            return Err(BlockError::QueueSize(queue_size));
        }
        let mut id = [0; ID_BYTES];
        match id.get_mut(..serial.len()) {
            Some(place) => place.copy_from_slice(serial.as_bytes()),
            None => return Err(BlockError::Serial(serial)),
        }
        let shared = Shared {
            name,
            image,
            id,
            cache: Cache::new(write_back),
            limiter,
            on_error,
            config_changed: Mutex::default(),
            settle: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            queues,
            queue_size,
            write_back_default: write_back,
            counters: std::iter::repeat_with(Arc::default).take(usize::from(queues)).collect(),
        })
    }

    /// A handle on the disk that stays valid when the device has been given to its transport.
    pub fn control(&self) -> BlockControl {
        BlockControl(Arc::clone(&self.shared))
    }

    fn space(&self) -> Space {
        let image = &self.shared.image;
        Space {
            size: image.size(),
            topology: image.topology(),
            queues: self.queues,
            queue_size: self.queue_size,
            write_back: self.shared.cache.write_back(),
            read_only: image.read_only(),
        }
    }

    /// Switches between write-back and write-through. On the way to write-through, a handler makes stable what is in the
    /// host's cache, since the driver will not flush any more: not here, on the CPU that asked for it, which must not wait
    /// for the storage. Writes that end from now on are stable each by itself, and fail while that has not succeeded.
    fn set_write_back(&self, write_back: bool) {
        self.shared.cache.set(write_back, || {
            if let Some(settle) = self.shared.settle().as_ref() {
                settle.ring();
            }
        });
    }
}

/// Controls a disk while its device is in use. Clones control the same disk.
#[derive(Clone)]
pub struct BlockControl(Arc<Shared>);

impl BlockControl {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.0.image.size()
    }

    /// The limit on the disk's requests, to be changed. Disks of a group have one together.
    pub fn limiter(&self) -> Option<&RateLimiter> {
        self.0.limiter.as_ref()
    }

    /// Makes the disk larger and tells the driver.
    ///
    /// # Errors
    /// When the image would become smaller, or cannot be extended.
    pub fn resize(&self, size: u64) -> Result<(), ResizeError> {
        self.0.image.resize(size)?;
        if let Some(changed) = self.0.config_changed().as_ref() {
            changed.notify();
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        self.space().features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; usize::from(self.queues)]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.space().read(offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let Some(write_back) = config::written_write_back(offset, data) {
            self.set_write_back(write_back);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let Activation { features, queues, config_changed, clock, .. } = activation;
        if queues.first().is_none_or(|(index, _)| *index != 0) {
            return Err(ActivateError::QueueMissing(0));
        }
        let settle = Doorbell::new()
            .map_err(|source| ActivateError::Host { what: "cannot make an event for a disk", source })?;
        let count = queues.len();
        let mut tasks = Vec::with_capacity(count);
        for (index, queue) in queues {
            let Some(counters) = self.counters.get(usize::from(index)) else { continue };
            let stream = self.shared.image.stream(queue.size()).map_err(|error| ActivateError::Host {
                what: "cannot start a queue of a disk",
                source: io::Error::other(error),
            })?;
            let terms = Terms {
                can_flush: features & FLUSH != 0,
                queues: count,
                settle: settle.clone(),
                hears_settle: index == 0,
            };
            let (shared, counters) = (Arc::clone(&self.shared), Arc::clone(counters));
            let handler = BlockHandler::new(queue, stream, shared, counters, Arc::clone(&clock), terms);
            tasks.push(QueueTask::single(format!("q{index}"), index, handler));
        }
        *self.shared.config_changed() = Some(config_changed);
        *self.shared.settle() = Some(settle);
        Ok(tasks)
    }

    fn refusal(&self) -> Refusal {
        |asked| Some(request::refuse(asked.chain))
    }

    /// By what they are, each from when it was taken.
    fn times_requests(&self) -> bool {
        true
    }

    fn readings(&self) -> Vec<Reading> {
        counters::readings(&self.counters)
    }

    fn queue_readings(&self, queue: u16) -> Vec<Reading> {
        self.counters.get(usize::from(queue)).map_or_else(Vec::new, |counters| counters.readings())
    }

    fn reset(&mut self) {
        *self.shared.config_changed() = None;
        *self.shared.settle() = None;
        self.set_write_back(self.write_back_default);
    }
}

machine::inspect!(Block, this => {
    image: *this.shared.image,
    serial: String::from_utf8_lossy(this.shared.id.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned(),
    write_back: this.shared.cache.write_back(),
    queue_size,
    rate_limit: this.shared.limiter,
    queues: this.counters,
});

/// Saved state: what the driver set, and what it knows of the disk.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct BlockState {
    /// The cache mode.
    write_back: bool,
    /// Something written before the cache was turned off could not be made stable yet.
    unsettled: bool,
    /// The disk's size, in bytes.
    size: u64,
}

impl SavedFields for BlockState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u32 = 1;
}

impl Saved for Block {
    fn save(&self) -> Result<SavedState, StateError> {
        let Shared { image, cache, .. } = &*self.shared;
        let (write_back, unsettled) = (cache.write_back(), cache.unsettled());
        SavedState::of(&BlockState { write_back, unsettled, size: image.size() })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let BlockState { write_back, unsettled, size } = state.read()?;
        let present = self.shared.image.size();
        if present < size {
            let reason = format!("the disk had {size} bytes, and its image has only {present}");
            return Err(StateError::Value { kind: BlockState::KIND, reason });
        }
        self.shared.cache.restore(write_back, unsettled);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
