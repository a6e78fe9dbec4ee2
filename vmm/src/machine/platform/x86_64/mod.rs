//! The devices on the mainboard of a PC: interrupt controller, clock, power, serial port.

mod banner;
pub mod core_notes;
pub mod debug;
mod firmware;

pub use firmware::{describe, firmware_places, is_linux, load, setup_part};

use super::{
    Foundation, Mainboard, Notifier, PanicPort, Placed, Places, Pumps, RaiseNmi, cpu_topology, debug_mode,
    inspect_devices, lock, put, reset_devices, segment_shares, serial_mode, with_pmem_reserve,
};
use crate::config::VmConfig;
use anyhow::{Context, Result, anyhow, ensure};
use arch::topology::Topology;
use arch::wiring::InterruptPins;
use arch::x86_64::boot::EntryPoint;
use arch::x86_64::cpu::{self, CpuModel, CpuOptions, Vendor};
use arch::x86_64::layout::{LayoutRequest, MemoryLayout};
use devices::acpi::AcpiRegisters;
use devices::acpi_hotplug::cpu::CpuHotplug;
use devices::acpi_hotplug::memory::MemoryHotplug;
use devices::acpi_hotplug::pci::PciHotplug;
use devices::debug_console::DebugConsole;
use devices::fw_cfg::{FwCfg, Items, Registers};
use devices::host_console;
use devices::i8042::I8042;
use devices::ioapic::{IoApic, IoApicPins};
use devices::legacy_ports::{PostCode, SystemControl};
use devices::pvpanic::Pvpanic;
use devices::rtc::Rtc;
use devices::serial::Serial;
use hypervisor::{Hypervisor, Vcpu, Vm};
use machine::bus::{BusHandle, Range};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::inspect::Value;
use machine::interrupt::InterruptLine;
use machine::memory::Memory;
use pci::root::{CONFIG_PORTS, CONFIG_PORTS_SIZE};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Interrupt of the first serial port.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt of the clock.
pub const RTC_GSI: u32 = 8;
/// Interrupt of the ACPI event device.
pub const EVENT_GSI: u32 = 5;
/// Whether a machine's CPUs can have less than the host's, and its serial port's kind can be chosen.
pub const HAS_CHOICES: bool = false;
/// The interrupts that PCI pins are wired to: those of the I/O APIC beyond a PC's 16.
pub const PCI_WIRING: InterruptPins = InterruptPins { first_gsi: 16, count: 8 };

/// System calls that later architectures have another one for, as the C library makes them.
pub mod calls {
    /// `AUDIT_ARCH_X86_64` (linux/audit.h).
    pub const ARCHITECTURE: u32 = 0xc000_003e;
    pub const ACCESS: i64 = libc::SYS_access;
    pub const READLINK: i64 = libc::SYS_readlink;
    pub const SYMLINK: i64 = libc::SYS_symlink;
    pub const POLL: i64 = libc::SYS_poll;
    pub const EPOLL_WAIT: i64 = libc::SYS_epoll_wait;
    pub const UNLINK: i64 = libc::SYS_unlink;
}

/// Whether ACPI tables describe the machine: always.
pub fn has_acpi(_: &VmConfig) -> bool {
    true
}

/// The mainboard.
pub struct Platform {
    /// The I/O APIC's pins.
    pub pins: Arc<IoApicPins>,
    /// What tells the guest of changes.
    pub notifier: Notifier,
    rtc: Arc<Mutex<Rtc>>,
    fw_cfg: Option<Arc<Mutex<FwCfg>>>,
    pvpanic: PanicPort,
    devices: Vec<Placed>,
}

