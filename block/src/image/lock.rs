//! Keeps two writers, or a writer and readers, from using one image at once.
//!
//! Open file description locks: they belong to the open file, so that they also hold between two disks of one process, and
//! are dropped by the kernel whatever way the process ends. A writer locks the whole file. A reader locks the two bytes
//! by which QEMU's tools tell each other that they read an image and bear no writer, so that a reader and a writer of
//! either kind exclude each other, and readers do not.
//!
//! Such a lock names no process; who has it is found in `/proc`, as far as that shows it.

use super::open::OpenError;
use crate::host::{self, LockRange, WHOLE_FILE};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes that are locked, shared: by who reads, by who writes, and by who bears no writer.
const READS: LockRange = (100, 1);
const WRITES: LockRange = (101, 1);
const BEARS_NO_WRITER: LockRange = (201, 1);

/// How much of `/proc` is looked at: finding the holder is a courtesy.
const PROCESSES_MAX: usize = 10_000;
const DESCRIPTORS_MAX: usize = 200_000;

/// A file that is locked for as long as this exists.
///
/// The lock is given up expressly: closing would do, but the kernel may hold on to a file for a moment longer (io_uring
/// does), in which the next user would be refused.
pub(super) struct LockedFile {
    file: File,
    locked: bool,
}

impl LockedFile {
    /// Locks an image: for writing, against everybody; for reading, against writers.
    pub(super) fn new(file: File, write: bool) -> Result<Self, OpenError> {
        // From here on an early return unlocks.
        let file = Self { file, locked: true };
        let try_lock = |range| host::try_lock(&file, write, range).map_err(OpenError::Lock);
        let locked = if write {
            try_lock(WHOLE_FILE)?
        } else {
            // In this order: a writer that comes meanwhile is seen here, or sees the lock.
            try_lock(READS)? && try_lock(BEARS_NO_WRITER)? && host::lock_holder(&file, WRITES).is_none()
        };
        if locked {
            return Ok(file);
        }
        let holder = host::lock_holder(&file, if write { WHOLE_FILE } else { WRITES });
        let pid = holder.and_then(|holder| holder.pid).or_else(|| find_holder(&file));
        let writing = host::lock_holder(&file, WRITES).is_some();
        Err(OpenError::Locked(Locked { pid, writing }))
    }

    /// Leaves it to others that nobody else uses the file.
    pub(super) fn without_lock(file: File) -> Self {
        Self { file, locked: false }
    }
}

impl std::ops::Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl AsRawFd for LockedFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        if self.locked {
            host::unlock(&self.file);
        }
    }
}

/// Who has an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked {
    /// The process, when it could be found.
    pub pid: Option<u32>,
    /// Whether it has the image for writing.
    pub writing: bool,
}

impl std::fmt::Display for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let purpose = if self.writing { "writing" } else { "reading" };
        match self.pid {
            Some(pid) if pid == std::process::id() => {
                write!(
                    f,
                    "image is already open for {purpose} as another disk of this machine; give each disk its own"
                )
            }
            Some(pid) => write!(
                f,
                "image is already open for {purpose} by another process (pid {pid}); end that one, or give another image"
            ),
            None => {
                write!(f, "image is already open for {purpose} by a process that cannot be seen from here")
            }
        }
    }
}

/// Finds a process that has the file open with a lock on it, other than by `file`.
fn find_holder(file: &File) -> Option<u32> {
    let image = file.metadata().ok()?;
    let own = file.as_raw_fd().to_string();
    let mut descriptors = 0_usize;
    for process in fs::read_dir("/proc").ok()?.flatten().take(PROCESSES_MAX) {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Not permitted, or gone by now.
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in open.flatten() {
            descriptors = descriptors.saturating_add(1);
            if descriptors > DESCRIPTORS_MAX {
                return None;
            }
            if pid == std::process::id() && descriptor.file_name().to_str() == Some(own.as_str()) {
                continue;
            }
            let Ok(found) = fs::metadata(descriptor.path()) else { continue };
            if (found.dev(), found.ino()) == (image.dev(), image.ino())
                && has_lock(&process.path().join("fdinfo").join(descriptor.file_name())).unwrap_or(false)
            {
                return Some(pid);
            }
        }
    }
    None
}

/// Whether a descriptor's `fdinfo` shows a lock, which is there only for the open file that owns it.
fn has_lock(fdinfo: &Path) -> io::Result<bool> {
    let text = fs::read_to_string(fdinfo)?;
    Ok(text.lines().any(|line| line.starts_with("lock:") && !line.contains("FLOCK")))
}
