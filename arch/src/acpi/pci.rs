//! PCI Express root bridges in ACPI, and the MCFG (PCI Firmware 3.3, 4).

use super::hotplug::Encoded;
use super::table::TableWriter;
use crate::layout::SegmentWindows;
use crate::wiring::InterruptPins;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Else, Equal, If, Local, Method, Name,
    NotEqual, Or, Package, PackageBuilder, Path, Return, Store, Uuid, ZERO,
};
use machine::bus::Range;

/// What an operating system may control natively when it asks in `_OSC` (PCI Firmware 3.3, 4.5.1): hotplug, power
/// management events, error reporting, the PCIe capability, latency tolerance. Not granted: the older hotplug
/// controller's registers, which do not exist.
const PCIE_CONTROL: u32 = 0b11_1101;

/// Makes the MCFG: each segment's ECAM.
pub(crate) fn mcfg(segments: &[SegmentWindows]) -> Vec<u8> {
    let mut mcfg = TableWriter::new(*b"MCFG", 1);
    mcfg.u64(0);
    for (segment, number) in segments.iter().zip(0u16..) {
        mcfg.u64(segment.ecam.start);
        mcfg.u16(number);
        mcfg.bytes(&[0, segment.last_bus(), 0, 0, 0, 0]);
    }
    mcfg.finish()
}

/// `PRTS`: which interrupt each pin of each device on a root bus is wired to. All segments share it.
pub(crate) fn pin_routes(pins: InterruptPins, out: &mut Vec<u8>) {
    let mut routes = PackageBuilder::new();
    for device in 1..32u8 {
        for pin in 1..=4u8 {
            let address = u32::from(device) << 16 | 0xffff;
            let gsi = pins.gsi(device, pin);
            routes.add_element(&Package::new(vec![&address, &(pin - 1), &ZERO, &gsi]));
        }
    }
    Name::new("PRTS".into(), &routes).to_aml_bytes(out);
}

/// The name of a segment's root bridge.
pub(crate) fn root_name(segment: u16) -> String {
    format!("PC{:02X}", segment & 0xff)
}

/// `_OSC` of a root bridge: grants [`PCIE_CONTROL`].
pub(crate) struct OperatingSystemCapabilities;

impl Aml for OperatingSystemCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (uuid, revision, buffer) = (Arg(0), Arg(1), Arg(3));
        let (first, control) = (Path::new("CDW1"), Path::new("CDW3"));
        let masked = Local(0);
        let set_error = |bit: u32| (bit, Path::new("CDW1"));
        let (masked_bit, revision_bit, uuid_bit) = (set_error(0x10), set_error(0x08), set_error(0x04));
        Method::new(
            "_OSC".into(),
            4,
            // It makes named objects, so only one call at a time.
            true,
            vec![
                &CreateDWordField::new(&Path::new("CDW1"), &buffer, &ZERO),
                &If::new(
                    &Equal::new(&uuid, &Uuid::new("33db4d5b-1ff7-401c-9657-7441c03dd766")),
                    vec![
                        &CreateDWordField::new(&Path::new("CDW3"), &buffer, &8u8),
                        &And::new(&masked, &control, &PCIE_CONTROL),
                        &If::new(
                            &NotEqual::new(&masked, &control),
                            vec![&Or::new(&masked_bit.1, &first, &masked_bit.0)],
                        ),
                        &If::new(
                            &NotEqual::new(&revision, &1u8),
                            vec![&Or::new(&revision_bit.1, &first, &revision_bit.0)],
                        ),
                        &Store::new(&control, &masked),
                    ],
                ),
                &Else::new(vec![&Or::new(&uuid_bit.1, &first, &uuid_bit.0)]),
                &Return::new(&buffer),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `_PXM`: the NUMA node that a segment belongs to, if it does (ACPI 6.5, 6.2.15).
pub(crate) fn proximity(nodes: &[Option<u32>], segment: u16) -> Encoded {
    let node = nodes.get(usize::from(segment)).copied().flatten();
    node.map_or_else(Encoded::default, |node| Encoded::of(&[&Name::new("_PXM".into(), &node)]))
}

/// A window of memory in 64-bit form.
pub(crate) fn memory_window(range: Range) -> AddressSpace<u64> {
    let cacheable = AddressSpaceCacheable::NotCacheable;
    AddressSpace::new_memory(cacheable, true, range.start, range.last(), None)
}

/// First and last address; `None` for an empty range.
pub(crate) fn ends(range: Range) -> Option<(u64, u64)> {
    (range.size > 0).then(|| (range.start, range.last()))
}

pub(crate) fn narrow((first, last): (u64, u64)) -> Option<(u32, u32)> {
    Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?))
}
