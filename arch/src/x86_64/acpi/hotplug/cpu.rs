//! The CPUs' objects (ACPI 6.5, 8.4), and their controller.

use super::slots::Names;
use super::{Encoded, registers};
use crate::x86_64::acpi::Cpu;
use crate::x86_64::acpi::fixed::local_apic;
use acpi_tables::aml::{BufferData, Device, EISAName, Mutex, Name};

/// Names of CPUs' objects begin with `C`.
const CPUS: Names = Names { scope: "CPUS", letter: 'C' };

/// The processor container: the CPUs that there can be, and `CSCN`, which tells what the controller at `port` says.
/// CPUs have a NUMA node if there are any.
pub(in crate::x86_64::acpi) fn cpus(port: u16, cpus: &[Cpu], numa: bool) -> Encoded {
    let mut objects = Encoded::default();
    for (cpu, number) in cpus.iter().zip(0u32..) {
        let mut object = CPUS.slot_objects(number, number > 0);
        object.push(&Name::new("_HID".into(), &"ACPI0007"));
        // The CPU's structure of the MADT, for when it is there.
        let structure = local_apic(&Cpu { enabled: true, ..*cpu }, number);
        object.push(&Name::new("_MAT".into(), &BufferData::new(structure)));
        if numa {
            object.push(&Name::new("_PXM".into(), &cpu.node));
        }
        objects.push(&Device::new(CPUS.slot(number), vec![&object]));
    }
    let mut out = Encoded::default();
    out.push(&Device::new(
        CPUS.scope.into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0010"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A05")),
            &Name::new("_UID".into(), &"CPUs"),
            &registers("CREG", port, &[b"CSEL", b"CSTS", b"CNXT", b"CEVT", b"COUT"]),
            &Mutex::new("CLCK".into(), 0),
            &CPUS.methods(cpus.len() as u32),
            &objects,
        ],
    ));
    out
}
