//! The machine as GDB's protocol sees it.

use crate::machine::Machine;
use crate::machine::debugger::{Going, Link, Stop, StopCause};
use crate::machine::platform::debug::{self, GdbArch, GdbRegister, GdbRegisters, Registers};
use crate::message::{Event, Inbox};
use anyhow::{Context, Result};
use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use hypervisor::native::VcpuState;
use hypervisor::{HardwareBreakpoint, WatchedAccess};
use machine::doorbell::Doorbell;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, channel};

/// CPU 0 as a thread.
pub const FIRST: Tid = NonZero::<usize>::MIN;

/// The machine, from the debugger's thread.
pub struct GdbTarget {
    inbox: Inbox,
    stops: Receiver<Stop>,
    bell: Doorbell,
    going: Going,
}

fn cpu_of(tid: Tid) -> u32 {
    u32::try_from(tid.get() - 1).unwrap_or(u32::MAX)
}

fn tid_of(cpu: u32) -> Tid {
    FIRST.saturating_add(cpu as usize)
}

/// What cannot be done is an error to the debugger, and no end of the session.
fn not_done<T>(result: Result<T>) -> TargetResult<T, GdbTarget> {
    result.map_err(|error| {
        tracing::debug!("the debugger asks for what cannot be done: {error:#}");
        TargetError::NonFatal
    })
}

impl GdbTarget {
    /// Stops the machine for a debugger.
    pub fn attach(inbox: Inbox) -> Result<Self> {
        let (link, stops, bell) = Link::new()?;
        let target = Self { inbox, stops, bell, going: Going::default() };
        target.ask(|machine| machine.attach_debugger(link))?;
        Ok(target)
    }

    /// For a machine that is gone.
    pub fn of_no_machine() -> Result<Self> {
        let (link, stops, bell) = Link::new()?;
        drop(link);
        // Nobody reads what is left in the inbox, so that each question fails at once.
        let (inbox, _) = Inbox::new();
        Ok(Self { inbox, stops, bell, going: Going::default() })
    }

    /// Lets the machine go on without a debugger. A machine that is gone needs nothing.
    pub fn detach(&self) -> Result<()> {
        let (sender, receiver) = channel();
        self.inbox.tell(Event::Debugger(Box::new(move |machine| {
            let _ = sender.send(machine.map_or(Ok(()), Machine::detach_debugger));
        })));
        receiver.recv().unwrap_or(Ok(()))
    }

    /// Rings when the machine stopped.
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// Why the machine stopped, if it did.
    pub fn stop_reason(&self) -> Option<MultiThreadStopReason<u64>> {
        self.bell.take();
        Some(match self.stops.try_recv().ok()? {
            Stop::Ended => MultiThreadStopReason::Exited(0),
            Stop::Cpu { cpu, cause } => {
                let tid = tid_of(cpu);
                match cause {
                    StopCause::Software => MultiThreadStopReason::SwBreak(tid),
                    StopCause::Step => {
                        MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP }
                    }
                    StopCause::Hardware(breakpoint) => match breakpoint.access {
                        WatchedAccess::Execute => MultiThreadStopReason::HwBreak(tid),
                        access => MultiThreadStopReason::Watch {
                            tid,
                            kind: match access {
                                WatchedAccess::Write => WatchKind::Write,
                                WatchedAccess::Read => WatchKind::Read,
                                _ => WatchKind::ReadWrite,
                            },
                            addr: breakpoint.address,
                        },
                    },
                }
            }
        })
    }

    /// Stops the machine, as Ctrl-C does.
    pub fn interrupt(&mut self) -> Result<()> {
        self.ask(crate::machine::Machine::stop_for_debugger)?;
        self.forget_stops();
        Ok(())
    }

    /// What stopped the machine before is told, or void.
    fn forget_stops(&self) {
        while self.stops.try_recv().is_ok_and(|stop| stop != Stop::Ended) {}
    }

    /// Has the machine thread do something.
    fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Machine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = channel();
        self.inbox.tell(Event::Debugger(Box::new(move |machine| {
            if let Some(machine) = machine {
                let _ = sender.send(ask(machine));
            }
        })));
        receiver.recv().context("there is no machine")?
    }
}

