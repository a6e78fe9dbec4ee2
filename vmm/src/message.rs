//! What the machine thread is told by others.
//!
//! The machine thread outlives machines: one is shut down, and another one is booted. What is told by the threads of a machine
//! carries that machine's number, so that what comes late from one that is gone is not taken for another's.

use crate::api::{ApiError, Call};
use crate::machine::{Loaded, Machine, Opened};
use crate::monitor::Progress;
use hypervisor::DebugStop;
use machine::effect::{Effect, FunctionAddress};
use std::os::fd::OwnedFd;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::Instant;
use thiserror::Error;
use virtio::device::QueueTask;

/// Why a machine cannot go on.
#[derive(Clone, Debug, Error)]
pub enum Failure {
    /// A CPU cannot.
    #[error("CPU {cpu} cannot go on: {reason}\n{registers}")]
    Cpu {
        /// Its number.
        cpu: u32,
        /// Why.
        reason: String,
        /// Its registers, for a person.
        registers: String,
    },
    /// The host had no memory for a device's access.
    #[error(
        "the host has no memory for guest address {address:#x}: the huge pages or the file system that it comes from are used up, \
         its file was cut short, or it is broken"
    )]
    Memory {
        /// The guest-physical address of the page.
        address: u64,
    },
}

/// Something a machine's own threads tell.
pub enum Message {
    /// A CPU made an access with this effect, and waits until it is complete.
    Effect {
        /// The CPU.
        cpu: u32,
        /// How often the machine had been reset when the CPU made it.
        generation: u64,
        /// What is to be done.
        effect: Effect,
    },
    /// A CPU cannot go on; it is parked.
    CpuFailed {
        /// How often the machine had been reset when the CPU failed.
        generation: u64,
        /// What happened.
        failure: Failure,
    },
    /// The host had no memory for a device's access.
    MemoryLost {
        /// The guest-physical address of the page.
        address: u64,
    },
    /// A CPU that is paused has left the guest.
    CpuParked,
    /// A CPU stopped for the debugger; it is held.
    CpuStopped {
        /// The CPU.
        cpu: u32,
        /// Where and why.
        stop: DebugStop,
    },
    /// A device that was to be added is open, or cannot be.
    Opened {
        /// Which addition it is for.
        addition: u64,
        /// The device.
        result: anyhow::Result<Box<Opened>>,
        /// The descriptors that came with the call.
        files: Vec<OwnedFd>,
        /// It was opened for this.
        work: Work,
    },
    /// The kernel was loaded for a machine that restarts, or cannot be.
    Loaded(Box<Loaded>),
    /// The host gave the pages of a module that is to be added, or cannot.
    Populated(anyhow::Result<()>),
    /// Pages of a module that went are given back to the host.
    MemoryReleased,
    /// The guest was silent for too long for the watchdog of that name, which a worker runs.
    WatchdogExpired(String),
    /// A core dump is complete, or could not be written.
    Dumped(Result<(), ApiError>),
    /// A worker gave back what it ran for a function.
    TasksStopped {
        /// The function.
        function: FunctionAddress,
        /// Its handlers.
        tasks: Vec<QueueTask>,
    },
}

/// What a debugger has done on the machine thread, to the machine if there is one.
pub type Inquiry = Box<dyn FnOnce(Option<&mut Machine>) + Send>;

/// What the machine thread has to act upon.
pub enum Event {
    /// A machine's thread tells something.
    Machine {
        /// The machine's number.
        machine: u64,
        /// What it tells.
        message: Message,
    },
    /// A machine that is being built has come this far.
    Boot {
        /// The machine's number.
        machine: u64,
        /// How far.
        progress: Progress,
        /// Dropped when that is dealt with.
        work: Work,
    },
    /// Nothing is left of a machine that has ended.
    Gone {
        /// The machine's number.
        machine: u64,
    },
    /// The API asks for something.
    Call(Call),
    /// A debugger asks something of the machine, if there is one.
    Debugger(Inquiry),
    /// The host had no memory for a device's access: of the machine that there is.
    MemoryLost {
        /// The guest-physical address of the page.
        address: u64,
    },
    /// The power button is to be pressed (SIGUSR1), so that the guest powers off.
    PowerButton,
    /// The process is to end at once (SIGTERM, SIGINT, SIGHUP, SIGXCPU, the terminal's escape).
    Terminate,
}

/// What a thread does for a machine that may end before it: whoever does it has one of these, until nothing of the machine is left
/// there. Clones stand for the same work.
#[derive(Clone, Default)]
pub struct Work(Arc<()>);

impl Work {
    /// Whether there is another clone.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Where the machine thread is told things. Never blocks.
#[derive(Clone)]
pub struct Inbox(mpsc::Sender<Event>);

impl Inbox {
    /// An inbox, and the end the machine thread reads.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), receiver)
    }

    /// Tells the machine thread. If it is gone, so is everything it could have done.
    pub fn tell(&self, event: Event) {
        let _ = self.0.send(event);
    }

    /// Where the threads of machine number `machine` leave their messages.
    pub fn mailbox(&self, machine: u64) -> Mailbox {
        Mailbox { inbox: self.clone(), machine }
    }
}

/// Where the machine thread gets what it is told, one event after the other.
pub trait Source {
    /// Waits for the next event, until `deadline` if there is one.
    ///
    /// # Errors
    /// When there is none by then, or there can be none any more.
    fn next(&mut self, deadline: Option<Instant>) -> Result<Event, RecvTimeoutError>;
}

/// In the order in which they were told.
impl Source for mpsc::Receiver<Event> {
    fn next(&mut self, deadline: Option<Instant>) -> Result<Event, RecvTimeoutError> {
        match deadline {
            None => self.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.recv_timeout(at.saturating_duration_since(Instant::now())),
        }
    }
}

/// Where the threads of one machine leave messages. Never blocks.
#[derive(Clone)]
pub struct Mailbox {
    inbox: Inbox,
    machine: u64,
}

impl Mailbox {
    /// Leaves a message.
    pub fn post(&self, message: Message) {
        self.inbox.tell(Event::Machine { machine: self.machine, message });
    }
}
