//! Memory of the host that a PCI function's BAR is: the guest reaches it without an exit wherever it points the BAR.

use crate::config::{ByteSize, IvshmemConfig};
use anyhow::{Context, Result, bail};
use hypervisor::{MemorySlot, Vm};
use std::fs::File;
use std::sync::Arc;
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// The hypervisor's number of the first slot for such memory. Those below are of the guest's RAM and what is added to it.
const FIRST_SLOT: u32 = 0x200;

/// Memory behind a BAR.
pub struct SharedMemory {
    region: MmapRegion<()>,
    slot: u32,
    /// Where the guest has it.
    mapped: Option<u64>,
}

impl SharedMemory {
    /// Maps a file.
    ///
    /// # Errors
    /// When it cannot be opened or mapped, or is too small and cannot be enlarged.
    pub fn open(config: &IvshmemConfig) -> Result<Self> {
        let file = File::options().read(true).write(true).open(&config.path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            bail!("is a directory; give a file");
        }
        if metadata.len() < config.size.0 {
            file.set_len(config.size.0)
                .with_context(|| format!("enlarging it to {}; give a smaller size", config.size))?;
        }
        Self::of(file, config.size.0)
    }

    /// Maps what a server of shared memory has given, all of it.
    ///
    /// # Errors
    /// When it cannot be mapped, or no BAR is of its size.
    pub fn given(file: File) -> Result<Self> {
        let size = file.metadata().context("the server's memory")?.len();
        if !size.is_power_of_two() || size < 4096 {
            bail!("the server's memory has {}, which is not a power of two of at least 4K", ByteSize(size));
        }
        Self::of(file, size)
    }

    fn of(file: File, size: u64) -> Result<Self> {
        let length = usize::try_from(size).context("larger than this host's address space")?;
        let region = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::new(file), 0))
            .build()
            .context("mapping it")?;
        Ok(Self { region, slot: FIRST_SLOT, mapped: None })
    }

    /// Makes it the memory number `number` of the machine.
    pub fn set_number(&mut self, number: u32) {
        self.slot = FIRST_SLOT.saturating_add(number);
    }

    /// Its number in the machine.
    pub fn number(&self) -> u32 {
        self.slot.saturating_sub(FIRST_SLOT)
    }

    /// Gives it to the guest at `address`. Where the hypervisor refuses, the BAR reads as absent.
    pub fn map(&mut self, vm: &dyn Vm, address: u64) {
        let slot = MemorySlot {
            slot: self.slot,
            guest_address: address,
            size: self.region.size() as u64,
            host_address: self.region.as_ptr(),
            readonly: false,
            log_dirty: false,
        };
        // SAFETY: the region stays mapped as long as this is kept, and this is dropped only after `unmap` or when no CPU of
        // the machine is left.
        match unsafe { vm.map_memory(slot) } {
            Ok(()) => self.mapped = Some(address),
            Err(error) => tracing::error!("shared memory cannot be mapped at {address:#x}: {error}"),
        }
    }

    /// Takes it from the guest.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn unmap(&mut self, vm: &dyn Vm) -> Result<()> {
        if self.mapped.take().is_some() {
            vm.unmap_memory(self.slot).context("unmapping shared memory")?;
        }
        Ok(())
    }

    /// Its size.
    pub fn size(&self) -> ByteSize {
        ByteSize(self.region.size() as u64)
    }
}

machine::inspect!(SharedMemory, this => {
    size: this.size().0,
    hex mapped_at: this.mapped,
    memory_slot: this.slot,
});
