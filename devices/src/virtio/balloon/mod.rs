//! Memory balloon (virtio 1.2, 5.5): the guest gives memory back to the host, and gets it again.
//!
//! Three ways lead there. The host sets how large the balloon is to be, and the driver fills it with pages of its own
//! (*inflates*) or takes them back. With reporting, the driver tells of pages that became free, whoever asked or not.
//! With hinting, it tells when asked which pages are free, so that a migration need not carry them.
//!
//! Pages in the balloon and reported ones are released to the host at once ([`HostPages`]). Hinted ones are not: a
//! driver may take them back at any time, and only who sees the guest's writes knows whether it has.
//!
//! One handler runs all queues, since there is little to do on any.

mod free_pages;
mod handler;
mod pages;
mod shared;
mod statistics;

pub use shared::{BalloonControl, HintSink};
pub use statistics::Statistics;

use handler::{Handler, Roles};
use machine::memory::HostPages;
use machine::metrics::Reading;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use shared::Shared;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use virtio::device::{ActivateError, Activation, QueueTask, VirtioDevice, read_fields};
use virtio::stand_in::Refusal;

const DEVICE_TYPE: u16 = 5;
const QUEUE_SIZE: u16 = 128;
/// The queue of statistics, if they were agreed upon.
const STATISTICS: u16 = 2;

/// The unit of the balloon, whatever the guest's page size (5.5.6).
pub const PAGE_SIZE: u64 = 4096;

/// Feature bits (5.5.3). `MUST_TELL_HOST` is not offered: a page that the guest touches again just comes back.
mod feature {
    pub(super) const STATS_VQ: u64 = 1 << 1;
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const FREE_PAGE_HINT: u64 = 1 << 3;
    pub(super) const PAGE_POISON: u64 = 1 << 4;
    pub(super) const REPORTING: u64 = 1 << 5;
}

/// Values of `free_page_hint_cmd_id` that are no command (5.5.6.5).
mod hint {
    pub(super) const STOP: u32 = 0;
    pub(super) const DONE: u32 = 1;
}

/// What a balloon is made with.
#[derive(Clone, Debug, Default)]
pub struct BalloonOptions {
    /// How large it is to be at first, in bytes, a multiple of [`PAGE_SIZE`].
    pub size: u64,
    /// How much memory the guest has, in bytes: the balloon cannot become larger.
    pub ram: u64,
    /// The driver may take pages back when it is short of memory.
    pub deflate_on_oom: bool,
    /// The driver reports pages that are free.
    pub free_page_reporting: bool,
    /// How often statistics are asked for; zero: only when told to.
    pub statistics_interval: Duration,
}

/// The device.
pub struct Balloon {
    options: BalloonOptions,
    shared: Arc<Shared>,
    pages: Arc<dyn HostPages>,
}

impl Balloon {
    /// A balloon that is empty, and to be filled to `options.size`, at most all of the memory.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new(options: BalloonOptions, pages: Arc<dyn HostPages>) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(options.size, options.ram)?);
        Ok(Self { options, shared, pages })
    }

    /// A handle on the balloon that stays valid when the device has been given to its transport.
    pub fn control(&self) -> BalloonControl {
        BalloonControl::new(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let mut features = feature::STATS_VQ | feature::FREE_PAGE_HINT | feature::PAGE_POISON;
        if self.options.deflate_on_oom {
            features |= feature::DEFLATE_ON_OOM;
        }
        if self.options.free_page_reporting {
            features |= feature::REPORTING;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Inflate, deflate, statistics, free page hints, and reports if offered.
        vec![QUEUE_SIZE; if self.options.free_page_reporting { 5 } else { 4 }]
    }

    /// `struct virtio_balloon_config` (5.5.4): wanted size, actual size, hint command, poison value.
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.shared.config().into_iter().flat_map(u32::to_le_bytes), offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.shared.config_written(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let Activation { features, memory, queues, config_changed, clock } = activation;
        let indices: Vec<u16> = queues.iter().map(|(index, _)| *index).collect();
        if let Some(missing) = [0, 1].into_iter().find(|index| !indices.contains(index)) {
            return Err(ActivateError::QueueMissing(missing));
        }
        let roles = Roles::new(features, &indices);
        self.shared.set_config_changed(Some(config_changed));
        let handler = Handler::new(
            Arc::clone(&self.shared),
            Arc::clone(&self.pages),
            memory,
            clock,
            self.options.statistics_interval,
            &roles,
            queues,
        );
        Ok(vec![QueueTask { name: "balloon".to_owned(), queues: indices, handler: Box::new(handler) }])
    }

    fn readings(&self) -> Vec<Reading> {
        self.shared.readings()
    }

    /// Linux waits for each answer, also while it lets go of the device. The buffer for statistics stays: a driver would give it
    /// again at once.
    fn refusal(&self) -> Refusal {
        |asked| (asked.queue != STATISTICS || asked.features & feature::STATS_VQ == 0).then_some(0)
    }

    fn reset(&mut self) {
        self.shared.reset();
    }
}

machine::inspect!(Balloon, this => {
    ..this.shared,
    deflate_on_oom: this.options.deflate_on_oom,
    free_page_reporting: this.options.free_page_reporting,
});

/// Saved state: what the driver told. How large the balloon is to be is the machine's configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedBalloon {
    /// The size that the driver says it has, in pages.
    actual: u32,
    /// The value with which the driver fills free pages.
    poison_val: u32,
}

impl SavedFields for SavedBalloon {
    const KIND: &'static str = "virtio-balloon";
    const VERSION: u32 = 1;
}

impl Saved for Balloon {
    fn save(&self) -> Result<SavedState, StateError> {
        let [_, actual, _, poison_val] = self.shared.config();
        SavedState::of(&SavedBalloon { actual, poison_val })
    }

    /// A run of hints does not go on in another process: its driver is told that it is over.
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let SavedBalloon { actual, poison_val } = state.read()?;
        self.shared.restore(actual, poison_val);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
