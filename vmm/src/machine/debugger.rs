//! The machine under a debugger: CPUs that stop together and go on as they are told, breakpoints, registers, and memory by
//! the guest's own addresses.
//!
//! The debugger itself is on a thread of its own ([`super::gdb`]). It asks the machine thread for one thing after the other,
//! and hears of stops through its [`Link`].

use super::Machine;
use super::platform::debug::{BREAKPOINT, is_breakpoint};
use crate::cpu::CpuThread;
use anyhow::{Context, Result};
use arch::native::{instructions, paging};
use hypervisor::native::VcpuState;
use hypervisor::{DebugCause, DebugStop, GuestDebug, HardwareBreakpoint};
use machine::doorbell::Doorbell;
use machine::memory::{Bytes, GuestAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};

/// What a breakpoint instruction takes the place of.
type Original = [u8; BREAKPOINT.len()];

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
    /// There has been a debugger, of which CPUs that were away may not know that it is gone.
    known: bool,
    /// By linear address: the breakpoint instruction's place in memory, and what it took the place of.
    software: BTreeMap<u64, (GuestAddress, Original)>,
    hardware: Vec<HardwareBreakpoint>,
}

impl Debugger {
    /// What the CPUs are to stop for.
    fn guest_debug(&self, single_step: bool) -> GuestDebug {
        GuestDebug { software_breakpoints: true, single_step, hardware_breakpoints: self.hardware.clone() }
    }

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

impl Machine {
    /// The CPUs do not begin before a debugger lets them.
    pub fn hold_for_debugger(&mut self) {
        self.hold_cpus();
    }

    /// A debugger has come: the machine stops for it.
    ///
    /// # Errors
    /// When there is one already, or the host keeps a CPU.
    pub fn attach_debugger(&mut self, link: Link) -> Result<()> {
        anyhow::ensure!(self.debugger.link.is_none(), "there is a debugger already");
        self.stop_for_debugger().inspect_err(|_| self.release_cpus())?;
        self.debugger.link = Some(link);
        self.debugger.known = true;
        Ok(())
    }

    /// The debugger is gone: takes its breakpoints away, and lets the machine go on.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn detach_debugger(&mut self) -> Result<()> {
        let stopped = self.stop_for_debugger();
        self.debugger.link = None;
        for address in self.debugger.software.keys().copied().collect::<Vec<_>>() {
            self.remove_breakpoint(address);
        }
        self.debugger.hardware.clear();
        let told = stopped.and_then(|()| {
            // Each is told, whatever another answers.
            let told: Vec<Result<()>> = (&self.cpus).into_iter().map(forget_debugger).collect();
            told.into_iter().collect()
        });
        self.release_cpus();
        told
    }

    /// Stops all CPUs, and waits until they have.
    ///
    /// # Errors
    /// When the host keeps one. It stops when it can.
    pub fn stop_for_debugger(&mut self) -> Result<()> {
        self.hold_cpus();
        for (number, cpu) in self.cpus.numbered() {
            anyhow::ensure!(
                cpu.wait_parked(),
                "CPU {number} does not stop: the host keeps it; look after the memory and the files that the guest uses"
            );
        }
        self.hold_interrupts(&BTreeSet::new());
        Ok(())
    }

    /// Has CPUs that do single steps take no interrupts meanwhile, and all others take theirs. No CPU runs.
    fn hold_interrupts(&self, cpus: &BTreeSet<u32>) {
        if let Err(error) = self.platform.hold_interrupts(cpus) {
            tracing::warn!("single steps may lead into handlers of interrupts: {error}");
        }
    }

    /// A CPU came: it stops where the others do, and does not run while they are stopped.
    pub(in crate::machine) fn introduce_cpu(&self, cpu: &crate::cpu::CpuThread) {
        if self.debugger.stopped {
            cpu.hold();
        }
        if !self.debugger.known {
            return;
        }
        let debug = self.debugger.link.is_some().then(|| self.debugger.guest_debug(false));
        let told = cpu.call(move |vcpu| vcpu.native().set_guest_debug(debug.as_ref()));
        if let Err(error) = told.and_then(|told| Ok(told?)) {
            tracing::warn!("--gdb: a CPU that came does not stop at breakpoints: {error}");
        }
    }

    /// Whether the guest stands still for a debugger.
    pub(super) fn stopped_by_debugger(&self) -> bool {
        self.debugger.stopped
    }

    fn hold_cpus(&mut self) {
        self.debugger.stopped = true;
        self.hold_watchdog();
        for cpu in &self.cpus {
            cpu.hold();
        }
    }

    fn release_cpus(&mut self) {
        self.debugger.stopped = false;
        self.release_watchdog();
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
                if is_breakpoint(&self.read_linear(number, stop.address, BREAKPOINT.len())?) {
                    cpu.call(|vcpu| vcpu.native().inject_breakpoint())??;
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
            // It was kept by the host when the debugger went.
            forget_debugger(cpu)?;
            cpu.release();
            return Ok(());
        }
        if let Err(error) = self.stop_for_debugger() {
            tracing::warn!("--gdb: {error}");
        }
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
            let debug = self.debugger.guest_debug(single_step);
            cpu.call(move |vcpu| vcpu.native().set_guest_debug(Some(&debug)))??;
        }
        self.hold_interrupts(&going.step);
        self.debugger.stopped = false;
        self.release_watchdog();
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

