//! Memory devices (ACPI 6.5, 9.11), and their controller.

use super::slots::Names;
use super::{Encoded, Registers};
use acpi_tables::aml::{
    Add, AddressSpace, AddressSpaceCacheable, CreateQWordField, Device, EISAName, Local, Method, MethodCall,
    Mutex, Name, ONE, Or, Path, ResourceTemplate, Return, ShiftLeft, Store, Subtract,
};

/// Names of memory's objects begin with `M`.
const MEMORY: Names = Names { scope: "MHPC", letter: 'M', status_absent: 0 };

// Offsets in a QWord address space descriptor (ACPI 6.5, 6.4.3.5.1).
const MINIMUM: u8 = 14;
const MAXIMUM: u8 = 22;
const LENGTH: u8 = 38;

/// The memory hotplug controller, whose `MSCN` tells what its registers say, and its `count` slots, at most 4096.
pub(crate) fn memory_slots(registers: Registers, count: u32, numa: bool) -> Encoded {
    let mut objects = Encoded::default();
    for number in 0..count {
        let mut object = MEMORY.slot_objects(number, true);
        object.push(&Name::new("_HID".into(), &EISAName::new("PNP0C80")));
        let ask = |name: &str| MethodCall::new(MEMORY.of(name), vec![&number]);
        object.push(&Method::new("_CRS".into(), 0, true, vec![&Return::new(&ask("CRS"))]));
        if numa {
            object.push(&Method::new("_PXM".into(), 0, true, vec![&Return::new(&ask("PXM"))]));
        }
        objects.push(&Device::new(MEMORY.slot(number), vec![&object]));
    }
    let node = Local(0);
    let mut out = Encoded::default();
    out.push(&Device::new(
        MEMORY.scope.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A06")),
            &Name::new("_UID".into(), &"Memory hotplug"),
            &registers.region(
                "MREG",
                &[b"MSEL", b"MSTS", b"MNXT", b"MEVT", b"MOUT", b"MADL", b"MADH", b"MSZL", b"MSZH", b"MNOD"],
            ),
            &Mutex::new("MLCK".into(), 0),
            &MEMORY.methods(count),
            &resources(),
            &MEMORY.method("PXM", 1, &[&Store::new(&node, &Path::new("MNOD"))], Some(&node)),
            &objects,
        ],
    ));
    out
}

/// `MCRS`: where the memory of a slot is.
fn resources() -> Encoded {
    let template = AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, 0u64, u64::MAX - 1, None);
    let buffer = Path::new("MR64");
    let (minimum, maximum, length) = (Path::new("MMIN"), Path::new("MMAX"), Path::new("MLEN"));
    let (low, high) = (Local(0), Local(1));
    let bits = 32u8;
    MEMORY.method(
        "CRS",
        1,
        &[
            &Name::new("MR64".into(), &ResourceTemplate::new(vec![&template])),
            &CreateQWordField::new(&minimum, &buffer, &MINIMUM),
            &CreateQWordField::new(&maximum, &buffer, &MAXIMUM),
            &CreateQWordField::new(&length, &buffer, &LENGTH),
            &Store::new(&low, &Path::new("MADL")),
            &Store::new(&high, &Path::new("MADH")),
            &ShiftLeft::new(&high, &high, &bits),
            &Or::new(&minimum, &low, &high),
            &Store::new(&low, &Path::new("MSZL")),
            &Store::new(&high, &Path::new("MSZH")),
            &ShiftLeft::new(&high, &high, &bits),
            &Or::new(&length, &low, &high),
            &Add::new(&low, &minimum, &length),
            &Subtract::new(&maximum, &low, &ONE),
        ],
        Some(&buffer),
    )
}
