//! What the device, its handler and its controls share.

use super::MemOptions;
use super::blocks::{Blocks, Plugged};
use super::request::{Answer, Request};
use machine::bus::Range;
use machine::inspect::{Inspect, Value};
use machine::memory::HostPages;
use machine::metrics::{Counter, Reading};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use virtio::device::ConfigChange;

/// A size that a memory device cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResizeError {
    /// More than its region.
    #[error("{requested} bytes is more than the {most} that can be plugged")]
    TooLarge {
        /// What was asked for.
        requested: u64,
        /// The size of the region.
        most: u64,
    },
    /// Not whole blocks.
    #[error("{requested} bytes are not a multiple of {block_size}, the size of a block")]
    Blocks {
        /// What was asked for.
        requested: u64,
        /// Size of a block.
        block_size: u64,
    },
}

/// What the driver asked for, since the device was made.
#[derive(Default)]
struct Counters {
    plugs: Counter,
    unplugs: Counter,
    unplug_alls: Counter,
    states: Counter,
    refused: Counter,
    host_errors: Counter,
}

pub(super) struct Shared {
    options: MemOptions,
    pages: Arc<dyn HostPages>,
    requested: AtomicU64,
    /// Changed by the handler, and by the machine while no handler runs.
    blocks: Mutex<Blocks>,
    config_changed: Mutex<Option<ConfigChange>>,
    counters: Counters,
}

impl Shared {
    pub(super) fn new(options: MemOptions, pages: Arc<dyn HostPages>) -> Self {
        let count = options.region.size.checked_div(options.block_size).unwrap_or(0);
        Self {
            options,
            pages,
            requested: AtomicU64::new(0),
            blocks: Mutex::new(Blocks::new(count)),
            config_changed: Mutex::default(),
            counters: Counters::default(),
        }
    }

    pub(super) fn options(&self) -> &MemOptions {
        &self.options
    }

    pub(super) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_config_changed(&self, change: Option<ConfigChange>) {
        *self.config_changed.lock().unwrap_or_else(PoisonError::into_inner) = change;
    }

    pub(super) fn set_requested(&self, requested: u64) -> Result<(), ResizeError> {
        let MemOptions { region, block_size, .. } = self.options;
        if requested > region.size {
            return Err(ResizeError::TooLarge { requested, most: region.size });
        }
        if !requested.is_multiple_of(block_size) {
            return Err(ResizeError::Blocks { requested, block_size });
        }
        self.requested.store(requested, Ordering::SeqCst);
        Ok(())
    }

    fn requested(&self) -> u64 {
        self.requested.load(Ordering::SeqCst)
    }

    fn plugged(&self) -> u64 {
        self.blocks().plugged().saturating_mul(self.options.block_size)
    }

    /// `struct virtio_mem_config` (5.15.4): block size, node, address, region, usable region, plugged, requested.
    pub(super) fn config(&self) -> [u64; 7] {
        let MemOptions { region, block_size, node, .. } = self.options;
        // All of the region can be used: what limits the driver is what is requested.
        [block_size, node.into(), region.start, region.size, region.size, self.plugged(), self.requested()]
    }

    /// Does what the driver asks for.
    pub(super) fn answer(&self, request: Request) -> Answer {
        let counter = match request {
            Request::Plug(..) => &self.counters.plugs,
            Request::Unplug(..) => &self.counters.unplugs,
            Request::UnplugAll => &self.counters.unplug_alls,
            Request::State(..) => &self.counters.states,
            Request::Unknown(_) => &self.counters.refused,
        };
        counter.add(1);
        let answer = match request {
            Request::Plug(address, count) => self.plug(address, count),
            Request::Unplug(address, count) => self.unplug(address, count),
            Request::UnplugAll => self.unplug_all(),
            Request::State(address, count) => self.state(address, count),
            Request::Unknown(_) => Some(Answer::Error),
        };
        let answer = answer.unwrap_or(Answer::Error);
        if answer == Answer::Error && !matches!(request, Request::Unknown(_)) {
            self.counters.refused.add(1);
        }
        answer
    }

    /// The `count` blocks at `address`: their numbers and their addresses. `None`: there are no such blocks.
    fn blocks_at(&self, address: u64, count: u16) -> Option<(std::ops::Range<u64>, Range)> {
        let MemOptions { region, block_size, .. } = self.options;
        let offset = address.checked_sub(region.start)?;
        let size = u64::from(count).checked_mul(block_size)?;
        let end = offset.checked_add(size)?;
        if count == 0 || !offset.is_multiple_of(block_size) || end > region.size {
            return None;
        }
        let numbers = offset.checked_div(block_size)?..end.checked_div(block_size)?;
        Some((numbers, Range { start: address, size }))
    }

