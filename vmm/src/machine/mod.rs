//! The machine: built from a configuration, run by one thread that owns it.
//!
//! [`Machine`] has the CPUs, memory, buses and devices as its fields. Everything that is to change about it
//! arrives as a message or a call from [`crate::monitor`], and is done at once or begun: see `life` for what a whole machine does,
//! `hotplug` for devices that come and go.

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

mod added_memory;
pub mod addition;
mod boot_files;
mod clock;
mod closing;
pub mod control;
#[allow(
    clippy::arithmetic_side_effects,
    reason = "sums of places in memory, of which there are 2^52 bytes at most"
)]
mod coredump;
mod cpus;
mod crash;
pub mod debugger;
mod dump;
mod flash;
mod fw_cfg;
pub mod gdb;
mod life;
mod memory_devices;
mod observe;
pub mod orders;
mod outputs;
mod pci_bus;
mod persistent_memory;
mod platform;
pub mod ports;
mod registry;
pub mod removal;
pub mod resize;
mod restart;
mod shared_memory;
pub mod throttle;
mod watchdog;
mod workers;

use crate::api::Respond;
use crate::config::{ByteSize, ConfigError, VmConfig};
use crate::console_thread::{ConsoleThread, Consoles};
use crate::cpu::{Peers, Surroundings};
use crate::event::Events;
use crate::guest_faults::Watched;
use crate::memory::{self, GuestMemory, ZoneExtent};
use crate::message::{Failure, Mailbox, Work};
use crate::monitor::Limits;
use crate::pmem::PmemSpace;
use added_memory::Modules;
use addition::Additions;
use anyhow::{Context, Result};
use arch::native::cpu::CpuModel;
use arch::native::layout::MemoryLayout;
use boot_files::BootFiles;
use control::Control;
use cpus::Cpus;
use crash::Crash;
use debugger::Debugger;
use devices::fw_cfg::vmcoreinfo::VmcoreInfo;
use devices::virtio::balloon::BalloonControl;
use flash::Flash;
use hypervisor::{Hypervisor, MemorySlot, Vm};
use life::Phase;
use machine::bus::{BusHandle, Range};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::effect::{Effect, FunctionAddress};
use machine::interrupt::MsiAllocator;
use machine::memory::GuestMemoryRegion;
use machine::memory::Memory;
use memory_devices::MemoryDevices;
use observe::Gatherings;
use pci_bus::PciBus;
use persistent_memory::AfterRestart;
use platform::{Foundation, Platform, Pumps};
pub(crate) use platform::{HAS_CHOICES, calls};
pub use registry::Opened;
use registry::{Site, Turn};
use removal::Removal;
use resize::Growth;
pub use restart::Loaded;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use throttle::Throttle;

/// How a machine came to its end.
#[derive(Debug)]
pub enum Ended {
    /// The guest powered off.
    PoweredOff,
    /// It was asked to end.
    Terminated,
    /// It cannot go on.
    Failed(Failure),
}

/// What a machine is given of the process.
pub struct Place<'a> {
    /// What runs CPUs.
    pub hypervisor: &'a dyn Hypervisor,
    /// Where the machine's threads leave messages.
    pub mailbox: Mailbox,
    /// What carries console bytes.
    pub consoles: &'a Arc<ConsoleThread>,
    /// Where it is told what happens.
    pub events: Events,
    /// What its threads have that may outlive it.
    pub work: Work,
    /// How long what the host does may take.
    pub limits: Limits,
}

/// A machine.
pub struct Machine {
    // Fields are dropped in this order: first what runs, then what it runs on.
    cpus: Cpus,
    pci: PciBus,
    platform: Platform,
    config: VmConfig,
    /// A restart that is under way has them.
    files: Option<BootFiles>,
    layout: MemoryLayout,
    model: CpuModel,
    site: Arc<Site>,
    events: Events,
    /// CPUs whose effect waits for a function's workers to stop.
    waiting: BTreeMap<FunctionAddress, Vec<u32>>,
    /// What CPUs asked for before they were stopped by a pause, and was heard after.
    held: Vec<(u32, Effect)>,
    phase: Phase,
    limits: Limits,
    throttle: Throttle,
    resets: u64,
    /// The panics that the guest has reported since its last restart, by event bits.
    panics: u8,
    debugger: Debugger,
    /// Trees that are being put together for whoever looks at the machine.
    gatherings: Gatherings,
    /// Where the guest's kernel says that its note for debuggers is.
    vmcoreinfo: Option<VmcoreInfo>,
    /// Takes the answer when the core dump that is being written is complete.
    dump: Option<Respond>,
    /// A crash of the guest that is being dealt with.
    crash: Option<Crash>,
    mailbox: Mailbox,
    work: Work,
    additions: Additions,
    /// Descriptors that came with devices while the machine ran, by the devices' ids: the configuration names them.
    passed_files: BTreeMap<String, Vec<OwnedFd>>,
    removals: BTreeMap<String, Removal>,
    /// CPUs whose eject of a stand-in waits for its workers to stop.
    leaving: BTreeMap<FunctionAddress, Vec<u32>>,
    /// What waits for functions to go on with other memory.
    restarts: Vec<(BTreeSet<FunctionAddress>, AfterRestart)>,
    /// The watchdogs that told of a silent guest while it came to rest or stood still: they wait until it goes on.
    watchdogs_told: BTreeSet<String>,
    memory_devices: MemoryDevices,
    /// None while the machine is built.
    _consoles: Option<Consoles>,
    clock: Arc<dyn Clock>,
    modules: Modules,
    /// A change of sizes that waits for memory from the host.
    growth: Option<Growth>,
    pmem: PmemSpace,
    vm: Arc<dyn Vm>,
    watched: Watched,
    /// Memory without which functions have not gone on yet.
    memory_in_use: Vec<(Watched, Memory)>,
    memory: GuestMemory,
    flash: Flash,
}

