//! The devices on the mainboard of an Arm machine: interrupt controller, clock, power button, serial port.

pub mod core_notes;
pub mod debug;
mod firmware;
mod tables;

pub use firmware::{describe, firmware_places, is_linux, load, setup_part};

use super::{
    Foundation, Mainboard, Notifier, PanicPort, Placed, Places, Pumps, RaiseNmi, cpu_topology, debug_mode,
    inspect_devices, lock, put, reset_devices, segment_shares, serial_mode, with_pmem_reserve,
};
use crate::config::{self, CpusConfig, VmConfig};
use anyhow::{Context, Result, ensure};
use arch::aarch64::boot::EntryPoint;
use arch::aarch64::cpu::{self, CpuModel};
use arch::aarch64::layout::{self, LayoutRequest, MemoryLayout};
use arch::aarch64::serial::{SerialModel, SerialPort};
use arch::caches::Cache;
use arch::wiring::InterruptPins;
use devices::fw_cfg::{FwCfg, Items, Registers};
use devices::host_console::{self, ConsoleInput};
use devices::primecell::pl011::Pl011;
use devices::primecell::pl031::Pl031;
use devices::primecell::pl061::Pl061;
use devices::serial::Serial;
use hypervisor::aarch64::{Gic, HostFeatures, MpState};
use hypervisor::{Hypervisor, Vcpu, Vm};
use machine::bus::BusHandle;
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::inspect::Value;
use machine::interrupt::InterruptLine;
use machine::memory::Memory;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Shared interrupt of the serial port.
pub const SERIAL_GSI: u32 = 1;
/// Shared interrupt of the clock.
pub const RTC_GSI: u32 = 2;
/// Whether a machine's CPUs can have less than the host's, and its serial port's kind can be chosen.
pub const HAS_CHOICES: bool = true;
/// The shared interrupts that PCI pins are wired to.
pub const PCI_WIRING: InterruptPins = InterruptPins { first_gsi: 3, count: 4 };
/// Shared interrupt of the device that the power button is on.
pub const GPIO_GSI: u32 = 7;

/// Shared interrupt of the ACPI event device.
pub const EVENT_GSI: u32 = 8;

/// System calls that stand for older ones of other architectures, as the C library makes them.
pub mod calls {
    /// `AUDIT_ARCH_AARCH64` (linux/audit.h).
    pub const ARCHITECTURE: u32 = 0xc000_00b7;
    pub const ACCESS: i64 = libc::SYS_faccessat;
    pub const READLINK: i64 = libc::SYS_readlinkat;
    pub const SYMLINK: i64 = libc::SYS_symlinkat;
    pub const POLL: i64 = libc::SYS_ppoll;
    pub const EPOLL_WAIT: i64 = libc::SYS_epoll_pwait;
    pub const UNLINK: i64 = libc::SYS_unlinkat;
}

/// Whether ACPI tables describe the machine. Without, it has a device tree.
pub fn has_acpi(config: &VmConfig) -> bool {
    config.platform.acpi.unwrap_or(config.payload.firmware.is_some())
}

/// The mainboard.
pub struct Platform {
    /// The interrupt controller.
    pub pins: Arc<dyn Gic>,
    /// What tells the guest of changes.
    pub notifier: Notifier,
    rtc: Arc<Mutex<Pl031>>,
    gpio: Arc<Mutex<Pl061>>,
    fw_cfg: Option<Arc<Mutex<FwCfg>>>,
    pvpanic: PanicPort,
    devices: Vec<Placed>,
}

impl Platform {
    /// Makes the interrupt controller of `vm`, all of whose CPUs are there, and puts the devices of `config` on the bus. The
    /// pumps carry their consoles' bytes.
    ///
    /// # Errors
    /// When the host has no such interrupt controller, or a console cannot be opened, naming its option.
    pub fn new(
        config: &VmConfig,
        vm: &dyn Vm,
        layout: &MemoryLayout,
        mmio: &BusHandle,
        _: &BusHandle,
        clock: &Arc<dyn Clock>,
        pumps: &mut Pumps,
    ) -> Result<Self> {
        let pins = vm.create_gic(&layout.gic(config.cpus.limit()))?;
        let line = |gsi| InterruptLine::new(Arc::clone(&pins) as _, gsi);
        let mut board = Mainboard::default();

        let rtc = Pl031::new(Arc::clone(clock), line(RTC_GSI));
        let rtc = board.put("clock", mmio, Pl031::window(layout::RTC), rtc)?;
        let gpio =
            board.put("power button", mmio, Pl061::window(layout::GPIO), Pl061::new(line(GPIO_GSI)))?;
        let places = Places {
            registers: layout::ACPI_REGISTERS,
            cpus: layout::CPU_HOTPLUG,
            memory: layout::MEMORY_HOTPLUG,
            pci: layout::PCI_HOTPLUG,
        };
        let notifier = Notifier::new(config, &mut board, mmio, &places, clock, line(EVENT_GSI))?;
        let pvpanic = PanicPort { bus: mmio.clone(), range: layout::PVPANIC };
        pvpanic.follow(&mut board.devices, config.hears_panics())?;
        add_serial(config, &mut board, mmio, line(SERIAL_GSI), pumps)?;
        ensure!(
            debug_mode(&config.debug_console).is_none(),
            "--debug-console: is a device at an I/O port, which Arm machines do not have; use --serial"
        );
        Ok(Self { pins, notifier, rtc, gpio, fw_cfg: None, pvpanic, devices: board.devices })
    }

