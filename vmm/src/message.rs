//! What the machine thread is told by others.

use machine::effect::{Effect, FunctionAddress};
use std::sync::mpsc;
use virtio::device::QueueTask;

/// A CPU that cannot go on.
#[derive(Clone, Debug)]
pub struct CpuFailure {
    /// Its number.
    pub cpu: u32,
    /// Why.
    pub reason: String,
    /// Its registers, for a person.
    pub registers: String,
}

/// Something the machine thread has to act upon.
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
        failure: CpuFailure,
    },
    /// A worker gave back what it ran for a function.
    TasksStopped {
        /// The function.
        function: FunctionAddress,
        /// Its handlers.
        tasks: Vec<QueueTask>,
    },
    /// The power button is to be pressed (SIGUSR1), so that the guest powers off.
    PowerButton,
    /// The process is to end at once (SIGTERM, SIGINT, SIGHUP, the terminal's escape).
    Terminate,
}

/// Where messages for the machine thread are put. Never blocks.
#[derive(Clone)]
pub struct Mailbox(mpsc::Sender<Message>);

impl Mailbox {
    /// A mailbox, and the end the machine thread reads.
    pub fn new() -> (Self, mpsc::Receiver<Message>) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), receiver)
    }

    /// Leaves a message. If the machine thread is gone, so is the machine, and the message with it.
    pub fn post(&self, message: Message) {
        let _ = self.0.send(message);
    }
}
