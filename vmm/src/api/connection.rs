//! A connection of a client or a server of the API: bytes, and the file descriptors that come along with them
//! (SCM_RIGHTS, unix(7)).
//!
//! A client sends the descriptors a request needs with the first bytes of that request.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::UnixStream;

/// The most descriptors one request can bring.
pub const MOST_FILES: usize = 64;

/// The most that one message can carry (SCM_MAX_FD, Linux).
const MOST_IN_A_MESSAGE: usize = 253;

/// Room for a control message with that many.
const CONTROL_BYTES: usize = 16 + MOST_IN_A_MESSAGE * size_of::<RawFd>() + 4;

/// Descriptors that arrived and were not taken yet, or wait to be sent. Clones are the same.
#[derive(Clone, Default)]
pub struct Files(Rc<RefCell<Vec<OwnedFd>>>);

impl Files {
    /// Takes all of them.
    pub fn take(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *self.0.borrow_mut())
    }

    /// Adds one.
    pub fn push(&self, file: OwnedFd) {
        self.0.borrow_mut().push(file);
    }
}

/// A connection, for hyper.
pub struct Connection {
    stream: UnixStream,
    received: Files,
    to_send: Files,
}

impl Connection {
    /// Wraps a stream. Descriptors that arrive are put into `received`; those in `to_send` go with the next bytes written.
    pub fn new(stream: UnixStream, received: Files, to_send: Files) -> Self {
        Self { stream, received, to_send }
    }
}

/// Whether a client is there. One that will send no more may still wait for its answer; one that has closed its socket does not.
pub(super) struct Presence(AsyncFd<OwnedFd>);

impl Presence {
    /// Of the client at the other end of `socket`.
    ///
    /// # Errors
    /// When the host is out of descriptors.
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        // One of its own: what is noted of a descriptor's readiness here is not hidden from the connection.
        let socket = socket.try_clone_to_owned()?;
        // SAFETY: an owned descriptor always tells the same one, which stays open as long as it.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) }?))
    }

    /// Waits until the client has left.
    pub(super) async fn gone(&self) {
        while let Ok(mut ready) = self.0.writable().await {
            if ready.ready().is_write_closed() {
                return;
            }
            ready.clear_ready();
        }
    }
}

impl Read for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 4096];
        let most = bytes.len().min(buffer.remaining());
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let received = self.stream.try_io(Interest::READABLE, || {
                receive(self.stream.as_raw_fd(), &mut bytes[..most], &self.received)
            });
            match received {
                Ok(count) => {
                    buffer.put_slice(&bytes[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.to_send.0.borrow().is_empty() {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                send(self.stream.as_raw_fd(), bytes, &self.to_send.0.borrow())
            });
            match sent {
                Ok(count) => {
                    drop(self.to_send.take());
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.to_send.0.borrow().is_empty() {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        self.poll_write(context, first)
    }
}

/// A control buffer, aligned as its headers need.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Receives bytes, and puts the descriptors that come with them into `files`. Those beyond [`MOST_FILES`] are closed but for
/// one, by which it is seen that there were too many.
fn receive(socket: RawFd, bytes: &mut [u8], files: &Files) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a zeroed msghdr is valid: it has no name, parts or control.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    // SAFETY: the message names buffers that live through the call, with their lengths.
    let count = unsafe { libc::recvmsg(socket, &mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled in the control buffer and its length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: the header is within the control buffer, which is aligned for it.
        let (level, kind, length) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(header) };
            let before = data as usize - header as usize;
            for index in 0..length.saturating_sub(before) / size_of::<RawFd>() {
                // SAFETY: within the message's data, by its length; it may be unaligned.
                let fd = unsafe { data.cast::<RawFd>().add(index).read_unaligned() };
                // SAFETY: the kernel has just made this descriptor for this process; nothing else owns it.
                let file = unsafe { OwnedFd::from_raw_fd(fd) };
                if files.0.borrow().len() <= MOST_FILES {
                    files.push(file);
                }
            }
        }
        // SAFETY: as for the first header.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(count)
}

/// Sends bytes with `files` along.
fn send(socket: RawFd, bytes: &[u8], files: &[OwnedFd]) -> io::Result<usize> {
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;
    // SAFETY: the socket is open as long as its stream, which the caller has.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    Socket(socket)
        .send_with_fds(&[bytes], &files)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

struct Socket<'a>(BorrowedFd<'a>);

impl vmm_sys_util::sock_ctrl_msg::ScmSocket for Socket<'_> {
    fn socket_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
