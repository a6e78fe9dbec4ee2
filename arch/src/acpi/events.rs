//! The generic event device (ACPI 6.5, 5.6.9): an interrupt, and a register that says what for, a bit for each event. Reading
//! it takes the events.

use super::hotplug::Registers;
use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, If, Interrupt, Local, Method, MethodCall, Name, Notify, Package, Path,
    ResourceTemplate, Store, ZERO,
};

/// The power button was pressed.
pub const POWER_BUTTON: u32 = 1 << 0;
/// The CPU hotplug controller has something to tell.
pub const CPU: u32 = 1 << 1;
/// The memory hotplug controller has something to tell.
pub const MEMORY: u32 = 1 << 2;
/// The PCI hotplug controller has something to tell.
pub const PCI: u32 = 1 << 3;
/// The machine has a new generation id.
pub const GENERATION: u32 = 1 << 4;

/// `_STA`: present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;

/// Notification of a control-method power button: pressed.
const BUTTON_PRESSED: u8 = 0x80;

/// Notification of a generation id: it changed.
const GENERATION_CHANGED: u8 = 0x80;

/// What there is to tell of, besides the power button.
#[derive(Clone, Copy)]
pub(crate) struct Sources {
    /// CPUs come and go.
    pub(crate) cpus: bool,
    /// Memory comes and goes.
    pub(crate) memory: bool,
    /// PCI functions come and go.
    pub(crate) pci: bool,
    /// There is a generation id.
    pub(crate) generation: bool,
}

/// The power button, as a device (ACPI 6.5, 4.8.3.2).
pub(crate) fn power_button(out: &mut Vec<u8>) {
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    )
    .to_aml_bytes(out);
}

/// The device, whose interrupt is an edge. Its method reads which events there are, and tells each one's device.
pub(crate) fn event_device(registers: Registers, gsi: u32, sources: Sources, out: &mut Vec<u8>) {
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
    let mut actions: Vec<(u32, &dyn Aml)> = vec![(POWER_BUTTON, &press)];
    for (there, bit, action) in [
        (sources.cpus, CPU, &scan_cpus as &dyn Aml),
        (sources.memory, MEMORY, &scan_memory),
        (sources.pci, PCI, &scan_pci),
        (sources.generation, GENERATION, &new_generation),
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
            &registers.region("EREG", &[b"ESEL"]),
            &Method::new("_EVT".into(), 1, true, body),
        ],
    )
    .to_aml_bytes(out);
}

/// The generation id at `address` of guest memory (Microsoft, "Virtual Machine Generation ID", 2018).
pub(crate) fn generation_id(address: u64, out: &mut Vec<u8>) {
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
