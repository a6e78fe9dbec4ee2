//! Virtio over MMIO, version 2 of the registers (virtio 1.2, 4.2), at addresses given on the command line.

use super::ring::Layout;
use super::{Area, Doorbell};
use crate::command_line::number;
use crate::{cpu, memory};

/// The registers of one device.
#[derive(Clone, Copy)]
pub struct MmioTransport {
    /// Address of the first register.
    pub base: u64,
    size: u64,
}

impl MmioTransport {
    /// The device type and transport named by `<size>@<address>:<interrupt>`; `None` if nothing modern is there.
    pub fn of(text: &str) -> Option<(u16, MmioTransport)> {
        let (size, place) = text.split_once('@')?;
        let base = number(place.split(':').next()?)?;
        let transport = MmioTransport { base, size: number(size)? };
        memory::map(base, transport.size);
        let [magic, version, kind] = [0, 4, 8].map(|offset| cpu::read32(base + offset));
        (magic == u32::from_le_bytes(*b"virt") && version == 2 && kind != 0)
            .then_some((kind as u16, transport))
    }

    /// See [`super::Device::areas`].
    pub fn areas(&self) -> [Option<Area>; 4] {
        [Some(Area { address: self.base, size: self.size }), None, None, None]
    }

    pub fn status(&self) -> u8 {
        cpu::read32(self.base + 0x70) as u8
    }

    pub fn set_status(&self, value: u8) {
        cpu::write32(self.base + 0x70, u32::from(value));
    }

    pub fn device_features(&self, select: u32) -> u32 {
        cpu::write32(self.base + 0x14, select);
        cpu::read32(self.base + 0x10)
    }

    pub fn set_driver_features(&self, select: u32, value: u32) {
        cpu::write32(self.base + 0x24, select);
        cpu::write32(self.base + 0x20, value);
    }

    fn select(&self, queue: u16) {
        cpu::write32(self.base + 0x30, u32::from(queue));
    }

    pub fn queue_maximum(&self, queue: u16) -> u16 {
        self.select(queue);
        cpu::read32(self.base + 0x34) as u16
    }

    pub fn place_queue(&self, queue: u16, layout: &Layout) {
        self.select(queue);
        cpu::write32(self.base + 0x38, u32::from(layout.size));
        for (offset, address) in [(0x80, layout.descriptors), (0x90, layout.driver), (0xa0, layout.device)] {
            cpu::write32(self.base + offset, address as u32);
            cpu::write32(self.base + offset + 4, (address >> 32) as u32);
        }
    }

    pub fn enable_queue(&self, queue: u16) {
        self.select(queue);
        cpu::write32(self.base + 0x44, 1);
    }

    pub fn set_queue_vector(&self, _queue: u16, _entry: u16) -> u16 {
        0xffff
    }

    pub fn doorbell(&self, queue: u16) -> Doorbell {
        Doorbell { address: self.base + 0x50, value: queue, wide: true }
    }

    pub fn config_generation(&self) -> u32 {
        cpu::read32(self.base + 0xfc)
    }

    pub fn config8(&self, offset: u64) -> u8 {
        cpu::read8(self.base + 0x100 + offset)
    }

    pub fn config32(&self, offset: u64) -> u32 {
        cpu::read32(self.base + 0x100 + offset)
    }
}
