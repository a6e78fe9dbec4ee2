//! The thread that carries console bytes and hears signals.
//!
//! Consoles have no threads of their own; this one waits for all of them, for the signals that ask the process to end, for
//! faults of guest memory, and for room in the log when somebody was slow to read it. Consoles that are files have a second thread, since a disk may keep
//! whoever writes to it waiting. It is there as long as the process; the consoles come and go with machines.

use crate::message::{Event, Inbox, Work};
use crate::seccomp::{self, ThreadKind};
use crate::{guest_faults, log};
use anyhow::{Context, Result};
use devices::host_console::ConsolePump;
use machine::doorbell::Doorbell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// How long a disk may take for the last output when the machine ends.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// The running thread. Dropping it ends it.
pub struct ConsoleThread {
    inbox: Inbox,
    orders: Sender<Order>,
    bell: Doorbell,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is to do.
enum Order {
    /// Carry the bytes of these consoles, and wait for `escape`, by which another console tells that the user wants out.
    Serve { pumps: Vec<ConsolePump>, escape: Option<Doorbell> },
    /// Carry the consoles' last output, forget them, and tell.
    Finish(Sender<()>),
    /// End.
    End,
}

/// A machine's consoles, served by the thread. Dropping it carries their last output.
pub struct Consoles {
    thread: Arc<ConsoleThread>,
    /// Serves files.
    files: Option<ConsoleThread>,
}

/// Signals that mean something to the machine: SIGUSR1 presses its power button, and the others ask it to end. SIGXCPU comes when the
/// process has used the CPU time that it may have (`RLIMIT_CPU`, the soft limit).
const HEARD: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGXCPU, libc::SIGUSR1];

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

/// The signals that [`hold_signals`] holds.
pub fn heard_set() -> libc::sigset_t {
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
    /// Starts the thread. `faults` is rung when guest memory faults. `confine` is called on it first.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn start(inbox: Inbox, faults: Doorbell, confine: impl FnOnce() + Send + 'static) -> Result<Self> {
        let signals = signal_descriptor().context("listening for signals")?;
        let process = Process { signals, faults, log: log::room() };
        Self::start_with(inbox, "console", Some(process), None, confine)
    }

    /// Starts a thread that also does what the process needs, if that is given. It is `work` for a machine.
    fn start_with(
        inbox: Inbox,
        name: &str,
        mut process: Option<Process>,
        work: Option<Work>,
        confine: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let bell = Doorbell::new().context("making an event for the console thread")?;
        let epoll = Epoll::new().context("making the console thread's epoll")?;
        watch(&epoll, bell.as_raw_fd()).context("watching for orders")?;
        if let Some(process) = &mut process {
            watch(&epoll, process.signals.as_raw_fd()).context("watching for signals")?;
            watch(&epoll, process.faults.as_raw_fd()).context("watching for faults of guest memory")?;
            process.log = process.log.filter(|log| watch_room(&epoll, *log).is_ok());
        }
        let (orders, received) = channel();
        let serving = Serving {
            inbox: inbox.clone(),
            epoll,
            bell: bell.clone(),
            process,
            orders: received,
            pumps: Vec::new(),
            escape: None,
        };
        let thread = std::thread::Builder::new()
            .name(name.into())
            .stack_size(256 << 10)
            .spawn(move || {
                confine();
                serving.run();
                // Its consoles' files are closed.
                drop(work);
            })
            .context("starting the console thread")?;
        Ok(Self { inbox, orders, bell, thread: Some(thread) })
    }

    /// Has the thread carry the bytes of a machine's consoles, and another one those of consoles that may have it wait. It also
    /// waits for `escape`, by which a console that is not among `pumps` tells that the user wants out. Files are `work` until they
    /// are closed.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub fn serve(
        self: &Arc<Self>,
        pumps: Vec<ConsolePump>,
        escape: Doorbell,
        work: &Work,
    ) -> Result<Consoles> {
        let (files, pumps): (Vec<_>, _) = pumps.into_iter().partition(|pump| pump.console().may_wait());
        self.order(Order::Serve { pumps, escape: Some(escape) });
        let mut consoles = Consoles { thread: Arc::clone(self), files: None };
        if !files.is_empty() {
            let confine = || seccomp::confine(ThreadKind::Console);
            let thread =
                Self::start_with(self.inbox.clone(), "console-files", None, Some(work.clone()), confine)?;
            thread.order(Order::Serve { pumps: files, escape: None });
            consoles.files = Some(thread);
        }
        Ok(consoles)
    }

    /// Has the thread carry its consoles' last output, and forget them. What is returned tells when it has.
    fn finish(&self) -> Receiver<()> {
        let (sender, receiver) = channel();
        self.order(Order::Finish(sender));
        receiver
    }

    fn order(&self, order: Order) {
        // The thread only ends when told to.
        let _ = self.orders.send(order);
        self.bell.ring();
    }
}

