//! The devices and methods through which an operating system is told what came and asked what is to go (ACPI 6.5,
//! 6.3): the methods' side of the controllers in `devices::acpi_hotplug`, where their registers are described.

mod cpu;
mod memory;
mod pci;
mod slots;

pub(super) use cpu::cpus;
pub(super) use memory::memory_slots;
pub(super) use pci::{pci_controller, pci_slots};

use acpi_tables::aml::{
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, OpRegion, OpRegionSpace,
};
use acpi_tables::{Aml, AmlSink};

/// Ports of the PCI hotplug controller.
pub(super) const PCI_PORTS: u8 = 16;
/// Ports of the CPU hotplug controller.
pub(super) const CPU_PORTS: u8 = 20;
/// Ports of the memory hotplug controller.
pub(super) const MEMORY_PORTS: u8 = 40;

/// Notification: something may have come (ACPI 6.5, 5.6.6).
const DEVICE_CHECK: u8 = 1;
/// Notification: it is asked to go.
const EJECT_REQUEST: u8 = 3;
/// Waits for a mutex for as long as it takes.
const FOREVER: u16 = 0xffff;

/// Objects that are encoded already.
#[derive(Default)]
pub(super) struct Encoded(Vec<u8>);

impl Encoded {
    /// Terms, one after the other.
    fn of(terms: &[&dyn Aml]) -> Self {
        let mut out = Self::default();
        for term in terms {
            out.push(*term);
        }
        out
    }

    fn push(&mut self, term: &dyn Aml) {
        term.to_aml_bytes(&mut self.0);
    }
}

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Registers of 32 bits at consecutive ports.
fn registers(region: &str, port: u16, names: &[&[u8; 4]]) -> Encoded {
    let mut out = Encoded::default();
    let size = (names.len() * 4) as u8;
    out.push(&OpRegion::new(region.into(), OpRegionSpace::SystemIO, &port, &size));
    out.push(&Field::new(
        region.into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        names.iter().map(|name| FieldEntry::Named(**name, 32)).collect(),
    ));
    out
}
