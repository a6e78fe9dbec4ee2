//! Persistent memory: files mapped into the guest's address space, above all memory that can be added later.

use crate::config::{ByteSize, PmemConfig};
use crate::memory::GuestMemory;
use anyhow::{Context, Result, bail};
use devices::virtio::pmem::Flush;
use machine::bus::Range;
use machine::memory::{GuestAddress, GuestRegion};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestMemoryRegion};

/// What the size of persistent memory is a multiple of: the guest's kernel maps it by pages of this size.
const UNIT: u64 = 2 << 20;
/// Where a file begins in the guest's address space: at a multiple of any page's size.
const ALIGNMENT: u64 = 1 << 30;

/// A file that is mapped.
pub struct PmemExtent {
    /// The device's name.
    pub id: String,
    /// The PCI segment of the device.
    pub pci_segment: u16,
    /// Where it is in the guest's address space.
    pub range: Range,
    /// What makes it stable; `None` when what the guest writes is not kept.
    pub flush: Option<Arc<dyn Flush>>,
}

fn option(config: &PmemConfig) -> String {
    format!("--pmem file={}", config.file.as_deref().unwrap_or_else(|| std::path::Path::new("")).display())
}

/// The size that the guest sees.
fn size(config: &PmemConfig) -> Result<u64> {
    let path = config.file.as_deref().unwrap_or_else(|| std::path::Path::new(""));
    let size = match config.size {
        Some(size) => size.0,
        None => std::fs::metadata(path).with_context(|| option(config))?.len(),
    };
    if size == 0 || !size.is_multiple_of(UNIT) {
        bail!(
            "{}: its size {} is not a multiple of {}; give size, or enlarge it with truncate",
            option(config),
            ByteSize(size),
            ByteSize(UNIT)
        );
    }
    Ok(size)
}

/// How much of the guest's address space the files of `configs` take, in bytes.
///
/// # Errors
/// When the size of one is not possible.
pub fn space(configs: &[PmemConfig]) -> Result<u64> {
    configs.iter().map(|config| Ok(size(config)?.next_multiple_of(ALIGNMENT))).sum()
}

/// Maps the files of `configs` from `start` on, and adds them to `memory`, so that devices reach them too.
///
/// # Errors
/// When one cannot be opened or mapped, naming its option.
pub fn add(configs: &[PmemConfig], start: u64, memory: &mut GuestMemory) -> Result<Vec<PmemExtent>> {
    let mut extents = Vec::with_capacity(configs.len());
    let mut next = start;
    for config in configs {
        let range = Range { start: next.next_multiple_of(ALIGNMENT), size: size(config)? };
        let file = Arc::new(open(config, range.size)?);
        let kind = if config.discard_writes { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        let length = usize::try_from(range.size).context("larger than this host's address space")?;
        let region = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(kind | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
            .build()
            .with_context(|| format!("{}: mapping it", option(config)))?;
        let region = GuestRegion::new(region, GuestAddress(range.start))
            .context("persistent memory wraps the address space")?;
        next = region.last_addr().0;
        let ram = memory.ram.insert_region(Arc::new(region));
        memory.ram = Arc::new(ram.context("persistent memory overlaps other memory")?);
        extents.push(PmemExtent {
            id: config.id.clone().unwrap_or_default(),
            pci_segment: config.pci_segment,
            range,
            flush: (!config.discard_writes).then_some(file as _),
        });
    }
    Ok(extents)
}

/// Opens a file and makes it at least `size` bytes long. No two machines write the same one.
fn open(config: &PmemConfig, size: u64) -> Result<File> {
    let path = config.file.as_deref().unwrap_or_else(|| std::path::Path::new(""));
    let what = || option(config);
    let file = File::options().read(true).write(!config.discard_writes).open(path).with_context(what)?;
    let kind = if config.discard_writes { libc::F_RDLCK } else { libc::F_WRLCK };
    // SAFETY: a zeroed lock is valid: from the beginning, without end.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the lock lives during the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } < 0 {
        let error = std::io::Error::last_os_error();
        if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
            bail!(
                "{}: another machine or process has it; end that, or use discard_writes=on for both",
                what()
            );
        }
        return Err(error).with_context(|| format!("{}: locking it", what()));
    }
    if file.metadata().with_context(what)?.len() < size {
        if config.discard_writes {
            bail!("{}: has less than {}; give a smaller size", what(), ByteSize(size));
        }
        file.set_len(size).with_context(|| format!("{}: enlarging it", what()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryConfig;
    use machine::memory::Bytes;

    fn config(path: &std::path::Path, discard_writes: bool) -> PmemConfig {
        PmemConfig { file: Some(path.to_owned()), discard_writes, ..PmemConfig::default() }
    }

    fn memory() -> GuestMemory {
        let config = MemoryConfig { size: ByteSize(64 << 20), ..MemoryConfig::default() };
        crate::memory::provide(&config, &[(0, 64 << 20)], None).unwrap()
    }

    #[test]
    fn what_is_written_is_in_the_file_unless_it_is_to_be_discarded() {
        let path = std::env::temp_dir().join(format!("vivarium-pmem-{}", std::process::id()));
        std::fs::write(&path, vec![b'a'; 4 << 20]).unwrap();
        for discard in [true, false] {
            let mut guest = memory();
            let configs = [config(&path, discard)];
            assert_eq!(space(&configs).unwrap(), 1 << 30);
            let extents = add(&configs, 5 << 30, &mut guest).unwrap();
            assert_eq!(extents[0].range, Range { start: 5 << 30, size: 4 << 20 });
            assert_eq!(extents[0].flush.is_some(), !discard);
            guest.ram.write_slice(b"guest", GuestAddress((5 << 30) + 4096)).unwrap();
            let other = add(&[config(&path, false)], 5 << 30, &mut memory());
            assert!(other.is_err(), "it is locked");
            let file = std::fs::read(&path).unwrap();
            assert_eq!(&file[4096..4101], if discard { b"aaaaa" } else { b"guest" });
        }
        let mut odd = config(&path, true);
        odd.size = Some(ByteSize(3 << 20));
        assert!(space(&[odd.clone()]).is_err());
        odd.size = Some(ByteSize(8 << 20));
        assert!(
            add(&[odd.clone()], 0, &mut memory()).is_err(),
            "a file that is only read cannot be enlarged"
        );
        odd.discard_writes = false;
        drop(add(&[odd], 5 << 30, &mut memory()).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 << 20);
        std::fs::remove_file(&path).unwrap();
    }
}
