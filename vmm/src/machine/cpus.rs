//! The machine's CPUs, and how they come and go.
//!
//! A CPU that is added waits until the guest starts it. One that is to go is asked back from the guest, and goes when that
//! has let go of it; its thread ends then, and what the hypervisor made for it is kept for when it comes again, since no
//! hypervisor unmakes a CPU. A restart of the machine completes what the guest left undone.

use super::{Machine, platform};
use crate::api::{ApiError, ErrorKind};
use crate::config::options::Setting;
use crate::config::{CoreScheduling, CpuAffinity, VmConfig};
use crate::core_scheduling;
use crate::cpu::{self, CpuThread, Surroundings};
use crate::host_cpus;
use crate::seccomp::{self, ThreadKind};
use anyhow::{Context, Result};
use arch::native::boot::EntryPoint;
use arch::native::cpu::CpuModel;
use hypervisor::{Vcpu, Vm};
use machine::inspect::{Inspect, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gives a CPU a state, by its number.
type SetUp = fn(&mut dyn Vcpu, &CpuModel, u32, &EntryPoint) -> Result<()>;

/// The CPUs, by number.
pub struct Cpus {
    threads: BTreeMap<u32, CpuThread>,
    /// What the hypervisor made for CPUs that have gone, or that may come. Nothing runs them, even if the guest starts them.
    parked: BTreeMap<u32, Box<dyn Vcpu>>,
    /// CPUs that were to end, and that the host keeps.
    kept: BTreeMap<u32, CpuThread>,
    vm: Arc<dyn Vm>,
    surroundings: Surroundings,
    model: CpuModel,
    /// Where their threads are to run, when they are started.
    pub(super) affinity: Vec<CpuAffinity>,
    core_scheduling: CoreScheduling,
    /// Where CPU 0 begins, when there is a kernel.
    entry: Option<EntryPoint>,
    /// Counts the machine's resets: what a CPU asked for before one is void after it.
    generation: u64,
}

impl Cpus {
    /// Starts the threads of the first CPUs, paused.
    ///
    /// # Errors
    /// When the host gives no threads, or not on the host CPUs asked for.
    pub fn start(
        config: &VmConfig,
        vm: Arc<dyn Vm>,
        vcpus: Vec<Box<dyn Vcpu>>,
        surroundings: Surroundings,
        model: CpuModel,
    ) -> Result<Self> {
        let affinity = config.cpus.affinity.clone();
        for affinity in &affinity {
            host_cpus::check(&affinity.host_cpus)
                .map_err(|reason| anyhow::anyhow!("--cpus affinity={}: {reason}", affinity.show()))?;
        }
        let core_scheduling = config.cpus.core_scheduling;
        core_scheduling::separate_machine(core_scheduling)
            .context("--cpus core_scheduling: this host's kernel cannot; leave it out")?;
        let (threads, parked, kept) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut cpus = Self {
            threads,
            parked,
            kept,
            vm,
            surroundings,
            model,
            affinity,
            core_scheduling,
            entry: None,
            generation: 0,
        };
        for (number, vcpu) in (0u32..).zip(vcpus) {
            if number < config.cpus.boot_vcpus {
                cpus.start_thread(number, vcpu)?;
                cpus.introduce(number);
            } else {
                cpus.parked.insert(number, vcpu);
            }
        }
        Ok(cpus)
    }

    /// Starts a CPU's thread, paused.
    fn start_thread(&mut self, number: u32, vcpu: Box<dyn Vcpu>) -> Result<()> {
        let affinity = self.affinity.iter().find(|affinity| affinity.vcpu == number).cloned();
        let core_scheduling = self.core_scheduling;
        let confine = move || {
            if let Err(error) = core_scheduling::separate_cpu(core_scheduling) {
                tracing::warn!("--cpus core_scheduling: CPU {number} shares cores with any other: {error}");
            }
            if let Some(affinity) = affinity
                && let Err(error) = cpu::set_affinity(&affinity.host_cpus)
            {
                tracing::warn!("--cpus affinity: CPU {number} runs on any host CPU: {error}");
            }
            seccomp::confine(ThreadKind::Cpu);
        };
        let thread = CpuThread::start(number, vcpu, self.surroundings.clone(), confine)?;
        thread.set_generation(self.generation);
        self.threads.insert(number, thread);
        Ok(())
    }

    /// Has other CPUs know one that was added, which they may start from now on.
    fn introduce(&self, number: u32) {
        if let Some(thread) = self.threads.get(&number) {
            thread.meet(number, &self.surroundings.peers);
        }
    }

    /// Makes CPUs ready for the guest's first instruction, CPU 0 at `entry`.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn configure(&mut self, entry: EntryPoint) -> Result<()> {
        self.entry = Some(entry);
        for (&number, vcpu) in &mut self.parked {
            platform::configure_vcpu(&mut **vcpu, &self.model, number, &entry)
                .with_context(|| format!("setting up CPU {number}"))?;
        }
        self.withdraw_parked()?;
        self.set_up(self.numbers(), platform::configure_vcpu)
    }

    /// Sets every CPU's state back to the one it starts in, CPU 0's to `entry`. All are paused.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn reset(&mut self, entry: EntryPoint) -> Result<()> {
        self.entry = Some(entry);
        self.withdraw_parked()?;
        self.set_up(self.numbers(), platform::reset_vcpu)
    }

    /// Has CPUs that are not there refuse to be started, where the hypervisor answers. A restart that the guest asks for takes that from
    /// them.
    fn withdraw_parked(&mut self) -> Result<()> {
        for (number, vcpu) in &mut self.parked {
            platform::withdraw_vcpu(&mut **vcpu).with_context(|| format!("withdrawing CPU {number}"))?;
        }
        Ok(())
    }

    /// Has CPUs set their state by `set_up`, all at once.
    fn set_up(&self, numbers: impl IntoIterator<Item = u32>, set_up: SetUp) -> Result<()> {
        let entry = self.entry.context("there is no kernel yet")?;
        let mut pending = Vec::new();
        for number in numbers {
            let Some(cpu) = self.threads.get(&number) else { continue };
            let model = self.model.clone();
            pending.push((number, cpu.begin(move |vcpu| set_up(vcpu, &model, number, &entry))?));
        }
        for (number, done) in pending {
            done.wait()?.with_context(|| format!("setting up CPU {number}"))?;
        }
        Ok(())
    }

    /// Adds a CPU, paused, in the state of one that waits to be started.
    ///
    /// # Errors
    /// When the host refuses; there is no such CPU then.
    fn add(&mut self, number: u32) -> Result<()> {
        if let Some(thread) = self.kept.remove(&number) {
            self.park(number, thread);
        }
        let (vcpu, set_up): (_, SetUp) = match self.parked.remove(&number) {
            Some(vcpu) => (vcpu, platform::reset_vcpu),
            None => (platform::create_vcpu(&*self.vm, &self.model, number)?, platform::configure_vcpu),
        };
        self.start_thread(number, vcpu)?;
        self.set_up([number], set_up).inspect_err(|_| self.remove(number))
    }

    /// Ends a CPU's thread.
    fn remove(&mut self, number: u32) {
        self.surroundings.peers.remove(number);
        let Some(thread) = self.threads.remove(&number) else { return };
        thread.ask_to_end();
        if thread.wait_ended() {
            self.park(number, thread);
        } else {
            tracing::error!("CPU {number} is gone, but {}", cpu::KEPT);
            self.kept.insert(number, thread);
        }
    }

    /// Keeps what a thread ran that has ended.
    fn park(&mut self, number: u32, mut thread: CpuThread) {
        if let Some(mut vcpu) = thread.end() {
            if let Err(error) = platform::withdraw_vcpu(&mut *vcpu) {
                tracing::warn!("CPU {number}, which is gone, does not refuse to be started: {error:#}");
            }
            self.parked.insert(number, vcpu);
        }
    }

    /// The machine is reset: what CPUs asked for before is void. All are paused.
    pub fn forget_effects(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        for cpu in self.threads.values() {
            cpu.forget_effects();
        }
    }

    /// Counts [`Cpus::forget_effects`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A CPU, if it is there.
    pub fn get(&self, number: u32) -> Option<&CpuThread> {
        self.threads.get(&number)
    }

    /// Whether a CPU is not there and can come.
    fn is_absent(&self, number: u32) -> bool {
        !self.threads.contains_key(&number) && self.kept.get(&number).is_none_or(CpuThread::has_ended)
    }

    /// The CPUs with their numbers, ascending.
    pub fn numbered(&self) -> impl DoubleEndedIterator<Item = (u32, &CpuThread)> {
        self.threads.iter().map(|(&number, cpu)| (number, cpu))
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.threads.len() as u32
    }

    fn numbers(&self) -> Vec<u32> {
        self.threads.keys().copied().collect()
    }
}

