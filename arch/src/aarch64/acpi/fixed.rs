//! The tables of fixed structure: FADT (ACPI 6.5, 5.2.9), MADT (5.2.12), GTDT (5.2.25), SRAT (5.2.16), SPCR 2 and DBG2 (Microsoft,
//! "Serial Port Console Redirection Table", "Debug Port Table 2"), IORT (Arm DEN 0049).

use super::{AcpiConfig, gsi};
use crate::aarch64::cpu::{
    PMU_INTERRUPT, TIMER_HYPERVISOR, TIMER_PHYSICAL, TIMER_SECURE, TIMER_VIRTUAL, affinity,
};
use crate::aarch64::serial::{SerialModel, SerialPort};
use crate::acpi::numa::ENABLED;
use crate::acpi::table::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, TableWriter};
use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use hypervisor::aarch64::GicConfig;

/// Arm boot architecture flags (ACPI 6.5, 5.2.9.4): there is PSCI, and it is called by HVC.
const PSCI_BY_HVC: u16 = 0b11;

/// Flag of a CPU's interface: it may be enabled while the machine runs (ACPI 6.5, table 5.37).
const ONLINE_CAPABLE: u32 = 1 << 3;

/// Makes the FADT, which points to the DSDT.
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        // The power button is a device of the DSDT, and there is no sleep button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.arm_boot_arch = PSCI_BY_HVC.into();
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    let mut bytes = Vec::with_capacity(276);
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

/// Makes the MADT: the interrupt controller's distributor, CPU interfaces, redistributors and translation services.
pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
    let gic = config.gic;
    let mut madt = TableWriter::new(*b"APIC", 5);
    madt.u32(0);
    madt.u32(0);
    madt.bytes(&[0xc, 24, 0, 0]);
    madt.u32(0);
    madt.u64(gic.distributor);
    madt.u32(0);
    madt.bytes(&[3, 0, 0, 0]);
    for uid in 0..config.cpu_nodes.len() as u32 {
        madt.bytes(&[0xb, 80, 0, 0]);
        madt.u32(uid);
        madt.u32(uid);
        madt.u32(if uid < config.present { ENABLED } else { ONLINE_CAPABLE });
        // No parking protocol.
        madt.u32(0);
        madt.u32(if config.pmu { PMU_INTERRUPT } else { 0 });
        // Parking address, and the memory-mapped interfaces of older controllers.
        [0; 4].into_iter().for_each(|none| madt.u64(none));
        // No maintenance interrupt; the redistributors are below.
        madt.u32(0);
        madt.u64(0);
        madt.u64(affinity(uid));
        madt.u32(0);
    }
    madt.bytes(&[0xe, 16, 0, 0]);
    madt.u64(gic.redistributors);
    madt.u32(gic.cpus * GicConfig::REDISTRIBUTOR_SIZE as u32);
    for (address, id) in gic.its().zip(0u32..) {
        madt.bytes(&[0xf, 20, 0, 0]);
        madt.u32(id);
        madt.u64(address);
        madt.u32(0);
    }
    madt.finish()
}

/// Makes the GTDT: the architecture's timers.
pub(super) fn gtdt() -> Vec<u8> {
    /// Level-triggered, active high, always on.
    const FLAGS: u32 = 1 << 2;
    let mut gtdt = TableWriter::new(*b"GTDT", 2);
    // There are no memory-mapped counters.
    gtdt.u64(u64::MAX);
    gtdt.u32(0);
    for interrupt in [TIMER_SECURE, TIMER_PHYSICAL, TIMER_VIRTUAL, TIMER_HYPERVISOR] {
        gtdt.u32(interrupt);
        gtdt.u32(FLAGS);
    }
    gtdt.u64(u64::MAX);
    gtdt.u32(0);
    gtdt.u32(0);
    gtdt.finish()
}

