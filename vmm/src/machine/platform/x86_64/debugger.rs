//! The machine under a debugger: CPUs that stop together and go on as they are told, breakpoints, registers, and memory by
//! the guest's own addresses.
//!
//! The debugger itself is on a thread of its own ([`super::gdb`]). It asks the machine thread for one thing after the other,
//! and hears of stops through its [`Link`].

use crate::machine::Machine;
use anyhow::{Context, Result};
use arch::native::paging;
use hypervisor::x86_64::{Fpu, Regs, Sregs};
use hypervisor::{DebugCause, DebugStop, GuestDebug, HardwareBreakpoint};
use machine::doorbell::Doorbell;
use machine::memory::{Bytes, GuestAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The breakpoint instruction (INT3).
const BREAKPOINT: u8 = 0xcc;
/// Breakpoint registers of a CPU.
const HARDWARE_BREAKPOINTS: usize = 4;

/// Something stopped the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A CPU did.
    Cpu {
        /// Which.
        cpu: u32,
        /// Why.
        cause: StopCause,
    },
    /// The machine has ended.
    Ended,
}

/// Why a CPU stopped the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// A breakpoint instruction that the debugger set.
    Software,
    /// One of the CPU's breakpoint registers.
    Hardware(HardwareBreakpoint),
    /// It did the one step it was to do.
    Step,
}

/// How a debugger is told of stops. When the machine goes, the last thing told is [`Stop::Ended`].
pub struct Link {
    stops: Sender<Stop>,
    bell: Doorbell,
}

impl Link {
    /// A link, and the debugger's end of it; the bell rings when there is a stop.
    ///
    /// # Errors
    /// When the host is out of descriptors.
    pub fn new() -> std::io::Result<(Self, Receiver<Stop>, Doorbell)> {
        let (stops, receiver) = channel();
        let bell = Doorbell::new()?;
        Ok((Self { stops, bell: bell.clone() }, receiver, bell))
    }

    fn tell(&self, stop: Stop) {
        // A debugger that is gone asks for no more.
        let _ = self.stops.send(stop);
        self.bell.ring();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tell(Stop::Ended);
    }
}

/// What the machine knows of its debugger.
#[derive(Default)]
pub struct Debugger {
    link: Option<Link>,
    /// All CPUs are held.
    stopped: bool,
    /// By linear address: the breakpoint instruction's place in memory, and the byte it took the place of.
    software: BTreeMap<u64, (GuestAddress, u8)>,
    hardware: Vec<HardwareBreakpoint>,
}

impl Debugger {
    /// Memory is loaded anew: breakpoint instructions in it are gone.
    pub fn memory_is_lost(&mut self) {
        self.software.clear();
    }
}

/// Which CPUs go on, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Going {
    /// They do one step and stop.
    pub step: BTreeSet<u32>,
    /// They run.
    pub run: BTreeSet<u32>,
    /// All others stay where they are; else they run.
    pub others_stay: bool,
}

/// A CPU's registers, as far as a debugger sees them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// The general ones.
    pub general: Regs,
    /// The system's.
    pub system: Sregs,
    /// The floating-point and vector ones.
    pub vector: Fpu,
}

impl Machine {
    /// The CPUs do not begin before a debugger lets them.
    pub fn hold_for_debugger(&mut self) {
        self.hold_cpus();
    }

    /// A debugger has come: the machine stops for it.
    ///
    /// # Errors
    /// When there is one already.
    pub fn attach_debugger(&mut self, link: Link) -> Result<()> {
        anyhow::ensure!(self.debugger.link.is_none(), "there is a debugger already");
        self.debugger.link = Some(link);
        self.stop_for_debugger();
        Ok(())
    }