    /// Adds the firmware configuration device.
    ///
    /// # Errors
    /// When something else is at its place.
    pub fn add_fw_cfg(
        &mut self,
        items: Items,
        memory: &Memory,
        mmio: &BusHandle,
        _: &BusHandle,
    ) -> Result<()> {
        let device = FwCfg::new(Registers::Memory, Arc::clone(memory), items);
        let device = put(&mut self.devices, "firmware configuration", mmio, layout::FW_CFG, device)
            .context("--fw-cfg-config")?;
        self.fw_cfg = Some(device);
        Ok(())
    }

    /// Has the firmware configuration device hold these, see [`FwCfg::replace`]. No CPU runs.
    pub fn replace_fw_cfg(&self, items: Items) {
        if let Some(device) = &self.fw_cfg {
            lock(device).replace(items);
        }
    }

    /// Has the mainboard have a pvpanic device, or none. No CPU runs.
    ///
    /// # Errors
    /// When something else is at its place.
    pub fn follow_pvpanic(&mut self, there: bool) -> Result<()> {
        self.pvpanic.follow(&mut self.devices, there)
    }

    /// What is told when the guest acknowledges a level-triggered interrupt: nothing, the hypervisor sees to it.
    pub fn end_of_interrupt(&self) -> Arc<dyn Fn(u8) + Send + Sync> {
        Arc::new(|_| {})
    }

    /// Has these CPUs take no interrupts, and all others those that the guest lets them, while no CPU runs.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn hold_interrupts(&self, cpus: &BTreeSet<u32>) -> hypervisor::Result<()> {
        self.pins.hold_interrupts(cpus)
    }

    /// When the clock wants to be looked at, in monotonic nanoseconds of the machine's clock.
    pub fn clock_deadline(&self) -> Option<u64> {
        lock(&self.rtc).deadline()
    }

    /// Raises the clock's interrupt if it is due.
    pub fn look_at_clock(&self) {
        lock(&self.rtc).look();
    }

    /// Presses the power button, which is there in the two ways in which a guest may be told of the machine.
    pub fn press_power_button(&self) {
        self.notifier.press_power_button();
        lock(&self.gpio).press_power_button();
    }

    /// Returns every device to its state at power-on. No CPU runs.
    pub fn reset(&self) {
        if let Err(error) = self.pins.reset() {
            tracing::error!("the interrupt controller keeps what the guest set before its restart: {error}");
        }
        reset_devices(&self.devices);
    }

    /// The devices, for inspection.
    pub fn inspect(&self) -> Value {
        inspect_devices(&self.devices)
    }
}

/// The serial port that there is to be, as the guest is told of it.
fn serial_port(config: &VmConfig) -> Option<SerialPort> {
    let model = match config.serial.model {
        None | Some(config::SerialModel::Pl011) => SerialModel::Pl011,
        Some(config::SerialModel::Uart16550) => SerialModel::Uart16550,
    };
    serial_mode(&config.serial).map(|_| SerialPort { model, interrupt: SERIAL_GSI })
}

/// Adds the serial port, if there is to be one.
fn add_serial(
    config: &VmConfig,
    board: &mut Mainboard,
    mmio: &BusHandle,
    line: InterruptLine,
    pumps: &mut Pumps,
) -> Result<()> {
    const NAME: &str = "serial port";
    let (Some(mode), Some(port)) = (serial_mode(&config.serial), serial_port(config)) else { return Ok(()) };
    let (output, pump) = host_console::connect(&mode).context("--serial")?;
    let room = Doorbell::new().context("--serial: making an event")?;
    let registers = port.model.registers();
    let serial: Arc<Mutex<dyn ConsoleInput>> = match port.model {
        SerialModel::Pl011 => {
            let serial = Pl011::new(line, output, room.clone());
            let serial = if has_acpi(config) { serial.set_up() } else { serial };
            board.put(NAME, mmio, registers, serial)?
        }
        SerialModel::Uart16550 => {
            board.put(NAME, mmio, registers, Serial::new(line, output, room.clone()))?
        }
    };
    if let Some(mut pump) = pump {
        pump.set_input(serial, room).context("--serial: watching it")?;
        pumps.push("--serial", pump);
    }
    Ok(())
}

