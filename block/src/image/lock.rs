//! Keeps two writers, or a writer and readers, from using one image at once.
//!
//! Open file description locks on the whole file: they belong to the open file, so that they also hold between two
//! disks of one process, are dropped by the kernel whatever way the process ends, and are respected by other monitors that
//! lock bytes of their images. Such a lock names no process; who has it is found in `/proc`, as far as that shows it.

use super::open::OpenError;
use crate::host;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
        match host::try_lock(&file, write) {
            Ok(true) => return Ok(Self { file, locked: true }),
            Ok(false) => {}
            Err(source) => return Err(OpenError::Lock(source)),
        }
        let holder = host::lock_holder(&file, write);
        let pid = holder.and_then(|holder| holder.pid).or_else(|| find_holder(&file));
        let writing = holder.is_none_or(|holder| holder.exclusive);
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
                write!(f, "image is already open for {purpose} as another disk of this machine")
            }
            Some(pid) => write!(f, "image is already open for {purpose} by another process (pid {pid})"),
            None => {
                write!(f, "image is already open for {purpose} by a process that cannot be seen from here")
            }
        }
    }
}

/// Finds a process that has the file open with a lock on it. `file` itself, which has none, is not taken for it.
fn find_holder(file: &File) -> Option<u32> {
    let image = file.metadata().ok()?;
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