/// Makes the IORT: the requester ids of each PCI segment go to the translation service of its own.
pub(super) fn iort(config: &AcpiConfig) -> Vec<u8> {
    const TABLE_HEADER: u32 = 48;
    const ITS_GROUP: u32 = 24;
    const NODE_HEADER_WITH_COMPLEX: u32 = 36;
    const MAPPING: u32 = 20;
    let mut iort = TableWriter::new(*b"IORT", 0);
    iort.u32(config.segments.len() as u32 * 2);
    iort.u32(TABLE_HEADER);
    iort.u32(0);
    for id in 0..config.segments.len() as u32 {
        iort.bytes(&[0, ITS_GROUP as u8, 0, 0]);
        // Reserved, no mappings.
        [0, 0, 0].into_iter().for_each(|field| iort.u32(field));
        iort.u32(1);
        iort.u32(id);
    }
    for (segment, number) in config.segments.iter().zip(0u32..) {
        iort.bytes(&[2, (NODE_HEADER_WITH_COMPLEX + MAPPING) as u8, 0, 1]);
        iort.u32(0);
        iort.u32(1);
        iort.u32(NODE_HEADER_WITH_COMPLEX);
        // Coherent, by the CPUs' own attributes.
        iort.u32(1);
        iort.bytes(&[0, 0, 0, 0b11]);
        // No ATS.
        iort.u32(0);
        iort.u32(number);
        // Addresses have 64 bits.
        iort.bytes(&[64, 0, 0, 0]);
        let ids = (u32::from(segment.last_bus()) + 1) << 8;
        for field in [0, ids - 1, 0, TABLE_HEADER + number * ITS_GROUP, 0] {
            iort.u32(field);
        }
    }
    iort.finish()
}

/// What the tables call a serial port (DBG2, table 3).
fn subtype(model: SerialModel) -> u8 {
    match model {
        SerialModel::Uart16550 => 0,
        SerialModel::Pl011 => 3,
    }
}

/// Registers of a serial port, as a generic address.
fn serial_address(table: &mut TableWriter, model: SerialModel) {
    // System memory; width in bits, and how it is accessed.
    table.bytes(match model {
        SerialModel::Uart16550 => &[0, 8, 0, 1],
        SerialModel::Pl011 => &[0, 32, 0, 3],
    });
    table.u64(model.registers().start);
}

/// Makes the SPCR: the console.
pub(super) fn spcr(port: SerialPort) -> Vec<u8> {
    let mut spcr = TableWriter::new(*b"SPCR", 2);
    spcr.bytes(&[subtype(port.model), 0, 0, 0]);
    serial_address(&mut spcr, port.model);
    // An interrupt of the GIC.
    spcr.bytes(&[8, 0]);
    spcr.u32(gsi(port.interrupt));
    // Speed as it is, no parity, one stop bit, no flow control; a terminal like VT-UTF8.
    spcr.bytes(&[0, 0, 1, 0, 2, 0]);
    // No PCI device.
    spcr.u16(0xffff);
    spcr.u16(0xffff);
    spcr.bytes(&[0; 3]);
    spcr.u32(0);
    spcr.bytes(&[0]);
    spcr.u32(0);
    spcr.finish()
}

/// Makes the DBG2: the same port, for debuggers.
pub(super) fn dbg2(model: SerialModel) -> Vec<u8> {
    const NAME: &[u8] = b"\\_SB.COM0\0";
    const DEVICE: u16 = 22;
    const ADDRESS: u16 = DEVICE;
    const SIZE: u16 = ADDRESS + 12;
    const NAME_AT: u16 = SIZE + 4;
    let mut dbg2 = TableWriter::new(*b"DBG2", 0);
    dbg2.u32(44);
    dbg2.u32(1);
    dbg2.bytes(&[0]);
    dbg2.u16(NAME_AT + NAME.len() as u16);
    dbg2.bytes(&[1]);
    dbg2.u16(NAME.len() as u16);
    dbg2.u16(NAME_AT);
    // No data of the vendor's.
    dbg2.u32(0);
    // A serial port.
    dbg2.u16(0x8000);
    dbg2.u16(subtype(model).into());
    dbg2.u16(0);
    dbg2.u16(ADDRESS);
    dbg2.u16(SIZE);
    serial_address(&mut dbg2, model);
    dbg2.u32(model.registers().size as u32);
    dbg2.bytes(NAME);
    dbg2.finish()
}

/// Makes the SRAT: which CPU and which memory belongs to which node.
pub(super) fn srat(config: &AcpiConfig) -> Vec<u8> {
    let mut srat = TableWriter::new(*b"SRAT", 3);
    srat.u32(1);
    srat.u64(0);
    for (node, uid) in config.cpu_nodes.iter().zip(0u32..) {
        srat.bytes(&[3, 18]);
        srat.u32(*node);
        srat.u32(uid);
        srat.u32(ENABLED);
        srat.u32(0);
    }
    for memory in &config.memory {
        memory.write(&mut srat);
    }
    srat.finish()
}
