//! Memory shared between machines, as a PCI function (QEMU, `docs/specs/ivshmem-spec.rst`): "ivshmem-plain", and
//! "ivshmem-doorbell", by which machines also interrupt each other.
//!
//! BAR 2 is the memory, which the machine maps where the BAR is. BAR 1 has the MSI-X table, with interrupts. BAR 0 has registers:
//!
//! | offset in BAR 0 | register |
//! |---|---|
//! | 0 | interrupt mask: kept, and without meaning beside MSI-X |
//! | 4 | interrupt status: 0 |
//! | 8 | this machine's number: 0 without interrupts |
//! | 12 | doorbell, write only: a peer's number in the upper half, its vector in the lower one |

mod peers;
pub mod server;

pub use peers::Peers;

use machine::effect::DeviceChange;
use machine::interrupt::MsiAllocator;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use pci::bar::BarKind;
use pci::config::{ConfigError, ConfigSpace, ConfigState, Identity};
use pci::function::Function;
use pci::msix::{Msix, MsixHandle};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const REGISTERS_BAR: u8 = 0;
const REGISTERS_SIZE: u64 = 256;
const INTERRUPT_MASK: u64 = 0;
const NUMBER: u64 = 8;
const DOORBELL: u64 = 12;
const VECTORS_BAR: u8 = 1;
const VECTORS_SIZE: u64 = 4096;
/// Where in that BAR the pending bits are, after the table.
const PENDING: u32 = 2048;

/// The most vectors a function can have.
pub const MOST_VECTORS: u16 = 64;

/// The function.
pub struct Ivshmem {
    config: ConfigSpace,
    size: u64,
    interrupt_mask: u32,
    doorbell: Option<Doorbell>,
}

/// What a machine interrupts others by.
struct Doorbell {
    number: u16,
    peers: Arc<Peers>,
}

impl Ivshmem {
    /// The BAR that is the memory.
    pub const MEMORY_BAR: u8 = 2;

    /// A function with `size` bytes of memory, a power of two of at least 4096.
    ///
    /// # Errors
    /// When a BAR cannot be of that size.
    pub fn new(size: u64) -> Result<Self, ConfigError> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1110,
            // RAM.
            class: 0x05_00_00,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(REGISTERS_BAR, BarKind::Memory32 { prefetchable: false }, REGISTERS_SIZE)?;
        config.add_bar(Self::MEMORY_BAR, BarKind::Memory64 { prefetchable: true }, size)?;
        Ok(Self { config, size, interrupt_mask: 0, doorbell: None })
    }

    /// A function that also has `vectors` interrupts, 1 to [`MOST_VECTORS`], for a machine that has `number` among `peers`. What
    /// signals the vectors is given back too.
    ///
    /// # Errors
    /// When a BAR cannot be of that size.
    pub fn with_doorbell(
        size: u64,
        number: u16,
        peers: Arc<Peers>,
        vectors: u16,
        allocator: Arc<dyn MsiAllocator>,
    ) -> Result<(Self, MsixHandle), ConfigError> {
        let mut function = Self::new(size)?;
        let msix = Msix::new(vectors.min(MOST_VECTORS), allocator);
        let handle = msix.handle();
        function.config.add_bar(VECTORS_BAR, BarKind::Memory32 { prefetchable: false }, VECTORS_SIZE)?;
        function.config.add_msix(VECTORS_BAR, 0, PENDING, msix)?;
        function.doorbell = Some(Doorbell { number, peers });
        Ok((function, handle))
    }

    /// Lets go of the peers, for a function that its driver still has when the device is gone: it rings nobody any more.
    pub fn withdraw(&mut self) {
        self.doorbell = None;
    }
}

