//! The DSDT: devices that cannot be discovered, and methods.

use super::{AcpiConfig, gsi};
use crate::aarch64::layout;
use crate::aarch64::serial::SerialModel;
use crate::acpi::events::{self, Sources};
use crate::acpi::hotplug::{self, Processor, Registers};
use crate::acpi::pci::{
    OperatingSystemCapabilities, ends, memory_window, narrow, pin_routes, proximity, root_name,
};
use crate::acpi::table::TableWriter;
use crate::layout::SegmentWindows;
use crate::wiring::InterruptPins;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Interrupt, Memory32Fixed, Method, Name, ONE, Path,
    ResourceTemplate, Return, Scope, ZERO,
};
use machine::bus::Range;

/// `_STA`: present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;
/// `_STA` of a CPU that may be added: it is present, since its interrupt controller interface is, but not enabled.
const STATUS_DISABLED: u8 = 0xd;
/// Offset of the event device's register in [`layout::ACPI_REGISTERS`].
const EVENT_REGISTER: u64 = 4;

// The methods use as many registers as there are.
const _: () = assert!(
    layout::CPU_HOTPLUG.size == hotplug::CPU_REGISTERS as u64
        && layout::MEMORY_HOTPLUG.size == hotplug::MEMORY_REGISTERS as u64
        && layout::PCI_HOTPLUG.size == hotplug::PCI_REGISTERS as u64
);

/// Makes the DSDT.
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::with_capacity(4096);
    motherboard(config, &mut devices);
    if !config.segments.is_empty() {
        let pins = config.interrupt_pins;
        pin_routes(InterruptPins { first_gsi: gsi(pins.first_gsi), ..pins }, &mut devices);
    }
    for (segment, number) in config.segments.iter().zip(0u16..) {
        root(config, segment, number, &mut devices);
    }
    let numa = !config.memory.is_empty();
    hotplug::pci_controller(Registers::Memory(layout::PCI_HOTPLUG.start), config.segments.len() as u16)
        .to_aml_bytes(&mut devices);
    let cpus: Vec<_> = config.cpu_nodes.iter().map(|&node| Processor { structure: None, node }).collect();
    hotplug::cpus(Registers::Memory(layout::CPU_HOTPLUG.start), &cpus, numa, STATUS_DISABLED)
        .to_aml_bytes(&mut devices);
    if config.memory_slots > 0 {
        hotplug::memory_slots(Registers::Memory(layout::MEMORY_HOTPLUG.start), config.memory_slots, numa)
            .to_aml_bytes(&mut devices);
    }
    events::power_button(&mut devices);
    let sources = Sources {
        cpus: true,
        memory: config.memory_slots > 0,
        pci: true,
        generation: config.generation_id.is_some(),
    };
    let register = Registers::Memory(layout::ACPI_REGISTERS.start + EVENT_REGISTER);
    events::event_device(register, gsi(config.events), sources, &mut devices);
    if let Some(address) = config.generation_id {
        events::generation_id(address, &mut devices);
    }
    if let Some(port) = config.serial {
        let Range { start, size } = port.model.registers();
        let registers = Memory32Fixed::new(true, start as u32, size as u32);
        let interrupt = level(port.interrupt);
        let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
        match port.model {
            SerialModel::Pl011 => device("COM0", &"ARMH0011", &resources, &mut devices),
            SerialModel::Uart16550 => device("COM0", &EISAName::new("PNP0501"), &resources, &mut devices),
        }
    }
    if config.pvpanic {
        let port = Memory32Fixed::new(true, layout::PVPANIC.start as u32, layout::PVPANIC.size as u32);
        device("PEVT", &"QEMU0001", &ResourceTemplate::new(vec![&port]), &mut devices);
    }
    if config.fw_cfg {
        let registers = Memory32Fixed::new(true, layout::FW_CFG.start as u32, layout::FW_CFG.size as u32);
        device("FWCF", &"QEMU0002", &ResourceTemplate::new(vec![&registers]), &mut devices);
    }
    let aml = Scope::raw("\\_SB_".into(), devices);
    // Revision 2 and later: integers have 64 bits.
    let mut table = TableWriter::new(*b"DSDT", 2);
    table.bytes(&aml);
    table.finish()
}

/// Resources that belong to no device, so that nobody else is given them: ECAMs, and registers.
fn motherboard(config: &AcpiConfig, out: &mut Vec<u8>) {
    // Linux uses an ECAM only if it is reserved so.
    let ecams = config.segments.iter().map(|segment| memory_window(segment.ecam));
    let ecams: Vec<_> = ecams.collect();
    let registers =
        [layout::ACPI_REGISTERS, layout::CPU_HOTPLUG, layout::MEMORY_HOTPLUG, layout::PCI_HOTPLUG]
            .map(|range| Memory32Fixed::new(true, range.start as u32, range.size as u32));
    let resources = ecams.iter().map(|ecam| ecam as &dyn Aml);
    let resources = resources.chain(registers.iter().map(|registers| registers as &dyn Aml));
    device("MBRD", &EISAName::new("PNP0C02"), &ResourceTemplate::new(resources.collect()), out);
}

/// A level-triggered interrupt, active high.
fn level(shared: u32) -> Interrupt {
    Interrupt::new(true, false, false, false, gsi(shared))
}

fn device(name: &str, id: &dyn Aml, resources: &ResourceTemplate<'_>, out: &mut Vec<u8>) {
    Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), id),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_STA".into(), &STATUS_WORKING),
            &Name::new("_CRS".into(), resources),
        ],
    )
    .to_aml_bytes(out);
}

/// A PCI Express root bridge (PCI Firmware 3.3, 4).
fn root(config: &AcpiConfig, segment: &SegmentWindows, number: u16, out: &mut Vec<u8>) {
    let mut resources: Vec<Box<dyn Aml>> =
        vec![Box::new(AddressSpace::new_bus_number(0, u16::from(segment.last_bus())))];
    if let Some((first, last)) = ends(segment.bars_32).and_then(narrow) {
        let cacheable = AddressSpaceCacheable::NotCacheable;
        resources.push(Box::new(AddressSpace::new_memory(cacheable, true, first, last, None)));
    }
    if ends(segment.bars_64).is_some() {
        resources.push(Box::new(memory_window(segment.bars_64)));
    }
    let resources = ResourceTemplate::new(resources.iter().map(|resource| &**resource).collect());
    let proximity = proximity(&config.segment_nodes, number);
    Device::new(
        Path::new(&root_name(number)),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &number),
            &Name::new("_UID".into(), &number),
            &Name::new("_BBN".into(), &ZERO),
            // Devices see what CPUs wrote.
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &resources),
            &Method::new("_PRT".into(), 0, false, vec![&Return::new(&Path::new("\\_SB_.PRTS"))]),
            &OperatingSystemCapabilities,
            &proximity,
            &hotplug::pci_slots(number),
        ],
    )
    .to_aml_bytes(out);
}
