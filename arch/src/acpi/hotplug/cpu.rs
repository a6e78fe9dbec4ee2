//! The CPUs' objects (ACPI 6.5, 8.4), and their controller.

use super::slots::Names;
use super::{Encoded, Registers};
use acpi_tables::aml::{BufferData, Device, EISAName, Mutex, Name};

/// Names of CPUs' objects begin with `C`.
const fn cpu_names(status_absent: u8) -> Names {
    Names { scope: "CPUS", letter: 'C', status_absent }
}

/// A CPU that there can be.
pub(crate) struct Processor {
    /// Its structure of the MADT for when it is there, if that differs from what the MADT has.
    pub(crate) structure: Option<Vec<u8>>,
    /// Its NUMA node.
    pub(crate) node: u32,
}

/// The processor container: the CPUs that there can be, and `CSCN`, which tells what the controller's registers say. CPUs
/// have a NUMA node if there are any. The `_STA` of one that is not there says `status_absent`.
pub(crate) fn cpus(registers: Registers, cpus: &[Processor], numa: bool, status_absent: u8) -> Encoded {
    let names = cpu_names(status_absent);
    let mut objects = Encoded::default();
    for (cpu, number) in cpus.iter().zip(0u32..) {
        let mut object = names.slot_objects(number, number > 0);
        object.push(&Name::new("_HID".into(), &"ACPI0007"));
        if let Some(structure) = &cpu.structure {
            object.push(&Name::new("_MAT".into(), &BufferData::new(structure.clone())));
        }
        if numa {
            object.push(&Name::new("_PXM".into(), &cpu.node));
        }
        objects.push(&Device::new(names.slot(number), vec![&object]));
    }
    let mut out = Encoded::default();
    out.push(&Device::new(
        names.scope.into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0010"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A05")),
            &Name::new("_UID".into(), &"CPUs"),
            &registers.region("CREG", &[b"CSEL", b"CSTS", b"CNXT", b"CEVT", b"COUT"]),
            &Mutex::new("CLCK".into(), 0),
            &names.methods(cpus.len() as u32),
            &objects,
        ],
    ));
    out
}
