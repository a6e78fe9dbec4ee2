//! What a virtio device is to its transport, and how its queues are run.
//!
//! A device has two parts. The [`VirtioDevice`] answers for type, features and configuration space, under the
//! transport's register lock. When the driver is ready it makes [`QueueHandler`]s, which own their queues by
//! value and are run by a worker, a vhost-user backend, a fuzz target or a test, one thread at a time
//! without a lock. On reset they are stopped and dropped.

use crate::queue::Queue;
use crate::stand_in::Refusal;
use machine::clock::Clock;
use machine::inspect::Inspect;
use machine::memory::Memory;
use machine::metrics::Reading;
use machine::state::Saved;
use std::os::fd::RawFd;
use std::sync::Arc;
use thiserror::Error;

/// A virtio device, as its transport sees it (virtio 1.2, 2).
pub trait VirtioDevice: Send + Inspect + Saved {
    /// Device type (virtio 1.2, 5), such as 2 for a block device.
    fn device_type(&self) -> u16;

    /// The device-type feature bits offered (bits 0 to 23 and 50 upwards), by default none. The transport adds the ring's and
    /// its own.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue, which is also the number of queues. Powers of two up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The driver reads its configuration space. `data` is zero on entry; bytes outside the space stay so. By default there is
    /// no space.
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// The driver writes its configuration space.
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready: makes the handlers of the queues it enabled.
    ///
    /// # Errors
    /// When the driver's configuration cannot work (the device then needs a reset) or the host has no resources.
    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError>;

    /// Whether single queues can be reset and enabled again while the device works. Then [`Self::activate`] is called anew
    /// each time, with the queues that are enabled, and has to do with whichever they are.
    fn ring_reset(&self) -> bool {
        false
    }

    /// How requests are answered once the device is gone and its driver has not let go of it. By default they are not, and the
    /// driver takes them back when it does.
    fn refusal(&self) -> Refusal {
        |_| None
    }

    /// Whether the device times its requests itself, more exactly than its queues do, which then do not.
    fn times_requests(&self) -> bool {
        false
    }

    /// What the device counted and timed, over all its queues and all the times it was started.
    fn readings(&self) -> Vec<Reading> {
        Vec::new()
    }

    /// What the device counted and timed of one queue, over all the times it was started.
    fn queue_readings(&self, queue: u16) -> Vec<Reading> {
        let _ = queue;
        Vec::new()
    }

    /// All handlers are gone and the driver resets the device: state set by the driver returns to its default.
    fn reset(&mut self);

    /// Shared-memory regions (virtio 1.2, 2.10): id and size in bytes of each. They are placed in a BAR of their own.
    fn shared_memory(&self) -> Vec<(u8, u64)> {
        Vec::new()
    }
}

/// What a device is given when its driver is ready.
pub struct Activation {
    /// The features the driver accepted, all bits.
    pub features: u64,
    /// Guest memory.
    pub memory: Memory,
    /// The queues the driver enabled, with their index, ascending. They go on where they were if they ran before.
    pub queues: Vec<(u16, Queue)>,
    /// Tells the driver that the configuration space changed.
    pub config_changed: ConfigChange,
    /// Time, for rate limits and latencies.
    pub clock: Arc<dyn Clock>,
}

impl Activation {
    /// The queue of a device that has one.
    ///
    /// # Errors
    /// When the driver did not enable it.
    pub fn only_queue(&mut self) -> Result<Queue, ActivateError> {
        self.queues.pop().map(|(_, queue)| queue).ok_or(ActivateError::QueueMissing(0))
    }
}

/// Puts what `fields`, a configuration space byte by byte, have from `offset` on into `data`; what is beyond is left as it is.
pub fn read_fields(fields: impl IntoIterator<Item = u8>, offset: u64, data: &mut [u8]) {
    let bytes = fields.into_iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
    data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
}

/// Tells the driver that the configuration space changed. Clones tell the same driver.
#[derive(Clone)]
pub struct ConfigChange(Arc<dyn Fn() + Send + Sync>);

impl ConfigChange {
    /// Calls `notify`, which must not block or lock, on each change.
    pub fn new(notify: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(notify))
    }

    /// Raises the configuration-change interrupt and advances the config generation.
    pub fn notify(&self) {
        (self.0)();
    }
}

/// Why a device could not start.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver left out a queue the device cannot work without.
    #[error("the driver did not enable queue {0}")]
    QueueMissing(u16),
    /// The host has no resources for it.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The driver asks for something the device does not do.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// A handler with the queues it runs, to be put on a worker.
pub struct QueueTask {
    /// For thread names and inspection, such as `"rx0"`.
    pub name: String,
    /// The queues it owns, whose doorbells run it.
    pub queues: Vec<u16>,
    /// The handler, owning those queues.
    pub handler: Box<dyn QueueHandler>,
}

impl QueueTask {
    /// A handler that runs one queue.
    pub fn single(name: impl Into<String>, queue: u16, handler: impl QueueHandler + 'static) -> Self {
        Self { name: name.into(), queues: vec![queue], handler: Box::new(handler) }
    }
}

/// What running a handler came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It did some work and there may be more: run it again after the others had their turn.
    More,
    /// Nothing to do until a doorbell rings or one of its event sources is ready.
    Idle,
    /// As `Idle`, and also run it when the clock reaches this, in monotonic nanoseconds (rate limits).
    Until(u64),
}

/// Runs one or several queues. Everything it does is bounded and never waits.
pub trait QueueHandler: Send + Inspect {
    /// Takes what the driver made available and what the backend completed, up to a fixed budget. `now`: when its turn begins, of the
    /// intervals of the worker's clock ([`machine::clock::Clock::interval_ns`]), so that it need not ask.
    fn run(&mut self, now: u64) -> Progress;

    /// Asks the driver (and the backend) to notify again, before the worker sleeps. `true`: there is work
    /// already, for which no event need come, so run again instead of sleeping. It must be true: what the next run cannot do,
    /// such as what may not be done before the time that `run` returned, does not count.
    fn arm(&mut self) -> bool;

    /// A cheap look, without a system call, whether running would do anything now. The worker polls with it.
    fn has_work(&self) -> bool;

    /// Other descriptors that wake the worker when readable (a tap, an engine's completion event).
    /// The set is fixed for the handler's life, and no two handlers have the same one. Level-triggered: the handler must
    /// consume what it is woken for, including an end (a closed socket is readable for ever); an `epoll` descriptor with
    /// changing contents is a way to have a changing set.
    fn event_sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// No new requests are to be started; `true` once none is in flight. Called again after each wake until it is.
    /// After it returned `true` the handler may be saved, dropped, or run again. The default is right where nothing is in flight
    /// between two runs.
    fn quiesce(&mut self) -> bool {
        true
    }

    /// The queues, for their state when saved.
    fn queues(&self) -> Vec<&Queue>;

    /// Gives the queues back in the order of [`QueueTask::queues`], ending the handler. Called only when quiescent.
    fn into_queues(self: Box<Self>) -> Vec<Queue>;
}