impl Machine {
    /// Builds a machine up to its first instruction.
    ///
    /// # Errors
    /// When something it is made of cannot be had, naming the option it comes from.
    pub fn new(mut config: VmConfig, place: Place<'_>) -> Result<Self> {
        let Place { hypervisor, mailbox, consoles, events, work, limits } = place;
        let own_mailbox = mailbox.clone();
        config.name_devices();
        config.validate_start()?;
        check_cpu_limit(&config, hypervisor)?;
        crash::check_folder(&config)?;
        outputs::check(&config)?;
        let mut files = BootFiles::open(&config)?;
        let Foundation { vm, mut vcpus, model, layout } = platform::found(&config, hypervisor)?;
        let clock = hypervisor.clock(&mut vcpus);
        let (mmio, port) = (BusHandle::default(), BusHandle::default());
        let mut pumps = Pumps::default();
        let mut platform = Platform::new(&config, &*vm, &layout, &mmio, &port, &clock, &mut pumps)?;
        let surroundings = Surroundings {
            mmio: mmio.clone(),
            port: port.clone(),
            end_of_interrupt: platform.end_of_interrupt(),
            peers: Arc::new(Peers::new(config.cpus.limit())),
            mailbox: mailbox.clone(),
        };
        // Their threads are made and confine themselves while the rest is built.
        let mut cpus = Cpus::start(&config, Arc::clone(&vm), vcpus, surroundings, model.clone())?;
        let ranges: Vec<_> = layout.ram().iter().map(|range| (range.start, range.size)).collect();
        let (hotplug, pmem) = later_memory(&config, &layout);
        let memory = memory::provide(&config.memory, &ranges, hotplug)?;
        let watched = Watched::new(&memory.ram).context("--memory")?;
        map_memory(&*vm, &memory)?;
        let flash = Flash::add(&config, &*vm, &mmio)?;
        let mut vmcoreinfo = None;
        if let Some(parts) = fw_cfg::parts(&config, &files, &memory.zones, &layout, &model)? {
            platform.add_fw_cfg(parts.items, &memory.ram, &mmio, &port)?;
            vmcoreinfo = parts.vmcoreinfo;
        }
        let mut pci = PciBus::new(
            pci_bus::Surroundings {
                vm: Arc::clone(&vm),
                mmio,
                port,
                mailbox,
                memory: Arc::clone(&memory.ram),
                pins: Arc::clone(&platform.pins) as _,
                wiring: platform::PCI_WIRING,
                clock: Arc::clone(&clock),
                work: work.clone(),
            },
            layout.segments(),
        )?;
        let escape = Doorbell::new().context("making an event")?;
        let msi: Arc<dyn MsiAllocator> = Arc::clone(&vm) as _;
        let site = Site::new(&config, &clock, escape.clone(), events.clone(), &msi, own_mailbox.clone());
        pci.add_ports(&config)?;
        let memory_devices = MemoryDevices::new(&config, &memory)?;
        let terminals = site.add(&config, Turn::First, &memory_devices, &mut pci)?;
        config.set_terminals(&pumps.terminals, &terminals);
        memory_devices::request_first(&config, &pci)?;

        let (ram, zones) = (&memory.ram, &memory.zones);
        let entry = platform::load(&mut files, &config, ram, zones, &layout, &model, &flash.ranges())?;
        if platform::is_linux(&files, entry)? {
            refuse_linux_where_it_cannot_run(&config, hypervisor)?;
        }
        cpus.configure(entry)?;
        let mut machine = Self {
            cpus,
            pci,
            platform,
            config,
            files: Some(files),
            layout,
            model,
            site: Arc::new(site),
            events,
            waiting: BTreeMap::new(),
            held: Vec::new(),
            phase: Phase::Paused,
            limits,
            throttle: Throttle::default(),
            resets: 0,
            panics: 0,
            debugger: Debugger::default(),
            gatherings: Gatherings::default(),
            vmcoreinfo,
            dump: None,
            crash: None,
            mailbox: own_mailbox,
            work,
            additions: Additions::default(),
            passed_files: BTreeMap::new(),
            removals: BTreeMap::new(),
            leaving: BTreeMap::new(),
            restarts: Vec::new(),
            watchdogs_told: BTreeSet::new(),
            memory_devices,
            _consoles: None,
            clock,
            modules: Modules::new(&memory)?,
            growth: None,
            pmem: PmemSpace::new(pmem),
            vm,
            watched,
            memory_in_use: Vec::new(),
            memory,
            flash,
        };
        machine.add_configured_memory()?;
        for config in machine.config.pmem.clone() {
            let opened = registry::open(&machine.site, &config.into())?;
            machine.seat(opened)?;
        }
        machine.pci.check_places()?;
        machine.pci.place_bars(machine.layout.segments())?;
        // When there is nothing left that can fail: serial ports' files lose what earlier machines wrote.
        machine._consoles = Some(consoles.serve(pumps.list, escape, &machine.work)?);
        machine.log_parts();
        Ok(machine)
    }

