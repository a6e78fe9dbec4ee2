//! Memory device (virtio 1.2, 5.15): memory that the guest gets and gives back block by block.
//!
//! The device has a region of guest-physical addresses after RAM. The host sets how much of it the guest should have, and
//! the driver asks for blocks (*plugs*) or returns them until that is so. A block that is not plugged takes no memory on
//! the host.
//!
//! All of the region is mapped, so that an access to a block that is not plugged does no harm: it finds zeroes. A driver is
//! told not to make any ([`UNPLUGGED_INACCESSIBLE`](feature)), since each takes memory from the host.

mod blocks;
mod handler;
mod request;
mod shared;

pub use shared::{MemControl, ResizeError};

use blocks::Run;
use handler::Plugger;
use machine::bus::Range;
use machine::memory::HostPages;
use machine::metrics::Reading;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use serde::{Deserialize, Serialize};
use shared::Shared;
use std::sync::Arc;
use thiserror::Error;
use virtio::device::{ActivateError, Activation, QueueTask, VirtioDevice, read_fields};
use virtio::service;

const DEVICE_TYPE: u16 = 24;
const QUEUE_SIZE: u16 = 128;

/// The least size of a block, in bytes: that of a transparent huge page.
pub const MIN_BLOCK: u64 = 2 << 20;

/// Feature bits (5.15.3).
pub mod feature {
    /// `node_id` is valid: it is a proximity domain of the ACPI tables.
    pub(super) const ACPI_PXM: u64 = 1 << 0;
    /// The driver may not access memory that is not plugged.
    pub(super) const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
}

/// What a memory device is made with.
#[derive(Clone, Copy, Debug)]
pub struct MemOptions {
    /// Its addresses; whole blocks of guest RAM.
    pub region: Range,
    /// Size of a block in bytes: a power of two, at least [`MIN_BLOCK`].
    pub block_size: u64,
    /// How much the guest should have at first, in bytes; whole blocks.
    pub requested: u64,
    /// The NUMA node it belongs to: a proximity domain.
    pub node: u16,
    /// Take the memory of a block from the host when it is plugged, rather than when it is touched. For huge pages, of
    /// which the host may have none left: a guest that touches one then would die.
    pub populate: bool,
}

/// Why a memory device cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MemError {
    /// The block size is none.
    #[error("{0} bytes are not the size of a block: that is a power of two, at least {MIN_BLOCK}")]
    BlockSize(u64),
    /// The region is not whole blocks.
    #[error("the region {start:#x}+{size:#x} is not made of whole blocks of {block_size} bytes", start = .region.start, size = .region.size)]
    Region {
        /// The region.
        region: Range,
        /// Size of a block.
        block_size: u64,
    },
    /// What is requested does not go.
    #[error(transparent)]
    Requested(#[from] ResizeError),
}

/// The device.
pub struct Mem {
    shared: Arc<Shared>,
}

impl Mem {
    /// A device without plugged memory.
    ///
    /// # Errors
    /// When the sizes do not fit each other.
    pub fn new(options: MemOptions, pages: Arc<dyn HostPages>) -> Result<Self, MemError> {
        let MemOptions { region, block_size, .. } = options;
        if !block_size.is_power_of_two() || block_size < MIN_BLOCK {
            return Err(MemError::BlockSize(block_size));
        }
        let whole = |number: u64| number.is_multiple_of(block_size);
        if region.size == 0
            || !whole(region.start)
            || !whole(region.size)
            || region.start.checked_add(region.size).is_none()
        {
            return Err(MemError::Region { region, block_size });
        }
        let shared = Arc::new(Shared::new(options, pages));
        shared.set_requested(options.requested)?;
        Ok(Self { shared })
    }

    /// A handle on the device that stays valid when it has been given to its transport.
    pub fn control(&self) -> MemControl {
        MemControl::new(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        feature::ACPI_PXM | feature::UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.shared.config().into_iter().flat_map(u64::to_le_bytes), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let queue = activation.only_queue()?;
        self.shared.set_config_changed(Some(activation.config_changed));
        Ok(vec![service::task("requests", 0, queue, Plugger(Arc::clone(&self.shared)))])
    }

    fn readings(&self) -> Vec<Reading> {
        self.shared.readings()
    }

    /// What is plugged stays plugged: a driver that goes leaves its memory in use (5.15.5.2). Only a restart of the
    /// machine takes it, see [`MemControl::unplug_all`].
    fn reset(&mut self) {
        self.shared.set_config_changed(None);
    }
}

machine::inspect!(Mem, this => { ..this.shared });

/// Saved state: which blocks are plugged. How much is to be is the machine's configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedMem {
    /// Where the region begins.
    address: u64,
    /// Bytes of the region.
    region_size: u64,
    /// Bytes of a block.
    block_size: u64,
    /// The plugged blocks.
    plugged: Vec<Run>,
}

impl SavedFields for SavedMem {
    const KIND: &'static str = "virtio-mem";
    const VERSION: u32 = 1;
}

impl Saved for Mem {
    fn save(&self) -> Result<SavedState, StateError> {
        let MemOptions { region, block_size, .. } = *self.shared.options();
        let plugged = self.shared.blocks().runs();
        SavedState::of(&SavedMem { address: region.start, region_size: region.size, block_size, plugged })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        self.shared.blocks().clear();
        let saved: SavedMem = state.read()?;
        let MemOptions { region, block_size, .. } = *self.shared.options();
        let refuse = |reason| Err(StateError::Value { kind: SavedMem::KIND, reason });
        if (saved.address, saved.region_size, saved.block_size) != (region.start, region.size, block_size) {
            return refuse(format!(
                "it was at {:#x}+{:#x} in blocks of {:#x}, and this one is at {:#x}+{:#x} in blocks of {block_size:#x}",
                saved.address, saved.region_size, saved.block_size, region.start, region.size
            ));
        }
        if !self.shared.blocks().restore(&saved.plugged) {
            return refuse("its plugged blocks are not in order, or outside of its region".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
