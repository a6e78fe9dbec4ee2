//! The monitor's side of a simulated CPU: performing what its program asks.

#[cfg(target_arch = "aarch64")]
use super::aarch64::Registers;
use super::lane::{Lane, Step};
use super::program::Running;
#[cfg(target_arch = "x86_64")]
use super::x86_64::Registers;
use super::{Board, Program};
use crate::{AddressSpace, CpuAnswer, CpuCall, CpuStart, Error, Exit, GuestDebug, Kick, Result, Vcpu};
use std::sync::Arc;
use std::time::Duration;

/// The largest memory access that exits, in bytes.
const LARGEST_ACCESS: usize = 8;

/// A simulated CPU.
pub(super) struct SimVcpu {
    pub(super) id: u32,
    program: Option<Program>,
    board: Arc<Board>,
    pub(super) lane: Arc<Lane>,
    running: Option<Running>,
    /// The access under way.
    access: Option<Access>,
    /// The last exit was for part of `access`, which the next run completes.
    presented: bool,
    /// The last exit was a call of the firmware, which the next run completes.
    called: bool,
    pub(super) registers: Box<Registers>,
    /// What a debugger asked for. Programs never do what it would stop for.
    pub(super) guest_debug: Option<GuestDebug>,
}

/// An access that exits.
struct Access {
    target: Target,
    /// What is written, or to be filled in.
    data: Vec<u8>,
    write: bool,
    /// How much of `data` previous exits dealt with.
    done: usize,
}

enum Target {
    Port(u16),
    Memory(u64),
}

/// How a step went on.
enum Performed {
    /// The program goes on with this.
    Done(Vec<u8>),
    /// It exits.
    Exits(Access),
}

impl SimVcpu {
    pub(super) fn new(id: u32, program: Option<Program>, board: Arc<Board>, lane: Arc<Lane>) -> Self {
        Self {
            id,
            program,
            board,
            lane,
            running: None,
            access: None,
            presented: false,
            called: false,
            registers: Box::default(),
            guest_debug: None,
        }
    }

    /// The program starts anew with the next run.
    pub(super) fn restart(&mut self) {
        self.running = None;
        self.access = None;
        self.presented = false;
        self.called = false;
        self.lane.change(|state| {
            state.pending.clear();
            state.in_service_level.clear();
        });
    }

    /// Waits for the program's next step; `None`: the CPU was kicked.
    fn next_step(&mut self) -> Result<Option<Step>> {
        let lane = Arc::clone(&self.lane);
        // A CPU that is not started waits, and so does one without a program.
        let has_program = self.program.is_some();
        let begun = self.running.is_some();
        let may_run = lane.wait(|state| {
            let may_run = state.started && has_program;
            if may_run && begun {
                return Some(true);
            }
            if std::mem::take(&mut state.kicked) { Some(false) } else { may_run.then_some(true) }
        });
        if !may_run {
            return Ok(None);
        }
        if self.running.is_none()
            && let Some(program) = &self.program
        {
            let running = Running::start(self.id, Arc::clone(program), Arc::clone(&lane))
                .map_err(|source| Error::Vcpu { id: self.id, what: "start its program", source })?;
            self.running = Some(running);
        }
        Ok(lane.wait(|state| {
            // A program that is computing will ask for something: a kick waits for that, so that a program
            // stands at the same step whenever the kick came.
            let waits = match state.step.as_ref()? {
                Step::Halt => state.pending.is_empty(),
                Step::Ended { panic } => panic.is_none(),
                _ => false,
            };
            if std::mem::take(&mut state.kicked) {
                return Some(None);
            }
            (!waits).then(|| state.step.take())
        }))
    }

    /// Performs one step.
    fn perform(&mut self, step: Step) -> Performed {
        match step {
            Step::PortRead { port, size } => Performed::Exits(Access {
                target: Target::Port(port),
                data: vec![0; usize::from(size)],
                write: false,
                done: 0,
            }),
            Step::PortWrite { port, data } => {
                if self.board.ring(AddressSpace::Port, u64::from(port), &data) {
                    return Performed::Done(Vec::new());
                }
                Performed::Exits(Access { target: Target::Port(port), data, write: true, done: 0 })
            }
            Step::Load { address, length } => {
                let mut data = vec![0; length];
                if length == 0 || self.board.slots.read(address, &mut data) {
                    return Performed::Done(data);
                }
                Performed::Exits(Access { target: Target::Memory(address), data, write: false, done: 0 })
            }
            Step::Store { address, data } => {
                if data.is_empty()
                    || self.board.slots.write(address, &data)
                    || self.board.ring(AddressSpace::Mmio, address, &data)
                {
                    return Performed::Done(Vec::new());
                }
                Performed::Exits(Access { target: Target::Memory(address), data, write: true, done: 0 })
            }
            Step::TakeInterrupt => Performed::Done(self.lane.change(|state| {
                let Some((vector, level)) = state.pending.pop_last() else { return Vec::new() };
                if level {
                    state.in_service_level.insert(vector);
                }
                vec![vector]
            })),
            Step::SendInterrupt { cpu, vector } => {
                self.board.apics.interrupt(cpu, vector, false);
                Performed::Done(Vec::new())
            }
            Step::StartCpu { cpu, .. } => {
                let answer = self.board.apics.start(cpu);
                self.answered(answer)
            }
            Step::CpuState { cpus } => {
                let answer = self.board.apics.any_started(cpus);
                self.answered(answer)
            }
            Step::Advance { ns } => {
                self.board.clock.advance(Duration::from_nanos(ns));
                Performed::Done(Vec::new())
            }
            // The others are dealt with by `run`, or need nothing done.
            Step::Halt
            | Step::StopCpu
            | Step::EndOfInterrupt { .. }
            | Step::TripleFault
            | Step::System(_)
            | Step::Ended { .. } => Performed::Done(Vec::new()),
        }
    }