impl Target for GdbTarget {
    type Arch = GdbArch;
    type Error = anyhow::Error;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for GdbTarget {
    fn read_registers(&mut self, regs: &mut GdbRegisters, tid: Tid) -> TargetResult<(), Self> {
        let registers = not_done(self.ask(move |machine| machine.on_cpu(cpu_of(tid), Registers::read)))?;
        registers.show(regs);
        Ok(())
    }

    fn write_registers(&mut self, regs: &GdbRegisters, tid: Tid) -> TargetResult<(), Self> {
        let regs = regs.clone();
        not_done(self.ask(move |machine| {
            machine.on_cpu(cpu_of(tid), move |cpu| {
                let mut registers = Registers::read(cpu)?;
                registers.take(&regs);
                registers.write(cpu)
            })
        }))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        if debug::ONE_BY_ONE { Some(self) } else { None }
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let length = data.len();
        let read = not_done(self.ask(move |machine| machine.read_memory(cpu_of(tid), start, length)))?;
        if read.is_empty() && length > 0 {
            return Err(TargetError::NonFatal);
        }
        data.iter_mut().zip(&read).for_each(|(to, from)| *to = *from);
        Ok(read.len())
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let data = data.to_vec();
        not_done(self.ask(move |machine| machine.write_memory(cpu_of(tid), start, &data)))
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<()> {
        self.ask(|machine| Ok(machine.cpu_numbers()))?.into_iter().map(tid_of).for_each(active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for GdbTarget {
    fn read_register(&mut self, tid: Tid, id: GdbRegister, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let read = self.ask(move |machine| machine.on_cpu(cpu_of(tid), move |cpu| debug::read_one(cpu, id)));
        // A register that this CPU does not have is told as unavailable.
        let Some(value) = read.ok().flatten() else { return Ok(0) };
        let Some(room) = buf.get_mut(..value.len()) else { return Err(TargetError::NonFatal) };
        room.copy_from_slice(&value);
        Ok(value.len())
    }

    fn write_register(&mut self, tid: Tid, id: GdbRegister, value: &[u8]) -> TargetResult<(), Self> {
        let value = value.to_vec();
        let write = move |cpu: &mut dyn VcpuState| debug::write_one(cpu, id, &value);
        if not_done(self.ask(move |machine| machine.on_cpu(cpu_of(tid), write)))? {
            Ok(())
        } else {
            Err(TargetError::NonFatal)
        }
    }
}

impl MultiThreadResume for GdbTarget {
    fn resume(&mut self) -> Result<()> {
        self.forget_stops();
        let going = self.going.clone();
        self.ask(move |machine| machine.go_on(&going))
    }

    fn clear_resume_actions(&mut self) -> Result<()> {
        self.going = Going::default();
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<()> {
        self.going.run.insert(cpu_of(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for GdbTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<()> {
        self.going.step.insert(cpu_of(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for GdbTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<()> {
        self.going.others_stay = true;
        Ok(())
    }
}

impl Breakpoints for GdbTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for GdbTarget {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        not_done(self.ask(move |machine| machine.set_breakpoint(0, address)))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        not_done(self.ask(move |machine| Ok(machine.remove_breakpoint(address))))
    }
}

impl HwBreakpoint for GdbTarget {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let breakpoint = HardwareBreakpoint { address, length: 1, access: WatchedAccess::Execute };
        not_done(self.ask(move |machine| machine.watch(breakpoint)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let breakpoint = HardwareBreakpoint { address, length: 1, access: WatchedAccess::Execute };
        not_done(self.ask(move |machine| Ok(machine.stop_watching(breakpoint))))
    }
}

/// What a breakpoint register watches for a watchpoint. Processors cannot watch what is not aligned.
fn watched(address: u64, length: u64, kind: WatchKind) -> Option<HardwareBreakpoint> {
    let access = match kind {
        WatchKind::Write => WatchedAccess::Write,
        WatchKind::ReadWrite => WatchedAccess::ReadWrite,
        WatchKind::Read => WatchedAccess::Read,
    };
    let length = u8::try_from(length).ok().filter(|length| matches!(length, 1 | 2 | 4 | 8))?;
    address.is_multiple_of(length.into()).then_some(HardwareBreakpoint { address, length, access })
}

impl HwWatchpoint for GdbTarget {
    fn add_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let Some(breakpoint) = watched(address, length, kind) else { return Ok(false) };
        not_done(self.ask(move |machine| machine.watch(breakpoint)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let Some(breakpoint) = watched(address, length, kind) else { return Ok(false) };
        not_done(self.ask(move |machine| Ok(machine.stop_watching(breakpoint))))
    }
}

impl MonitorCmd for GdbTarget {
    /// `monitor registers` shows what GDB's own registers leave out.
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<()> {
        if command != b"registers" {
            outputln!(out, "monitor registers: shows all registers of every CPU");
            return Ok(());
        }
        for cpu in self.ask(|machine| Ok(machine.cpu_numbers()))? {
            let text = self.ask(move |machine| machine.describe_cpu(cpu))?;
            outputln!(out, "CPU {cpu}\n{text}");
        }
        Ok(())
    }
}
