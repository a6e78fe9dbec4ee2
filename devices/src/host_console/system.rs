//! The system calls of host consoles that have no safe form elsewhere.

use super::WindowSize;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Standard input, without the library's buffer for it.
pub(super) fn standard_input() -> BorrowedFd<'static> {
    // SAFETY: the runtime has seen to it that the descriptor is open, and nobody closes it.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

/// Standard output, without the library's buffer for it.
pub(super) fn standard_output() -> BorrowedFd<'static> {
    // SAFETY: as for standard input.
    unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) }
}

/// A one-shot timer whose descriptor is readable once it has expired.
pub(super) struct Timer(OwnedFd);

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        // SAFETY: the descriptor is new and nobody else's.
        check(fd).map(|fd| Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Expires after `after`, more than zero and less than a second, instead of what was set before.
    pub(super) fn set(&self, after: Duration) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(after.subsec_nanos()) };
        let setting = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: `setting` lives during the call; the old setting is not asked for. It cannot fail for a valid
        // timer and time.
        let _ = unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &setting, std::ptr::null_mut()) };
    }

    /// Makes the descriptor unreadable until the timer expires again.
    pub(super) fn clear(&self) {
        let mut expirations = [0_u8; 8];
        // SAFETY: the buffer is 8 bytes, which is what is read at most. Fails when it has not expired, which is fine.
        let _ = unsafe { libc::read(self.0.as_raw_fd(), expirations.as_mut_ptr().cast(), 8) };
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn poll(fd: RawFd, events: libc::c_short, timeout: Duration) -> bool {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let timeout = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `entry` is one entry and lives during the call.
    unsafe { libc::poll(&mut entry, 1, timeout) > 0 }
}

/// Whether `fd` is, or within `timeout` becomes, readable or hung up.
pub(super) fn wait_readable(fd: RawFd, timeout: Duration) -> bool {
    poll(fd, libc::POLLIN, timeout)
}

/// Whether `fd` takes at least one more byte now.
pub(super) fn is_writable(fd: RawFd) -> bool {
    poll(fd, libc::POLLOUT, Duration::ZERO)
}

/// Whether `fd` is a terminal.
pub(super) fn is_terminal(fd: RawFd) -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::isatty(fd) == 1 }
}

/// A terminal's modes.
pub(super) fn modes(fd: RawFd) -> io::Result<libc::termios> {
    let mut modes = MaybeUninit::uninit();
    // SAFETY: `modes` is large enough for what is written.
    check(unsafe { libc::tcgetattr(fd, modes.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it wrote the modes.
    Ok(unsafe { modes.assume_init() })
}

/// Sets a terminal's modes. Safe to call in a signal handler.
pub(super) fn set_modes(fd: RawFd, modes: &libc::termios) -> io::Result<()> {
    // SAFETY: `modes` lives during the call.
    check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, modes) }).map(drop)
}

/// The same modes, but every byte passes through unchanged both ways.
pub(super) fn raw(mut modes: libc::termios) -> libc::termios {
    // SAFETY: `modes` lives during the call.
    unsafe { libc::cfmakeraw(&mut modes) };
    modes
}

/// A terminal's window size; zeroes if nobody set it.
pub(super) fn window_size(fd: RawFd) -> io::Result<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes a `winsize`, which `size` is.
    check(unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) })?;
    Ok(WindowSize { columns: size.ws_col, rows: size.ws_row })
}

/// Unlocks the other end of a pseudo-terminal's master, and returns its number under `/dev/pts`.
pub(super) fn unlock_pseudo_terminal(master: RawFd) -> io::Result<u32> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the request reads an int.
    check(unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &unlocked) })?;
    let mut number: libc::c_uint = 0;
    // SAFETY: the request writes an unsigned int.
    check(unsafe { libc::ioctl(master, libc::TIOCGPTN, &mut number) })?;
    Ok(number)
}

/// Discards what was written to a pseudo-terminal's master and not read at its other end.
pub(super) fn discard_unread(master: RawFd) {
    // SAFETY: the request takes open flags and returns a descriptor. Without one there is nothing to discard.
    let peer =
        unsafe { libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if check(peer).is_err() {
        return;
    }
    // SAFETY: the descriptor is new and nobody else's.
    let peer = unsafe { OwnedFd::from_raw_fd(peer) };
    // SAFETY: takes no pointers. It does not fail for a terminal.
    let _ = unsafe { libc::tcflush(peer.as_raw_fd(), libc::TCIFLUSH) };
}

/// A descriptor that is readable, with events to be read, after each opening of `path`.
pub(super) fn watch_openings(path: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `path` is a C string that lives during the call.
    check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), libc::IN_OPEN) })?;
    Ok(fd)
}

/// What a signal is handled by now.
pub(super) fn is_default_action(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the old action is written to `action`, which is large enough; no new one is set.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so it wrote the action.
    let action = unsafe { action.assume_init() };
    action.sa_sigaction == libc::SIG_DFL
}

/// Handles a signal by `handler` from now on. With `once`, the handler is taken away when it is entered.
///
/// # Safety
/// `handler` may only do what is safe in a signal handler.
pub(super) unsafe fn handle(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    once: bool,
) -> io::Result<()> {
    // SAFETY: `sigaction` is plain data for which all zeroes is a value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESTART | if once { libc::SA_RESETHAND | libc::SA_NODEFER } else { 0 };
    // SAFETY: `action` lives during the call; what the handler does is the caller's promise.
    check(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) }).map(drop)
}

/// Sends a signal to this thread. Safe to call in a signal handler.
pub(super) fn raise(signal: libc::c_int) {
    // SAFETY: takes no pointers.
    unsafe { libc::raise(signal) };
}

/// Adds to an eventfd. Safe to call in a signal handler; errno is kept.
pub(super) fn ring_eventfd(fd: RawFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: errno is this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: the buffer is 8 bytes. A full counter is rung enough.
    let _ = unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    // SAFETY: as above.
    unsafe { *errno = saved };
}
