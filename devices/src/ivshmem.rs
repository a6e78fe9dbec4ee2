//! Memory shared between machines, as a PCI function (QEMU, `docs/specs/ivshmem-spec.rst`, "ivshmem-plain").
//!
//! BAR 2 is the memory, which the machine maps where the BAR is. BAR 0 has registers for interrupts between machines; they are
//! there, and without interrupts mean nothing.
//!
//! | offset in BAR 0 | register |
//! |---|---|
//! | 0 | interrupt mask |
//! | 4 | interrupt status, cleared by reading |
//! | 8 | this machine's number: 0 without interrupts |
//! | 12 | doorbell, write only |

use machine::effect::DeviceChange;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use pci::bar::BarKind;
use pci::config::{ConfigError, ConfigSpace, ConfigState, Identity};
use pci::function::Function;
use serde::{Deserialize, Serialize};

const REGISTERS_BAR: u8 = 0;
const REGISTERS_SIZE: u64 = 256;
const INTERRUPT_MASK: u64 = 0;

/// The function.
pub struct Ivshmem {
    config: ConfigSpace,
    size: u64,
    interrupt_mask: u32,
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
        Ok(Self { config, size, interrupt_mask: 0 })
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
            return;
        }
        let value = if offset == INTERRUPT_MASK && data.len() == 4 { self.interrupt_mask } else { 0 };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<DeviceChange> {
        if let (REGISTERS_BAR, INTERRUPT_MASK, Ok(value)) = (bar, offset, data.try_into()) {
            self.interrupt_mask = u32::from_le_bytes(value);
        }
        None
    }

    fn reset(&mut self) {
        self.config.reset();
        self.interrupt_mask = 0;
    }
}

machine::inspect!(Ivshmem, this => {
    size size,
    hex interrupt_mask,
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