impl Drop for ConsoleThread {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            // If it panicked, the hook has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Consoles {
    fn drop(&mut self) {
        let files = self.files.as_ref().map(ConsoleThread::finish);
        // If the thread is gone, there is nobody to wait for.
        let _ = self.thread.finish().recv();
        if let (Some(files), Some(thread)) = (files, &mut self.files)
            && files.recv_timeout(DISK_PATIENCE) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!("a console's file takes no output; what was left of it is lost");
            // It ends when the disk lets it.
            thread.thread = None;
        }
    }
}

/// What there is one of in the process.
struct Process {
    signals: OwnedFd,
    /// Rung when guest memory faults.
    faults: Doorbell,
    /// Tells that the log has room again.
    log: Option<RawFd>,
}

impl Process {
    /// Deals with `fd`, if it is one of these.
    fn ready(&self, fd: u64, inbox: &Inbox) -> bool {
        if fd == self.signals.as_raw_fd() as u64 {
            inbox.tell(match take_signal(&self.signals) {
                Some(libc::SIGUSR1) => Event::PowerButton,
                _ => Event::Terminate,
            });
        } else if fd == self.faults.as_raw_fd() as u64 {
            self.faults.take();
            if let Some(address) = guest_faults::take_lost() {
                inbox.tell(Event::MemoryLost { address });
            }
        } else if self.log.is_some_and(|log| log as u64 == fd) {
            log::drain();
        } else {
            return false;
        }
        true
    }
}

/// What the thread works with.
struct Serving {
    inbox: Inbox,
    epoll: Epoll,
    bell: Doorbell,
    process: Option<Process>,
    orders: Receiver<Order>,
    pumps: Vec<ConsolePump>,
    escape: Option<Doorbell>,
}

fn watch(epoll: &Epoll, fd: RawFd) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))
}

/// Watches the log for having room again. What cannot be watched always has room.
fn watch_room(epoll: &Epoll, fd: RawFd) -> io::Result<()> {
    let events = EventSet::OUT | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, fd as u64))
}

impl Serving {
    fn run(mut self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = self.epoll.wait(-1, &mut events).unwrap_or(0);
            for event in events.iter().take(count) {
                let fd = event.data();
                if fd == self.bell.as_raw_fd() as u64 {
                    self.bell.take();
                } else if self.process.as_ref().is_some_and(|process| process.ready(fd, &self.inbox)) {
                    continue;
                } else if self
                    .escape
                    .as_ref()
                    .is_some_and(|bell| bell.as_raw_fd() as u64 == fd && bell.take())
                {
                    self.inbox.tell(Event::Terminate);
                } else if let Some(pump) = self.pumps.iter_mut().find(|pump| pump.fd() as u64 == fd)
                    && pump.ready().escape
                {
                    self.inbox.tell(Event::Terminate);
                }
            }
            // After the events: they may be of consoles that an order does away with.
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    Order::Serve { pumps, escape } => self.serve(pumps, escape),
                    Order::Finish(done) => {
                        self.finish();
                        let _ = done.send(());
                    }
                    Order::End => return,
                }
            }
        }
    }

    fn serve(&mut self, mut pumps: Vec<ConsolePump>, escape: Option<Doorbell>) {
        pumps.iter_mut().for_each(ConsolePump::begin);
        for fd in pumps.iter().map(ConsolePump::fd).chain(escape.as_ref().map(AsRawFd::as_raw_fd)) {
            if let Err(error) = watch(&self.epoll, fd) {
                tracing::error!("a console does not work: watching it: {error}");
            }
        }
        self.pumps = pumps;
        self.escape = escape;
    }

    fn finish(&mut self) {
        let escape = self.escape.take();
        for fd in self.pumps.iter().map(ConsolePump::fd).chain(escape.as_ref().map(AsRawFd::as_raw_fd)) {
            // A descriptor that is not watched needs not be forgotten.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        for mut pump in self.pumps.drain(..) {
            pump.finish();
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
