//! Where a console's output and input are on the host: nowhere, this terminal, a pseudo-terminal, a file or a
//! socket.
//!
//! A [`HostConsole`] has no thread and blocks on nothing but a disk that is slow to take a file's bytes. It shows one descriptor, [`HostConsole::fd`], that is
//! readable whenever [`HostConsole::service`] or [`HostConsole::read`] has something to do, so that one epoll loop
//! drives any number of them. Writing is always accepted: what the peer is too slow to take waits in a buffer of
//! 64 KiB, of which the oldest bytes are given up, and counted, when it runs over. On a socket or
//! pseudo-terminal the same buffer shows whoever joins late what was last written.
//!
//! A device on a CPU thread writes to a [`ConsoleOutput`], which is a ring that a [`ConsolePump`] carries on to its
//! [`HostConsole`].

mod file;
mod pseudo_terminal;
mod pump;
mod replay;
mod ring;
mod socket;
mod system;
mod terminal;

pub use pump::{ConsoleInput, ConsolePump, PumpEvents, connect};
pub use ring::{RING_SIZE, RingReader, RingWriter, output_ring};
pub use terminal::restore_terminal;

use machine::doorbell::Doorbell;
use machine::inspect::{Inspect, Value, json};
use replay::{REPLAY_SIZE, Replay};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What a guest's output goes to. Writing never blocks.
pub trait ConsoleOutput: Send + Inspect {
    /// Takes the bytes, or gives up what cannot be taken and counts it.
    fn write(&mut self, bytes: &[u8]);
}

/// Output to nowhere.
#[derive(Debug, Default)]
pub struct NullOutput;

impl ConsoleOutput for NullOutput {
    fn write(&mut self, _bytes: &[u8]) {}
}

machine::inspect!(NullOutput, this => {
    mode: "null",
});

/// Where a console ends on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Output vanishes and there is no input.
    Null,
    /// This process's standard input and output. A terminal is put into raw mode and given back at the end,
    /// also after a panic or a fatal signal. Pressing Ctrl-] three times in a row is the escape to the
    /// monitor, see [`HostConsole::on_escape`]; the guest gets those keys too.
    Tty,
    /// A new pseudo-terminal, to which a symbolic link is made if a path is given.
    Pty(Option<PathBuf>),
    /// Output to a file, which is emptied by [`HostConsole::begin`] or at the first output; no input.
    File(PathBuf),
    /// A UNIX stream socket that listens at the path. It serves one client after the other.
    Socket(PathBuf),
}

/// Why a console could not be opened on the host.
#[derive(Debug, Error)]
#[error("{what} {path}: {source}", path = .path.display())]
pub struct OpenError {
    /// What was being done.
    pub what: &'static str,
    /// To what.
    pub path: PathBuf,
    /// The host's answer.
    pub source: io::Error,
}

impl OpenError {
    fn new(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { what, path, source }
    }
}

/// The size of a console window, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What [`HostConsole::service`] noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The window has a new size.
    pub resized: bool,
    /// A peer came or went.
    pub peer_changed: bool,
    /// The user pressed the escape (only on the terminal).
    pub escape: bool,
}

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Interest {
    readable: bool,
    writable: bool,
}

/// The other end of a console, without its output buffer.
trait Peer: Send {
    /// What `inspect` says of it.
    fn describe(&self) -> Value;

    /// Whether somebody is there to write to.
    fn present(&self) -> bool;

    /// The machine begins.
    fn begin(&mut self) {}

    /// Writes what can be written now.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Reads what can be read now; 0 is the end of input.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Takes notice of events on its descriptors. `joined` is set to true when somebody new is to be shown the
    /// recent output.
    fn service(&mut self, watch: &Watch, joined: &mut bool) -> Events;

    /// Watches the peer's descriptor for this from now on.
    fn watch(&mut self, watch: &Watch, interest: Interest);

    /// The window's size, if it has one.
    fn size(&self) -> Option<WindowSize> {
        None
    }

    /// Whether somebody may join late, who is shown the recent output.
    fn replays(&self) -> bool {
        true
    }

    /// Whether the host may have [`Peer::write`] wait.
    fn may_wait(&self) -> bool {
        false
    }

    /// Where it is found, if only the host knows.
    fn path(&self) -> Option<&Path> {
        None
    }
}

/// The descriptors watched by one console.
struct Watch(Epoll);

