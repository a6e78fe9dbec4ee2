//! The machine: built from a configuration, run by one thread that owns it.
//!
//! [`Machine`] has the CPUs, memory, buses and devices as its fields. Everything that is to change about it
//! arrives as a [`Message`], see [`Machine::run`].

mod boot_files;
mod pci_bus;
mod platform;
mod registry;
mod workers;

use crate::config::{ConfigError, VmConfig};
use crate::console_thread::ConsoleThread;
use crate::cpu::{self, CpuThread, Surroundings};
use crate::memory::{self, GuestMemory};
use crate::message::{CpuFailure, Mailbox, Message};
use crate::seccomp::{self, ThreadKind};
use anyhow::{Context, Result};
use arch::native::boot::EntryPoint;
use arch::native::cpu::CpuModel;
use arch::native::layout::MemoryLayout;
use boot_files::BootFiles;
use hypervisor::{Hypervisor, MemorySlot, Vcpu, Vm};
use machine::bus::BusHandle;
use machine::clock::{Clock, SystemClock};
use machine::doorbell::Doorbell;
use machine::effect::{Effect, FunctionAddress};
use machine::inspect::{Inspect, Value, json};
use machine::memory::{GuestMemoryBackend, GuestMemoryRegion};
use pci_bus::{Completion, PciBus};
use platform::{Foundation, Platform};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// How a machine came to its end.
#[derive(Debug)]
pub enum Ended {
    /// The guest powered off.
    PoweredOff,
    /// The process was asked to end.
    Terminated,
    /// A CPU cannot go on.
    Failed(CpuFailure),
}

/// A machine.
pub struct Machine {
    // Fields are dropped in this order: first what runs, then what it runs on.
    cpus: Vec<CpuThread>,
    pci: PciBus,
    platform: Platform,
    config: VmConfig,
    files: BootFiles,
    layout: MemoryLayout,
    model: CpuModel,
    messages: Receiver<Message>,
    /// CPUs whose effect waits for a function's workers to stop.
    waiting: BTreeMap<FunctionAddress, Vec<u32>>,
    /// A reset waits for all workers to stop.
    resetting: bool,
    resets: u64,
    _consoles: ConsoleThread,
    _vm: Arc<dyn Vm>,
    memory: GuestMemory,
}

impl Machine {
    /// Builds a machine up to its first instruction.
    ///
    /// # Errors
    /// When something it is made of cannot be had, naming the option it comes from.
    pub fn new(config: VmConfig, hypervisor: &dyn Hypervisor) -> Result<Self> {
        config.validate()?;
        check_cpu_limit(&config, hypervisor)?;
        let mut files = BootFiles::open(&config)?;
        let Foundation { vm, vcpus, model, layout } = platform::found(&config, hypervisor)?;
        let ranges: Vec<_> = layout.ram().iter().map(|range| (range.start, range.size)).collect();
        let memory = memory::provide(&config.memory, &ranges)?;
        map_memory(&*vm, &memory)?;
        let (mailbox, messages) = Mailbox::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (mmio, port) = (BusHandle::default(), BusHandle::default());
        let mut pumps = Vec::new();
        let platform = Platform::new(&config, &*vm, &layout, &mmio, &port, &clock, &mut pumps)?;
        let mut pci = PciBus::new(
            pci_bus::Surroundings {
                vm: Arc::clone(&vm),
                mmio: mmio.clone(),
                port: port.clone(),
                mailbox: mailbox.clone(),
                memory: Arc::clone(&memory.ram),
                pins: Arc::clone(&platform.pins) as _,
                wiring: platform::PCI_WIRING,
                clock: Arc::clone(&clock),
            },
            layout.segments(),
        )?;
        let escape = Doorbell::new().context("making an event")?;
        registry::add_devices(&config, &clock, &escape, &mut pci)?;
        pci.place_bars(layout.segments())?;

        let entry = platform::load(&mut files, &config, &memory.ram, &memory.zones, &layout, &model)?;
        if platform::is_linux(&files, entry)? {
            refuse_linux_where_it_cannot_run(&config, hypervisor)?;
        }
        let surroundings = Surroundings {
            mmio,
            port,
            end_of_interrupt: platform.end_of_interrupt(),
            mailbox: mailbox.clone(),
        };
        let cpus = start_cpus(&config, vcpus, &surroundings, &model, entry)?;
        let consoles =
            ConsoleThread::start(pumps, escape, mailbox, || seccomp::confine(ThreadKind::Console))?;
        Ok(Self {
            cpus,
            pci,
            platform,
            config,
            files,
            layout,
            model,
            messages,
            waiting: BTreeMap::new(),
            resetting: false,
            resets: 0,
            _consoles: consoles,
            _vm: vm,
            memory,
        })
    }

