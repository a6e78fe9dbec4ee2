//! The host's system calls that the standard library does not have, each as a safe function.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// What direct I/O on a file requires, in bytes (`statx(2)`, `STATX_DIOALIGN`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectAlignment {
    /// Of memory addresses.
    pub(crate) memory: u32,
    /// Of offsets and lengths.
    pub(crate) offset: u32,
}

/// What the kernel says that direct I/O on `file` requires: `Ok(None)` when it cannot tell (Linux before 6.1, or the
/// file system does not say), an error when the file does not support direct I/O.
pub(crate) fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    const STATX_DIOALIGN: u32 = 0x2000;
    const MEMORY_ALIGN: usize = 38;
    const OFFSET_ALIGN: usize = 39;
    // `struct statx` is 256 bytes on all architectures; its first word is the mask of what was filled in.
    let mut statx = [0_u32; 64];
    // SAFETY: the path is an empty C string, and the buffer has the size of `struct statx`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            statx.as_mut_ptr(),
        )
    };
    let [mask, ..] = statx;
    if result != 0 || mask & STATX_DIOALIGN == 0 {
        return Ok(None);
    }
    match (statx.get(MEMORY_ALIGN), statx.get(OFFSET_ALIGN)) {
        (Some(&memory), Some(&offset)) if memory.is_power_of_two() && offset.is_power_of_two() => {
            Ok(Some(DirectAlignment { memory, offset }))
        }
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// A block device's size in bytes.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    /// `_IOR(0x12, 114, size_t)`
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
    let mut size = 0_u64;
    // SAFETY: this request writes one `u64`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Numbers that block devices give as `int`.
#[derive(Clone, Copy)]
pub(crate) enum DeviceNumber {
    /// Whether it is read-only (`BLKROGET`).
    ReadOnly,
    /// The smallest unit it addresses, in bytes (`BLKSSZGET`).
    LogicalBlock,
    /// The smallest unit it writes without reading, in bytes (`BLKPBSZGET`).
    PhysicalBlock,
    /// Smallest efficient request, in bytes (`BLKIOMIN`).
    MinimumIo,
    /// Best size of large requests, in bytes, or 0 (`BLKIOOPT`).
    OptimalIo,
    /// Where the first physical block starts, in bytes, or -1 (`BLKALIGNOFF`).
    AlignmentOffset,
}

/// Asks a block device for a number; 0 when it has none or a negative one.
pub(crate) fn device_number(file: &File, which: DeviceNumber) -> u32 {
    let request: libc::Ioctl = match which {
        DeviceNumber::ReadOnly => 0x125e,
        DeviceNumber::LogicalBlock => 0x1268,
        DeviceNumber::PhysicalBlock => 0x127b,
        DeviceNumber::MinimumIo => 0x1278,
        DeviceNumber::OptimalIo => 0x1279,
        DeviceNumber::AlignmentOffset => 0x127a,
    };
    let mut number: libc::c_int = 0;
    // SAFETY: these requests write one `int`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut number) };
    if result < 0 { 0 } else { u32::try_from(number).unwrap_or(0) }
}

/// Throws away what a block device has in a range (`BLKDISCARD`). Waits until it is done.
pub(crate) fn device_discard(fd: RawFd, offset: u64, length: u64) -> io::Result<()> {
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset, length];
    // SAFETY: this request reads two `u64`s.
    check(unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) })
}

/// `fallocate(2)`. Waits until it is done.
pub(crate) fn fallocate(fd: RawFd, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    // SAFETY: no memory is involved.
    check(unsafe { libc::fallocate64(fd, mode, offset, length) })
}

/// `fdatasync(2)`. Waits until it is done.
pub(crate) fn fdatasync(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::fdatasync(fd) })
}

/// Whether a lock is for writing, and who has it as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// It excludes everybody, rather than writers only.
    pub(crate) exclusive: bool,
    /// The process, for classic record locks; open file description locks belong to no process.
    pub(crate) pid: Option<u32>,
}

/// Locks the whole file for as long as it is open (`fcntl(2)`, open file description locks): for this file alone, or
/// shared with other readers. `Ok(false)`: somebody else holds a lock against it.
pub(crate) fn try_lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let lock = whole_file(exclusive);
    // SAFETY: the command reads one `struct flock`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    match check(result) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives up the lock on a file.
pub(crate) fn unlock(file: &File) {
    let mut lock = whole_file(false);
    lock.l_type = libc::F_UNLCK as i16;
    // SAFETY: the command reads one `struct flock`. It does not fail on a file that could be locked.
    let _ = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
}

/// A lock that stands against locking `file`, if there is one.
pub(crate) fn lock_holder(file: &File, exclusive: bool) -> Option<Holder> {
    let mut lock = whole_file(exclusive);
    // SAFETY: the command reads and writes one `struct flock`.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }).ok()?;
    let kind = i32::from(lock.l_type);
    (kind != i32::from(libc::F_UNLCK as i16)).then(|| Holder {
        exclusive: kind == i32::from(libc::F_WRLCK as i16),
        pid: u32::try_from(lock.l_pid).ok().filter(|pid| *pid > 0),
    })
}

fn whole_file(exclusive: bool) -> libc::flock64 {
    // SAFETY: the structure is plain numbers, of which zero is valid. A length of 0 reaches to the end of all files, and
    // these commands want the process to be 0.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = if exclusive { libc::F_WRLCK as i16 } else { libc::F_RDLCK as i16 };
    lock.l_whence = libc::SEEK_SET as i16;
    lock
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