/// Makes the hypervisor's machine and its CPUs, and lays out its memory.
///
/// # Errors
/// When the host cannot have such a machine, naming the option at fault.
pub fn found(config: &VmConfig, hypervisor: &dyn Hypervisor) -> Result<Foundation> {
    let cpus = config.cpus.limit();
    let option = if config.cpus.max_vcpus.is_some() { "max" } else { "boot" };
    ensure!(
        cpus == config.cpus.boot_vcpus || has_acpi(config),
        "--cpus max={cpus}: only ACPI tells an Arm guest of CPUs that come; add --platform acpi=on, or give them all as boot"
    );
    ensure!(
        cpus <= layout::MAX_CPUS,
        "--cpus {option}={cpus}: the interrupt controller has room for {} CPUs",
        layout::MAX_CPUS
    );
    let caches = Cache::of_host(Path::new("/sys/devices/system/cpu/cpu0"));
    let features = features(&config.cpus, hypervisor.host_features())?;
    let model = CpuModel::new(&features, cpu_topology(config)?, caches);
    let host_bits = features.address_bits;
    let layout = with_pmem_reserve(config, |hotplug| {
        let request = LayoutRequest {
            segments: config.platform.num_pci_segments,
            hotplug,
            ..LayoutRequest::new(config.memory.boot_size(), host_bits.min(config.cpus.max_phys_bits))
        };
        MemoryLayout::with_shares(&request, &segment_shares(config))
    })?;
    let vm = hypervisor.create_vm_of(layout.address_bits())?;
    // A host that cannot (Linux before 6.4) takes CPUs that are not there for some that are on: see `withdraw_vcpu`.
    if has_acpi(config) && !vm.forward_cpu_calls()? {
        tracing::debug!("the host answers for CPUs that are not there as for those that are on");
    }
    // The hypervisor makes no CPU after the interrupt controller.
    let vcpus = (0..cpus).map(|index| create_vcpu(&*vm, &model, index)).collect::<Result<_>>()?;
    Ok(Foundation { vm, vcpus, model, layout })
}

/// What CPUs have of what the host can give them.
fn features(cpus: &CpusConfig, host: HostFeatures) -> Result<HostFeatures> {
    Ok(HostFeatures {
        sve: cpus.sve.settle("sve", "scalable vectors", host.sve)?,
        pointer_authentication: cpus.pauth.settle(
            "pauth",
            "pointer authentication",
            host.pointer_authentication,
        )?,
        pmu: cpus.pmu.settle("pmu", "performance monitor", host.pmu)?,
        ..host
    })
}

/// Makes CPU number `index`, with its features.
///
/// # Errors
/// When the hypervisor refuses.
pub fn create_vcpu(vm: &dyn Vm, model: &CpuModel, index: u32) -> Result<Box<dyn Vcpu>> {
    let mut vcpu = vm.create_vcpu(index).with_context(|| format!("making CPU {index}"))?;
    cpu::init_vcpu(vcpu.native(), model, index).with_context(|| format!("setting up CPU {index}"))?;
    Ok(vcpu)
}

/// See [`arch::aarch64::cpu::configure_vcpu`].
///
/// # Errors
/// When the hypervisor refuses.
pub fn configure_vcpu(vcpu: &mut dyn Vcpu, model: &CpuModel, index: u32, entry: &EntryPoint) -> Result<()> {
    Ok(cpu::configure_vcpu(vcpu.native(), model, index, entry)?)
}

/// See [`arch::aarch64::cpu::reset_vcpu`].
///
/// # Errors
/// When the hypervisor refuses.
pub fn reset_vcpu(vcpu: &mut dyn Vcpu, model: &CpuModel, index: u32, entry: &EntryPoint) -> Result<()> {
    Ok(cpu::reset_vcpu(vcpu.native(), model, index, entry)?)
}

/// Has a CPU that is not there refuse to be started where the hypervisor answers PSCI calls itself: it takes the CPU for one that is
/// on. Nothing runs it. [`reset_vcpu`] undoes this.
///
/// # Errors
/// When the hypervisor refuses.
pub fn withdraw_vcpu(vcpu: &mut dyn Vcpu) -> Result<()> {
    Ok(vcpu.native().set_mp_state(MpState::Runnable)?)
}

/// There is no non-maskable interrupt that the hypervisor could raise.
pub const RAISE_NMI: Option<RaiseNmi> = None;
