//! The mainboard, and what else of a machine depends on its architecture. Each architecture has a module here with the same
//! names, and the machine uses that of the one it is built for; nothing else in this crate asks which one that is.
//!
//! | name | what it is |
//! |---|---|
//! | `found` | makes the hypervisor's machine, its CPUs and its memory layout |
//! | `Platform` | the devices at fixed places |
//! | `load` | the kernel, and the tables that firmware would have left |
//! | `firmware_places` | where flash is, for firmware that the architecture can start in |
//! | `describe`, `setup_part` | what the firmware configuration device holds of it and of its kernel |
//! | `is_linux` | whether the kernel is Linux |
//! | `configure_vcpu`, `reset_vcpu` | the state a CPU starts in |
//! | `create_vcpu` | makes a further CPU |
//! | `withdraw_vcpu` | has a CPU that is not there refuse to be started |
//! | `RAISE_NMI` | what interrupts a CPU whatever it masks, where something can |
//! | `HAS_CHOICES` | whether what the CPUs have, and the serial port's kind, can be chosen |
//! | `PCI_WIRING` | the interrupts that PCI pins are wired to |
//! | `has_acpi` | whether ACPI tables describe it, so that CPUs, memory and devices may come and go |
//! | `calls` | the numbers of system calls that not every architecture has, and of the architecture itself |
//! | `debug` | a CPU's registers as GDB sees them, and its breakpoint instruction |
//! | `core_notes` | what a core dump holds of a CPU |

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod generation;
mod notifier;
mod numa;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as native;
#[cfg(target_arch = "x86_64")]
use x86_64 as native;

pub use native::{
    HAS_CHOICES, PCI_WIRING, Platform, RAISE_NMI, calls, configure_vcpu, core_notes, create_vcpu, debug,
    describe, firmware_places, found, has_acpi, is_linux, load, reset_vcpu, setup_part, withdraw_vcpu,
};

pub use notifier::{MEMORY_SLOTS, Notifier};

use crate::config::{ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig, VmConfig};
use crate::{memory, pmem};
use anyhow::{Context, Result};
use arch::layout::SegmentShare;
use arch::native::cpu::CpuModel;
use arch::native::layout::MemoryLayout;
use arch::topology::Topology;
use devices::host_console::{ConsolePump, Mode};
use devices::platform::PlatformDevice;
use devices::pvpanic::Pvpanic;
use hypervisor::{Vcpu, Vm};
use machine::bus::{BusHandle, Range};
use machine::inspect::{Value, hex, json};
use notifier::Places;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a machine is built on.
pub struct Foundation {
    /// The hypervisor's machine, without memory.
    pub vm: Arc<dyn Vm>,
    /// The CPUs that are there at the start, and those that have to be made now to come later.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// What CPUs are like.
    pub model: CpuModel,
    /// Where everything is.
    pub layout: MemoryLayout,
}

/// Interrupts a CPU whatever it masks.
pub type RaiseNmi = fn(&mut dyn Vcpu) -> Result<()>;

fn cpu_topology(config: &VmConfig) -> Result<Topology> {
    let limit = config.cpus.limit();
    let Some(shape) = config.cpus.topology else { return Ok(Topology::flat(limit)) };
    let (threads, cores) = (shape.threads_per_core.into(), shape.cores_per_die.into());
    let (dies, packages) = (shape.dies_per_package.into(), shape.packages.into());
    Topology::new(threads, cores, dies, packages, limit).context("--cpus topology")
}

fn segment_shares(config: &VmConfig) -> Vec<SegmentShare> {
    (0..)
        .zip(config.buses())
        .map(|(number, buses)| {
            let told = config.pci_segments.iter().find(|segment| segment.pci_segment == number);
            let told = told.cloned().unwrap_or_default();
            SegmentShare { bars_32: told.mmio32_aperture_weight, bars_64: told.mmio64_aperture_weight, buses }
        })
        .collect()
}

/// Lays out a machine by `lay_out`, which is told how much address space is to be kept for memory that comes later: with
/// what is kept for persistent memory, if the addresses suffice.
fn with_pmem_reserve<E: std::error::Error + Send + Sync + 'static>(
    config: &VmConfig,
    lay_out: impl Fn(u64) -> Result<MemoryLayout, E>,
) -> Result<MemoryLayout> {
    let needed = memory::hotplug_space(&config.memory).saturating_add(pmem::space(&config.pmem)?);
    lay_out(needed.saturating_add(pmem::RESERVE)).or_else(|_| lay_out(needed)).context("--memory")
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device at a fixed place.
struct Placed {
    /// What it is called in messages.
    name: &'static str,
    /// Where its registers are.
    range: Range,
    device: Arc<Mutex<dyn PlatformDevice>>,
}

/// The devices that have a place.
#[derive(Default)]
struct Mainboard {
    devices: Vec<Placed>,
}

impl Mainboard {
    fn put<T: PlatformDevice + 'static>(
        &mut self,
        name: &'static str,
        bus: &BusHandle,
        range: Range,
        device: T,
    ) -> Result<Arc<Mutex<T>>> {
        put(&mut self.devices, name, bus, range, device)
    }
}