    /// Runs the machine until it ends.
    ///
    /// # Errors
    /// When the host fails the machine in a way it cannot go on after.
    pub fn run(mut self) -> Result<Ended> {
        for cpu in &self.cpus {
            cpu.resume();
        }
        loop {
            let message = self.messages.recv().context("every thread of the machine has ended")?;
            if let Some(ended) = self.handle(message)? {
                self.end();
                return Ok(ended);
            }
        }
    }

    fn handle(&mut self, message: Message) -> Result<Option<Ended>> {
        match message {
            Message::Effect { cpu, generation, effect } => {
                if self.is_current(cpu, generation) {
                    return self.apply(cpu, effect);
                }
            }
            Message::TasksStopped { function, tasks } => {
                if self.pci.stopped(function, tasks)? == Completion::Done {
                    for cpu in self.waiting.remove(&function).unwrap_or_default() {
                        self.effect_done(cpu);
                    }
                }
                if self.resetting && !self.pci.stopping() {
                    self.finish_reset()?;
                }
            }
            Message::CpuFailed { generation, failure } => {
                if self.is_current(failure.cpu, generation) {
                    return Ok(Some(Ended::Failed(failure)));
                }
            }
            Message::PowerButton => self.platform.press_power_button(),
            Message::Terminate => return Ok(Some(Ended::Terminated)),
        }
        Ok(None)
    }

    /// Whether what a CPU did in this generation still counts: the machine has not been reset since.
    fn is_current(&self, cpu: u32, generation: u64) -> bool {
        self.cpus.get(cpu as usize).map(CpuThread::generation) == Some(generation)
    }

    fn apply(&mut self, cpu: u32, effect: Effect) -> Result<Option<Ended>> {
        match effect {
            Effect::PowerOff => return Ok(Some(Ended::PoweredOff)),
            Effect::Reset => {
                self.begin_reset()?;
                return Ok(None);
            }
            Effect::Panicked(events) => tracing::warn!(events, "the guest reports a panic"),
            Effect::Eject { .. } => {}
            Effect::Function(address, change) => {
                if self.pci.apply(address, change)? == Completion::Later {
                    self.waiting.entry(address).or_default().push(cpu);
                    return Ok(None);
                }
            }
        }
        self.effect_done(cpu);
        Ok(None)
    }

    fn effect_done(&self, cpu: u32) {
        if let Some(cpu) = self.cpus.get(cpu as usize) {
            cpu.effect_done();
        }
    }

    /// Pauses all CPUs and has all workers stop.
    fn begin_reset(&mut self) -> Result<()> {
        if self.resetting {
            return Ok(());
        }
        tracing::info!("the guest restarts the machine");
        for cpu in &self.cpus {
            cpu.pause();
        }
        for cpu in &self.cpus {
            cpu.wait_parked();
            // What CPUs asked for before is void, also if it is heard only now: a device that is started while others stop
            // would go on in the memory of the restarted guest.
            cpu.forget_effects();
        }
        self.waiting.clear();
        self.resetting = true;
        if self.pci.stop_all() {
            return Ok(());
        }
        self.finish_reset()
    }

    /// Makes the machine what it was at power-on, and lets it run.
    fn finish_reset(&mut self) -> Result<()> {
        self.resetting = false;
        self.resets += 1;
        self.pci.reset()?;
        self.pci.place_bars(self.layout.segments())?;
        self.platform.reset();
        let (ram, zones) = (&self.memory.ram, &self.memory.zones);
        let entry = platform::load(&mut self.files, &self.config, ram, zones, &self.layout, &self.model)?;
        let pending: Vec<_> = (0u32..)
            .zip(&self.cpus)
            .map(|(index, cpu)| {
                let model = self.model.clone();
                cpu.begin(move |vcpu| platform::reset_vcpu(vcpu, &model, index, &entry))
            })
            .collect::<Result<_>>()?;
        for reset in pending {
            reset.wait()?.context("resetting a CPU")?;
        }
        for cpu in &self.cpus {
            cpu.resume();
        }
        Ok(())
    }

