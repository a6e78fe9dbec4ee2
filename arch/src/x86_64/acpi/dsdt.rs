//! The DSDT: devices that cannot be discovered, and methods.

use super::hotplug::{self, Encoded};

use super::{
    AcpiConfig, EVENT_CPU, EVENT_GENERATION, EVENT_MEMORY, EVENT_PCI, EVENT_POWER_BUTTON, EventDevice,
    IsaDevice, SLEEP_TYPE_S5,
};
use crate::acpi::pci::{
    OperatingSystemCapabilities, ends, last_bus, memory_window, narrow, pin_routes, root_name,
};
use crate::acpi::table::TableWriter;
use crate::layout::SegmentWindows;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, MethodCall, Name,
    Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Return, Scope, Store, ZERO,
};
use machine::bus::Range;

/// `_STA`: present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;

/// Ports of the firmware configuration device: selector, data, and the address of a DMA request.
const FW_CFG_PORTS: u8 = 12;

/// Notification of a control-method power button: pressed.
const BUTTON_PRESSED: u8 = 0x80;

/// Notification of a generation id: it changed.
const GENERATION_CHANGED: u8 = 0x80;

/// Makes the DSDT.
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::with_capacity(4096);
    motherboard(config, &mut devices);
    if !config.segments.is_empty() {
        pin_routes(config.interrupt_pins, &mut devices);
    }
    for (segment, number) in config.segments.iter().zip(0u16..) {
        root(segment, number, config.pci_hotplug.is_some(), &mut devices);
    }
    if let Some(port) = config.pci_hotplug {
        hotplug::pci_controller(port, config.segments.len() as u16).to_aml_bytes(&mut devices);
    }
    let numa = !config.memory.is_empty();
    if let Some(port) = config.cpu_hotplug {
        hotplug::cpus(port, &config.cpus, numa).to_aml_bytes(&mut devices);
    }
    if let Some(slots) = config.memory_hotplug {
        hotplug::memory_slots(slots, numa).to_aml_bytes(&mut devices);
    }
    power_button(&mut devices);
    event_device(config, &mut devices);
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
        generation_id(address, &mut devices);
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
    ports.extend(config.pci_hotplug.map(|port| (port, hotplug::PCI_PORTS)));
    ports.extend(config.cpu_hotplug.map(|port| (port, hotplug::CPU_PORTS)));
    ports.extend(config.memory_hotplug.map(|slots| (slots.port, hotplug::MEMORY_PORTS)));
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
fn root(segment: &SegmentWindows, number: u16, hotplug: bool, out: &mut Vec<u8>) {
    let mut resources: Vec<Box<dyn Aml>> =
        vec![Box::new(AddressSpace::new_bus_number(0, u16::from(last_bus(segment.ecam.size))))];
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
    let slots = if hotplug { hotplug::pci_slots(number) } else { Encoded::default() };
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
            &slots,
        ],
    )
    .to_aml_bytes(out);
}

/// The power button, as a device (ACPI 6.5, 4.8.3.2).
fn power_button(out: &mut Vec<u8>) {
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    )
    .to_aml_bytes(out);
}

/// The generic event device (ACPI 6.5, 5.6.9). Its method reads which events there are, and tells each one's
/// device.
fn event_device(config: &AcpiConfig, out: &mut Vec<u8>) {
    let EventDevice { port, gsi } = config.events;
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let (pending, register) = (Local(0), Path::new("ESEL"));
    // One line for each kind of event: its bit, and what is done.
    let power_button = Path::new("\\_SB_.PWRB");
    let press = Notify::new(&power_button, &BUTTON_PRESSED);
    let scan_cpus = MethodCall::new("\\_SB_.CPUS.CSCN".into(), vec![]);
    let scan_memory = MethodCall::new("\\_SB_.MHPC.MSCN".into(), vec![]);
    let scan_pci = MethodCall::new("\\_SB_.PHPC.PSCN".into(), vec![]);
    let generation = Path::new("\\_SB_.VGEN");
    let new_generation = Notify::new(&generation, &GENERATION_CHANGED);
    let mut actions: Vec<(u32, &dyn Aml)> = vec![(EVENT_POWER_BUTTON, &press)];
    for (there, bit, action) in [
        (config.cpu_hotplug.is_some(), EVENT_CPU, &scan_cpus as &dyn Aml),
        (config.memory_hotplug.is_some(), EVENT_MEMORY, &scan_memory),
        (config.pci_hotplug.is_some(), EVENT_PCI, &scan_pci),
        (config.generation_id.is_some(), EVENT_GENERATION, &new_generation),
    ] {
        if there {
            actions.push((bit, action));
        }
    }
    // The `And` has no target.
    let tests: Vec<_> = actions.iter().map(|(bit, _)| And::new(&ZERO, &pending, bit)).collect();
    let branches: Vec<_> =
        tests.iter().zip(&actions).map(|(test, (_, action))| If::new(test, vec![*action])).collect();
    // Reading takes the events, so it is done once.
    let take = Store::new(&pending, &register);
    let mut body: Vec<&dyn Aml> = vec![&take];
    body.extend(branches.iter().map(|branch| branch as &dyn Aml));
    Device::new(
        "GED0".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &port, &4u8),
            &Field::new(
                "EREG".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"ESEL", 32)],
            ),
            &Method::new("_EVT".into(), 1, true, body),
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

/// The generation id at `address` of guest memory (Microsoft, "Virtual Machine Generation ID", 2018).
fn generation_id(address: u64, out: &mut Vec<u8>) {
    let (low, high) = (address as u32, (address >> 32) as u32);
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VIVM0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("_STA".into(), &STATUS_WORKING),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
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