    /// Tells the log what the machine is made of.
    fn log_parts(&self) {
        let payload = &self.config.payload;
        let code = payload.kernel.as_ref().or(payload.firmware.as_ref());
        tracing::info!(
            cpus = self.config.cpus.boot_vcpus,
            memory = %ByteSize(self.memory_size()),
            code = %code.map(|path| path.display().to_string()).unwrap_or_default(),
            "the machine is built"
        );
        if tracing::event_enabled!(tracing::Level::DEBUG) {
            for (id, address) in self.pci.ids() {
                tracing::debug!(%address, "device {id}");
            }
        }
    }

    /// The configuration as it is now.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The descriptors that the configuration names and that came while the machine ran, for a machine that is booted from it.
    pub fn take_passed_files(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.passed_files).into_values().flatten().collect()
    }

    /// Memory that the guest can use, in bytes.
    pub fn memory_size(&self) -> u64 {
        let boot: u64 = self.memory.zones.iter().map(ZoneExtent::boot).sum();
        let added = self.modules.size().saturating_add(memory_devices::plugged(&self.pci));
        boot.saturating_add(added).saturating_sub(self.balloon().map_or(0, BalloonControl::actual))
    }

    /// How many CPUs there are.
    pub fn cpu_count(&self) -> u32 {
        self.cpus.count()
    }

    /// The balloon, if there is one.
    fn balloon(&self) -> Option<&BalloonControl> {
        self.pci.controls().find_map(|(_, control)| match control {
            Control::Balloon(balloon) => Some(balloon),
            _ => None,
        })
    }
}

/// The time at which `limit` from now is over.
fn after(limit: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(limit).unwrap_or(now)
}

/// The address space for memory that comes by virtio-mem or in modules, if there is to be any, and that for persistent memory.
fn later_memory(config: &VmConfig, layout: &MemoryLayout) -> (Option<Range>, Range) {
    let Range { start, size } = layout.hotplug().unwrap_or(Range { start: 0, size: 0 });
    let space = memory::hotplug_space(&config.memory);
    let pmem = Range { start: start.saturating_add(space), size: size.saturating_sub(space) };
    ((space > 0).then_some(Range { start, size: space }), pmem)
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
    let payload = &config.payload;
    let (option, path) = match &payload.firmware {
        Some(path) => ("--firmware", Some(path)),
        None => ("--kernel", payload.kernel.as_ref()),
    };
    anyhow::bail!("{option} {}: {reason}", path.map(|path| path.display().to_string()).unwrap_or_default())
}

/// The most memory in one slot, in bytes (Linux, `KVM_MEM_MAX_NR_PAGES`).
const LARGEST_SLOT: u64 = ((1 << 31) - 1) << 12;

fn map_memory(vm: &dyn Vm, memory: &GuestMemory) -> Result<()> {
    let all = ByteSize(memory.boot_regions().map(|region| region.len()).sum());
    for (slot, region) in (0u32..).zip(memory.boot_regions()) {
        check_slot(all, region.len())?;
        let slot = MemorySlot {
            slot,
            guest_address: region.start_addr().0,
            size: region.len(),
            host_address: region.as_ptr(),
            readonly: false,
            log_dirty: false,
        };
        // SAFETY: the region stays mapped as long as the machine's memory, which is dropped after the machine.
        unsafe { vm.map_memory(slot) }
            .with_context(|| format!("--memory size={all}: giving memory to the guest; make it smaller"))?;
    }
    Ok(())
}

/// Refuses a piece of memory, of `all` that the guest is to have, that is too large for the kernel.
fn check_slot(all: ByteSize, piece: u64) -> Result<()> {
    anyhow::ensure!(
        piece <= LARGEST_SLOT,
        "--memory size={all}: KVM takes less than 8T in one piece (2^31 - 1 pages of 4K), and {} are; make it smaller, or share \
         it out among several --memory-zone",
        ByteSize(piece)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_kvm_takes_in_one_piece_is_refused_with_the_limit() {
        let refusal = check_slot(ByteSize(9 << 40), (9 << 40) - (3 << 30)).unwrap_err().to_string();
        assert!(
            refusal.starts_with("--memory size=9T: KVM takes less than 8T in one piece (2^31 - 1"),
            "{refusal}"
        );
        assert!(check_slot(ByteSize(8 << 40), 8 << 40).is_err());
        assert!(check_slot(ByteSize(8 << 40), (8 << 40) - 4096).is_ok());
    }
}