    /// The debugger is gone: takes its breakpoints away, and lets the machine go on.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn detach_debugger(&mut self) -> Result<()> {
        self.stop_for_debugger();
        self.debugger.link = None;
        for address in self.debugger.software.keys().copied().collect::<Vec<_>>() {
            self.remove_breakpoint(address);
        }
        self.debugger.hardware.clear();
        for cpu in &self.cpus {
            cpu.call(|vcpu| vcpu.x86_64().set_guest_debug(None))??;
        }
        self.release_cpus();
        Ok(())
    }

    /// Stops all CPUs, and waits until they have.
    pub fn stop_for_debugger(&mut self) {
        self.hold_cpus();
        for cpu in &self.cpus {
            cpu.wait_parked();
        }
    }

    /// A CPU came: it does not run while the others are stopped.
    pub(in crate::machine) fn hold_new_cpu(&self, cpu: &crate::cpu::CpuThread) {
        if self.debugger.stopped {
            cpu.hold();
        }
    }

    fn hold_cpus(&mut self) {
        self.debugger.stopped = true;
        for cpu in &self.cpus {
            cpu.hold();
        }
    }

    fn release_cpus(&mut self) {
        self.debugger.stopped = false;
        for cpu in &self.cpus {
            cpu.release();
        }
    }

    /// A CPU stopped by itself, and is held.
    pub(in crate::machine) fn stopped_for_debugger(&mut self, number: u32, stop: DebugStop) -> Result<()> {
        if self.debugger.stopped {
            // Another one was faster; this one will stop again at the same place.
            return Ok(());
        }
        let Some(cpu) = self.cpus.get(number) else { return Ok(()) };
        let cause = match stop.cause {
            DebugCause::Software if self.debugger.software.contains_key(&stop.address) => StopCause::Software,
            DebugCause::Software => {
                // The guest's own, unless it is one that was taken away meanwhile.
                if self.read_linear(number, stop.address, 1)? == [BREAKPOINT] {
                    cpu.call(|vcpu| vcpu.x86_64().inject_breakpoint())??;
                }
                cpu.release();
                return Ok(());
            }
            DebugCause::Hardware(index) => match self.debugger.hardware.get(usize::from(index)) {
                Some(breakpoint) => StopCause::Hardware(*breakpoint),
                None => StopCause::Step,
            },
            DebugCause::Step => StopCause::Step,
        };
        if self.debugger.link.is_none() {
            cpu.release();
            return Ok(());
        }
        self.stop_for_debugger();
        if let Some(link) = &self.debugger.link {
            link.tell(Stop::Cpu { cpu: number, cause });
        }
        Ok(())
    }

    /// Lets CPUs go on.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn go_on(&mut self, going: &Going) -> Result<()> {
        for (number, cpu) in self.cpus.numbered() {
            let single_step = going.step.contains(&number);
            if going.others_stay && !single_step && !going.run.contains(&number) {
                continue;
            }
            let debug = GuestDebug {
                software_breakpoints: true,
                single_step,
                hardware_breakpoints: self.debugger.hardware.clone(),
            };
            cpu.call(move |vcpu| vcpu.x86_64().set_guest_debug(Some(&debug)))??;
        }
        self.debugger.stopped = false;
        for (number, cpu) in self.cpus.numbered() {
            if !going.others_stay || going.step.contains(&number) || going.run.contains(&number) {
                cpu.release();
            }
        }
        Ok(())
    }

    /// The CPUs that are there.
    pub fn cpu_numbers(&self) -> Vec<u32> {
        self.cpus.numbered().map(|(number, _)| number).collect()
    }

    fn on_cpu<T: Send + 'static>(
        &self,
        number: u32,
        task: impl FnOnce(&mut dyn hypervisor::x86_64::VcpuState) -> hypervisor::Result<T> + Send + 'static,
    ) -> Result<T> {
        let cpu = self.cpus.get(number).with_context(|| format!("there is no CPU {number}"))?;
        Ok(cpu.call(move |vcpu| task(vcpu.x86_64()))??)
    }

    /// A CPU's registers.
    ///
    /// # Errors
    /// When there is no such CPU, or the host refuses.
    pub fn registers(&self, number: u32) -> Result<Registers> {
        self.on_cpu(number, |cpu| {
            Ok(Registers { general: cpu.regs()?, system: cpu.sregs()?, vector: cpu.fpu()? })
        })
    }

    /// Sets a CPU's general and vector registers.
    ///
    /// # Errors
    /// As [`Machine::registers`].
    pub fn set_registers(&self, number: u32, registers: Registers) -> Result<()> {
        self.on_cpu(number, move |cpu| {
            cpu.set_regs(&registers.general)?;
            cpu.set_fpu(&registers.vector)
        })
    }

    /// A CPU's registers, as text for a person.
    ///
    /// # Errors
    /// As [`Machine::registers`].
    pub fn describe_cpu(&self, number: u32) -> Result<String> {
        let cpu = self.cpus.get(number).with_context(|| format!("there is no CPU {number}"))?;
        cpu.call(|vcpu| vcpu.describe())
    }

    /// The memory that a CPU sees at linear `address`: fewer bytes than asked for where it ends. Breakpoints do not show.
    ///
    /// # Errors
    /// As [`Machine::registers`].
    pub fn read_memory(&self, number: u32, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut data = self.read_linear(number, address, length)?;
        for (breakpoint, (_, original)) in &self.debugger.software {
            let at = breakpoint.checked_sub(address).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| data.get_mut(at)) {
                *byte = *original;
            }
        }
        Ok(data)
    }

    fn read_linear(&self, number: u32, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; length];
        let mut done = 0;
        self.each_part(number, address, length, |place, range| {
            let read = self.memory.ram.read_slice(&mut data[range.clone()], place).is_ok();
            if read {
                done = range.end;
            }
            read
        })?;
        data.truncate(done);
        Ok(data)
    }

    /// Writes memory that a CPU sees. Breakpoints stay.
    ///
    /// # Errors
    /// As [`Machine::registers`], and when not all of it is memory; a part may have been written.
    pub fn write_memory(&mut self, number: u32, address: u64, data: &[u8]) -> Result<()> {
        let mut data = data.to_vec();
        for (breakpoint, (_, original)) in &mut self.debugger.software {
            let at = breakpoint.checked_sub(address).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| data.get_mut(at)) {
                *original = std::mem::replace(byte, BREAKPOINT);
            }
        }
        let mut done = 0;
        self.each_part(number, address, data.len(), |place, range| {
            let written = self.memory.ram.write_slice(&data[range.clone()], place).is_ok();
            if written {
                done = range.end;
            }
            written
        })?;
        anyhow::ensure!(done == data.len(), "there is no memory at {:#x}", address.wrapping_add(done as u64));
        Ok(())
    }

    /// Gives `each` the parts of a run of linear addresses that are together in guest-physical memory, until it says `false` or
    /// nothing is mapped.
    fn each_part(
        &self,
        number: u32,
        address: u64,
        length: usize,
        mut each: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> Result<()> {
        let sregs = self.on_cpu(number, |cpu| cpu.sregs())?;
        let mut at = 0;
        while at < length {
            let Some(linear) = address.checked_add(at as u64) else { break };
            let Some((place, size)) = paging::translate(&self.memory.ram, &sregs, linear) else { break };
            let end = length.min(at.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)));
            if end == at || !each(GuestAddress(place), at..end) {
                break;
            }
            at = end;
        }
        Ok(())
    }

    /// Puts a breakpoint instruction at linear `address`. `false`: there is no memory.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn set_breakpoint(&mut self, number: u32, address: u64) -> Result<bool> {
        if self.debugger.software.contains_key(&address) {
            return Ok(true);
        }
        let sregs = self.on_cpu(number, |cpu| cpu.sregs())?;
        let ram = &self.memory.ram;
        let Some((place, _)) = paging::translate(ram, &sregs, address) else { return Ok(false) };
        let place = GuestAddress(place);
        let Ok(original) = ram.read_obj::<u8>(place) else { return Ok(false) };
        if ram.write_obj(BREAKPOINT, place).is_err() {
            return Ok(false);
        }
        self.debugger.software.insert(address, (place, original));
        Ok(true)
    }

    /// Takes the breakpoint instruction at linear `address` away. `false`: there is none.
    pub fn remove_breakpoint(&mut self, address: u64) -> bool {
        let Some((place, original)) = self.debugger.software.remove(&address) else { return false };
        // The guest may have put something else there.
        if self.memory.ram.read_obj::<u8>(place).is_ok_and(|byte| byte == BREAKPOINT) {
            // It was memory when it was read.
            let _ = self.memory.ram.write_obj(original, place);
        }
        true
    }

    /// Has the CPUs watch an address, from when they go on. `false`: their breakpoint registers are all in use.
    pub fn watch(&mut self, breakpoint: HardwareBreakpoint) -> bool {
        let hardware = &mut self.debugger.hardware;
        if hardware.contains(&breakpoint) {
            return true;
        }
        let room = hardware.len() < HARDWARE_BREAKPOINTS;
        if room {
            hardware.push(breakpoint);
        }
        room
    }

    /// Undoes [`Machine::watch`]. `false`: it is not watched.
    pub fn stop_watching(&mut self, breakpoint: HardwareBreakpoint) -> bool {
        let before = self.debugger.hardware.len();
        self.debugger.hardware.retain(|present| *present != breakpoint);
        self.debugger.hardware.len() < before
    }
}