impl<'a> IntoIterator for &'a Cpus {
    type Item = &'a CpuThread;
    type IntoIter = std::collections::btree_map::Values<'a, u32, CpuThread>;

    fn into_iter(self) -> Self::IntoIter {
        self.threads.values()
    }
}

impl<'a> IntoIterator for &'a mut Cpus {
    type Item = &'a mut CpuThread;
    type IntoIter = std::collections::btree_map::ValuesMut<'a, u32, CpuThread>;

    fn into_iter(self) -> Self::IntoIter {
        self.threads.values_mut()
    }
}

impl Inspect for Cpus {
    fn inspect(&self) -> Value {
        self.numbered().map(|(number, cpu)| (number.to_string(), cpu.inspect())).collect()
    }
}

impl Machine {
    /// Whether the machine can have `desired` CPUs.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_cpu_count(&self, desired: u32) -> Result<(), ApiError> {
        let limit = self.config.cpus.limit();
        if !(1..=limit).contains(&desired) {
            let mut error = ApiError::bad(format!(
                "desired_vcpus={desired}: the machine can have 1 to {limit} CPUs; --cpus max sets the most"
            ));
            error.field = Some("desired_vcpus".into());
            return Err(error);
        }
        if !platform::has_acpi(&self.config) && desired != self.cpus.count() {
            return Err(ApiError::new(
                ErrorKind::NotSupported,
                "CPUs come and go by ACPI, which the machine does not have; give it --platform acpi=on",
            ));
        }
        Ok(())
    }

    /// Adds the CPUs that are missing for the machine to have `desired`. The guest is not told of them yet. Returns their numbers.
    ///
    /// # Errors
    /// When the host refuses one; none is added then.
    pub(super) fn add_missing_cpus(&mut self, desired: u32) -> Result<Vec<u32>> {
        let missing = desired.saturating_sub(self.cpus.count()) as usize;
        let absent = (0..self.config.cpus.limit()).filter(|number| self.cpus.is_absent(*number));
        let mut added = Vec::new();
        for number in absent.take(missing).collect::<Vec<_>>() {
            if let Err(error) = self.cpus.add(number) {
                self.withdraw_cpus(&added);
                return Err(error);
            }
            added.push(number);
        }
        if added.len() < missing {
            self.withdraw_cpus(&added);
            anyhow::bail!("{}", cpu::KEPT);
        }
        Ok(added)
    }

    /// Takes back new CPUs of which the guest was not told.
    pub(super) fn withdraw_cpus(&mut self, numbers: &[u32]) {
        for number in numbers {
            self.cpus.remove(*number);
        }
    }

    /// Makes the machine one of `desired` CPUs, of which those in `new` were added. Those that are too many are asked back from the guest,
    /// the last first, and go when it lets go of them.
    pub(super) fn resize_cpus(&mut self, desired: u32, new: &[u32]) {
        for number in new {
            self.cpu_came(*number);
        }
        let limit = self.config.cpus.limit();
        let present = self.cpus.numbers();
        let surplus = present.len().saturating_sub(desired as usize);
        let (stay, go) = present.split_at_checked(present.len().saturating_sub(surplus)).unwrap_or_default();
        for number in stay {
            self.platform.notifier.keep_cpu(*number);
        }
        for number in go {
            self.platform.notifier.ask_to_release_cpu(*number);
        }
        self.note_cpus(limit, desired);
    }

    /// Has the configuration say how many CPUs the machine is to have, so that it has them when it is restarted.
    fn note_cpus(&mut self, limit: u32, count: u32) {
        self.config.cpus.max_vcpus = Some(limit);
        self.config.cpus.boot_vcpus = count;
    }

    /// A CPU was added: it runs if the others do, and the guest is told.
    fn cpu_came(&mut self, number: u32) {
        self.cpus.introduce(number);
        if let Some(cpu) = self.cpus.get(number) {
            self.introduce_cpu(cpu);
            if self.runs() {
                cpu.resume();
            }
        }
        self.platform.notifier.cpu_came(number);
        self.events.emit_with("vm", "cpu-added", [("cpu", number.into())]);
    }

    fn take_cpu(&mut self, number: u32) {
        self.cpus.remove(number);
        self.platform.notifier.cpu_gone(number);
        self.events.emit_with("vm", "cpu-removed", [("cpu", number.into())]);
    }

    /// The guest let go of a CPU.
    pub(super) fn cpu_ejected(&mut self, number: u32) {
        // CPU 0 stays: the controller does not let go of it.
        if number == 0 || self.cpus.get(number).is_none() {
            return;
        }
        self.take_cpu(number);
        let count = self.cpus.count().min(self.config.cpus.boot_vcpus);
        self.note_cpus(self.config.cpus.limit(), count);
    }

    /// The guest does not let go of a CPU that it is asked for.
    pub(super) fn cpu_refused(&mut self, number: u32, status: u32) {
        tracing::warn!("the guest does not let go of CPU {number} (status {status:#x})");
        self.events.emit_for_guest(
            "vm",
            "cpu-release-refused",
            [("cpu", number.into()), ("status", status.into())],
        );
        self.note_cpus(self.config.cpus.limit(), self.cpus.count());
    }

    /// Makes the CPUs those that the machine is to have. It is being reset, and all are paused.
    ///
    /// # Errors
    /// When the host refuses a CPU.
    pub(super) fn settle_cpus(&mut self) -> Result<()> {
        let count = self.config.cpus.boot_vcpus;
        for number in self.cpus.numbers().into_iter().filter(|number| *number >= count) {
            self.take_cpu(number);
        }
        for number in 0..count {
            if self.cpus.get(number).is_none() {
                self.cpus.add(number)?;
                self.cpu_came(number);
            }
        }
        Ok(())
    }
}
