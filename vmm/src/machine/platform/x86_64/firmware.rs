//! What firmware would have left for the guest: its kernel, and the ACPI and SMBIOS tables.

use super::super::generation;
use super::super::numa::{distances, node_memory, node_of, segment_nodes};
use super::banner::has_linux_banner;
use super::{EVENT_GSI, PCI_WIRING, RTC_GSI, SERIAL_GSI};
use crate::config::{FwCfgConfig, VmConfig};
use crate::machine::boot_files::{BootFiles, MISSING, name_option};
use crate::machine::platform::{MEMORY_SLOTS, serial_mode};
use crate::memory::ZoneExtent;
use anyhow::{Context, Result};
use arch::x86_64::acpi::{
    self, AcpiConfig, Cpu, EventDevice, IoApic, IsaDevice, MemorySlots, Processors as Groups, Registers,
    loader,
};
use arch::x86_64::boot::{self, CommandLineError, E820Entry, EntryPoint, LINUX_COMMAND_LINE_LIMIT, Protocol};
use arch::x86_64::cpu::CpuModel;
use arch::x86_64::layout::{self, MemoryLayout};
use arch::x86_64::reset_vector;
use arch::x86_64::smbios::{self, Processors, SmbiosConfig, SystemStrings};
use devices::acpi::AcpiRegisters;
use devices::acpi_hotplug::cpu::CpuHotplug;
use devices::acpi_hotplug::memory::MemoryHotplug;
use devices::acpi_hotplug::pci::PciHotplug;
use devices::fw_cfg::{FwCfg, Items};
use devices::pvpanic::Pvpanic;
use devices::rtc::Rtc;
use devices::serial::Serial;
use machine::bus::Range;
use machine::memory::Memory;

const ACPI_PLACE: Range =
    Range { start: layout::ACPI_TABLES.0, size: layout::ACPI_RSDP.0 - layout::ACPI_TABLES.0 };

/// Writes into guest memory what the boot CPU starts with.
///
/// # Errors
/// When a file is not what it should be or does not fit, naming its option.
pub fn load(
    files: &mut BootFiles,
    config: &VmConfig,
    memory: &Memory,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
    _: &[Range],
) -> Result<EntryPoint> {
    let tables = acpi_config(config, zones, layout, model);
    acpi::build(&tables, ACPI_PLACE, layout::ACPI_RSDP)?.write(memory)?;
    generation::write_id(memory, layout::GENERATION_ID)?;
    let place = Range { start: layout::SMBIOS.0, size: layout::SMBIOS_SIZE };
    smbios::write(&smbios_config(config, layout, model)?, place, memory).context("--platform")?;
    reset_vector::write(memory, tables.registers.reset, tables.registers.reset_value)?;
    let cmdline = config.payload.cmdline.as_deref().unwrap_or_default();
    let BootFiles { kernel, initramfs, .. } = files;
    let kernel = kernel.as_mut().context(MISSING)?;
    let initramfs = initramfs.as_mut();
    let entry = boot::load_kernel(memory, layout, kernel, initramfs, cmdline)
        .map_err(|error| name_option(config, error))?
        .entry;
    // PVH has no limit of its own, and Linux would leave out the rest without a word.
    let (length, limit) = (cmdline.len() as u64, LINUX_COMMAND_LINE_LIMIT);
    if length > limit && entry.protocol == Protocol::Pvh && has_linux_banner(kernel)? {
        anyhow::bail!("--cmdline: {}", CommandLineError::TooLong { length, limit });
    }
    Ok(entry)
}

/// Adds what firmware would have to know of the machine: its memory map and its ACPI tables.
///
/// # Errors
/// When the tables are too large.
pub fn describe(
    chosen: &FwCfgConfig,
    config: &VmConfig,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
    items: &mut Items,
) -> Result<()> {
    if chosen.e820 {
        items.add("etc/e820", boot::e820(layout).iter().flat_map(E820Entry::bytes).collect())?;
    }
    if chosen.acpi_tables {
        let tables = acpi_config(config, zones, layout, model);
        let files = acpi::build(&tables, ACPI_PLACE, layout::ACPI_RSDP)?.loader_files();
        items.add(loader::TABLES_FILE, files.tables)?;
        items.add(loader::RSDP_FILE, files.rsdp)?;
        items.add(loader::SCRIPT_FILE, files.script)?;
    }
    Ok(())
}

/// Where flash is that CPUs start in.
///
/// # Errors
/// Always: there is none yet.
pub fn firmware_places(_: &[u8]) -> Result<[Range; 2]> {
    anyhow::bail!(
        "machines of this architecture do not start in firmware yet; give the kernel to boot: --kernel PATH"
    )
}

/// Size of the real-mode code that a kernel begins with, in bytes.
pub fn setup_part(kernel: &[u8]) -> usize {
    usize::try_from(boot::setup_part(kernel)).unwrap_or(0)
}

