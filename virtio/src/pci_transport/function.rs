//! The transport as a PCI function: its BARs, its doorbells, and the window on the BARs in configuration space.

use super::VirtioPci;
use super::layout::{DEVICE, DEVICE_SIZE, ISR, NOTIFY, NOTIFY_MULTIPLIER, NOTIFY_SIZE, REGISTERS_BAR};
use machine::doorbell::{Doorbell, DoorbellAddress};
use machine::effect::DeviceChange;
use pci::config::ConfigSpace;
use pci::function::Function;

impl VirtioPci {
    /// The BAR, offset and length that the window in configuration space is set to, if they are valid.
    fn window_target(&self) -> Option<(u8, u64, usize)> {
        let bar = self.config.dword(self.window.wrapping_add(4)) as u8;
        let offset = self.config.dword(self.window.wrapping_add(8));
        let len = self.config.dword(self.window.wrapping_add(12));
        let size = self.config.bars().find(|window| window.number == bar)?.size;
        let valid = matches!(len, 1 | 2 | 4)
            && offset.checked_rem(len) == Some(0)
            && u64::from(offset).saturating_add(len.into()) <= size;
        valid.then_some((bar, offset.into(), len as usize))
    }

    /// Whether an access of configuration space begins with the window's data.
    fn is_window(&self, offset: u16) -> bool {
        offset == self.window.wrapping_add(16)
    }

    fn ring_doorbell(&self, offset: u64) {
        let index = offset >> NOTIFY_MULTIPLIER.trailing_zeros();
        if let Some(doorbell) = usize::try_from(index).ok().and_then(|index| self.doorbells.get(index)) {
            doorbell.ring();
        }
    }
}

impl Function for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.is_window(offset)
            && let Some((bar, at, len)) = self.window_target()
        {
            let mut value = [0; 4];
            if let Some(value) = value.get_mut(..len) {
                value.fill(0xff);
                self.bar_read(bar, at, value);
            }
            self.config.set_dword(offset, u32::MAX, u32::from_le_bytes(value));
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<DeviceChange> {
        let mastered = self.config.bus_master();
        let change = self.config.write(offset, data);
        if mastered != self.config.bus_master() {
            return change.or(self.unsettled());
        }
        if self.is_window(offset)
            && let Some((bar, at, len)) = self.window_target()
        {
            let value = self.config.dword(offset).to_le_bytes();
            return self.bar_write(bar, at, value.get(..len)?);
        }
        change
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar != REGISTERS_BAR || self.config.msix_read(bar, offset, data) {
            return;
        }
        match offset {
            ..ISR => self.read_common(offset, data),
            ISR..DEVICE => {
                data.fill(0);
                if offset == ISR
                    && let Some(byte) = data.first_mut()
                {
                    *byte = self.interrupts.take_isr();
                }
            }
            DEVICE..NOTIFY => {
                data.fill(0);
                let offset = offset.wrapping_sub(DEVICE);
                if offset.saturating_add(data.len() as u64) <= DEVICE_SIZE {
                    self.device.config_read(offset, data);
                }
            }
            // The doorbells read as zero, and so does what lies between the structures.
            _ => data.fill(0),
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<DeviceChange> {
        if bar != REGISTERS_BAR || self.config.msix_write(bar, offset, data) {
            return None;
        }
        const NOTIFY_END: u64 = NOTIFY + NOTIFY_SIZE;
        match offset {
            ..ISR => return self.write_common(offset, data),
            DEVICE..NOTIFY => {
                let offset = offset.wrapping_sub(DEVICE);
                if offset.saturating_add(data.len() as u64) <= DEVICE_SIZE && !self.resetting {
                    self.device.config_write(offset, data);
                }
            }
            NOTIFY..NOTIFY_END => self.ring_doorbell(offset.wrapping_sub(NOTIFY)),
            _ => {}
        }
        None
    }

    fn doorbells(&self, bar: u8) -> Vec<DoorbellAddress> {
        if bar != REGISTERS_BAR {
            return Vec::new();
        }
        let address = |(doorbell, queue): (&Doorbell, u64)| DoorbellAddress {
            offset: NOTIFY.saturating_add(queue.saturating_mul(NOTIFY_MULTIPLIER.into())),
            // The queue's number as 2 bytes, or notification data as 4: the address alone says which queue it is.
            size: None,
            value: None,
            doorbell: doorbell.clone(),
        };
        self.doorbells.iter().zip(0..).map(address).collect()
    }

    fn reset(&mut self) {
        self.running = false;
        self.reset_device();
        self.config.reset();
    }
}
