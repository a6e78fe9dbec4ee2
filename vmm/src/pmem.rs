//! Persistent memory: files mapped into the guest's address space, above all memory that can be added later.

use crate::config::{ByteSize, Device, PmemConfig};
use crate::seccomp::{self, ThreadKind};
use crate::{file_lock, file_space};
use anyhow::{Context, Result, bail};
use block::virtio_pmem::{Flush, MappedFile};
use machine::bus::Range;
use machine::memory::{GuestAddress, GuestRegion};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// What the size of persistent memory is a multiple of: the guest's kernel maps it by pages of this size.
pub const UNIT: u64 = 2 << 20;
/// Where a file begins in the guest's address space: at a multiple of any page's size.
const ALIGNMENT: u64 = 1 << 30;
/// Address space kept for what is added while the machine runs, where the CPUs have that many addresses.
pub const RESERVE: u64 = 64 << 30;
/// The hypervisor's number of the first file's memory; those below are of other memory.
const FIRST_SLOT: u32 = 0x1000;

/// A file that is mapped.
pub struct PmemFile {
    region: MmapRegion,
    size: u64,
    /// What makes it stable; `None` when what the guest writes is not kept.
    pub flush: Option<Arc<dyn Flush>>,
}

fn path(config: &PmemConfig) -> &Path {
    config.file.as_deref().unwrap_or_else(|| Path::new(""))
}

/// The size that the guest sees.
fn size(config: &PmemConfig) -> Result<u64> {
    let size = match config.size {
        Some(size) => size.0,
        None => std::fs::metadata(path(config))?.len(),
    };
    if size == 0 || !size.is_multiple_of(UNIT) {
        bail!(
            "its size {} is not a multiple of {}; give size, or enlarge it with truncate",
            ByteSize(size),
            ByteSize(UNIT)
        );
    }
    Ok(size)
}

/// How much of the guest's address space the files of `configs` take, in bytes.
///
/// # Errors
/// When the size of one is not possible, naming its option.
pub fn space(configs: &[PmemConfig]) -> Result<u64> {
    let size = |config: &PmemConfig| {
        size(config).map(|size| size.next_multiple_of(ALIGNMENT)).with_context(|| config.option())
    };
    configs.iter().map(size).sum()
}

