//! `pci` and `virtio`: what the machine has.

use super::{Context, Failure, Outcome};
use crate::command_line::Task;
use crate::pci::Function;
use crate::{cpu, memory, pci, report, virtio};
use core::fmt;

/// `pci`: one line for each function with its BARs and capabilities.
pub fn pci(_context: &Context, _task: &Task) -> Outcome {
    let mut count = 0;
    pci::functions(|function| {
        count += 1;
        let (vendor, device) = function.id();
        let class = function.read32(8) >> 8;
        report!(
            "pci at={:02x}:{:02x}.{} id={vendor:04x}:{device:04x} class={class:06x}{}{}",
            function.bus,
            function.device,
            function.function,
            Bars(function),
            Capabilities(function)
        );
    });
    report!("pci functions={count} ecam={:#x}", pci::ecam());
    Ok(())
}

/// `pci-watch n=1 hotplug=0x620 at=`: waits until a function comes at the first free device number of bus 0, and until it goes again;
/// so many times, with a line for each. It is let go of when Vivarium's hotplug controller asks for it, which is at that port or, with
/// `at=`, at that address.
pub fn watch(_context: &Context, task: &Task) -> Outcome {
    let absent = |function: &Function| function.id().0 == 0xffff;
    let mut places = (1..32).map(|device| Function { bus: 0, device, function: 0 });
    let place = places.find(absent).ok_or(Failure::Unsupported("free device number"))?;
    let controller = match task.number("at", 0)? {
        0 => Controller::Port(task.number("hotplug", 0x620)? as u16),
        address => Controller::Memory(address),
    };
    controller.map();
    report!("pci-watch state=ready device={}", place.device);
    for _ in 0..task.number("n", 1)? {
        while absent(&place) {}
        report!("pci-watch state=came");
        while !absent(&place) {
            controller.let_go();
        }
        report!("pci-watch state=gone");
    }
    Ok(())
}

/// Vivarium's hotplug controller of a PCI segment, by where its registers are.
enum Controller {
    Port(u16),
    Memory(u64),
}

impl Controller {
    /// The register with the devices of bus 0 that are to go.
    const ASKED: u8 = 8;
    /// The one that lets devices go.
    const EJECT: u8 = 12;

    fn map(&self) {
        if let Self::Memory(address) = *self {
            memory::map(address, 16);
        }
    }

    /// Lets go of all devices that are asked for.
    fn let_go(&self) {
        match *self {
            Self::Port(port) => match cpu::in32(port.wrapping_add(Self::ASKED.into())) {
                0 => {}
                devices => cpu::out32(port.wrapping_add(Self::EJECT.into()), devices),
            },
            Self::Memory(address) => match cpu::read32(address.wrapping_add(Self::ASKED.into())) {
                0 => {}
                devices => cpu::write32(address.wrapping_add(Self::EJECT.into()), devices),
            },
        }
    }
}

struct Bars(Function);

impl fmt::Display for Bars {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        let mut index = 0;
        while index < self.0.bar_count() {
            let Some(bar) = self.0.bar(index) else {
                index += 1;
                continue;
            };
            let kind = match (bar.io, bar.wide, bar.prefetchable) {
                (true, _, _) => "io",
                (_, true, true) => "mem64p",
                (_, true, false) => "mem64",
                (_, false, true) => "mem32p",
                (_, false, false) => "mem32",
            };
            write!(to, " bar{index}={kind}:{:#x}+{:#x}", bar.address, bar.size)?;
            index += if bar.wide { 2 } else { 1 };
        }
        Ok(())
    }
}

struct Capabilities(Function);

impl fmt::Display for Capabilities {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        let mut outcome = to.write_str(" caps=");
        let mut first = true;
        self.0.capabilities(|id, offset| {
            let separator = if first { "" } else { "," };
            first = false;
            outcome = outcome.and_then(|()| write!(to, "{separator}{id:02x}@{offset:02x}"));
        });
        outcome
    }
}

/// `virtio`: one line for each virtio device with the features it offers and its queues.
pub fn virtio(context: &Context, _task: &Task) -> Outcome {
    let mut count = 0;
    virtio::devices(context.line, |device| {
        count += 1;
        let queues =
            (0..u16::MAX).take_while(|&queue| queue < 512 && device.queue_maximum(queue) != 0).count();
        report!(
            "virtio kind={} transport={} features={:#x} queues={queues} queue_size={} status={:#x}",
            device.kind.name(),
            device.transport_name(),
            device.offered(),
            device.queue_maximum(0),
            device.status()
        );
    });
    report!("virtio devices={count}");
    Ok(())
}
