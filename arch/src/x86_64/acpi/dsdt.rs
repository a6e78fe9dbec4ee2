//! The DSDT: devices that cannot be discovered, and methods.

use super::fixed::last_bus;
use super::hotplug::{self, Encoded};
use super::table::TableWriter;
use super::{
    AcpiConfig, EVENT_CPU, EVENT_GENERATION, EVENT_MEMORY, EVENT_PCI, EVENT_POWER_BUTTON, EventDevice,
    IsaDevice, SLEEP_TYPE_S5,
};
use crate::layout::SegmentWindows;
use crate::wiring::InterruptPins;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed,
    Method, MethodCall, Name, NotEqual, Notify, OpRegion, OpRegionSpace, Or, Package, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use machine::bus::Range;

/// `_STA`: present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;

/// What an operating system may control natively when it asks in `_OSC` (PCI Firmware 3.3, 4.5.1): hotplug, power
/// management events, error reporting, the PCIe capability, latency tolerance. Not granted: the older hotplug
/// controller's registers, which do not exist.
const PCIE_CONTROL: u32 = 0b11_1101;

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

/// `PRTS`: which interrupt each pin of each device on a root bus is wired to. All segments share it.
fn pin_routes(pins: InterruptPins, out: &mut Vec<u8>) {
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

/// The name of a segment's root bridge.
pub(super) fn root_name(segment: u16) -> String {
    format!("PC{:02X}", segment & 0xff)
}

/// `_OSC` of a root bridge: grants [`PCIE_CONTROL`].
struct OperatingSystemCapabilities;

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
fn clock(port: u16, out: &mut Vec<u8>) {
    Device::new(
        "RTC0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, 2)])),
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

/// A window of memory in 64-bit form.
fn memory_window(range: Range) -> AddressSpace<u64> {
    let cacheable = AddressSpaceCacheable::NotCacheable;
    AddressSpace::new_memory(cacheable, true, range.start, range.last(), None)
}

/// First and last address; `None` for an empty range.
fn ends(range: Range) -> Option<(u64, u64)> {
    (range.size > 0).then(|| (range.start, range.last()))
}

fn narrow((first, last): (u64, u64)) -> Option<(u32, u32)> {
    Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?))
}
