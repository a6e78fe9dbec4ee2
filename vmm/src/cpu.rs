//! CPU threads: each owns one [`Vcpu`] and runs it, carrying its exits to the buses.
//!
//! The machine thread directs a CPU through its [`CpuThread`]: run, pause, end, or perform a task on the CPU while
//! it is out of the guest. A CPU is *parked* when it is out of the guest and will stay so until told: it is
//! paused, or waits for the machine thread to complete the effect of an access it made. A parked CPU is between two
//! instructions, so that its state can be read and replaced.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod control;
mod exit;
mod peers;

pub use peers::Peers;

use crate::exits::ExitCounters;
use crate::message::{Failure, Mailbox, Message};
use anyhow::{Context, Result};
use control::{Attended, Control};
use exit::{Buses, Step};
use hypervisor::Vcpu;
use machine::bus::BusHandle;
use machine::inspect::{Inspect, Value, json};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a CPU may take to do something between two instructions, which the machine thread waits for. One that the host keeps, such
/// as in memory that it cannot have from a file, takes longer; then it is not done.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why something is not done on a CPU.
pub const KEPT: &str = "the host keeps the CPU; look after the memory and the files that the guest uses";

/// Bytes of the stack of a CPU's thread.
pub const STACK: usize = 256 << 10;

/// Something done to a CPU on its own thread, out of the guest. What it returns tells whoever waits, once the CPU's state is known.
pub type Task = Box<dyn FnOnce(&mut dyn Vcpu) -> Box<dyn FnOnce()> + Send>;

/// What a CPU thread may reach.
#[derive(Clone)]
pub struct Surroundings {
    /// Memory-mapped devices.
    pub mmio: BusHandle,
    /// Devices at I/O ports.
    pub port: BusHandle,
    /// Where acknowledged level-triggered interrupts are told.
    pub end_of_interrupt: Arc<dyn Fn(u8) + Send + Sync>,
    /// The machine's CPUs, this one among them while it is there.
    pub peers: Arc<Peers>,
    /// Where effects and failures are told.
    pub mailbox: Mailbox,
}

/// A CPU's thread, as the machine thread holds it.
pub struct CpuThread {
    control: Arc<Control>,
    thread: Option<JoinHandle<Box<dyn Vcpu>>>,
}

