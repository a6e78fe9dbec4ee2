//! The DSDT: devices that cannot be discovered, and methods.

use super::fixed::local_apic;
use super::{AcpiConfig, Cpu, EventDevice, IsaDevice, SLEEP_TYPE_S5};
use crate::acpi::events::{self, Sources};
use crate::acpi::hotplug::{self, Encoded, Processor, Registers};
use crate::acpi::pci::{
    OperatingSystemCapabilities, ends, memory_window, narrow, pin_routes, proximity, root_name,
};
use crate::acpi::table::TableWriter;
use crate::layout::SegmentWindows;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name,
    Package, Path, ResourceTemplate, Return, Scope, ZERO,
};
use machine::bus::Range;

/// `_STA`: present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;

/// Ports of the firmware configuration device: selector, data, and the address of a DMA request.
const FW_CFG_PORTS: u8 = 12;

/// Makes the DSDT.
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::with_capacity(4096);
    motherboard(config, &mut devices);
    if !config.segments.is_empty() {
        pin_routes(config.interrupt_pins, &mut devices);
    }
    for (segment, number) in config.segments.iter().zip(0u16..) {
        root(config, segment, number, &mut devices);
    }
    if let Some(port) = config.pci_hotplug {
        hotplug::pci_controller(Registers::Ports(port), config.segments.len() as u16)
            .to_aml_bytes(&mut devices);
    }
    let numa = !config.memory.is_empty();
    if let Some(port) = config.cpu_hotplug {
        let cpus = config.cpus.iter().zip(0u32..).map(|(cpu, number)| Processor {
            structure: Some(local_apic(&Cpu { enabled: true, ..*cpu }, number)),
            node: cpu.node,
        });
        let cpus: Vec<_> = cpus.collect();
        hotplug::cpus(Registers::Ports(port), &cpus, numa, 0).to_aml_bytes(&mut devices);
    }
    if let Some(slots) = config.memory_hotplug {
        let registers = Registers::Ports(slots.port);
        hotplug::memory_slots(registers, slots.count, numa).to_aml_bytes(&mut devices);
    }
    events::power_button(&mut devices);
    let EventDevice { port, gsi } = config.events;
    let sources = Sources {
        cpus: config.cpu_hotplug.is_some(),
        memory: config.memory_hotplug.is_some(),
        pci: config.pci_hotplug.is_some(),
        generation: config.generation_id.is_some(),
    };
    events::event_device(Registers::Ports(port), gsi, sources, &mut devices);
    for (port, number) in config.serial.iter().zip(0u8..) {
        serial(*port, number, &mut devices);
    }
    if let Some(rtc) = config.rtc {
        clock(rtc, &mut devices);
    }
    if let Some(port) = config.pvpanic {
        pvpanic(port, &mut devices);
    }
    if let Some(address) = config.generation_id {
        events::generation_id(address, &mut devices);
    }
    if let Some(port) = config.fw_cfg {
        fw_cfg(port, &mut devices);
    }
    let mut aml = Scope::raw("\\_SB_".into(), devices);
    let sleep = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &sleep).to_aml_bytes(&mut aml);
    // Revision 2 and later: integers have 64 bits.
    let mut table = TableWriter::new(*b"DSDT", 2);
    table.bytes(&aml);
    table.finish()
}