impl Platform {
    /// Puts the devices of `config` on the buses. The pumps carry their consoles' bytes.
    ///
    /// # Errors
    /// When a console cannot be opened, naming its option.
    pub fn new(
        config: &VmConfig,
        vm: &dyn Vm,
        _: &MemoryLayout,
        mmio: &BusHandle,
        port: &BusHandle,
        clock: &Arc<dyn Clock>,
        pumps: &mut Pumps,
    ) -> Result<Self> {
        let sources = (0..devices::ioapic::PINS).map(|pin| vm.ioapic_pin(pin)).collect::<Result<_, _>>()?;
        let io_apic = IoApic::new(sources);
        let pins = io_apic.pins();
        let line = |gsi| InterruptLine::new(pins.clone(), gsi);
        let mut board = Mainboard::default();

        board.put("I/O APIC", mmio, IoApic::WINDOW, io_apic)?;
        let places = Places {
            registers: AcpiRegisters::PORTS,
            cpus: CpuHotplug::PORTS,
            memory: MemoryHotplug::PORTS,
            pci: PciHotplug::PORTS,
        };
        let notifier = Notifier::new(config, &mut board, port, &places, clock, line(EVENT_GSI))?;
        let rtc = Rtc::new(Arc::clone(clock), line(RTC_GSI));
        let rtc = board.put("clock", port, Rtc::PORTS, rtc)?;
        board.put("keyboard controller", port, I8042::PORTS, I8042::default())?;
        board.put("diagnostic port", port, PostCode::PORTS, PostCode::default())?;
        board.put("system control port", port, SystemControl::PORTS, SystemControl::default())?;
        let pvpanic = PanicPort { bus: port.clone(), range: Pvpanic::PORTS };
        pvpanic.follow(&mut board.devices, config.hears_panics())?;
        if let Some(mode) = serial_mode(&config.serial) {
            let (output, pump) = host_console::connect(&mode).context("--serial")?;
            let room = Doorbell::new().context("--serial: making an event")?;
            let serial = Serial::new(line(SERIAL_GSI), output, room.clone());
            let serial = board.put("serial port", port, Serial::COM1, serial)?;
            if let Some(mut pump) = pump {
                pump.set_input(serial, room).context("--serial: watching it")?;
                pumps.push("--serial", pump);
            }
        }
        if let Some(mode) = debug_mode(&config.debug_console) {
            let (output, pump) = host_console::connect(&mode).context("--debug-console")?;
            let range = Range { start: u64::from(config.debug_console.iobase), size: 1 };
            let refused = || {
                format!(
                    "--debug-console iobase={:#x}: another device has this port; give another, such as 0xe9",
                    range.start
                )
            };
            // They are placed later.
            let pci = Range { start: CONFIG_PORTS, size: CONFIG_PORTS_SIZE };
            let fw_cfg = config.payload.fw_cfg_config.as_ref().map(|_| FwCfg::PORTS);
            ensure!(![Some(pci), fw_cfg].into_iter().flatten().any(|ports| ports.overlaps(range)), refused());
            board.put("debug console", port, range, DebugConsole::new(output)).with_context(refused)?;
            if let Some(pump) = pump {
                pumps.push("--debug-console", pump);
            }
        }
        Ok(Self { pins, notifier, rtc, fw_cfg: None, pvpanic, devices: board.devices })
    }

