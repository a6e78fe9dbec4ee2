//! The DSDT: devices that cannot be discovered, and methods.

use super::{AcpiConfig, gsi};
use crate::aarch64::layout;
use crate::acpi::pci::{
    OperatingSystemCapabilities, ends, last_bus, memory_window, narrow, pin_routes, root_name,
};
use crate::acpi::table::TableWriter;
use crate::layout::SegmentWindows;
use crate::wiring::InterruptPins;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Interrupt, Memory32Fixed, Method, Name, Notify,
    ONE, Path, ResourceTemplate, Return, Scope, ZERO,
};
use acpi_tables::{Aml, AmlSink};

/// `_STA`: present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;
/// Notification of a control-method power button: pressed.
const BUTTON_PRESSED: u8 = 0x80;
/// Bytes of a PrimeCell's registers.
const PRIMECELL_SIZE: u32 = 0x1000;

/// Makes the DSDT.
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::with_capacity(4096);
    for uid in 0..config.cpu_nodes.len() as u32 {
        cpu(uid, &mut devices);
    }
    let windows: Vec<_> = config.segments.iter().map(|segment| memory_window(segment.ecam)).collect();
    // Linux uses an ECAM only if it is reserved so.
    let windows = ResourceTemplate::new(windows.iter().map(|window| window as &dyn Aml).collect());
    device("MBRD", &EISAName::new("PNP0C02"), &windows, &mut devices);
    if !config.segments.is_empty() {
        let pins = config.interrupt_pins;
        pin_routes(InterruptPins { first_gsi: gsi(pins.first_gsi), ..pins }, &mut devices);
    }
    for (segment, number) in config.segments.iter().zip(0u16..) {
        root(segment, number, &mut devices);
    }
    if let Some(interrupt) = config.serial {
        let registers = Memory32Fixed::new(true, layout::SERIAL as u32, PRIMECELL_SIZE);
        let interrupt = level(interrupt);
        let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
        device("COM0", &"ARMH0011", &resources, &mut devices);
    }
    power_button(config, &mut devices);
    if config.pvpanic {
        let port = Memory32Fixed::new(true, layout::PVPANIC.start as u32, layout::PVPANIC.size as u32);
        device("PEVT", &"QEMU0001", &ResourceTemplate::new(vec![&port]), &mut devices);
    }
    let aml = Scope::raw("\\_SB_".into(), devices);
    // Revision 2 and later: integers have 64 bits.
    let mut table = TableWriter::new(*b"DSDT", 2);
    table.bytes(&aml);
    table.finish()
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

fn cpu(uid: u32, out: &mut Vec<u8>) {
    Device::new(
        Path::new(&format!("C{uid:03X}")),
        vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &uid)],
    )
    .to_aml_bytes(out);
}

/// A PCI Express root bridge (PCI Firmware 3.3, 4).
fn root(segment: &SegmentWindows, number: u16, out: &mut Vec<u8>) {
    let mut resources: Vec<Box<dyn Aml>> =
        vec![Box::new(AddressSpace::new_bus_number(0, u16::from(last_bus(segment.ecam.size))))];
    if let Some((first, last)) = ends(segment.bars_32).and_then(narrow) {
        let cacheable = AddressSpaceCacheable::NotCacheable;
        resources.push(Box::new(AddressSpace::new_memory(cacheable, true, first, last, None)));
    }
    if ends(segment.bars_64).is_some() {
        resources.push(Box::new(memory_window(segment.bars_64)));
    }
    let resources = ResourceTemplate::new(resources.iter().map(|resource| &**resource).collect());
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
        ],
    )
    .to_aml_bytes(out);
}

/// The PL061, an edge of whose pin is an event (ACPI 6.5, 5.6.5), and the power button that it is about.
fn power_button(config: &AcpiConfig, out: &mut Vec<u8>) {
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    )
    .to_aml_bytes(out);
    let registers = Memory32Fixed::new(true, layout::GPIO as u32, PRIMECELL_SIZE);
    let interrupt = level(config.gpio);
    let pin = GpioInterrupt { pin: config.power_button.into(), source: "\\_SB.GPO0" };
    let button = Path::new("\\_SB_.PWRB");
    Device::new(
        "GPO0".into(),
        vec![
            &Name::new("_HID".into(), &"ARMH0061"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt])),
            &Name::new("_AEI".into(), &ResourceTemplate::new(vec![&pin])),
            &Method::new(
                Path::new(&format!("_E{:02X}", config.power_button)),
                0,
                false,
                vec![&Notify::new(&button, &BUTTON_PRESSED)],
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// A GPIO connection descriptor (ACPI 6.5, 6.4.3.8.1): a rising edge of a pin interrupts.
struct GpioInterrupt {
    pin: u16,
    /// The controller.
    source: &'static str,
}

impl Aml for GpioInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const PIN_TABLE: u16 = 23;
        const SOURCE: u16 = PIN_TABLE + 2;
        let end = SOURCE + self.source.len() as u16 + 1;
        sink.byte(0x8c);
        sink.word(end - 3);
        // Revision, and that it is an interrupt.
        sink.byte(1);
        sink.byte(0);
        // It is consumed; edge-triggered, active high, exclusive.
        sink.word(1);
        sink.word(1);
        // The pin's configuration, drive strength and debouncing are left as they are.
        sink.byte(0);
        sink.word(0);
        sink.word(0);
        sink.word(PIN_TABLE);
        sink.byte(0);
        sink.word(SOURCE);
        // Data of the vendor's: none.
        sink.word(end);
        sink.word(0);
        sink.word(self.pin);
        sink.vec(self.source.as_bytes());
        sink.byte(0);
    }
}