    /// Has a CPU do something with its registers.
    ///
    /// # Errors
    /// When there is no such CPU, or the host refuses.
    pub fn on_cpu<T: Send + 'static>(
        &self,
        number: u32,
        task: impl FnOnce(&mut dyn VcpuState) -> hypervisor::Result<T> + Send + 'static,
    ) -> Result<T> {
        let cpu = self.cpus.get(number).with_context(|| format!("there is no CPU {number}"))?;
        Ok(cpu.call(move |vcpu| task(vcpu.native()))??)
    }

    /// A CPU's registers, as text for a person.
    ///
    /// # Errors
    /// As [`Machine::on_cpu`].
    pub fn describe_cpu(&self, number: u32) -> Result<String> {
        let cpu = self.cpus.get(number).with_context(|| format!("there is no CPU {number}"))?;
        cpu.call(|vcpu| vcpu.describe())
    }

    /// The memory that a CPU sees at linear `address`: fewer bytes than asked for where it ends. Breakpoints do not show.
    ///
    /// # Errors
    /// As [`Machine::on_cpu`].
    pub fn read_memory(&self, number: u32, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut data = self.read_linear(number, address, length)?;
        for (breakpoint, (_, original)) in &self.debugger.software {
            for (at, byte) in (*breakpoint..).zip(original) {
                if let Some(seen) = byte_at(&mut data, address, at) {
                    *seen = *byte;
                }
            }
        }
        Ok(data)
    }

    fn read_linear(&self, number: u32, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; length];
        let mut done = 0;
        self.each_part(number, address, length, |place, range| {
            let read = data
                .get_mut(range.clone())
                .is_some_and(|data| self.memory.ram.read_slice(data, place).is_ok());
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
    /// As [`Machine::on_cpu`], and when not all of it is memory; a part may have been written.
    pub fn write_memory(&mut self, number: u32, address: u64, data: &[u8]) -> Result<()> {
        let mut data = data.to_vec();
        for (breakpoint, (_, original)) in &mut self.debugger.software {
            for ((at, byte), instruction) in (*breakpoint..).zip(original).zip(BREAKPOINT) {
                if let Some(written) = byte_at(&mut data, address, at) {
                    *byte = std::mem::replace(written, instruction);
                }
            }
        }
        let mut done = 0;
        self.each_part(number, address, data.len(), |place, range| {
            let written =
                data.get(range.clone()).is_some_and(|data| self.memory.ram.write_slice(data, place).is_ok());
            if written {
                instructions::written(&self.memory.ram, place, range.len());
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
        let paging = self.on_cpu(number, |cpu| paging::state(cpu))?;
        let mut at = 0;
        while at < length {
            let Some(linear) = address.checked_add(at as u64) else { break };
            let Some((place, size)) = paging::translate(&self.memory.ram, &paging, linear) else { break };
            let end = length.min(at.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)));
            if end == at || !each(GuestAddress(place), at..end) {
                break;
            }
            at = end;
        }
        Ok(())
    }

    /// Puts a breakpoint instruction at linear `address`. `false`: there is no memory, or no place for an instruction.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn set_breakpoint(&mut self, number: u32, address: u64) -> Result<bool> {
        if self.debugger.software.contains_key(&address) {
            return Ok(true);
        }
        // An aligned instruction is in one page.
        if !address.is_multiple_of(BREAKPOINT.len() as u64) {
            return Ok(false);
        }
        let paging = self.on_cpu(number, |cpu| paging::state(cpu))?;
        let ram = &self.memory.ram;
        let Some((place, _)) = paging::translate(ram, &paging, address) else { return Ok(false) };
        let place = GuestAddress(place);
        let Ok(original) = ram.read_obj::<Original>(place) else { return Ok(false) };
        if ram.write_obj(BREAKPOINT, place).is_err() {
            return Ok(false);
        }
        instructions::written(ram, place, BREAKPOINT.len());
        self.debugger.software.insert(address, (place, original));
        Ok(true)
    }

    /// Takes the breakpoint instruction at linear `address` away. `false`: there is none.
    pub fn remove_breakpoint(&mut self, address: u64) -> bool {
        let Some((place, original)) = self.debugger.software.remove(&address) else { return false };
        let ram = &self.memory.ram;
        // The guest may have put something else there.
        if ram.read_obj::<Original>(place).is_ok_and(|instruction| instruction == BREAKPOINT) {
            // It was memory when it was read.
            let _ = ram.write_obj(original, place);
            instructions::written(ram, place, BREAKPOINT.len());
        }
        true
    }

    /// Has the CPUs watch an address, from when they go on. `false`: they cannot, or their breakpoint registers are all in use.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn watch(&mut self, breakpoint: HardwareBreakpoint) -> Result<bool> {
        if self.debugger.hardware.contains(&breakpoint) {
            return Ok(true);
        }
        let mut hardware = self.debugger.hardware.clone();
        hardware.push(breakpoint);
        let Some(cpu) = self.cpus.get(0) else { return Ok(false) };
        let (hardware, can) = cpu.call(move |vcpu| {
            let can = vcpu.native().can_watch(&hardware);
            (hardware, can)
        })?;
        if can {
            self.debugger.hardware = hardware;
        }
        Ok(can)
    }

    /// Undoes [`Machine::watch`]. `false`: it is not watched.
    pub fn stop_watching(&mut self, breakpoint: HardwareBreakpoint) -> bool {
        let before = self.debugger.hardware.len();
        self.debugger.hardware.retain(|present| *present != breakpoint);
        self.debugger.hardware.len() < before
    }
}

/// Of data that is at linear address `start`, the byte at `address`.
fn byte_at(data: &mut [u8], start: u64, address: u64) -> Option<&mut u8> {
    address.checked_sub(start).and_then(|at| usize::try_from(at).ok()).and_then(|at| data.get_mut(at))
}

/// Has a CPU stop at nothing any more.
fn forget_debugger(cpu: &CpuThread) -> Result<()> {
    Ok(cpu.call(|vcpu| vcpu.native().set_guest_debug(None))??)
}