    /// The firmware answers.
    fn answered(&self, answer: CpuAnswer) -> Performed {
        self.lane.change(|state| state.answer = Some(answer));
        Performed::Done(Vec::new())
    }

    /// The CPU stops: what it was at is over.
    fn stop(&mut self) {
        self.restart();
        self.lane.change(|state| state.started = false);
    }

    /// The program goes on.
    fn resume(&self, result: Vec<u8>) {
        self.lane.change(|state| state.result = Some(result));
    }

    /// Completes what the last exit was for: a call, or part of an access.
    fn complete_exit(&mut self) {
        if std::mem::take(&mut self.called) {
            self.resume(Vec::new());
        }
        if !std::mem::take(&mut self.presented) {
            return;
        }
        let Some(mut access) = self.access.take() else { return };
        access.done = access.done.saturating_add(access.length());
        if access.done < access.data.len() {
            self.access = Some(access);
        } else {
            self.resume(if access.write { Vec::new() } else { access.data });
        }
    }
}

impl Access {
    /// How many bytes the next exit has: a small access is split where it crosses a multiple of eight bytes, as by a
    /// processor; a block goes in naturally aligned pieces.
    fn length(&self) -> usize {
        let left = self.data.len().saturating_sub(self.done);
        let Target::Memory(address) = self.target else { return left };
        let at = address.wrapping_add(self.done as u64) as usize % LARGEST_ACCESS;
        if self.data.len() <= LARGEST_ACCESS {
            return left.min(LARGEST_ACCESS.saturating_sub(at));
        }
        let natural = 1 << at.trailing_zeros().min(LARGEST_ACCESS.trailing_zeros());
        natural.min(1 << left.ilog2())
    }

    fn exit(&mut self) -> Exit<'_> {
        let length = self.length();
        let done = self.done;
        let data = self.data.get_mut(done..done.saturating_add(length)).unwrap_or_default();
        match self.target {
            Target::Port(port) if self.write => Exit::PortWrite { port, size: length as u8, data },
            Target::Port(port) => Exit::PortRead { port, size: length as u8, data },
            Target::Memory(address) => {
                let address = address.wrapping_add(done as u64);
                if self.write { Exit::MmioWrite { address, data } } else { Exit::MmioRead { address, data } }
            }
        }
    }
}

impl Vcpu for SimVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        self.complete_exit();
        while self.access.is_none() {
            let Some(step) = self.next_step()? else { return Ok(Exit::Interrupted) };
            match step {
                Step::TripleFault => {
                    self.resume(Vec::new());
                    return Ok(Exit::TripleFault);
                }
                Step::System(event) => {
                    self.called = true;
                    return Ok(Exit::System(event));
                }
                Step::StopCpu => {
                    self.stop();
                    if self.board.forwards_cpu_calls() {
                        return Ok(Exit::Stopped);
                    }
                }
                Step::StartCpu { cpu, start } if self.board.forwards_cpu_calls() => {
                    self.called = true;
                    return Ok(Exit::CpuCall(CpuCall::Start { cpu: Some(cpu), start }));
                }
                Step::CpuState { cpus } if self.board.forwards_cpu_calls() => {
                    self.called = true;
                    return Ok(Exit::CpuCall(CpuCall::State { cpus }));
                }
                Step::EndOfInterrupt { vector } => {
                    self.resume(Vec::new());
                    if self.lane.change(|state| state.in_service_level.remove(&vector)) {
                        return Ok(Exit::EndOfInterrupt { vector });
                    }
                }
                Step::Ended { panic } => {
                    let reason = panic.unwrap_or_default();
                    return Ok(Exit::Failed {
                        reason: format!("the program of CPU {} failed: {reason}", self.id),
                    });
                }
                step => match self.perform(step) {
                    Performed::Done(result) => self.resume(result),
                    Performed::Exits(access) => self.access = Some(access),
                },
            }
        }
        match &mut self.access {
            Some(_) if self.lane.change(|state| std::mem::take(&mut state.kicked)) => Ok(Exit::Interrupted),
            Some(access) => {
                self.presented = true;
                Ok(access.exit())
            }
            None => Ok(Exit::Interrupted),
        }
    }

    fn is_off(&self) -> bool {
        self.board.forwards_cpu_calls() && !self.lane.state().started
    }

    fn start(&mut self, start: &CpuStart) -> Result<()> {
        self.restart();
        self.registers.begin(start);
        self.lane.change(|state| state.started = true);
        Ok(())
    }

    fn answer(&mut self, answer: CpuAnswer) -> Result<()> {
        self.lane.change(|state| state.answer = Some(answer));
        Ok(())
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.lane) as Arc<dyn Kick>
    }

    fn describe(&self) -> String {
        let state = self.lane.state();
        format!(
            "simulated CPU {}: started {}, at {:?}, pending interrupts {:02x?}, debugger {:?}",
            self.id, state.started, state.step, state.pending, self.guest_debug
        )
    }

    fn native(&mut self) -> &mut dyn crate::native::VcpuState {
        self
    }
}

impl Drop for SimVcpu {
    fn drop(&mut self) {
        // The program's thread ends first.
        self.running = None;
        self.board.apics.remove(self.id);
    }
}
