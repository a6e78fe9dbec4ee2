//! The debugger's way in: GDB's remote serial protocol on a UNIX socket (`--gdb path=`).
//!
//! One thread serves one debugger at a time. CPUs are GDB's threads, numbered from 1. When a debugger comes the machine stops;
//! when it goes (also without a word) its breakpoints are taken away and the machine goes on.

mod target;

use crate::message::{Event, Inbox};
use crate::seccomp::{self, ThreadKind};
use crate::socket_file::SocketFile;
use anyhow::{Context, Result};
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use target::GdbTarget;

/// Listens at `path`, and serves debuggers on a thread of its own. The socket's path goes with what is returned.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, inbox: Inbox) -> Result<SocketFile> {
    let (listener, file) =
        SocketFile::bind(path).with_context(|| format!("--gdb path={}", path.display()))?;
    let serve = move || {
        seccomp::confine(ThreadKind::Debugger);
        for stream in listener.incoming() {
            match stream.map_err(anyhow::Error::from).and_then(|stream| session(stream, &inbox)) {
                Ok(()) => tracing::info!("the debugger is gone"),
                Err(error) => tracing::warn!("a debugger is gone: {error:#}"),
            }
        }
    };
    let builder = std::thread::Builder::new().name("gdb".into()).stack_size(256 << 10);
    builder.spawn(serve).context("starting the debugger's thread")?;
    Ok(file)
}

/// What a debugger that says `bytes` is answered when the machine is gone: everything of the protocol but the machine itself. For
/// tests of that.
///
/// # Errors
/// When the host is out of descriptors.
pub fn answers(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut target = GdbTarget::of_no_machine()?;
    let mut answered = Vec::new();
    let Ok(mut state) = GdbStub::new(Kept(&mut answered)).run_state_machine(&mut target) else {
        return Ok(answered);
    };
    for byte in bytes {
        let next = match state {
            GdbStubStateMachine::Idle(idle) => idle.incoming_data(&mut target, *byte),
            GdbStubStateMachine::Running(running) => running.incoming_data(&mut target, *byte),
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                let none: Option<MultiThreadStopReason<u64>> = None;
                interrupt.interrupt_handled(&mut target, none)
            }
            GdbStubStateMachine::Disconnected(_) => break,
        };
        match next {
            Ok(next) => state = next,
            Err(_) => break,
        }
    }
    Ok(answered)
}

/// Keeps what is answered.
struct Kept<'a>(&'a mut Vec<u8>);

impl Connection for Kept<'_> {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves one debugger until it goes.
fn session(stream: UnixStream, inbox: &Inbox) -> Result<()> {
    let mut target = GdbTarget::attach(inbox.clone())?;
    tracing::info!("a debugger has come");
    let connection = Buffered { stream: stream.try_clone()?, output: Vec::new() };
    let mut input = Input { stream, bytes: [0; 4096], at: 0, end: 0 };
    let served = converse(&mut target, connection, &mut input);
    if served.as_ref().is_ok_and(|reason| *reason == Some(DisconnectReason::Kill)) {
        inbox.tell(Event::Terminate);
    }
    let detached = target.detach();
    served?;
    detached
}

/// Passes what the debugger says to `target`, and what stops the machine to the debugger.
fn converse(
    target: &mut GdbTarget,
    connection: Buffered,
    input: &mut Input,
) -> Result<Option<DisconnectReason>> {
    let failed = |error| anyhow::anyhow!("{error}");
    let mut state = GdbStub::new(connection).run_state_machine(target).map_err(failed)?;
    loop {
        state = match state {
            GdbStubStateMachine::Idle(idle) => {
                let Some(byte) = input.next()? else { return Ok(None) };
                idle.incoming_data(target, byte).map_err(failed)?
            }
            GdbStubStateMachine::Running(running) => {
                if let Some(reason) = target.stop_reason() {
                    running.report_stop(target, reason).map_err(failed)?
                } else if input.waits(target.bell().as_raw_fd())? {
                    let Some(byte) = input.next()? else { return Ok(None) };
                    running.incoming_data(target, byte).map_err(failed)?
                } else {
                    GdbStubStateMachine::Running(running)
                }
            }
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                target.interrupt()?;
                let reason =
                    MultiThreadStopReason::SignalWithThread { tid: target::FIRST, signal: Signal::SIGINT };
                interrupt.interrupt_handled(target, Some(reason)).map_err(failed)?
            }
            GdbStubStateMachine::Disconnected(gone) => return Ok(Some(gone.get_reason())),
        };
    }
}

/// What the debugger says.
struct Input {
    stream: UnixStream,
    bytes: [u8; 4096],
    at: usize,
    end: usize,
}

impl Input {
    /// The next byte; `None` when the debugger is gone.
    fn next(&mut self) -> io::Result<Option<u8>> {
        if self.at == self.end {
            self.at = 0;
            self.end = self.stream.read(&mut self.bytes)?;
        }
        let byte = self.bytes.get(self.at..self.end).and_then(|bytes| bytes.first()).copied();
        self.at = self.at.saturating_add(usize::from(byte.is_some()));
        Ok(byte)
    }

    /// Waits until the debugger says something (`true`) or `other` is readable.
    fn waits(&self, other: i32) -> io::Result<bool> {
        if self.at < self.end {
            return Ok(true);
        }
        let waits = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut both = [waits(self.stream.as_raw_fd()), waits(other)];
        // SAFETY: the array is valid for the call, and its length is given.
        let result = unsafe { libc::poll(both.as_mut_ptr(), both.len() as libc::nfds_t, -1) };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(both[0].revents != 0)
    }
}

/// Gathers an answer, to send it in one piece.
struct Buffered {
    stream: UnixStream,
    output: Vec<u8>,
}

impl Connection for Buffered {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = io::Write::write_all(&mut self.stream, &self.output);
        self.output.clear();
        sent
    }
}
