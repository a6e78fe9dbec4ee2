//! What firmware would have left for the guest: its kernel, and the device tree or ACPI tables.

use super::super::generation;
use super::super::numa::{distances, node_of, segment_nodes};
use super::tables::tables;
use super::{GPIO_GSI, PCI_WIRING, RTC_GSI, has_acpi, serial_port};
use crate::config::{FwCfgConfig, VmConfig};
use crate::machine::boot_files::{BootFiles, MISSING, name_option};
use crate::memory::ZoneExtent;
use anyhow::{Context, Result};
use arch::aarch64::acpi::loader;
use arch::aarch64::boot::{self, EntryPoint};
use arch::aarch64::cpu::CpuModel;
use arch::aarch64::fdt::{self, Chosen, FdtConfig};
use arch::aarch64::layout::{self, MemoryLayout};
use devices::fw_cfg::Items;
use devices::primecell::pl061::Pl061;
use machine::bus::Range;
use machine::memory::Memory;

/// Random bytes that a kernel is given: 8 for its address, the others for its random numbers.
const SEED_SIZE: usize = 8 + 32;

/// Writes into guest memory what the boot CPU starts with. `flash` is where there is flash.
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
    flash: &[Range],
) -> Result<EntryPoint> {
    let cmdline = config.payload.cmdline.as_deref().unwrap_or_default();
    if config.payload.firmware.is_some() {
        // A kernel that is given as well it finds in the firmware configuration device.
        let chosen = Chosen { command_line: String::new(), initramfs: None, seed: seed() };
        let tree = fdt::build(&fdt_config(chosen, config, zones, layout, model, flash))?;
        boot::place_fdt(memory, &tree)?;
        return Ok(boot::FIRMWARE);
    }
    let BootFiles { kernel, initramfs, .. } = files;
    let kernel = kernel.as_mut().context(MISSING)?;
    let loaded = boot::load_kernel(memory, layout, kernel, initramfs.as_mut(), cmdline)
        .map_err(|error| name_option(config, error))?;
    let chosen = Chosen { command_line: cmdline.to_owned(), initramfs: loaded.initramfs, seed: seed() };
    let tree = if has_acpi(config) {
        tables(config, zones, layout, model)?.write(memory)?;
        generation::write_id(memory, layout::GENERATION_ID)?;
        fdt::build_for_efi(&chosen, &boot::place_efi(memory, layout)?)?
    } else {
        fdt::build(&fdt_config(chosen, config, zones, layout, model, flash))?
    };
    boot::place_fdt(memory, &tree)?;
    Ok(loaded.entry)
}

fn fdt_config(
    chosen: Chosen,
    config: &VmConfig,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
    flash: &[Range],
) -> FdtConfig {
    let memory_nodes = zones.iter().flat_map(|zone| {
        let node = node_of(&config.numa, |node| node.memory_zones.contains(&zone.id));
        zone.ranges.iter().map(move |&(start, size)| (Range { start, size }, node))
    });
    FdtConfig {
        topology: model.topology(),
        caches: model.caches().to_vec(),
        cpu_nodes: (0..config.cpus.boot_vcpus)
            .map(|index| node_of(&config.numa, |node| node.cpus.contains(&index)))
            .collect(),
        pmu: model.has_pmu(),
        memory: memory_nodes.collect(),
        distances: distances(&config.numa),
        gic: layout.gic(config.cpus.limit()),
        segments: layout.segments().to_vec(),
        segment_nodes: segment_nodes(config),
        interrupt_pins: PCI_WIRING,
        serial: serial_port(config),
        rtc: RTC_GSI,
        gpio: GPIO_GSI,
        power_button: Pl061::POWER_BUTTON,
        pvpanic: config.hears_panics(),
        fw_cfg: config.payload.fw_cfg().is_some(),
        flash: flash.to_vec(),
        chosen,
    }
}

/// Adds what firmware would have to know of the machine: its ACPI tables.
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
    if chosen.acpi_tables && has_acpi(config) {
        let files = tables(config, zones, layout, model)?.loader_files();
        items.add(loader::TABLES_FILE, files.tables)?;
        items.add(loader::RSDP_FILE, files.rsdp)?;
        items.add(loader::SCRIPT_FILE, files.script)?;
    }
    Ok(())
}

/// Where flash is that CPUs start in: that for firmware, a file of which begins with `head`, and that for its variables.
///
/// # Errors
/// When it is something else.
pub fn firmware_places(head: &[u8]) -> Result<[Range; 2]> {
    boot::check_firmware(head)?;
    Ok(layout::FLASH)
}

/// A kernel has no part of another mode.
pub fn setup_part(_: &[u8]) -> usize {
    0
}

/// Whether the kernel is Linux. Others with the same header are not told apart from it.
///
/// # Errors
/// None.
pub fn is_linux(_: &BootFiles, _: EntryPoint) -> Result<bool> {
    Ok(true)
}

/// Random bytes; none when the host has none to give yet.
fn seed() -> Vec<u8> {
    let mut seed = vec![0; SEED_SIZE];
    // SAFETY: writes at most as many bytes as the buffer has.
    let length = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), libc::GRND_NONBLOCK) };
    seed.truncate(usize::try_from(length).unwrap_or(0));
    seed
}