/// Whether the kernel that `entry` was loaded from is Linux. One that is entered by PVH may be anything.
///
/// # Errors
/// When the kernel cannot be read.
pub fn is_linux(files: &BootFiles, entry: EntryPoint) -> Result<bool> {
    if entry.protocol == Protocol::Linux64 {
        return Ok(true);
    }
    files.kernel.as_ref().map_or(Ok(false), has_linux_banner)
}

fn acpi_config(
    config: &VmConfig,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
) -> AcpiConfig {
    let acpi_port = AcpiRegisters::PORTS.start as u16;
    let cpus = (0..config.cpus.limit()).map(|index| Cpu {
        apic_id: model.topology().apic_id(index),
        enabled: index < config.cpus.boot_vcpus,
        node: node_of(&config.numa, |node| node.cpus.contains(&index)),
    });
    let modules = config.memory.modules_size() > 0;
    AcpiConfig {
        cpus: cpus.collect(),
        local_apic: layout::LOCAL_APIC.start as u32,
        io_apic: IoApic { id: 0, address: layout::IOAPIC.start as u32, first_gsi: 0 },
        segments: layout.segments().to_vec(),
        segment_nodes: segment_nodes(config),
        interrupt_pins: PCI_WIRING,
        memory: node_memory(config, zones, layout),
        distances: distances(&config.numa),
        processors: config
            .cpus
            .topology
            .map(|_| Groups { topology: model.topology(), caches: model.caches() }),
        registers: Registers {
            sleep_status: acpi_port,
            sleep_control: acpi_port.saturating_add(1),
            reset: acpi_port.saturating_add(2),
            reset_value: 1,
            pm_timer: Some(acpi_port.saturating_add(8)),
        },
        events: EventDevice { port: acpi_port.saturating_add(4), gsi: EVENT_GSI },
        pci_hotplug: Some(PciHotplug::PORTS.start as u16),
        cpu_hotplug: (config.cpus.limit() > 1).then_some(CpuHotplug::PORTS.start as u16),
        memory_hotplug: modules
            .then_some(MemorySlots { port: MemoryHotplug::PORTS.start as u16, count: MEMORY_SLOTS }),
        generation_id: Some(layout::GENERATION_ID.0),
        fw_cfg: config.payload.fw_cfg().map(|_| FwCfg::PORTS.start as u16),
        serial: serial_mode(&config.serial)
            .map(|_| IsaDevice { port: Serial::COM1.start as u16, gsi: SERIAL_GSI })
            .into_iter()
            .collect(),
        rtc: Some(IsaDevice { port: Rtc::PORTS.start as u16, gsi: RTC_GSI }),
        pvpanic: config.hears_panics().then_some(Pvpanic::PORTS.start as u16),
    }
}

fn smbios_config(config: &VmConfig, layout: &MemoryLayout, model: &CpuModel) -> Result<SmbiosConfig> {
    let platform = &config.platform;
    let usual = SystemStrings::default();
    let topology = model.topology();
    let cpuid = model.cpuid(0);
    let features = cpuid.iter().find(|leaf| leaf.function == 1).copied().unwrap_or_default();
    let text = |function| {
        let leaf = cpuid.iter().find(|leaf| leaf.function == function).copied().unwrap_or_default();
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    };
    let [_, b, c, d] = text(0);
    let brand = [text(0x8000_0002), text(0x8000_0003), text(0x8000_0004)];
    Ok(SmbiosConfig {
        system: SystemStrings {
            manufacturer: platform.manufacturer.clone().unwrap_or(usual.manufacturer),
            product: platform.product.clone().unwrap_or(usual.product),
            version: platform.version.clone().unwrap_or_default(),
            serial: platform.serial_number.clone().unwrap_or_default(),
            sku: platform.sku.clone().unwrap_or_default(),
            family: platform.family.clone().unwrap_or_default(),
        },
        uuid: platform.uuid.as_deref().map(str::parse).transpose()?,
        oem_strings: platform.oem_strings.clone(),
        processors: Processors {
            packages: topology.packages() as u16,
            cores: topology.cores().saturating_mul(topology.dies()) as u16,
            threads: topology.cpus_per_package() as u16,
            signature: u64::from(features.edx) << 32 | u64::from(features.eax),
            manufacturer: ascii(&[b, d, c]),
            brand: ascii(brand.as_flattened()),
        },
        ram: layout.ram().to_vec(),
    })
}

/// The text that CPUID registers spell.
fn ascii(registers: &[u32]) -> String {
    let bytes = registers.iter().flat_map(|register| register.to_le_bytes());
    let text: String = bytes.take_while(|byte| *byte != 0).map(char::from).collect();
    text.trim().to_owned()
}