impl CpuThread {
    /// Starts the thread of CPU `id`, paused. `confine` is called on the thread before it runs the guest (affinity,
    /// system call filter).
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn start(
        id: u32,
        vcpu: Box<dyn Vcpu>,
        surroundings: Surroundings,
        confine: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let control = Arc::new(Control::default());
        {
            let mut state = control.lock();
            state.paused = true;
            state.off = vcpu.is_off();
        }
        control.attention.store(true, Ordering::Release);
        let on_thread = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK)
            .spawn(move || {
                confine();
                run(id, vcpu, surroundings, &on_thread)
            })
            .with_context(|| format!("starting the thread of CPU {id}"))?;
        Ok(Self { control, thread: Some(thread) })
    }

    /// The CPU is there for the others, which may start it.
    pub fn meet(&self, number: u32, peers: &Peers) {
        peers.add(number, Arc::clone(&self.control));
    }

    /// Asks the CPU to leave the guest and wait. Returns at once; when it does, or if it has already, [`Message::CpuParked`] tells.
    pub fn pause(&self) {
        self.control.direct(|state| {
            state.paused = true;
            state.told = false;
        });
    }

    /// Whether the CPU is out of the guest, after [`CpuThread::pause`].
    pub fn is_parked(&self) -> bool {
        let state = self.control.lock();
        state.parked || state.ended
    }

    /// Waits until the CPU is out of the guest, after [`CpuThread::hold`]. `false`: the host keeps it for longer than can be waited.
    pub fn wait_parked(&self) -> bool {
        self.control.wait(|state| state.parked || state.ended)
    }

    /// Lets the CPU run the guest.
    pub fn resume(&self) {
        self.control.direct(|state| state.paused = false);
    }

    /// Asks the CPU to leave the guest and wait, for a debugger. It runs again when it is neither paused nor held.
    pub fn hold(&self) {
        self.control.direct(|state| state.held = true);
    }

    /// Undoes [`CpuThread::hold`].
    pub fn release(&self) {
        self.control.direct(|state| state.held = false);
    }

    /// Has the CPU leave the guest and wait, for its share of the time, or undoes that.
    pub fn throttle(&self, hold: bool) {
        self.control.direct(|state| state.throttled = hold);
    }

    /// The maps changed: the CPU lets go of the old ones.
    pub fn refresh_maps(&self) {
        self.control.direct(|_| {});
    }

    /// An effect the CPU waits for is complete.
    pub fn effect_done(&self) {
        self.control.direct(|state| state.effects = state.effects.saturating_sub(1));
    }

    /// The machine is reset: forgets what the CPU waits for. The CPU is paused.
    pub fn forget_effects(&self) {
        self.control.direct(|state| {
            state.effects = 0;
            state.generation = state.generation.wrapping_add(1);
        });
    }

    /// The CPU was added to a machine that has been reset so often.
    pub fn set_generation(&self, generation: u64) {
        self.control.lock().generation = generation;
    }

    /// Counts [`CpuThread::forget_effects`].
    pub fn generation(&self) -> u64 {
        self.control.lock().generation
    }

    /// Performs `task` on the CPU's thread, between two instructions, and returns its result.
    ///
    /// # Errors
    /// When the CPU has ended, or the host keeps it for too long.
    pub fn call<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Result<T> {
        self.begin(task)?.wait()
    }

    /// As [`CpuThread::call`], without waiting for the result.
    ///
    /// # Errors
    /// As [`CpuThread::call`].
    pub fn begin<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Result<Pending<T>> {
        let (sender, receiver) = std::sync::mpsc::channel();
        anyhow::ensure!(self.control.wait(|state| state.task.is_none() || state.ended), KEPT);
        anyhow::ensure!(!self.control.lock().ended, "the CPU has ended");
        let mut number = 0;
        self.control.direct(|state| {
            state.tasks = state.tasks.wrapping_add(1);
            number = state.tasks;
            let task: Task = Box::new(move |vcpu| {
                let result = task(vcpu);
                // The receiver may have lost interest.
                Box::new(move || _ = sender.send(result))
            });
            state.task = Some((number, task));
        });
        Ok(Pending { result: receiver, control: Arc::clone(&self.control), number })
    }

    /// The exit counters.
    pub fn exits(&self) -> &ExitCounters {
        &self.control.exits
    }

    /// What it does and did.
    pub fn inspect(&self) -> Value {
        let state = self.control.lock();
        json!({
            "parked": state.parked,
            "paused": state.paused,
            "held": state.held,
            "throttled": state.throttled,
            "off": state.is_off(),
            "effects": state.effects,
            "exits": self.control.exits.inspect(),
        })
    }

    /// Asks the CPU to end. Returns at once.
    pub fn ask_to_end(&self) {
        self.control.direct(|state| state.ending = true);
    }

    /// Waits until the CPU has ended, after [`CpuThread::ask_to_end`]. `false`: the host keeps it for longer than can be waited.
    pub fn wait_ended(&self) -> bool {
        self.control.wait(|state| state.ended)
    }

    /// Whether the CPU has ended.
    pub fn has_ended(&self) -> bool {
        self.control.lock().ended
    }

    /// Ends the CPU's thread, and returns what it ran.
    pub fn end(&mut self) -> Option<Box<dyn Vcpu>> {
        self.ask_to_end();
        // A thread that panicked has ended too; its panic was reported by the hook.
        self.thread.take()?.join().ok()
    }
}

impl Drop for CpuThread {
    fn drop(&mut self) {
        self.end();
    }
}

/// A task's result that is still to come.
pub struct Pending<T> {
    result: std::sync::mpsc::Receiver<T>,
    control: Arc<Control>,
    /// The task's.
    number: u64,
}