impl Watch {
    fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    fn add(&self, fd: RawFd, events: EventSet) -> io::Result<()> {
        self.0.ctl(ControlOperation::Add, fd, EpollEvent::new(events, fd as u64))
    }

    /// Watches `fd` for `events` from now on; for none, not at all, so that a hang-up is not told over and over.
    fn set(&self, fd: RawFd, events: EventSet) {
        if events.is_empty() {
            self.remove(fd);
        } else {
            let event = EpollEvent::new(events, fd as u64);
            if self.0.ctl(ControlOperation::Modify, fd, event).is_err() {
                // Not watched so far. It was once, so the host lets it be watched.
                let _ = self.0.ctl(ControlOperation::Add, fd, event);
            }
        }
    }

    /// The same, but hang-ups are told in any case: the peer takes `fd` off when it has seen one.
    fn hang_up_or(&self, fd: RawFd, events: EventSet) {
        // It was added when the peer came.
        let _ = self.0.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, fd as u64));
    }

    fn remove(&self, fd: RawFd) {
        // It may not have been added, which is as good.
        let _ = self.0.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// What `fd` is ready for now, of what it is watched for.
    fn ready(&self, fd: RawFd) -> EventSet {
        let mut events = [EpollEvent::default(); 8];
        let count = self.0.wait(0, &mut events).unwrap_or(0);
        let found = events.iter().take(count).find(|event| event.data() == fd as u64);
        found.map_or(EventSet::empty(), EpollEvent::event_set)
    }
}

/// A console's end on the host.
pub struct HostConsole {
    watch: Watch,
    peer: Box<dyn Peer>,
    replay: Replay,
    escape: Option<Doorbell>,
    /// Who joins late is shown what was written before.
    shows_past: bool,
    input_wanted: bool,
    /// What the peer's descriptor is watched for; `None` for one that has just come.
    interest: Option<Interest>,
    size: Option<WindowSize>,
    bytes_read: u64,
    bytes_written: u64,
    errors: u64,
}

impl HostConsole {
    /// Opens a console.
    ///
    /// # Errors
    /// When the host refuses, saying what was being done to which path.
    pub fn open(mode: &Mode) -> Result<Self, OpenError> {
        let watch = Watch::new().map_err(OpenError::new("watching the console", "epoll"))?;
        let peer: Box<dyn Peer> = match mode {
            Mode::Null => Box::new(NullPeer),
            Mode::Tty => Box::new(terminal::Terminal::open(&watch)?),
            Mode::Pty(link) => Box::new(pseudo_terminal::PseudoTerminal::open(link.as_deref(), &watch)?),
            Mode::File(path) => Box::new(file::FilePeer::open(path)?),
            Mode::Socket(path) => Box::new(socket::Socket::open(path, &watch)?),
        };
        let mut console = Self {
            watch,
            size: peer.size(),
            peer,
            replay: Replay::new(),
            escape: None,
            shows_past: true,
            input_wanted: true,
            interest: None,
            bytes_read: 0,
            bytes_written: 0,
            errors: 0,
        };
        console.update_interest();
        Ok(console)
    }

    /// Readable when there is something to do. It stays the same for the console's life.
    pub fn fd(&self) -> RawFd {
        self.watch.0.as_raw_fd()
    }

    /// Rings `doorbell` when the user presses the escape: the way out for who has no other terminal.
    pub fn on_escape(&mut self, doorbell: Doorbell) {
        self.escape = Some(doorbell);
    }

    /// Shows who joins late nothing of what was written before: for programs, which would take it for what is said to them.
    pub fn without_past(&mut self) {
        self.shows_past = false;
    }

    /// The machine begins: a file no longer has what an earlier one left.
    pub fn begin(&mut self) {
        self.peer.begin();
    }

    /// Takes notice of what happened: peers that come and go, room for output, a resized window.
    pub fn service(&mut self) -> Events {
        let mut joined = false;
        let mut events = self.peer.service(&self.watch, &mut joined);
        if joined {
            if self.shows_past {
                self.replay.rewind();
            } else {
                self.replay.give_up();
            }
            self.interest = None;
        }
        if let Some(doorbell) = self.escape.as_ref().filter(|_| events.escape) {
            doorbell.ring();
        }
        self.flush();
        let size = self.peer.size();
        events.resized = size.is_some() && size != self.size;
        if size.is_some() {
            self.size = size;
        }
        events
    }

