//! A console on this process's standard input and output.
//!
//! The terminal's modes are changed, and given back whatever way the process ends: when the console is
//! dropped, in the panic hook, and on signals that end the process (but SIGKILL, which nobody sees).

use super::{Events, Interest, OpenError, Peer, Watch, WindowSize, event_set, system};
use machine::doorbell::Doorbell;
use machine::inspect::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use vmm_sys_util::epoll::EventSet;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
const ESCAPE_COUNT: u32 = 3;
/// How much is written at once where a longer write could block. POSIX has pipes take this much when writable.
const BLOCKING_WRITE: usize = 512;

/// Signals that end the process by default (signal(7)), but the real-time ones. SIGBUS is left to whoever deals with faults of guest
/// memory.
const FATAL: [libc::c_int; 21] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGPIPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSTKFLT,
    libc::SIGIO,
    libc::SIGPWR,
];

struct SavedModes {
    fd: RawFd,
    modes: libc::termios,
}

/// The modes to give back; null when the terminal is as it was. What is pointed to is never freed, since a signal
/// handler may be looking at it.
static SAVED: AtomicPtr<SavedModes> = AtomicPtr::new(std::ptr::null_mut());
/// The eventfd that tells of a new window size, or -1.
static RESIZED: AtomicI32 = AtomicI32::new(-1);

/// Gives the terminal back as it was. Does nothing the second time. Safe to call in a signal handler.
pub fn restore_terminal() {
    let saved = SAVED.swap(std::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: it is null or points to a value that was leaked for this purpose.
    if let Some(saved) = unsafe { saved.as_ref() } {
        // There is nothing left to do if the terminal is gone.
        let _ = system::set_modes(saved.fd, &saved.modes);
    }
}

extern "C" fn on_fatal_signal(signal: libc::c_int) {
    restore_terminal();
    // The handler was taken away when it was entered, so this ends the process as the signal does.
    system::raise(signal);
}

extern "C" fn on_resize(_signal: libc::c_int) {
    let fd = RESIZED.load(Ordering::Relaxed);
    if fd >= 0 {
        system::ring_eventfd(fd);
    }
}

/// Has the terminal given back on panics and fatal signals. Signals the program handles itself are left to it.
fn guard() {
    static GUARD: Once = Once::new();
    GUARD.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore_terminal();
            next(panic);
        }));
        for signal in FATAL.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
            // SIGSEGV has the standard library's handler for stack overflows.
            if system::is_default_action(signal) || signal == libc::SIGSEGV {
                // SAFETY: the handler sets terminal modes and raises, both of which are safe in handlers.
                let _ = unsafe { system::handle(signal, on_fatal_signal, true) };
            }
        }
        // SAFETY: the handler writes to an eventfd, which is safe in handlers.
        let _ = unsafe { system::handle(libc::SIGWINCH, on_resize, false) };
    });
}

/// A file description of our own for a standard stream, so that not waiting on it does not change the
/// streams of the programs that share it. Regular files are shared, as they have a position.
fn own(stream: BorrowedFd<'_>, write: bool) -> io::Result<(File, bool)> {
    let shared = File::from(stream.try_clone_to_owned()?);
    let kind = shared.metadata()?.file_type();
    if kind.is_char_device() || kind.is_fifo() {
        let opened = OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", stream.as_raw_fd()));
        if let Ok(file) = opened {
            return Ok((file, true));
        }
    }
    let blocks = !kind.is_file();
    Ok((shared, !blocks))
}

pub(super) struct Terminal {
    input: File,
    input_ended: bool,
    /// The input can be watched; a regular file cannot, and always has something to read.
    input_watched: bool,
    output: File,
    output_never_blocks: bool,
    interest: Interest,
    resized: Doorbell,
    escapes: u32,
    escaped: bool,
    _held: Held,
}

/// The right to the process's one terminal. Who has it gave the terminal back before it was dropped.
struct Held;

/// Somebody has it.
static HELD: AtomicBool = AtomicBool::new(false);

impl Held {
    fn take() -> Result<Self, OpenError> {
        if HELD.swap(true, Ordering::AcqRel) {
            let busy = io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another console has it, or has not given it back yet; try again later",
            );
            return Err(OpenError::new("taking", "/dev/stdin")(busy));
        }
        Ok(Self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.store(false, Ordering::Release);
    }
}

