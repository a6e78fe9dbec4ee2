//! The thread that carries console bytes and hears signals.
//!
//! Consoles have no threads of their own; this one waits for all of them, and for the signals that ask the process to
//! end.

use crate::message::{Mailbox, Message};
use anyhow::{Context, Result};
use devices::host_console::ConsolePump;
use machine::doorbell::Doorbell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread::JoinHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The running thread. Dropping it carries the last output and ends it.
pub struct ConsoleThread {
    stop: Doorbell,
    thread: Option<JoinHandle<()>>,
}

/// Signals that mean something to the machine: three ask it to end, SIGUSR1 presses its power button.
const HEARD: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];

/// Keeps the signals that mean something to the machine from interrupting anything: the console thread hears them. Called
/// before any thread is started, since threads inherit it.
///
/// # Errors
/// When the host refuses.
pub fn hold_signals() -> io::Result<()> {
    let set = heard_set();
    // SAFETY: the set is initialized; the old mask is not wanted.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn heard_set() -> libc::sigset_t {
    // SAFETY: a zeroed set is initialized by sigemptyset before it is used.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid for both calls.
    unsafe {
        libc::sigemptyset(&mut set);
        for signal in HEARD {
            libc::sigaddset(&mut set, signal);
        }
    }
    set
}

fn signal_descriptor() -> io::Result<OwnedFd> {
    let set = heard_set();
    // SAFETY: -1 asks for a new descriptor; the set is initialized.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd just gave this descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl ConsoleThread {
    /// Starts the thread. It also waits for `escape`, by which a console that is not among `pumps` tells that the user
    /// wants out. `confine` is called on the thread first.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn start(
        mut pumps: Vec<ConsolePump>,
        escape: Doorbell,
        mailbox: Mailbox,
        confine: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let stop = Doorbell::new().context("making an event for the console thread")?;
        let signals = signal_descriptor().context("listening for signals")?;
        let epoll = Epoll::new().context("making the console thread's epoll")?;
        let watch =
            |fd: RawFd| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64));
        watch(stop.as_raw_fd()).context("watching for the end")?;
        watch(signals.as_raw_fd()).context("watching for signals")?;
        watch(escape.as_raw_fd()).context("watching for the escape")?;
        for pump in &pumps {
            watch(pump.fd()).context("watching a console")?;
        }
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("console".into())
            .stack_size(256 << 10)
            .spawn(move || {
                confine();
                let mut events = [EpollEvent::default(); 16];
                'serve: loop {
                    let count = epoll.wait(-1, &mut events).unwrap_or(0);
                    for event in events.iter().take(count) {
                        if event.data() == stopped.as_raw_fd() as u64 {
                            break 'serve;
                        }
                        if event.data() == signals.as_raw_fd() as u64 {
                            mailbox.post(match take_signal(&signals) {
                                Some(libc::SIGUSR1) => Message::PowerButton,
                                _ => Message::Terminate,
                            });
                        }
                        if event.data() == escape.as_raw_fd() as u64 && escape.take() {
                            mailbox.post(Message::Terminate);
                        }
                        let pump = pumps.iter_mut().find(|pump| pump.fd() as u64 == event.data());
                        if pump.is_some_and(|pump| pump.ready().escape) {
                            mailbox.post(Message::Terminate);
                        }
                    }
                }
                for pump in &mut pumps {
                    pump.finish();
                }
            })
            .context("starting the console thread")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ConsoleThread {
    fn drop(&mut self) {
        self.stop.ring();
        if let Some(thread) = self.thread.take() {
            // If it panicked, the hook has said so.
            let _ = thread.join();
        }
    }
}

/// Takes the pending signal.
fn take_signal(signals: &OwnedFd) -> Option<libc::c_int> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: the buffer has the size of what is read.
    let read = unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
    let number = info.first_chunk::<4>().filter(|_| read.cast_unsigned() == info.len())?;
    Some(i32::from_ne_bytes(*number))
}