    /// Input that is there now. 0: none.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        match self.peer.read(buffer) {
            Ok(count) => {
                self.bytes_read = self.bytes_read.saturating_add(count as u64);
                count
            }
            Err(_) => 0,
        }
    }

    /// Whether [`HostConsole::fd`] is to tell of input. Turned off while the guest has no room for it.
    pub fn want_input(&mut self, wanted: bool) {
        self.input_wanted = wanted;
        self.update_interest();
    }

    /// Writes output, now or when the peer has room.
    pub fn write(&mut self, bytes: &[u8]) {
        self.bytes_written = self.bytes_written.saturating_add(bytes.len() as u64);
        self.replay.push(bytes, self.peer.present());
        self.flush();
    }

    /// Number of bytes that wait for a slow peer.
    pub fn backlog(&self) -> usize {
        if self.peer.present() { self.replay.pending().len() } else { 0 }
    }

    /// Where it is found on the host, if the host chose: the path of a pseudo-terminal.
    pub fn path(&self) -> Option<&Path> {
        self.peer.path()
    }

    /// Whether the host may have [`HostConsole::write`] wait: for a disk. Nothing else does.
    pub fn may_wait(&self) -> bool {
        self.peer.may_wait()
    }

    /// Whether somebody is at the other end.
    pub fn has_peer(&self) -> bool {
        self.peer.present()
    }

    /// The window's size, if the other end has one.
    pub fn size(&self) -> Option<WindowSize> {
        self.size.filter(|size| size.columns != 0 && size.rows != 0)
    }

    /// Writes what waits for a slow peer, for as long as it takes some of it every 100 ms. For when the console is
    /// not going to be serviced any more; done when it is dropped.
    fn finish(&mut self) {
        self.want_input(false);
        for _ in 0..REPLAY_SIZE {
            let before = self.backlog();
            if before == 0 || !system::wait_readable(self.fd(), Duration::from_millis(100)) {
                break;
            }
            self.service();
            if self.backlog() == before {
                break;
            }
        }
    }

    fn flush(&mut self) {
        while self.peer.present() {
            let pending = self.replay.pending();
            if pending.is_empty() {
                break;
            }
            match self.peer.write(pending) {
                Ok(0) => break,
                Ok(count) => self.replay.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // A full disk or a peer that is about to be seen leaving: this output is given up.
                    self.errors = self.errors.saturating_add(1);
                    self.replay.give_up();
                }
            }
        }
        if !self.peer.replays() && self.replay.pending().is_empty() {
            self.replay.forget();
        }
        self.update_interest();
    }

    fn update_interest(&mut self) {
        let interest = Interest { readable: self.input_wanted, writable: self.backlog() > 0 };
        if self.interest != Some(interest) {
            self.interest = Some(interest);
            self.peer.watch(&self.watch, interest);
        }
    }
}

impl Drop for HostConsole {
    fn drop(&mut self) {
        self.finish();
    }
}

machine::inspect!(HostConsole, this => {
    peer: this.peer.describe(),
    peer_present: this.peer.present(),
    input_wanted,
    bytes_read,
    bytes_written,
    bytes_waiting: this.backlog(),
    bytes_given_up: this.replay.given_up(),
    write_errors: this.errors,
});

struct NullPeer;

impl Peer for NullPeer {
    fn describe(&self) -> Value {
        json!({ "mode": "null" })
    }
    fn present(&self) -> bool {
        false
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
    fn service(&mut self, _watch: &Watch, _joined: &mut bool) -> Events {
        Events::default()
    }
    fn watch(&mut self, _watch: &Watch, _interest: Interest) {}
}

/// The epoll set of a peer with one descriptor.
fn event_set(interest: Interest) -> EventSet {
    let mut events = EventSet::empty();
    if interest.readable {
        events |= EventSet::IN;
    }
    if interest.writable {
        events |= EventSet::OUT;
    }
    events
}

/// A console output that keeps what is written, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    pub(crate) struct Recorder(Arc<Mutex<Vec<u8>>>);

    impl Recorder {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl ConsoleOutput for Recorder {
        fn write(&mut self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }

    impl Inspect for Recorder {
        fn inspect(&self) -> Value {
            json!({})
        }
    }
}

#[cfg(test)]
mod tests;
