//! The devices and methods through which an operating system is told what came and asked what is to go (ACPI 6.5,
//! 6.3): the methods' side of the controllers in `devices::acpi_hotplug`, where their registers are described.

mod cpu;
mod memory;
mod pci;
mod slots;

pub(crate) use cpu::{Processor, cpus};
pub(crate) use memory::memory_slots;
pub(crate) use pci::{pci_controller, pci_slots};

use acpi_tables::aml::{
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, OpRegion, OpRegionSpace,
};
use acpi_tables::{Aml, AmlSink};

/// Bytes of the PCI hotplug controller's registers.
pub(crate) const PCI_REGISTERS: u8 = 16;
/// Bytes of the CPU hotplug controller's registers.
pub(crate) const CPU_REGISTERS: u8 = 20;
/// Bytes of the memory hotplug controller's registers.
pub(crate) const MEMORY_REGISTERS: u8 = 40;

/// Notification: what is there is to be enumerated (ACPI 6.5, 5.6.6).
const BUS_CHECK: u8 = 0;
/// Notification: something may have come.
const DEVICE_CHECK: u8 = 1;
/// Notification: it is asked to go.
const EJECT_REQUEST: u8 = 3;
/// Waits for a mutex for as long as it takes.
const FOREVER: u16 = 0xffff;

/// Objects that are encoded already.
#[derive(Default)]
pub(crate) struct Encoded(Vec<u8>);

impl Encoded {
    /// Terms, one after the other.
    pub(crate) fn of(terms: &[&dyn Aml]) -> Self {
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

/// Where registers begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registers {
    /// At an I/O port.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "there are no I/O ports"))]
    Ports(u16),
    /// At a guest-physical address.
    Memory(u64),
}

impl Registers {
    /// A region of registers of 32 bits, one after the other.
    pub(crate) fn region(self, region: &str, names: &[&[u8; 4]]) -> Encoded {
        let mut out = Encoded::default();
        let size = (names.len() * 4) as u8;
        out.push(&match &self {
            Self::Ports(first) => OpRegion::new(region.into(), OpRegionSpace::SystemIO, first, &size),
            Self::Memory(address) => {
                OpRegion::new(region.into(), OpRegionSpace::SystemMemory, address, &size)
            }
        });
        out.push(&Field::new(
            region.into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            names.iter().map(|name| FieldEntry::Named(**name, 32)).collect(),
        ));
        out
    }
}
