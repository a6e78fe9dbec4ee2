//! The tables of fixed structure: FADT (ACPI 6.5, 5.2.9), MADT (5.2.12).

use super::{AcpiConfig, Cpu};
use crate::acpi::table::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, TableWriter};
use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// PC boot architecture flags (ACPI 6.5, 5.2.9.3): no VGA to probe for; leave ASPM alone. The flag for an i8042 is
/// not set, so nobody probes it for a keyboard, while its reset line works.
const BOOT_ARCHITECTURE: u16 = VGA_NOT_PRESENT | PCIE_ASPM_CONTROLS;
const VGA_NOT_PRESENT: u16 = 1 << 2;
const PCIE_ASPM_CONTROLS: u16 = 1 << 4;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Where the CMOS clock keeps the century.
const CENTURY_REGISTER: u8 = 0x32;

/// Makes the FADT, which points to the DSDT.
pub(super) fn fadt(config: &AcpiConfig, dsdt: u64) -> Vec<u8> {
    let byte_port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is a device of the DSDT, and there is no sleep button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    match config.rtc {
        Some(_) => fadt.century = CENTURY_REGISTER,
        None => fadt.iapc_boot_arch = (BOOT_ARCHITECTURE | CMOS_RTC_NOT_PRESENT).into(),
    }
    let registers = config.registers;
    fadt.reset_reg = byte_port(registers.reset);
    fadt.reset_value = registers.reset_value;
    fadt.sleep_control_reg = byte_port(registers.sleep_control);
    fadt.sleep_status_reg = byte_port(registers.sleep_status);
    if let Some(port) = registers.pm_timer {
        fadt = fadt.flag(Flags::TmrValExt);
        fadt.pm_tmr_blk = u32::from(port).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, port.into());
    }
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    let mut bytes = Vec::with_capacity(276);
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

/// Local APIC ids up to this have the old, smaller structure, and must have it (ACPI 6.5, 5.2.12.12).
const LAST_XAPIC_ID: u32 = 254;

/// Whether the CPU can only be described by the structures for x2APIC.
pub(super) fn is_x2apic(cpu: &Cpu) -> bool {
    cpu.apic_id > LAST_XAPIC_ID
}

/// Makes the MADT: CPUs, I/O APIC, and LINT1 as the CPUs' NMI. All interrupts below 16 are wired one to one, so
/// there are no overrides; and there is no 8259.
pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
    let mut madt = TableWriter::new(*b"APIC", 5);
    madt.u32(config.local_apic);
    madt.u32(0);
    for (cpu, uid) in config.cpus.iter().zip(0u32..) {
        madt.bytes(&local_apic(cpu, uid));
    }
    madt.bytes(&[1, 12, config.io_apic.id, 0]);
    madt.u32(config.io_apic.address);
    madt.u32(config.io_apic.first_gsi);
    // For all processors, polarity and trigger as the bus has them, LINT1.
    madt.bytes(&[4, 6, 0xff, 0, 0, 1]);
    if config.cpus.iter().any(is_x2apic) {
        madt.bytes(&[10, 12, 0, 0]);
        madt.u32(u32::MAX);
        madt.bytes(&[1, 0, 0, 0]);
    }
    madt.finish()
}

/// The MADT's structure of the CPU with UID `uid`: processor local APIC, or local x2APIC.
pub(super) fn local_apic(cpu: &Cpu, uid: u32) -> Vec<u8> {
    // Bit 0 is "enabled", bit 1 "online capable".
    let flags: u32 = if cpu.enabled { 1 } else { 2 };
    // A UID over 255 with an APIC id below cannot be: ids are given out in the order of UIDs.
    let mut structure = if is_x2apic(cpu) {
        [&[9, 16, 0, 0], cpu.apic_id.to_le_bytes().as_slice()].concat()
    } else {
        vec![0, 8, uid as u8, cpu.apic_id as u8]
    };
    structure.extend(flags.to_le_bytes());
    if is_x2apic(cpu) {
        structure.extend(uid.to_le_bytes());
    }
    structure
}
