//! Virtio over PCI, modern interface only (virtio 1.2, 4.1).

use super::ring::Layout;
use super::{Area, Doorbell};
use crate::cpu;
use crate::pci::{Function, VENDOR};

const COMMON: usize = 1;
const NOTIFY: usize = 2;
const ISR: usize = 3;
const DEVICE: usize = 4;

/// The register regions of one device.
#[derive(Clone, Copy)]
pub struct PciTransport {
    /// The PCI function.
    pub function: Function,
    /// Address and size of each region, by its type (4.1.4).
    regions: [(u64, u64); 5],
    notify_multiplier: u32,
}

impl PciTransport {
    /// The device type and transport of a function, if it is a modern virtio device.
    pub fn of(function: Function) -> Option<(u16, PciTransport)> {
        let (vendor, device) = function.id();
        if vendor != 0x1af4 || !(0x1000..0x1080).contains(&device) {
            return None;
        }
        let kind = match device {
            0x1040.. => device - 0x1040,
            // A transitional device has its type in the subsystem ID.
            _ => function.read16(0x2e),
        };
        let mut transport = PciTransport { function, regions: [(0, 0); 5], notify_multiplier: 0 };
        function.capabilities(|id, offset| {
            let region = usize::from(function.read8(offset + 3));
            if id != VENDOR || !(COMMON..=DEVICE).contains(&region) || transport.regions[region].1 != 0 {
                return;
            }
            let Some(bar) = function.place_bar(function.read8(offset + 4)) else { return };
            let start = bar + u64::from(function.read32(offset + 8));
            transport.regions[region] = (start, u64::from(function.read32(offset + 12)));
            if region == NOTIFY {
                transport.notify_multiplier = function.read32(offset + 16);
            }
        });
        if [COMMON, NOTIFY, ISR].iter().any(|&region| transport.regions[region].1 == 0) {
            return None;
        }
        function.enable();
        Some((kind, transport))
    }

    fn common(&self, offset: u64) -> u64 {
        self.regions[COMMON].0 + offset
    }

    /// See [`super::Device::areas`].
    pub fn areas(&self) -> [Option<Area>; 4] {
        [COMMON, NOTIFY, ISR, DEVICE].map(|region| {
            let (address, size) = self.regions[region];
            (size != 0).then_some(Area { address, size })
        })
    }

    pub fn status(&self) -> u8 {
        cpu::read8(self.common(20))
    }

    pub fn set_status(&self, value: u8) {
        cpu::write8(self.common(20), value);
    }

    pub fn device_features(&self, select: u32) -> u32 {
        cpu::write32(self.common(0), select);
        cpu::read32(self.common(4))
    }

    pub fn set_driver_features(&self, select: u32, value: u32) {
        cpu::write32(self.common(8), select);
        cpu::write32(self.common(12), value);
    }

    fn select(&self, queue: u16) {
        cpu::write16(self.common(22), queue);
    }

    pub fn queue_maximum(&self, queue: u16) -> u16 {
        self.select(queue);
        cpu::read16(self.common(24))
    }

    pub fn place_queue(&self, queue: u16, layout: &Layout) {
        self.select(queue);
        cpu::write16(self.common(24), layout.size);
        cpu::write16(self.common(26), 0xffff);
        for (offset, address) in [(32, layout.descriptors), (40, layout.driver), (48, layout.device)] {
            cpu::write32(self.common(offset), address as u32);
            cpu::write32(self.common(offset + 4), (address >> 32) as u32);
        }
    }

    pub fn enable_queue(&self, queue: u16) {
        self.select(queue);
        cpu::write16(self.common(28), 1);
    }

    pub fn set_queue_vector(&self, queue: u16, entry: u16) -> u16 {
        self.select(queue);
        cpu::write16(self.common(26), entry);
        cpu::read16(self.common(26))
    }

    pub fn doorbell(&self, queue: u16) -> Doorbell {
        self.select(queue);
        let offset = u64::from(cpu::read16(self.common(30))) * u64::from(self.notify_multiplier);
        Doorbell { address: self.regions[NOTIFY].0 + offset, value: queue, wide: false }
    }

    pub fn config_generation(&self) -> u32 {
        u32::from(cpu::read8(self.common(21)))
    }

    pub fn config8(&self, offset: u64) -> u8 {
        cpu::read8(self.regions[DEVICE].0 + offset)
    }

    pub fn config32(&self, offset: u64) -> u32 {
        cpu::read32(self.regions[DEVICE].0 + offset)
    }
}