impl Terminal {
    pub(super) fn open(watch: &Watch) -> Result<Self, OpenError> {
        let held = Held::take()?;
        let (stdin, stdout) = (system::standard_input(), system::standard_output());
        let (input, _) = own(stdin, false).map_err(OpenError::new("opening", "/dev/stdin"))?;
        let (output, output_never_blocks) =
            own(stdout, true).map_err(OpenError::new("opening", "/dev/stdout"))?;
        let error = |what| OpenError::new(what, "/dev/stdin");
        let resized = Doorbell::new().map_err(error("watching"))?;
        watch.add(resized.as_raw_fd(), EventSet::IN).map_err(error("watching"))?;
        let input_watched = match watch.add(input.as_raw_fd(), EventSet::IN) {
            Ok(()) => true,
            // What a regular file answers.
            Err(refusal) if refusal.raw_os_error() == Some(libc::EPERM) => false,
            Err(refusal) => return Err(error("watching")(refusal)),
        };
        if system::is_terminal(stdin.as_raw_fd()) {
            let modes = system::modes(stdin.as_raw_fd()).map_err(error("asking for the modes of"))?;
            guard();
            let saved = Box::leak(Box::new(SavedModes { fd: stdin.as_raw_fd(), modes }));
            SAVED.store(saved, Ordering::Release);
            system::set_modes(stdin.as_raw_fd(), &system::raw(modes))
                .map_err(error("setting the modes of"))?;
        }
        RESIZED.store(resized.as_raw_fd(), Ordering::Relaxed);
        Ok(Self {
            input,
            input_ended: false,
            input_watched,
            output,
            output_never_blocks,
            interest: Interest::default(),
            resized,
            escapes: 0,
            escaped: false,
            _held: held,
        })
    }

    fn find_escape(&mut self, input: &[u8]) {
        for &byte in input {
            self.escapes = if byte == ESCAPE { self.escapes.saturating_add(1) } else { 0 };
            if self.escapes == ESCAPE_COUNT {
                self.escapes = 0;
                self.escaped = true;
                // Even if nothing else happens, service is to be called.
                self.resized.ring();
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        RESIZED.store(-1, Ordering::Relaxed);
        restore_terminal();
    }
}

impl Peer for Terminal {
    fn describe(&self) -> Value {
        json!({ "mode": "tty", "input_ended": self.input_ended })
    }

    fn present(&self) -> bool {
        true
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.output_never_blocks {
            return self.output.write(bytes);
        }
        if !system::is_writable(self.output.as_raw_fd()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.output.write(bytes.get(..BLOCKING_WRITE).unwrap_or(bytes))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input_ended || buffer.is_empty() {
            return Ok(0);
        }
        if !system::wait_readable(self.input.as_raw_fd(), std::time::Duration::ZERO) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = self.input.read(buffer);
        match &result {
            Ok(0) => self.input_ended = true,
            Ok(count) => self.find_escape(buffer.get(..*count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // A terminal that is gone.
            Err(_) => self.input_ended = true,
        }
        result
    }

    fn service(&mut self, watch: &Watch, _joined: &mut bool) -> Events {
        self.resized.take();
        if self.input_ended {
            watch.remove(self.input.as_raw_fd());
        } else if !self.input_watched && self.interest.readable {
            self.resized.ring();
        }
        Events { escape: std::mem::take(&mut self.escaped), ..Events::default() }
    }

    fn watch(&mut self, watch: &Watch, interest: Interest) {
        self.interest = interest;
        if !self.input_ended {
            let readable = Interest { readable: interest.readable, writable: false };
            if self.input_watched {
                watch.set(self.input.as_raw_fd(), event_set(readable));
            } else if interest.readable {
                self.resized.ring();
            }
        }
        // A regular file refuses to be watched, and never has a backlog.
        let writable = Interest { readable: false, writable: interest.writable };
        watch.set(self.output.as_raw_fd(), event_set(writable));
    }

    fn size(&self) -> Option<WindowSize> {
        system::window_size(self.output.as_raw_fd()).ok()
    }
}
