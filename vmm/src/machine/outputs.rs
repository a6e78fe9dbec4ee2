//! Files that a guest's output goes to: nothing else is in them, for it would be destroyed.

use crate::config::{Device, VmConfig};
use anyhow::{Result, bail};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Checks that no console of `config` writes to a file that is something else of the machine, or another console's. May wait for file systems.
///
/// # Errors
/// When one does, naming both options.
pub fn check(config: &VmConfig) -> Result<()> {
    let outputs = outputs(config);
    if outputs.is_empty() {
        return Ok(());
    }
    let mut others = others(config);
    for (option, path) in outputs {
        let Some(output) = regular(path) else { continue };
        let same = |(_, path): &&(String, &Path)| {
            regular(path).is_some_and(|other| (other.dev(), other.ino()) == (output.dev(), output.ino()))
        };
        if let Some((other, _)) = others.iter().find(same) {
            bail!(
                "{option} file={}: is the file of {other}, which the guest's output would destroy; give the output a file of its own",
                path.display()
            );
        }
        others.push((option.to_owned(), path));
    }
    Ok(())
}

fn outputs(config: &VmConfig) -> Vec<(&'static str, &Path)> {
    let consoles = config.console.iter().map(|console| ("--console", &console.file));
    let others = [("--serial", &config.serial.file), ("--debug-console", &config.debug_console.file)];
    let all = consoles.chain(others);
    all.filter_map(|(option, file)| Some((option, file.as_deref()?))).collect()
}

/// The files that a machine is made of, with their options.
fn others(config: &VmConfig) -> Vec<(String, &Path)> {
    let payload = &config.payload;
    let single = [
        ("--kernel", &payload.kernel),
        ("--initramfs", &payload.initramfs),
        ("--firmware", &payload.firmware),
        ("--firmware-vars", &payload.firmware_vars),
    ];
    let single = single.into_iter().map(|(option, path)| (option.to_owned(), path.as_ref()));
    let items = payload.fw_cfg_config.iter().flat_map(|fw_cfg| &fw_cfg.items.item_list);
    let items = items.map(|item| (format!("--fw-cfg-config items=[name={}]", item.name), item.file.as_ref()));
    let disks = config.disks.iter().map(|disk| (disk.option(), disk.path.as_ref()));
    let pmem = config.pmem.iter().map(|pmem| (pmem.option(), pmem.file.as_ref()));
    let shared = config.ivshmem.iter().map(|shared| (shared.option(), Some(&shared.path)));
    let all = single.chain(items).chain(disks).chain(pmem).chain(shared);
    all.filter_map(|(option, path)| Some((option, path?.as_path()))).collect()
}

/// What the host says of a file, if it is a regular one that is there.
fn regular(path: &Path) -> Option<Metadata> {
    fs::metadata(path).ok().filter(Metadata::is_file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, SerialConfig};

    #[test]
    fn output_goes_to_no_file_that_is_something_else_by_whatever_name() {
        let folder = std::env::temp_dir().join(format!("vivarium-outputs-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (image, link, log) = (folder.join("image"), folder.join("link"), folder.join("log"));
        fs::write(&image, "precious").unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let told = |output: &Path| {
            let mut config = VmConfig {
                disks: vec![DiskConfig { path: Some(image.clone()), ..DiskConfig::default() }],
                serial: SerialConfig { file: Some(output.to_owned()), ..SerialConfig::default() },
                ..VmConfig::default()
            };
            config.payload.kernel = Some("/proc/version".into());
            check(&config).err().map(|error| error.to_string())
        };
        for name in [&image, &link] {
            let told = told(name).unwrap();
            assert!(
                told.starts_with(&format!("--serial file={}: is the file of --disk", name.display())),
                "{told}"
            );
        }
        // One that is not there yet, one of its own, and one that is no file.
        assert_eq!(told(&log), None);
        fs::write(&log, "").unwrap();
        assert_eq!(told(&log), None);
        assert_eq!(told(Path::new("/dev/null")), None);
        fs::remove_dir_all(&folder).unwrap();
    }
}
