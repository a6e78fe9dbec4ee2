//! Virtio devices: finding them, bringing them up, and their queues (virtio 1.2).

pub mod block;
mod mmio;
pub mod packed;
mod pci;
pub mod ring;
pub mod split;

use crate::clock::Deadline;
use crate::command_line::CommandLine;
use crate::pci::{Function, Msix};
use crate::tasks::Failure;
use mmio::MmioTransport;
use pci::PciTransport;
use ring::{Layout, Ring, RingKind};

/// Status bits (2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The guest is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device met something that it cannot go on from.
    pub const NEEDS_RESET: u8 = 64;
    /// The guest gave up.
    pub const FAILED: u8 = 128;
}

/// Feature bits that are not a device's own (6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// The used_event and avail_event fields.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// No legacy interface.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device's memory accesses are translated or limited.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Packed rings.
    pub const PACKED: u64 = 1 << 34;
}

/// Device types (5).
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Net,
    Block,
    Console,
    Entropy,
    Clock,
    Other(u16),
}

impl Kind {
    fn of(id: u16) -> Kind {
        match id {
            1 => Kind::Net,
            2 => Kind::Block,
            3 => Kind::Console,
            4 => Kind::Entropy,
            17 => Kind::Clock,
            other => Kind::Other(other),
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Net => "net",
            Kind::Block => "blk",
            Kind::Console => "console",
            Kind::Entropy => "rng",
            Kind::Clock => "rtc",
            Kind::Other(_) => "other",
        }
    }
}

/// A register region of a device, for accesses that the driver would not make.
#[derive(Clone, Copy)]
pub struct Area {
    /// Address of its first byte.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
}

/// The ways registers are reached.
#[derive(Clone, Copy)]
enum Transport {
    Pci(PciTransport),
    Mmio(MmioTransport),
}

/// A virtio device.
#[derive(Clone, Copy)]
pub struct Device {
    /// What it is.
    pub kind: Kind,
    transport: Transport,
}

macro_rules! either {
    ($self:ident, $transport:ident => $body:expr) => {
        match &$self.transport {
            Transport::Pci($transport) => $body,
            Transport::Mmio($transport) => $body,
        }
    };
}

/// Calls `visit` with every virtio device: those on PCI first, then those that `virtio_mmio.device=` names.
pub fn devices(line: &CommandLine, mut visit: impl FnMut(Device)) {
    crate::pci::functions(|function| {
        if let Some((kind, transport)) = PciTransport::of(function) {
            visit(Device { kind: Kind::of(kind), transport: Transport::Pci(transport) });
        }
    });
    for text in line.global_values("virtio_mmio.device") {
        if let Some((kind, transport)) = MmioTransport::of(text) {
            visit(Device { kind: Kind::of(kind), transport: Transport::Mmio(transport) });
        }
    }
}

/// The device of this kind at `index`, counted in the order of [`devices`].
///
/// # Errors
/// There are fewer.
pub fn find(line: &CommandLine, kind: Kind, index: u64) -> Result<Device, Failure> {
    let mut left = index;
    let mut found = None;
    devices(line, |device| {
        if device.kind == kind {
            if left == 0 && found.is_none() {
                found = Some(device);
            }
            left = left.saturating_sub(u64::from(found.is_none()));
        }
    });
    found.ok_or(Failure::NoDevice(kind.name()))
}

