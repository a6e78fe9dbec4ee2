//! What a machine's firmware configuration device holds.

use super::boot_files::BootFiles;
use super::platform;
use crate::config::{FwCfgConfig, VmConfig};
use crate::memory::ZoneExtent;
use anyhow::{Context, Result, ensure};
use arch::native::cpu::CpuModel;
use arch::native::layout::MemoryLayout;
use devices::fw_cfg::vmcoreinfo::{self, VmcoreInfo};
use devices::fw_cfg::{Items, number};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The largest file that can be an item, in bytes.
const LARGEST_FILE: u64 = 64 << 20;

/// What a machine's device is made of.
pub struct FwCfgParts {
    /// What it holds.
    pub items: Items,
    /// What the guest tells by it.
    pub vmcoreinfo: Option<VmcoreInfo>,
}

/// What the device of `config` is made of; `None` if the machine has none. Files are read here, once.
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
    let mut items = Items::default();
    boot(chosen, config, files, &mut items).context("--fw-cfg-config")?;
    platform::describe(chosen, config, zones, layout, model, &mut items).context("--fw-cfg-config")?;
    for item in &chosen.items.item_list {
        let option = || format!("--fw-cfg-config items=[name={}]", item.name);
        let data = match &item.file {
            Some(path) => read(path).with_context(|| format!("{}: file={}", option(), path.display()))?,
            None => item.string.clone().unwrap_or_default().into_bytes(),
        };
        items.add(&item.name, data).with_context(option)?;
    }
    let vmcoreinfo = chosen.vmcoreinfo.then(|| VmcoreInfo::add(&mut items)).transpose();
    let vmcoreinfo =
        vmcoreinfo.with_context(|| format!("--fw-cfg-config vmcoreinfo: {}", vmcoreinfo::NAME))?;
    Ok(Some(FwCfgParts { items, vmcoreinfo }))
}

/// The kernel, its initramfs and its command line.
fn boot(chosen: &FwCfgConfig, config: &VmConfig, files: &BootFiles, items: &mut Items) -> Result<()> {
    if let Some(kernel) = files.kernel.as_ref().filter(|_| chosen.kernel) {
        let mut setup = whole(kernel).context("kernel")?;
        let size = platform::setup_part(&setup).min(setup.len());
        let kernel = setup.split_off(size);
        items.set(number::SETUP_SIZE, number::SETUP_DATA, setup)?;
        items.set(number::KERNEL_SIZE, number::KERNEL_DATA, kernel)?;
    }
    if let Some(initramfs) = files.initramfs.as_ref().filter(|_| chosen.initramfs) {
        let initramfs = whole(initramfs).context("initramfs")?;
        items.set(number::INITRAMFS_SIZE, number::INITRAMFS_DATA, initramfs)?;
    }
    if let Some(cmdline) = config.payload.cmdline.as_ref().filter(|_| chosen.cmdline) {
        let cmdline = [cmdline.as_bytes(), &[0]].concat();
        items.set(number::CMDLINE_SIZE, number::CMDLINE_DATA, cmdline)?;
    }
    Ok(())
}

/// All of a file that is loaded from its beginning too.
fn whole(file: &File) -> Result<Vec<u8>> {
    let size = usize::try_from(file.metadata()?.len())?;
    let mut data = vec![0; size];
    file.read_exact_at(&mut data, 0)?;
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
