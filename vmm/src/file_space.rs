//! Room in a file system for files that are memory of a guest.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Has the file system keep room for the first `size` bytes of `file`: a write to memory cannot be refused when the disk is full. Where
/// there is no such promise, nothing is done.
///
/// # Errors
/// When there is not enough room.
pub fn keep(file: &File, size: u64) -> io::Result<()> {
    let size = libc::off_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: what the file holds stays as it is.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, size) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}