impl Device {
    /// Where it is found: `pci` or `mmio`.
    pub fn transport_name(&self) -> &'static str {
        match self.transport {
            Transport::Pci(_) => "pci",
            Transport::Mmio(_) => "mmio",
        }
    }

    /// Its PCI function, unless it is on MMIO.
    pub fn function(&self) -> Option<Function> {
        match &self.transport {
            Transport::Pci(transport) => Some(transport.function),
            Transport::Mmio(_) => None,
        }
    }

    /// Its MSI-X table, if it has one.
    pub fn msix(&self) -> Option<Msix> {
        self.function().and_then(Msix::of)
    }

    /// Whether both are the same device.
    pub fn is(&self, other: &Device) -> bool {
        match (&self.transport, &other.transport) {
            (Transport::Pci(one), Transport::Pci(two)) => one.function == two.function,
            (Transport::Mmio(one), Transport::Mmio(two)) => one.base == two.base,
            _ => false,
        }
    }

    /// Its register regions.
    pub fn areas(&self) -> [Option<Area>; 4] {
        either!(self, transport => transport.areas())
    }

    /// The device status register.
    pub fn status(&self) -> u8 {
        either!(self, transport => transport.status())
    }

    /// Writes the device status register.
    pub fn set_status(&self, value: u8) {
        either!(self, transport => transport.set_status(value));
    }

    /// All 64 feature bits that the device offers.
    pub fn offered(&self) -> u64 {
        either!(self, transport => u64::from(transport.device_features(0)) | u64::from(transport.device_features(1)) << 32)
    }

    /// Writes all 64 driver feature bits.
    pub fn set_features(&self, features: u64) {
        either!(self, transport => {
            transport.set_driver_features(0, features as u32);
            transport.set_driver_features(1, (features >> 32) as u32);
        });
    }

    /// Largest size of a queue; 0 if there is none with this index.
    pub fn queue_maximum(&self, queue: u16) -> u16 {
        either!(self, transport => transport.queue_maximum(queue))
    }

    /// Tells the device where a queue is, without enabling it.
    pub fn place_queue(&self, queue: u16, layout: &Layout) {
        either!(self, transport => transport.place_queue(queue, layout));
    }

    /// Enables a queue.
    pub fn enable_queue(&self, queue: u16) {
        either!(self, transport => transport.enable_queue(queue));
    }

    /// Chooses a queue's MSI-X table entry; returns what the device made of it (0xFFFF: none).
    pub fn set_queue_vector(&self, queue: u16, entry: u16) -> u16 {
        either!(self, transport => transport.set_queue_vector(queue, entry))
    }

    /// The doorbell of a queue: where to write its index, as 16 bits on PCI and 32 on MMIO.
    pub fn doorbell(&self, queue: u16) -> Doorbell {
        either!(self, transport => transport.doorbell(queue))
    }

    /// Reads a byte of the device's own configuration.
    pub fn config8(&self, offset: u64) -> u8 {
        either!(self, transport => transport.config8(offset))
    }

    /// Reads a 32-bit field of the device's own configuration.
    pub fn config32(&self, offset: u64) -> u32 {
        either!(self, transport => transport.config32(offset))
    }

    /// Reads a 64-bit field as two halves (4.2.2.2), read again if the configuration changed meanwhile.
    pub fn config64(&self, offset: u64) -> u64 {
        let generation = || either!(self, transport => transport.config_generation());
        let mut value = 0;
        // A device whose generation never stands still is not to hold the guest up for ever.
        for _ in 0..100 {
            let before = generation();
            value = u64::from(self.config32(offset)) | (u64::from(self.config32(offset + 4)) << 32);
            if generation() == before {
                break;
            }
        }
        value
    }

    /// Resets the device and waits until it has done so (2.4).
    ///
    /// # Errors
    /// It does not finish within two seconds.
    pub fn reset(&self) -> Result<(), Failure> {
        self.set_status(0);
        match Deadline::after(2000).wait(|| self.status() == 0) {
            true => Ok(()),
            false => Err(Failure::Timeout("device reset")),
        }
    }

    /// Resets the device and agrees on features (3.1.1, steps 1 to 6): `required` ones and those of `wanted` that it
    /// offers. Returns all that were agreed on.
    ///
    /// # Errors
    /// A required feature is not offered, or the device does not accept the choice.
    pub fn negotiate(&self, required: u64, wanted: u64) -> Result<u64, Failure> {
        self.reset()?;
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let offered = self.offered();
        let required = required | feature::VERSION_1;
        if offered & required != required {
            return Err(Failure::Unsupported("device does not offer a required feature"));
        }
        // A device that limits its accesses must be told that the driver knows; here nothing is translated.
        let features = required | offered & (wanted | feature::ACCESS_PLATFORM);
        self.set_features(features);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        if self.status() & status::FEATURES_OK == 0 {
            return Err(Failure::Device("FEATURES_OK does not stick"));
        }
        Ok(features)
    }

    /// Makes and enables a queue of at most `size` descriptors, `stride` of them for each chain.
    ///
    /// # Errors
    /// The device has no such queue.
    pub fn make_queue(
        &self,
        queue: u16,
        size: u16,
        stride: u16,
        features: u64,
        indirect: bool,
    ) -> Result<Ring, Failure> {
        let maximum = self.queue_maximum(queue);
        if maximum == 0 {
            return Err(Failure::Unsupported("device lacks the queue"));
        }
        let kind = if features & feature::PACKED != 0 { RingKind::Packed } else { RingKind::Split };
        // A split ring's size is a power of two; the largest one that both allow.
        let size = 1 << size.min(maximum).ilog2();
        let event_idx = features & feature::EVENT_IDX != 0;
        let ring = Ring::new(kind, size, stride, event_idx, indirect && features & feature::INDIRECT != 0);
        self.place_queue(queue, &ring.layout());
        self.enable_queue(queue);
        Ok(ring)
    }

    /// Tells the device that the driver is ready (3.1.1, step 8).
    pub fn start(&self) {
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
    }
}

/// Where a queue's notifications go.
#[derive(Clone, Copy)]
pub struct Doorbell {
    address: u64,
    value: u16,
    wide: bool,
}

impl Doorbell {
    /// Rings it.
    pub fn ring(&self) {
        self.ring_with(self.value);
    }

    /// Rings it with another value than the queue's index.
    pub fn ring_with(&self, value: u16) {
        if self.wide {
            crate::cpu::write32(self.address, u32::from(value));
        } else {
            crate::cpu::write16(self.address, value);
        }
    }
}