impl Function for Ivshmem {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar != REGISTERS_BAR {
            // Where the hypervisor could not map the memory there is nothing.
            self.config.msix_read(bar, offset, data);
            return;
        }
        let value = match (offset, data.len()) {
            (INTERRUPT_MASK, 4) => self.interrupt_mask,
            (NUMBER, 4) => self.doorbell.as_ref().map_or(0, |doorbell| doorbell.number.into()),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<DeviceChange> {
        if bar == VECTORS_BAR {
            self.config.msix_write(bar, offset, data);
        }
        let (REGISTERS_BAR, Ok(value)) = (bar, data.try_into()) else { return None };
        let value = u32::from_le_bytes(value);
        match (offset, &self.doorbell) {
            (INTERRUPT_MASK, _) => self.interrupt_mask = value,
            (DOORBELL, Some(doorbell)) => doorbell.peers.ring((value >> 16) as u16, value as u16),
            _ => {}
        }
        None
    }

    fn reset(&mut self) {
        self.config.reset();
        self.interrupt_mask = 0;
    }
}

machine::inspect!(Ivshmem, this => {
    size,
    hex interrupt_mask,
    number: this.doorbell.as_ref().map(|doorbell| doorbell.number),
    peers: this.doorbell.as_ref().map(|doorbell| doorbell.peers.inspect()),
    pci: this.config,
});

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedIvshmem {
    config: ConfigState,
    size: u64,
    interrupt_mask: u32,
}

impl SavedFields for SavedIvshmem {
    const KIND: &'static str = "ivshmem";
    const VERSION: u32 = 1;
}

impl Saved for Ivshmem {
    fn save(&self) -> Result<SavedState, StateError> {
        let &Self { size, interrupt_mask, .. } = self;
        SavedState::of(&SavedIvshmem { config: self.config.save(), size, interrupt_mask })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: SavedIvshmem = state.read()?;
        if state.size != self.size {
            let reason = format!("its memory had {} bytes, and has {} here", state.size, self.size);
            return Err(StateError::Value { kind: SavedIvshmem::KIND, reason });
        }
        self.config.restore(&state.config)?;
        self.interrupt_mask = state.interrupt_mask;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Ivshmem {
        Ivshmem::new(1 << 20).unwrap()
    }

    crate::function_conformance!(plain, [(REGISTERS_BAR, 256), (Ivshmem::MEMORY_BAR, 1 << 20)], device());
    crate::function_conformance!(with_a_doorbell, [(REGISTERS_BAR, 256), (VECTORS_BAR, 4096)], {
        let msi = Arc::new(machine::interrupt::recording::Sources::default());
        Ivshmem::with_doorbell(1 << 20, 3, Arc::default(), 4, msi).unwrap().0
    });

    fn register(device: &mut Ivshmem, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn drivers_find_what_the_specification_says() {
        let mut device = device();
        let mut word = [0; 4];
        device.config_read(0, &mut word);
        assert_eq!(word, [0xf4, 0x1a, 0x10, 0x11]);
        device.config_read(8, &mut word);
        assert_eq!(word, [1, 0, 0, 5]);
        // 64 bits, prefetchable, and 1 MiB.
        device.config_write(0x18, &[0xff; 4]);
        device.config_read(0x18, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0xfff0_000c);
        let mut memory = [0xff; 4];
        device.bar_read(2, 0, &mut memory);
        assert_eq!(memory, [0xff; 4]);
    }

    #[test]
    fn registers_hold_the_mask_and_nothing_else_and_a_reset_clears_it() {
        let mut device = device();
        for offset in (0..256).step_by(4) {
            device.bar_write(0, offset, &[0xaa; 4]);
        }
        assert_eq!(register(&mut device, 0), 0xaaaa_aaaa);
        assert!((4..256).step_by(4).all(|offset| register(&mut device, offset) == 0));
        let saved = device.save().unwrap();
        device.reset();
        assert_eq!(register(&mut device, 0), 0);
        device.restore(&saved).unwrap();
        assert_eq!(device.save().unwrap(), saved);
        assert_eq!(register(&mut device, 0), 0xaaaa_aaaa);
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        assert!(Ivshmem::new(3 << 20).is_err(), "no BAR can have that size");
        let saved = Ivshmem::new(2 << 20).unwrap().save().unwrap();
        assert!(device().restore(&saved).is_err());
    }
}
