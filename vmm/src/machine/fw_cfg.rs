//! What a machine's firmware configuration device holds.

use super::boot_files::BootFiles;
use super::platform;
use crate::config::{ByteSize, FwCfgConfig, VmConfig};
use crate::memory::ZoneExtent;
use anyhow::{Context, Result, ensure};
use arch::native::cpu::CpuModel;
use arch::native::layout::MemoryLayout;
use devices::fw_cfg::vmcoreinfo::{self, VmcoreInfo};
use devices::fw_cfg::{Items, number};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// The largest file that can be an item, in bytes.
const LARGEST_FILE: u64 = 64 << 20;

/// How many milliseconds firmware waits for its user before it boots: 16 bits, little-endian.
const BOOT_MENU_WAIT: &str = "etc/boot-menu-wait";

/// What a machine's device is made of.
pub struct FwCfgParts {
    /// What it holds.
    pub items: Items,
    /// What the guest tells by it.
    pub vmcoreinfo: Option<VmcoreInfo>,
}

/// What the device of `config` is made of; `None` if the machine has none. The files of `items` are read here, once.
///
/// # Errors
/// When a file cannot be read, naming its option.
pub fn parts(
    config: &VmConfig,
    files: &BootFiles,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
) -> Result<Option<FwCfgParts>> {
    let Some(chosen) = &config.payload.fw_cfg() else { return Ok(None) };
    let mut items = current(chosen, config, files, zones, layout, model)?;
    for item in &chosen.items.item_list {
        let option = || format!("--fw-cfg-config items=[name={}]", item.name);
        let data = match &item.file {
            Some(path) => read(path).with_context(|| format!("{}: file={}", option(), path.display()))?,
            None => item.string.clone().unwrap_or_default().into_bytes(),
        };
        items.add(&item.name, data).with_context(option)?;
    }
    let wait_chosen = chosen.items.item_list.iter().any(|item| item.name == BOOT_MENU_WAIT);
    if config.payload.firmware.is_some() && !wait_chosen {
        items.add(BOOT_MENU_WAIT, 0u16.to_le_bytes().to_vec())?;
    }
    let vmcoreinfo = chosen.vmcoreinfo.then(|| VmcoreInfo::add(&mut items)).transpose();
    let vmcoreinfo =
        vmcoreinfo.with_context(|| format!("--fw-cfg-config vmcoreinfo: {}", vmcoreinfo::NAME))?;
    Ok(Some(FwCfgParts { items, vmcoreinfo }))
}

/// What a machine that restarts has in place of what its device held: its kernel, if that was changed, and what describes it, if
/// CPUs or memory came or went. `None` if the machine has no such device.
///
/// # Errors
/// When a file cannot be read, naming its option.
pub fn renewed(
    config: &VmConfig,
    files: &BootFiles,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
) -> Result<Option<Items>> {
    let chosen = config.payload.fw_cfg();
    chosen.map(|chosen| current(&chosen, config, files, zones, layout, model)).transpose()
}

/// What is made of the machine as it is.
fn current(
    chosen: &FwCfgConfig,
    config: &VmConfig,
    files: &BootFiles,
    zones: &[ZoneExtent],
    layout: &MemoryLayout,
    model: &CpuModel,
) -> Result<Items> {
    let mut items = Items::default();
    boot(chosen, config, files, &mut items)?;
    if config.payload.firmware.is_some() {
        // Without this, firmware waits for as long as it was built to.
        items.set_value(number::BOOT_MENU, 1);
    }
    platform::describe(chosen, config, zones, layout, model, &mut items).context("--fw-cfg-config")?;
    Ok(items)
}

/// The kernel, its initramfs and its command line.
fn boot(chosen: &FwCfgConfig, config: &VmConfig, files: &BootFiles, items: &mut Items) -> Result<()> {
    let most = config.memory.boot_size();
    if let Some(kernel) = files.kernel.as_ref().filter(|_| chosen.kernel) {
        let mut setup = whole(kernel, most).with_context(|| named("--kernel", &config.payload.kernel))?;
        let size = platform::setup_part(&setup).min(setup.len());
        let kernel = setup.split_off(size);
        items.set(number::SETUP_SIZE, number::SETUP_DATA, setup)?;
        items.set(number::KERNEL_SIZE, number::KERNEL_DATA, kernel)?;
    }
    if let Some(initramfs) = files.initramfs.as_ref().filter(|_| chosen.initramfs) {
        let initramfs =
            whole(initramfs, most).with_context(|| named("--initramfs", &config.payload.initramfs))?;
        items.set(number::INITRAMFS_SIZE, number::INITRAMFS_DATA, initramfs)?;
    }
    if let Some(cmdline) = config.payload.cmdline.as_ref().filter(|_| chosen.cmdline) {
        let cmdline = [cmdline.as_bytes(), &[0]].concat();
        items.set(number::CMDLINE_SIZE, number::CMDLINE_DATA, cmdline)?;
    }
    Ok(())
}

fn named(option: &str, path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(|| option.to_owned(), |path| format!("{option} {}", path.display()))
}

/// All of a file, which the guest is to have in its memory of `most` bytes.
fn whole(mut file: &File, most: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let mut size = file.metadata()?.len();
    if size <= most {
        file.rewind()?;
        // It may grow meanwhile.
        size = file.take(most.saturating_add(1)).read_to_end(&mut data)? as u64;
    }
    ensure!(
        size <= most,
        "has more bytes than the machine has memory ({}): give the machine more, or another file",
        ByteSize(most)
    );
    Ok(data)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut data)?;
    ensure!(
        data.len() as u64 <= LARGEST_FILE,
        "has more than {} MiB, the most an item can have",
        LARGEST_FILE >> 20
    );
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_far_as_the_machine_has_memory_for_it() {
        let path = std::env::temp_dir().join(format!("vivarium-fw-cfg-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::write(&path, [7; 300]).unwrap();
        assert_eq!(whole(&file, 300).unwrap(), [7; 300]);
        assert_eq!(whole(&file, 1 << 30).unwrap(), [7; 300], "from its beginning");
        assert!(whole(&file, 299).is_err());
        file.set_len(1 << 40).unwrap();
        let refusal = whole(&file, 512 << 20).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(refusal.contains("has more bytes than the machine has memory (512M)"), "{refusal}");
    }
}