/// Resources that belong to no device, so that nobody else is given them: ECAMs, and the ports of the registers.
/// Linux uses an ECAM only if it is reserved so.
fn motherboard(config: &AcpiConfig, out: &mut Vec<u8>) {
    let mut resources: Vec<Box<dyn Aml>> = Vec::new();
    for segment in &config.segments {
        let Range { start, size } = segment.ecam;
        resources.push(match (u32::try_from(start), u32::try_from(size)) {
            (Ok(start), Ok(size)) => Box::new(Memory32Fixed::new(true, start, size)),
            _ => Box::new(memory_window(segment.ecam)),
        });
    }
    let registers = config.registers;
    let mut ports = vec![
        (registers.sleep_status, 1),
        (registers.sleep_control, 1),
        (registers.reset, 1),
        (config.events.port, 4),
    ];
    ports.extend(registers.pm_timer.map(|port| (port, 4)));
    ports.extend(config.pci_hotplug.map(|port| (port, hotplug::PCI_REGISTERS)));
    ports.extend(config.cpu_hotplug.map(|port| (port, hotplug::CPU_REGISTERS)));
    ports.extend(config.memory_hotplug.map(|slots| (slots.port, hotplug::MEMORY_REGISTERS)));
    ports.retain(|(port, _)| *port != 0);
    for (port, length) in ports {
        resources.push(Box::new(IO::new(port, port, 1, length)));
    }
    let resources = ResourceTemplate::new(resources.iter().map(|resource| &**resource).collect());
    Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(out);
}

/// A PCI Express root bridge (PCI Firmware 3.3, 4).
fn root(config: &AcpiConfig, segment: &SegmentWindows, number: u16, out: &mut Vec<u8>) {
    let mut resources: Vec<Box<dyn Aml>> =
        vec![Box::new(AddressSpace::new_bus_number(0, u16::from(segment.last_bus())))];
    if number == 0 {
        // The configuration ports.
        resources.push(Box::new(IO::new(0xcf8, 0xcf8, 1, 8)));
    }
    if let Some((first, last)) = segment.io.and_then(ends).and_then(narrow) {
        resources.push(Box::new(AddressSpace::new_io(first, last, None)));
    }
    if let Some((first, last)) = ends(segment.bars_32).and_then(narrow) {
        let cacheable = AddressSpaceCacheable::NotCacheable;
        resources.push(Box::new(AddressSpace::new_memory(cacheable, true, first, last, None)));
    }
    if ends(segment.bars_64).is_some() {
        resources.push(Box::new(memory_window(segment.bars_64)));
    }
    let resources = ResourceTemplate::new(resources.iter().map(|resource| &**resource).collect());
    let slots = if config.pci_hotplug.is_some() { hotplug::pci_slots(number) } else { Encoded::default() };
    let proximity = proximity(&config.segment_nodes, number);
    Device::new(
        Path::new(&root_name(number)),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &number),
            &Name::new("_UID".into(), &number),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Method::new("_PRT".into(), 0, false, vec![&Return::new(&Path::new("\\_SB_.PRTS"))]),
            &OperatingSystemCapabilities,
            &proximity,
            &slots,
        ],
    )
    .to_aml_bytes(out);
}

/// A 16550A serial port.
fn serial(port: IsaDevice, number: u8, out: &mut Vec<u8>) {
    let interrupt = Interrupt::new(true, true, false, false, port.gsi);
    let ports = IO::new(port.port, port.port, 1, 8);
    Device::new(
        Path::new(&format!("COM{}", (number + 1) % 10)),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &number),
            &Name::new("_DDN".into(), &format!("COM{}", number + 1)),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_aml_bytes(out);
}

/// The CMOS clock.
fn clock(rtc: IsaDevice, out: &mut Vec<u8>) {
    let interrupt = Interrupt::new(true, true, false, false, rtc.gsi);
    let ports = IO::new(rtc.port, rtc.port, 1, 2);
    Device::new(
        "RTC0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_aml_bytes(out);
}

/// The device to which a guest reports a panic; Linux knows it by this id.
fn pvpanic(port: u16, out: &mut Vec<u8>) {
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)])),
            &Name::new("_STA".into(), &STATUS_WORKING),
        ],
    )
    .to_aml_bytes(out);
}

/// The firmware configuration device, which Linux and others know by this id.
fn fw_cfg(port: u16, out: &mut Vec<u8>) {
    // Present, enabled, working, and not shown to the user.
    let status = 0xbu8;
    Device::new(
        "FWCF".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0002"),
            &Name::new("_STA".into(), &status),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, FW_CFG_PORTS)])),
        ],
    )
    .to_aml_bytes(out);
}
