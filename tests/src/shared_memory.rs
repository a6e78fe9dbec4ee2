//! The server's side of memory that machines share.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Sends what an ivshmem server sends: a number, and a descriptor with it.
///
/// # Panics
/// When the other side is gone.
pub fn send(socket: &UnixStream, number: i64, descriptor: Option<RawFd>) {
    let mut bytes = number.to_le_bytes();
    let Some(descriptor) = descriptor else { return (&*socket).write_all(&bytes).unwrap() };
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // Aligned as a control message has to be.
    let mut control = [0_u64; 4];
    // SAFETY: zeroes are a valid header, and what its pointers lead to lives until the call is over.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(head).cast::<RawFd>().write_unaligned(descriptor);
        assert_eq!(libc::sendmsg(socket.as_raw_fd(), &raw const message, 0), 8);
    }
}

/// A new event, which may block.
pub fn event() -> File {
    // SAFETY: makes a new descriptor, which nothing else owns.
    File::from(unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) })
}