/// Puts a device on a bus, and among `devices`.
fn put<T: PlatformDevice + 'static>(
    devices: &mut Vec<Placed>,
    name: &'static str,
    bus: &BusHandle,
    range: Range,
    device: T,
) -> Result<Arc<Mutex<T>>> {
    let device = Arc::new(Mutex::new(device));
    bus.change(|bus| bus.insert(range, Arc::clone(&device) as _))
        .with_context(|| format!("placing the {name}"))?;
    devices.push(Placed { name, range, device: Arc::clone(&device) as _ });
    Ok(device)
}

/// Where the mainboard's pvpanic device is, when there is one: from a start of the guest, which is told of it in its tables.
struct PanicPort {
    bus: BusHandle,
    range: Range,
}

impl PanicPort {
    /// Has it be among `devices`, or not.
    ///
    /// # Errors
    /// When something else is at its place.
    fn follow(&self, devices: &mut Vec<Placed>, there: bool) -> Result<()> {
        const NAME: &str = "pvpanic";
        match (there, devices.iter().position(|placed| placed.name == NAME)) {
            (true, None) => put(devices, NAME, &self.bus, self.range, Pvpanic::default()).map(drop),
            (false, Some(at)) => {
                devices.remove(at);
                self.bus.change(|bus| {
                    bus.remove(self.range.start);
                    Ok(())
                })
            }
            _ => Ok(()),
        }
    }
}

/// Returns every device to its state at power-on.
fn reset_devices(devices: &[Placed]) {
    for placed in devices {
        lock(&placed.device).reset();
    }
}

/// The devices, for inspection.
fn inspect_devices(devices: &[Placed]) -> Value {
    let tree = |placed: &Placed| {
        let mut tree = lock(&placed.device).inspect();
        if let Value::Object(fields) = &mut tree {
            let Range { start, size } = placed.range;
            fields.insert("registers".to_owned(), json!({ "start": hex(&start), "bytes": size }));
        }
        (placed.name.to_owned(), tree)
    };
    devices.iter().map(tree).collect()
}

/// Consoles whose bytes have to be carried.
#[derive(Default)]
pub struct Pumps {
    /// What carries them.
    pub list: Vec<ConsolePump>,
    /// Where pseudo-terminals are, by option.
    pub terminals: BTreeMap<&'static str, PathBuf>,
}

impl Pumps {
    /// Adds the console of `option`, and tells the user where a pseudo-terminal is, which only the host knows.
    fn push(&mut self, option: &'static str, pump: ConsolePump) {
        if let Some(path) = pump.console().path() {
            eprintln!("vivarium: {option} is at {}", path.display());
            self.terminals.insert(option, path.to_owned());
        }
        self.list.push(pump);
    }
}

/// Where a console's configuration says it ends; `None` if there is no device.
pub fn console_mode(config: &ConsoleConfig) -> Option<Mode> {
    mode(config.mode, config.file.as_ref(), config.socket.as_ref())
}

/// As [`console_mode`], of the serial port.
fn serial_mode(config: &SerialConfig) -> Option<Mode> {
    mode(config.mode, config.file.as_ref(), config.socket.as_ref())
}

fn debug_mode(config: &DebugConsoleConfig) -> Option<Mode> {
    mode(config.mode, config.file.as_ref(), None)
}

fn mode(mode: ConsoleMode, file: Option<&PathBuf>, socket: Option<&PathBuf>) -> Option<Mode> {
    match mode {
        ConsoleMode::Off => None,
        ConsoleMode::Null => Some(Mode::Null),
        ConsoleMode::Tty => Some(Mode::Tty),
        ConsoleMode::Pty => Some(Mode::Pty(None)),
        ConsoleMode::File => Some(file.map_or(Mode::Null, |path| Mode::File(path.clone()))),
        ConsoleMode::Socket => Some(socket.map_or(Mode::Null, |path| Mode::Socket(path.clone()))),
    }
}
