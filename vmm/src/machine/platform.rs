//! The devices on the mainboard: interrupt controller, clock, power, serial port.

use crate::config::{ConsoleConfig, ConsoleMode, DebugConsoleConfig, VmConfig};
use anyhow::{Context, Result};
use arch::x86_64::acpi::InterruptPins;
use devices::acpi::{AcpiRegisters, Event};
use devices::acpi_hotplug::pci::PciHotplug;
use devices::debug_console::DebugConsole;
use devices::host_console::{self, ConsolePump, Mode};
use devices::i8042::I8042;
use devices::ioapic::{IoApic, IoApicPins};
use devices::legacy_ports::{PostCode, SystemControl};
use devices::platform::PlatformDevice;
use devices::pvpanic::Pvpanic;
use devices::rtc::Rtc;
use devices::serial::Serial;
use hypervisor::Vm;
use machine::bus::{BusHandle, Range};
use machine::clock::Clock;
use machine::doorbell::Doorbell;
use machine::inspect::Value;
use machine::interrupt::InterruptLine;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Interrupt of the first serial port.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt of the ACPI event device.
pub const EVENT_GSI: u32 = 5;
/// The interrupts that PCI pins are wired to: those of the I/O APIC beyond a PC's 16.
pub const PCI_WIRING: InterruptPins = InterruptPins { first_gsi: 16, count: 8 };

fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mainboard.
pub struct Platform {
    /// The I/O APIC's pins.
    pub pins: Arc<IoApicPins>,
    acpi: Arc<Mutex<AcpiRegisters>>,
    pci_hotplug: Arc<Mutex<PciHotplug>>,
    devices: Vec<(&'static str, Arc<Mutex<dyn PlatformDevice>>)>,
}

/// Where a device is put.
struct Mainboard<'a> {
    mmio: &'a BusHandle,
    port: &'a BusHandle,
    devices: Vec<(&'static str, Arc<Mutex<dyn PlatformDevice>>)>,
}

impl Mainboard<'_> {
    fn put<T: PlatformDevice + 'static>(
        &mut self,
        name: &'static str,
        bus: &BusHandle,
        range: Range,
        device: T,
    ) -> Result<Arc<Mutex<T>>> {
        let device = Arc::new(Mutex::new(device));
        bus.change(|bus| bus.insert(range, Arc::clone(&device) as _))
            .with_context(|| format!("placing the {name}"))?;
        self.devices.push((name, Arc::clone(&device) as _));
        Ok(device)
    }
}

impl Platform {
    /// Puts the devices of `config` on the buses. The pumps carry their consoles' bytes.
    ///
    /// # Errors
    /// When a console cannot be opened, naming its option.
    pub fn new(
        config: &VmConfig,
        vm: &dyn Vm,
        mmio: &BusHandle,
        port: &BusHandle,
        clock: &Arc<dyn Clock>,
        pumps: &mut Vec<ConsolePump>,
    ) -> Result<Self> {
        let sources = (0..devices::ioapic::PINS).map(|pin| vm.ioapic_pin(pin)).collect::<Result<_, _>>()?;
        let io_apic = IoApic::new(sources);
        let pins = io_apic.pins();
        let line = |gsi| InterruptLine::new(pins.clone(), gsi);
        let mut board = Mainboard { mmio, port, devices: Vec::new() };

        board.put("I/O APIC", board.mmio, IoApic::WINDOW, io_apic)?;
        let acpi = AcpiRegisters::new(Arc::clone(clock), line(EVENT_GSI));
        let acpi = board.put("ACPI registers", board.port, AcpiRegisters::PORTS, acpi)?;
        let pci_hotplug = PciHotplug::new(config.platform.num_pci_segments);
        let pci_hotplug = board.put("PCI hotplug", board.port, PciHotplug::PORTS, pci_hotplug)?;
        board.put("clock", board.port, Rtc::PORTS, Rtc::new(Arc::clone(clock)))?;
        board.put("keyboard controller", board.port, I8042::PORTS, I8042::default())?;
        board.put("diagnostic port", board.port, PostCode::PORTS, PostCode::default())?;
        board.put("system control port", board.port, SystemControl::PORTS, SystemControl::default())?;
        if config.pvpanic {
            board.put("pvpanic", board.port, Pvpanic::PORTS, Pvpanic::default())?;
        }
        if let Some(mode) = serial_mode(&config.serial) {
            let (output, pump) = host_console::connect(&mode).context("--serial")?;
            let room = Doorbell::new().context("--serial: making an event")?;
            let serial = Serial::new(line(SERIAL_GSI), output, room.clone());
            let serial = board.put("serial port", board.port, Serial::COM1, serial)?;
            if let Some(mut pump) = pump {
                pump.set_input(serial, room).context("--serial: watching it")?;
                announce("--serial", &pump);
                pumps.push(pump);
            }
        }
        if let Some(mode) = debug_mode(&config.debug_console) {
            let (output, pump) = host_console::connect(&mode).context("--debug-console")?;
            let range = Range { start: u64::from(config.debug_console.iobase), size: 1 };
            board
                .put("debug console", board.port, range, DebugConsole::new(output))
                .with_context(|| format!("--debug-console iobase={:#x}", range.start))?;
            if let Some(pump) = pump {
                announce("--debug-console", &pump);
                pumps.push(pump);
            }
        }
        Ok(Self { pins, acpi, pci_hotplug, devices: board.devices })
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        lock(&self.acpi).press_power_button();
    }

    /// Tells the guest that a device came at number `device` (1 to 31) of the root bus of PCI segment `segment`. Its
    /// configuration space answers already.
    pub fn pci_device_came(&self, segment: u16, device: u8) {
        lock(&self.pci_hotplug).plug(segment, device);
        lock(&self.acpi).raise(Event::Pci);
    }

    /// Asks the guest to let go of a device. When it has, which may be never, it answers with
    /// [`machine::effect::Effect::Eject`]; it may be asked again.
    pub fn ask_to_release_pci_device(&self, segment: u16, device: u8) {
        lock(&self.pci_hotplug).request_unplug(segment, device);
        lock(&self.acpi).raise(Event::Pci);
    }

    /// A device is gone: what the guest has not heard of it yet, it does not hear any more.
    pub fn pci_device_gone(&self, segment: u16, device: u8) {
        lock(&self.pci_hotplug).forget(segment, device);
    }

    /// Returns every device to its state at power-on.
    pub fn reset(&self) {
        for (_, device) in &self.devices {
            lock(device).reset();
        }
    }

    /// The devices, for inspection.
    pub fn inspect(&self) -> Value {
        self.devices.iter().map(|(name, device)| ((*name).to_owned(), lock(device).inspect())).collect()
    }
}

/// Tells the user where a pseudo-terminal is, which only the host knows.
fn announce(option: &str, pump: &ConsolePump) {
    if let Some(path) = pump.console().path() {
        eprintln!("vivarium: {option} is at {}", path.display());
    }
}

/// Where a console's configuration says it ends; `None` if there is no device.
pub fn serial_mode(config: &ConsoleConfig) -> Option<Mode> {
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
