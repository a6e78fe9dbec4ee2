//! Locks on files that no two machines may write. They belong to the open file, and are gone when it is closed, whatever way the
//! process ends.

use anyhow::{Context, Result};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Locks a file, for writing or for reading. `false`: another machine or process has it.
///
/// # Errors
/// When the file cannot be locked at all.
pub fn lock(file: &File, write: bool) -> Result<bool> {
    match set(file, if write { libc::F_WRLCK } else { libc::F_RDLCK }) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error).context("locking it"),
    }
}

/// A file that is locked for as long as this exists, also if others still have it open then.
pub struct Locked(Arc<File>);

impl Locked {
    /// Locks a file for writing. `None`: another machine or process has it.
    ///
    /// # Errors
    /// When the file cannot be locked at all.
    pub fn new(file: &Arc<File>) -> Result<Option<Self>> {
        Ok(lock(file, true)?.then(|| Self(Arc::clone(file))))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Giving up a lock cannot fail; else it goes with the file.
        let _ = set(&self.0, libc::F_UNLCK);
    }
}

fn set(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: a zeroed lock is valid: from the beginning, without end.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the lock lives during the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
