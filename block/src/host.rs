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

/// The bytes of a file that a lock is for: from the first number on, as many as the second; 0 for all that follow.
pub(crate) type LockRange = (u32, u32);

/// All bytes, of which there need not be any.
pub(crate) const WHOLE_FILE: LockRange = (0, 0);

/// Locks a part of a file for as long as it is open (`fcntl(2)`, open file description locks): for this open file alone, or
/// shared. `Ok(false)`: somebody else holds a lock against it.
pub(crate) fn try_lock(file: &File, exclusive: bool, range: LockRange) -> io::Result<bool> {
    let lock = lock_of(if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }, range);
    // SAFETY: the command reads one `struct flock`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    match check(result) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives up all locks on a file.
pub(crate) fn unlock(file: &File) {
    let lock = lock_of(libc::F_UNLCK, WHOLE_FILE);
    // SAFETY: the command reads one `struct flock`. It does not fail on a file that could be locked.
    let _ = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
}

/// A lock that stands against having a part of a file alone, if there is one.
pub(crate) fn lock_holder(file: &File, range: LockRange) -> Option<Holder> {
    let mut lock = lock_of(libc::F_WRLCK, range);
    // SAFETY: the command reads and writes one `struct flock`.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }).ok()?;
    let kind = libc::c_int::from(lock.l_type);
    (kind != libc::F_UNLCK as libc::c_int).then(|| Holder {
        exclusive: kind == libc::F_WRLCK as libc::c_int,
        pid: u32::try_from(lock.l_pid).ok().filter(|pid| *pid > 0),
    })
}

fn lock_of(kind: libc::c_int, (start, length): LockRange) -> libc::flock64 {
    // SAFETY: the structure is plain numbers, of which zero is valid. These commands want the process to be 0.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = libc::off64_t::from(start);
    lock.l_len = libc::off64_t::from(length);
    lock
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