impl PmemFile {
    /// Opens and maps the file of `config`.
    ///
    /// # Errors
    /// When that is not possible, and what to do.
    pub fn open(config: &PmemConfig) -> Result<Self> {
        let size = size(config)?;
        let file = Arc::new(open(config, size)?);
        let kind = if config.discard_writes { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        let length = usize::try_from(size).context("larger than this host's address space")?;
        let region = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(kind | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
            .build()
            .context("mapping it")?;
        let flush: Option<Arc<dyn Flush>> = if config.discard_writes {
            None
        } else {
            Some(Arc::new(MappedFile::new(file, Some(Arc::new(|| seccomp::confine(ThreadKind::Worker))))?))
        };
        Ok(Self { region, size, flush })
    }

    /// The memory, at `start` of the guest's address space.
    ///
    /// # Errors
    /// When it goes beyond the end of that.
    pub fn at(self, start: u64) -> Result<GuestRegion> {
        GuestRegion::new(self.region, GuestAddress(start))
            .context("persistent memory wraps the address space")
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Where in the guest's address space there are files, and room for more.
pub struct PmemSpace {
    area: Range,
    /// The files by the names of their devices: the hypervisor's number of the memory, and where it is.
    used: BTreeMap<String, (u32, Range)>,
}

impl PmemSpace {
    /// Without files yet.
    pub fn new(area: Range) -> Self {
        Self { area, used: BTreeMap::new() }
    }

    /// Checks that a file of `size` bytes could have room, before it is made that large.
    ///
    /// # Errors
    /// When it could not if there were no other.
    pub fn check(&self, size: u64) -> Result<()> {
        if size > self.area.size {
            bail!(
                "only {} of addresses were kept for persistent memory when the machine was made",
                ByteSize(self.area.size)
            );
        }
        Ok(())
    }

    /// Finds room for a file. Returns the hypervisor's number of the memory, and where it is to be.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&mut self, id: &str, size: u64) -> Result<(u32, Range)> {
        let mut taken: Vec<_> = self.used.values().copied().collect();
        taken.sort_by_key(|(_, range)| range.start);
        let slot =
            (FIRST_SLOT..).find(|slot| taken.iter().all(|(other, _)| other != slot)).unwrap_or(u32::MAX);
        let mut start = self.area.start.next_multiple_of(ALIGNMENT);
        for (_, range) in taken {
            if range.start.saturating_sub(start) >= size {
                break;
            }
            start = range.last().saturating_add(1).next_multiple_of(ALIGNMENT);
        }
        let end = self.area.start + self.area.size;
        if end.checked_sub(start).is_none_or(|room| room < size) {
            bail!(
                "{} of persistent memory do not fit any more: {} of addresses were kept for it when the machine was made",
                ByteSize(size),
                ByteSize(self.area.size)
            );
        }
        let range = Range { start, size };
        self.used.insert(id.to_owned(), (slot, range));
        Ok((slot, range))
    }

    /// Forgets a file. Returns what [`PmemSpace::take`] did.
    pub fn give_back(&mut self, id: &str) -> Option<(u32, Range)> {
        self.used.remove(id)
    }
}

/// Opens a file and makes it at least `size` bytes long. No two machines write the same one.
fn open(config: &PmemConfig, size: u64) -> Result<File> {
    let file = File::options().read(true).write(!config.discard_writes).open(path(config))?;
    if !file_lock::lock(&file, !config.discard_writes)? {
        bail!("another machine or process has it; end that, or use discard_writes=on for both");
    }
    if file.metadata()?.len() < size {
        if config.discard_writes {
            bail!("has less than {}; give a smaller size", ByteSize(size));
        }
        file.set_len(size).context("enlarging it")?;
        file_space::keep(&file, size).context("keeping room for all of it")?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::memory::Bytes;
    use vm_memory::MemoryRegionAddress;

    fn config(path: &Path, discard_writes: bool) -> PmemConfig {
        PmemConfig { file: Some(path.to_owned()), discard_writes, ..PmemConfig::default() }
    }

    #[test]
    fn what_is_written_is_in_the_file_unless_it_is_to_be_discarded() {
        let path = std::env::temp_dir().join(format!("vivarium-pmem-{}", std::process::id()));
        std::fs::write(&path, vec![b'a'; 4 << 20]).unwrap();
        for discard in [true, false] {
            let config = config(&path, discard);
            assert_eq!(space(std::slice::from_ref(&config)).unwrap(), 1 << 30);
            let file = PmemFile::open(&config).unwrap();
            assert_eq!((file.size(), file.flush.is_some()), (4 << 20, !discard));
            let region = file.at(5 << 30).unwrap();
            region.write_slice(b"guest", MemoryRegionAddress(4096)).unwrap();
            assert!(PmemFile::open(&self::config(&path, false)).is_err(), "it is locked");
            let file = std::fs::read(&path).unwrap();
            assert_eq!(&file[4096..4101], if discard { b"aaaaa" } else { b"guest" });
        }
        let mut odd = config(&path, true);
        odd.size = Some(ByteSize(3 << 20));
        assert!(space(std::slice::from_ref(&odd)).is_err());
        odd.size = Some(ByteSize(8 << 20));
        assert!(PmemFile::open(&odd).is_err(), "a file that is only read cannot be enlarged");
        odd.discard_writes = false;
        drop(PmemFile::open(&odd).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 << 20);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn room_that_was_given_back_is_taken_again() {
        let mut space = PmemSpace::new(Range { start: 5 << 30, size: 4 << 30 });
        let at = |start: u64, size: u64| Range { start: start << 30, size };
        assert_eq!(space.take("a", 2 << 20).unwrap(), (0x1000, at(5, 2 << 20)));
        assert_eq!(space.take("b", 3 << 29).unwrap(), (0x1001, at(6, 3 << 29)));
        assert_eq!(space.take("c", 2 << 20).unwrap(), (0x1002, at(8, 2 << 20)));
        assert!(space.take("d", 2 << 30).is_err());
        assert_eq!(space.give_back("b"), Some((0x1001, at(6, 3 << 29))));
        assert_eq!(space.take("d", 2 << 30).unwrap(), (0x1001, at(6, 2 << 30)));
        assert_eq!(space.give_back("b"), None);
        assert!(PmemSpace::new(Range { start: 0, size: 0 }).take("a", 2 << 20).is_err());
    }
}
