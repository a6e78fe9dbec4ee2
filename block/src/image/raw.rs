//! Raw images: the disk's bytes are the file's or device's, in order.

use super::lock::LockedFile;
use super::open::file_size;
use super::page_cache::PageCache;
use super::stream::{Layout, RawStream};
use super::topology::Backing;
use super::{Image, ResizeError, SECTOR, Stream, Topology};
use crate::engine::{EngineError, EngineFile, Engines};
use crate::host::{self, DirectAlignment};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A raw image, opened.
pub struct RawImage {
    path: PathBuf,
    file: Arc<LockedFile>,
    backing: Backing,
    read_only: bool,
    size: AtomicU64,
    /// Held while the size is changed.
    resizing: Mutex<()>,
    topology: Topology,
    alignment: Option<DirectAlignment>,
    engines: Engines,
    /// `None` for direct I/O.
    page_cache: Option<Arc<PageCache>>,
}

impl RawImage {
    #[expect(clippy::too_many_arguments, reason = "only `open` calls it, which found all of these out")]
    pub(super) fn new(
        path: PathBuf,
        file: LockedFile,
        backing: Backing,
        read_only: bool,
        size: u64,
        topology: Topology,
        alignment: Option<DirectAlignment>,
        engines: Engines,
    ) -> Self {
        let (file, size) = (Arc::new(file), AtomicU64::new(size));
        let page_cache = alignment.is_none().then(Arc::default);
        let resizing = Mutex::default();
        Self { path, file, backing, read_only, size, resizing, topology, alignment, engines, page_cache }
    }
}

impl Image for RawImage {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn topology(&self) -> Topology {
        self.topology
    }

    fn stream(&self, depth: u16) -> Result<Box<dyn Stream>, EngineError> {
        let file = EngineFile { file: self.file.clone(), direct: self.alignment.is_some() };
        // A request has one operation in flight at any time.
        let engine = self.engines.engine(vec![file], u32::from(depth))?;
        let layout = Layout {
            alignment: self.alignment,
            device: self.backing == Backing::Device,
            logical_block: self.topology.logical_block,
        };
        Ok(Box::new(RawStream::new(engine, depth, layout, self.page_cache.clone())))
    }

    fn flush(&self) -> io::Result<()> {
        let result = host::fdatasync(self.file.as_raw_fd());
        match &self.page_cache {
            Some(cache) => cache.synced(result),
            None => result,
        }
    }

    fn resize(&self, size: u64) -> Result<(), ResizeError> {
        // One that began before must not cut off what this one adds.
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.size();
        if self.read_only {
            return Err(ResizeError::ReadOnly);
        }
        if !size.is_multiple_of(SECTOR.max(u64::from(self.topology.logical_block))) {
            return Err(ResizeError::Unaligned(size));
        }
        if size < from {
            return Err(ResizeError::Smaller { from, to: size });
        }
        let host = |source| ResizeError::Host { to: size, source };
        let present = file_size(&self.file, self.backing).map_err(host)?;
        if present < size {
            match self.backing {
                Backing::File => self.file.set_len(size).map_err(host)?,
                Backing::Device => {
                    let reason = format!("the device has {present} bytes");
                    return Err(host(io::Error::new(io::ErrorKind::InvalidInput, reason)));
                }
            }
        }
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

machine::inspect!(RawImage, this => {
    format: "raw",
    path: this.path.display().to_string(),
    backing: match this.backing { Backing::File => "file", Backing::Device => "block device" },
    size: this.size(),
    read_only,
    direct: this.alignment.is_some(),
    writes_lost: this.page_cache.as_ref().is_some_and(|cache| cache.lost()),
    engine: if this.engines.uses_uring() { "io_uring" } else { "threads" },
    logical_block: this.topology.logical_block,
    physical_block: this.topology.physical_block,
    discard_granularity: this.topology.discard_granularity,
});