    fn plug(&self, address: u64, count: u16) -> Option<Answer> {
        let (numbers, range) = self.blocks_at(address, count)?;
        {
            let blocks = self.blocks();
            if blocks.state(numbers.clone()) != Plugged::None {
                return None;
            }
        }
        if self.plugged().saturating_add(range.size) > self.requested() {
            return Some(Answer::Nack);
        }
        // Without the lock, which those wait for who look at the device: this may take long.
        if self.options.populate
            && let Err(error) = self.pages.populate(range)
        {
            self.host_failed("give memory to be plugged", &error);
            // What it gave is not wanted.
            let _ = self.pages.release(range);
            return Some(Answer::Busy);
        }
        let mut blocks = self.blocks();
        // What is wanted may be less by now. Who looks at it with the blocks sees no more come.
        let plugged = blocks.plugged().saturating_mul(self.options.block_size);
        if plugged.saturating_add(range.size) > self.requested() {
            drop(blocks);
            if self.options.populate {
                let _ = self.pages.release(range);
            }
            return Some(Answer::Nack);
        }
        blocks.set(numbers, true);
        Some(Answer::Ack)
    }

    fn unplug(&self, address: u64, count: u16) -> Option<Answer> {
        let (numbers, range) = self.blocks_at(address, count)?;
        let state = self.blocks().state(numbers.clone());
        if state != Plugged::All {
            return None;
        }
        if let Err(error) = self.pages.release(range) {
            self.host_failed("take unplugged memory back", &error);
            return Some(Answer::Busy);
        }
        self.blocks().set(numbers, false);
        Some(Answer::Ack)
    }

    fn unplug_all(&self) -> Option<Answer> {
        if let Err(error) = self.pages.release(self.options.region) {
            self.host_failed("take unplugged memory back", &error);
            return Some(Answer::Busy);
        }
        self.blocks().clear();
        Some(Answer::Ack)
    }

    fn state(&self, address: u64, count: u16) -> Option<Answer> {
        let (numbers, _) = self.blocks_at(address, count)?;
        Some(Answer::State(match self.blocks().state(numbers) {
            Plugged::All => 0,
            Plugged::None => 1,
            Plugged::Some => 2,
        }))
    }

    fn host_failed(&self, what: &str, error: &std::io::Error) {
        // Once: a guest could make it happen as often as it likes.
        if self.counters.host_errors.add(1) == 1 {
            tracing::warn!(%error, "the host does not {what}");
        }
    }
}

impl Shared {
    /// What was counted.
    pub(super) fn readings(&self) -> Vec<Reading> {
        let counters = &self.counters;
        vec![
            Reading::level("requested_bytes", self.requested()),
            Reading::level("plugged_bytes", self.plugged()),
            Reading::total("plugs", counters.plugs.get()),
            Reading::total("unplugs", counters.unplugs.get()),
            Reading::total("unplug_alls", counters.unplug_alls.get()),
            Reading::total("refused", counters.refused.get()),
            Reading::total("host_errors", counters.host_errors.get()),
        ]
    }
}

machine::inspect!(Shared, this => {
    hex address: this.options.region.start,
    region_size: this.options.region.size,
    block_size: this.options.block_size,
    node: this.options.node,
    populate: this.options.populate,
    requested_size: this.requested(),
    plugged_size: this.plugged(),
    ..this.counters,
});

machine::inspect!(Counters { plugs, unplugs, unplug_alls, states, refused, host_errors });

/// Controls a memory device while it is in use. Clones control the same device.
#[derive(Clone)]
pub struct MemControl(Arc<Shared>);

impl MemControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// How much the guest should have, in bytes.
    pub fn requested(&self) -> u64 {
        self.0.requested()
    }

    /// How much it has, in bytes.
    pub fn plugged(&self) -> u64 {
        self.0.plugged()
    }

    /// How much it has or may get, in bytes. When that is nothing, it gets none until it should have some.
    pub fn in_use(&self) -> u64 {
        let blocks = self.0.blocks();
        blocks.plugged().saturating_mul(self.0.options.block_size).max(self.0.requested())
    }

    /// The most it can have, in bytes.
    pub fn most(&self) -> u64 {
        self.0.options.region.size
    }

    /// Size of a block in bytes.
    pub fn block_size(&self) -> u64 {
        self.0.options.block_size
    }

    /// Sets how much the guest should have, in bytes, and tells its driver.
    ///
    /// # Errors
    /// When it is more than the device has, or not whole blocks.
    pub fn resize(&self, requested: u64) -> Result<(), ResizeError> {
        self.0.set_requested(requested)?;
        let changed = self.0.config_changed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(changed) = changed {
            changed.notify();
        }
        Ok(())
    }

    /// Unplugs everything, as a restart of the machine does (5.15.6.1). To be called while no handler runs.
    pub fn unplug_all(&self) {
        if self.0.unplug_all() != Some(Answer::Ack) {
            // The host keeps the memory; to the guest it is gone all the same.
            self.0.blocks().clear();
        }
    }

    /// The device's live fields, as [`Inspect`] shows them.
    pub fn inspect(&self) -> Value {
        self.0.inspect()
    }
}