    /// Adds the firmware configuration device.
    ///
    /// # Errors
    /// When something else is at its place.
    pub fn add_fw_cfg(
        &mut self,
        items: Items,
        memory: &Memory,
        _: &BusHandle,
        port: &BusHandle,
    ) -> Result<()> {
        let device = FwCfg::new(Registers::Ports, Arc::clone(memory), items);
        let device = put(&mut self.devices, "firmware configuration", port, FwCfg::PORTS, device)
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

    /// What is told when the guest acknowledges a level-triggered interrupt.
    pub fn end_of_interrupt(&self) -> Arc<dyn Fn(u8) + Send + Sync> {
        let pins = Arc::clone(&self.pins);
        Arc::new(move |vector| pins.end_of_interrupt(vector))
    }

    /// The hypervisor itself holds interrupts back from a CPU that does a single step.
    pub fn hold_interrupts(&self, _: &BTreeSet<u32>) -> hypervisor::Result<()> {
        Ok(())
    }

    /// When the clock wants to be looked at, in monotonic nanoseconds of the machine's clock.
    pub fn clock_deadline(&self) -> Option<u64> {
        lock(&self.rtc).deadline()
    }

    /// Raises the clock's interrupt if it is due.
    pub fn look_at_clock(&self) {
        lock(&self.rtc).look();
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.notifier.press_power_button();
    }

    /// Returns every device to its state at power-on.
    pub fn reset(&self) {
        reset_devices(&self.devices);
    }

    /// The devices, for inspection.
    pub fn inspect(&self) -> Value {
        inspect_devices(&self.devices)
    }
}

/// Makes a further CPU.
///
/// # Errors
/// When the hypervisor refuses.
pub fn create_vcpu(vm: &dyn Vm, model: &CpuModel, index: u32) -> Result<Box<dyn Vcpu>> {
    vm.create_vcpu(model.topology().apic_id(index)).with_context(|| format!("making CPU {index}"))
}

/// Makes the hypervisor's machine and its CPUs, and lays out its memory.
///
/// # Errors
/// When the host cannot have such a machine, naming the option at fault.
pub fn found(config: &VmConfig, hypervisor: &dyn Hypervisor) -> Result<Foundation> {
    ensure!(
        config.platform.acpi != Some(false),
        "--platform acpi=off: a PC is always described by ACPI tables; leave it out, and use --cmdline acpi=off for a Linux \
         that is to ignore them"
    );
    let topology = cpu_topology(config)?;
    // A host that is a machine itself traps CPUID, and to ask for all of it takes as long as to make the machine.
    let (made, cpuid) = std::thread::scope(|scope| {
        // The stack of a CPU's thread, which the first CPU then takes over.
        let cpuid = std::thread::Builder::new()
            .name("cpuid".into())
            .stack_size(crate::cpu::STACK)
            .spawn_scoped(scope, || hypervisor.supported_cpuid());
        let made = make_vm(config, hypervisor, topology);
        (made, cpuid.map(|thread| thread.join()))
    });
    let (vm, mut vcpus) = made?;
    let cpuid = cpuid.context("starting a thread")?;
    let cpuid = cpuid.map_err(|_| anyhow!("the thread that asks for the host's CPUID died"))??;
    let tsc_khz = vcpus.first_mut().and_then(|vcpu| vcpu.x86_64().tsc_khz().ok());
    let options = CpuOptions {
        max_phys_bits: config.cpus.max_phys_bits,
        nested: config.cpus.nested,
        tsc_khz,
        ..CpuOptions::default()
    };
    let model = CpuModel::new(&cpuid, topology, &options);
    let layout = with_pmem_reserve(config, |hotplug| {
        let request = LayoutRequest {
            segments: config.platform.num_pci_segments,
            amd: model.vendor() == Vendor::Amd,
            hotplug,
            ..LayoutRequest::new(config.memory.boot_size(), model.phys_bits())
        };
        MemoryLayout::with_shares(&request, &segment_shares(config))
    })?;
    Ok(Foundation { vm, vcpus, model, layout })
}

/// The hypervisor's machine with its CPUs.
type Made = (Arc<dyn Vm>, Vec<Box<dyn Vcpu>>);

fn make_vm(config: &VmConfig, hypervisor: &dyn Hypervisor, topology: Topology) -> Result<Made> {
    let vm = hypervisor.create_vm()?;
    let make = |index| vm.create_vcpu(topology.apic_id(index)).with_context(|| format!("making CPU {index}"));
    let vcpus = (0..config.cpus.boot_vcpus).map(make).collect::<Result<_>>()?;
    Ok((vm, vcpus))
}

/// See [`arch::x86_64::cpu::configure_vcpu`].
///
/// # Errors
/// When the hypervisor refuses.
pub fn configure_vcpu(vcpu: &mut dyn Vcpu, model: &CpuModel, index: u32, entry: &EntryPoint) -> Result<()> {
    Ok(cpu::configure_vcpu(vcpu.native(), model, index, entry)?)
}

/// See [`arch::x86_64::cpu::reset_vcpu`].
///
/// # Errors
/// When the hypervisor refuses.
pub fn reset_vcpu(vcpu: &mut dyn Vcpu, model: &CpuModel, index: u32, entry: &EntryPoint) -> Result<()> {
    Ok(cpu::reset_vcpu(vcpu.native(), model, index, entry)?)
}

/// A CPU that is not there starts nothing: it is only by running that it takes the interrupts it is started by.
///
/// # Errors
/// None.
pub fn withdraw_vcpu(_: &mut dyn Vcpu) -> Result<()> {
    Ok(())
}

/// Raises a non-maskable interrupt on a CPU. Fails when the hypervisor refuses.
pub const RAISE_NMI: Option<RaiseNmi> = Some(|vcpu| Ok(vcpu.x86_64().nmi()?));
