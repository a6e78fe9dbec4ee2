//! The UNIX sockets behind connections: system calls that have no safe form elsewhere.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use virtio::chain::Segment;

/// `IOV_MAX`.
pub(super) const MAX_SEGMENTS: usize = 1024;

/// Listens at `path`, in place of a socket that nobody listens on any more.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    if path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket())
        && UnixStream::connect(path).is_err()
    {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to the socket at `path` without waiting: when its listener has no room for one more, that is an error.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: a zeroed address is a valid one.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // A NUL must follow.
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        // A C character is signed on some architectures only.
        *to = *from as std::ffi::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address has the length given, and lives during the call.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd.into())
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Looks at what there is to be read, without taking it.
pub(super) fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer has the length given, and lives during the call.
    count(unsafe { libc::recv(stream.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// Reads into the first [`MAX_SEGMENTS`] of `segments`.
///
/// # Safety
/// They are mapped, and may be overwritten.
pub(super) unsafe fn read(stream: &UnixStream, segments: &[Segment]) -> io::Result<usize> {
    let number = segments.len().min(MAX_SEGMENTS) as libc::c_int;
    // SAFETY: the array has at least `number` entries; the caller says that what they point to is mapped.
    count(unsafe { libc::readv(stream.as_raw_fd(), Segment::as_iovecs(segments), number) })
}

/// Sends the first [`MAX_SEGMENTS`] of `segments`.
///
/// # Safety
/// They are mapped.
pub(super) unsafe fn send(stream: &UnixStream, segments: &[Segment]) -> io::Result<usize> {
    // SAFETY: a zeroed message is a valid one: no address, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = Segment::as_iovecs(segments).cast_mut();
    message.msg_iovlen = segments.len().min(MAX_SEGMENTS) as _;
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the message's array has as many entries as it says; the caller says that what they point to is mapped.
    count(unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) })
}
