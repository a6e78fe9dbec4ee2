//! Opens images, with an error for everything that can be wrong with a path.

use super::lock::{Locked, LockedFile};
use super::topology::{self, Backing};
use super::{Image, RawImage, SECTOR};
use crate::engine::{EngineError, EngineKind, Engines, ThreadStart};
use crate::host::{self, DeviceNumber};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// How to open an image.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Do not write to it.
    pub read_only: bool,
    /// Go past the host's page cache.
    pub direct: bool,
    /// Do not check that nobody else uses it: for storage that has no locks.
    pub no_lock: bool,
    /// What performs its operations.
    pub engine: EngineKind,
    /// For each thread that an engine starts.
    pub thread_start: Option<ThreadStart>,
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, read_only, direct, no_lock, engine, thread_start: _ } = self;
        f.debug_struct("OpenOptions")
            .field("path", path)
            .field("read_only", read_only)
            .field("direct", direct)
            .field("no_lock", no_lock)
            .field("engine", engine)
            .finish_non_exhaustive()
    }
}

/// Why an image cannot be used. The texts are to be read after the path.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error("no such file; make an image with `truncate -s SIZE FILE`, or correct the path")]
    Missing,
    /// A folder.
    #[error("this is a directory; a disk needs an image file or a block device")]
    Directory,
    /// Neither a regular file nor a block device.
    #[error("this is a {0}; a disk needs an image file or a block device")]
    Kind(&'static str),
    /// It may be read, but not written.
    #[error("the image is read-only ({0}); give readonly=on, or allow writing to it")]
    ReadOnly(&'static str),
    /// It may not even be read.
    #[error("not permitted to open the image; run as a user who may read{} it", if *.write { " and write" } else { "" })]
    NotPermitted {
        /// Writing was asked for.
        write: bool,
    },
    /// Somebody else uses it.
    #[error("{0}")]
    Locked(Locked),
    /// The storage has no locks.
    #[error("the image cannot be locked against use by others: {0}")]
    Lock(#[source] io::Error),
    /// No sector fits.
    #[error("the image has {0} bytes, and a disk needs at least one sector of 512")]
    TooSmall(u64),
    /// The file system has no direct I/O.
    #[error("the image's file system does not support direct=on; leave it out")]
    DirectUnsupported,
    /// The engine asked for cannot be had.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Anything else.
    #[error("cannot {what} the image: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// Opens an image.
///
/// # Errors
/// When the path is not that of an image, it may not be used as asked for, or is in use.
pub fn open(options: &OpenOptions) -> Result<Arc<dyn Image>, OpenError> {
    let write = !options.read_only;
    let metadata = fs::metadata(&options.path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::Missing,
        io::ErrorKind::PermissionDenied => OpenError::NotPermitted { write },
        _ => OpenError::Host { what: "find", source: error },
    })?;
    // Before it is opened: opening a FIFO waits for its other end.
    let backing = backing(&metadata)?;
    if write && metadata.permissions().mode() & 0o222 == 0 {
        // The superuser may open it all the same, but nobody meant it to be written to.
        return Err(OpenError::ReadOnly("nobody has permission to write to it"));
    }
    let file = open_file(options)?;
    if write && backing == Backing::Device && host::device_number(&file, DeviceNumber::ReadOnly) != 0 {
        return Err(OpenError::ReadOnly("the device does not take writes"));
    }
    let file = if options.no_lock { LockedFile::without_lock(file) } else { LockedFile::new(file, write)? };
    let size =
        file_size(&file, backing).map_err(|source| OpenError::Host { what: "find the size of", source })?;
    let (topology, alignment) = topology::find(&file, backing, options.direct)?;
    let block = u64::from(topology.logical_block);
    let usable = size.saturating_sub(size.checked_rem(block).unwrap_or(0));
    if usable < SECTOR {
        return Err(OpenError::TooSmall(size));
    }
    if usable != size {
        tracing::warn!(
            "--disk path={}: the image has {size} bytes, not a multiple of {block}: the guest does not see the last {}",
            options.path.display(),
            size.saturating_sub(usable)
        );
    }
    let discards = backing == Backing::Device && topology.discard_granularity != 0;
    let engines = Engines::new(options.engine, discards && write, options.thread_start.clone())?;
    let path = options.path.clone();
    Ok(Arc::new(RawImage::new(path, file, backing, !write, usable, topology, alignment, engines)))
}

/// The size of what is behind an image, in bytes.
pub(super) fn file_size(file: &File, backing: Backing) -> io::Result<u64> {
    match backing {
        Backing::File => Ok(file.metadata()?.len()),
        Backing::Device => host::device_size(file),
    }
}

fn backing(metadata: &Metadata) -> Result<Backing, OpenError> {
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(Backing::File)
    } else if kind.is_block_device() {
        Ok(Backing::Device)
    } else if kind.is_dir() {
        Err(OpenError::Directory)
    } else if kind.is_char_device() {
        Err(OpenError::Kind("character device"))
    } else if kind.is_fifo() {
        Err(OpenError::Kind("FIFO"))
    } else {
        Err(OpenError::Kind("socket"))
    }
}

fn open_file(options: &OpenOptions) -> Result<File, OpenError> {
    let write = !options.read_only;
    let open = |write: bool| {
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        File::options().read(true).write(write).custom_flags(flags).open(&options.path)
    };
    open(write).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => OpenError::Missing,
        Some(libc::EINVAL) if options.direct => OpenError::DirectUnsupported,
        Some(libc::EROFS) => OpenError::ReadOnly("its file system is mounted read-only"),
        Some(libc::ETXTBSY) => OpenError::ReadOnly("it is being executed or used as swap space"),
        Some(libc::EACCES | libc::EPERM) if write && open(false).is_ok() => {
            OpenError::ReadOnly("this user has no permission to write to it")
        }
        Some(libc::EACCES | libc::EPERM) => OpenError::NotPermitted { write },
        _ => OpenError::Host { what: "open", source: error },
    })
}

/// Whether two paths lead to the same file or device, so that one machine does not get a disk twice.
pub fn same_image(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        let device = metadata.file_type().is_block_device();
        Some(if device { (true, metadata.rdev(), 0) } else { (false, metadata.dev(), metadata.ino()) })
    };
    identity(a).is_some_and(|a| identity(b) == Some(a))
}