impl<T> Pending<T> {
    /// Waits for it. What the CPU has not begun by then it does not do later.
    ///
    /// # Errors
    /// As [`CpuThread::call`].
    pub fn wait(self) -> Result<T> {
        let answer = self.result.recv_timeout(PATIENCE).or_else(|error| match error {
            // It may have been done just now.
            RecvTimeoutError::Timeout if !self.withdraw() => self.result.recv_timeout(PATIENCE),
            error => Err(error),
        });
        answer.map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow::anyhow!(KEPT),
            RecvTimeoutError::Disconnected => anyhow::anyhow!("the CPU has ended"),
        })
    }

    /// Takes the task back. `false`: the CPU has begun it.
    fn withdraw(&self) -> bool {
        let mut state = self.control.lock();
        let mine = state.task.take_if(|(number, _)| *number == self.number).is_some();
        if mine {
            self.control.changed.notify_all();
        }
        mine
    }
}

fn run(id: u32, mut vcpu: Box<dyn Vcpu>, surroundings: Surroundings, control: &Control) -> Box<dyn Vcpu> {
    let Surroundings { mmio, port, end_of_interrupt, peers, mailbox } = surroundings;
    let kick = control.kick.get_or_init(|| vcpu.kick_handle());
    let mut buses = Buses { mmio: mmio.reader(), port: port.reader(), end_of_interrupt, peers };
    // Each of them is waited for before the next instruction.
    let tell = |effect| {
        let mut state = control.lock();
        state.effects = state.effects.saturating_add(1);
        let generation = state.generation;
        drop(state);
        control.attention.store(true, Ordering::Release);
        mailbox.post(Message::Effect { cpu: id, generation, effect });
    };
    let fail = |vcpu: &dyn Vcpu, reason| {
        let failure = Failure::Cpu { cpu: id, reason, registers: vcpu.describe() };
        let mut state = control.lock();
        state.paused = true;
        let generation = state.generation;
        drop(state);
        control.attention.store(true, Ordering::Release);
        mailbox.post(Message::CpuFailed { generation, failure });
    };
    // The last exit was an access, whose instruction the hypervisor completes only when the CPU is run again.
    let mut within_instruction = false;
    loop {
        if control.attention.load(Ordering::Acquire) {
            if within_instruction {
                // The CPU completes the instruction and does not begin another one.
                kick.kick();
            } else {
                // What was taken out of the machine is not kept by an old map.
                let woken = || buses.refresh();
                match control.attend(&mut *vcpu, || mailbox.post(Message::CpuParked), woken) {
                    Attended::Run => buses.refresh(),
                    Attended::Start(start) => {
                        let started = vcpu.start(&start);
                        control.started(vcpu.is_off());
                        if let Err(error) = started {
                            fail(&*vcpu, error.to_string());
                        }
                        continue;
                    }
                    Attended::End => break,
                }
            }
        }
        let step = exit::step(&mut *vcpu, &mut buses, &control.exits, &tell);
        within_instruction = matches!(step, Step::Access);
        match step {
            Step::Access | Step::GoOn => {}
            Step::Debug(stop) => {
                control.lock().held = true;
                control.attention.store(true, Ordering::Release);
                mailbox.post(Message::CpuStopped { cpu: id, stop });
            }
            Step::Answer(answer) => {
                if let Err(error) = vcpu.answer(answer) {
                    fail(&*vcpu, error.to_string());
                }
            }
            Step::Stopped => control.stopped(),
            Step::Failed(reason) => fail(&*vcpu, reason),
        }
    }
    let mut state = control.lock();
    state.ended = true;
    state.parked = true;
    control.changed.notify_all();
    drop(state);
    vcpu
}

/// Makes the calling thread run on these host CPUs only.
///
/// # Errors
/// When there are no such CPUs, or the host does not permit it.
pub fn set_affinity(host_cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in host_cpus {
        if *cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no host CPU {cpu}")));
        }
        // SAFETY: the index was just checked against the set's size.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the set is initialized and its size is given.
    let result = unsafe { libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