    /// Ends what runs, so that requests in flight are complete and the last output is carried.
    fn end(&mut self) {
        for cpu in &self.cpus {
            cpu.pause();
        }
        for cpu in &mut self.cpus {
            cpu.end();
        }
        if self.pci.stop_all() {
            while self.pci.stopping() {
                match self.messages.recv() {
                    Ok(Message::TasksStopped { function, tasks }) => {
                        // The machine ends: what a failure to remap would leave behind goes with it.
                        let _ = self.pci.stopped(function, tasks);
                    }
                    Ok(Message::Terminate) => abandon(),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

impl Inspect for Machine {
    fn inspect(&self) -> Value {
        let cpus = self.cpus.iter().map(|cpu| cpu.exits().inspect()).collect::<Vec<_>>();
        json!({
            "cpus": cpus,
            "resets": self.resets,
            "platform": self.platform.inspect(),
            "pci": self.pci.inspect(),
        })
    }
}

/// Ends the process while requests are in flight, which a disk that hangs may never complete. The guest was not told that
/// any of them is.
fn abandon() -> ! {
    devices::host_console::restore_terminal();
    eprintln!("vivarium: told to end again: not waiting for requests that disks have not completed");
    std::process::exit(1)
}

fn check_cpu_limit(config: &VmConfig, hypervisor: &dyn Hypervisor) -> Result<()> {
    let (limit, possible) = (config.cpus.limit(), hypervisor.max_vcpus());
    if limit > possible {
        let option = if config.cpus.max_vcpus.is_some() { "max" } else { "boot" };
        return Err(ConfigError {
            option: format!("--cpus {option}={limit}"),
            reason: format!("this host's hypervisor runs at most {possible} CPUs in a machine"),
        }
        .into());
    }
    Ok(())
}

/// A backend made of software would leave a stock kernel hanging without a word.
fn refuse_linux_where_it_cannot_run(config: &VmConfig, hypervisor: &dyn Hypervisor) -> Result<()> {
    let Some(reason) = hypervisor.cannot_run_linux() else { return Ok(()) };
    let kernel = config.payload.kernel.as_deref().unwrap_or_else(|| std::path::Path::new(""));
    anyhow::bail!("--kernel {}: {reason}", kernel.display())
}

fn map_memory(vm: &dyn Vm, memory: &GuestMemory) -> Result<()> {
    for (slot, region) in (0u32..).zip(memory.ram.iter()) {
        let slot = MemorySlot {
            slot,
            guest_address: region.start_addr().0,
            size: region.len(),
            host_address: region.as_ptr(),
            readonly: false,
            log_dirty: false,
        };
        // SAFETY: the region stays mapped as long as the machine's memory, which is dropped after the machine.
        unsafe { vm.map_memory(slot) }.context("--memory: giving memory to the guest; make it smaller")?;
    }
    Ok(())
}

fn start_cpus(
    config: &VmConfig,
    vcpus: Vec<Box<dyn Vcpu>>,
    surroundings: &Surroundings,
    model: &CpuModel,
    entry: EntryPoint,
) -> Result<Vec<CpuThread>> {
    let (mut cpus, mut pending) = (Vec::new(), Vec::new());
    for (index, vcpu) in (0u32..).zip(vcpus) {
        let affinity = config.cpus.affinity.iter().find(|affinity| affinity.vcpu == index).cloned();
        let confine = move || {
            if let Some(affinity) = affinity
                && let Err(error) = cpu::set_affinity(&affinity.host_cpus)
            {
                tracing::warn!("--cpus affinity: CPU {index} runs on any host CPU: {error}");
            }
            seccomp::confine(ThreadKind::Cpu);
        };
        let thread = CpuThread::start(index, vcpu, surroundings.clone(), confine)?;
        let model = model.clone();
        pending.push(thread.begin(move |vcpu| platform::configure_vcpu(vcpu, &model, index, &entry))?);
        cpus.push(thread);
    }
    for (index, configured) in pending.into_iter().enumerate() {
        configured.wait()?.with_context(|| format!("setting up CPU {index}"))?;
    }
    Ok(cpus)
}
