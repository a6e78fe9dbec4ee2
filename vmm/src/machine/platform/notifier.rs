//! What tells the guest, by ACPI, of what comes and is asked to go, and of the power button.

use super::{Mainboard, has_acpi, lock};
use crate::config::VmConfig;
use anyhow::Result;
use devices::acpi::{AcpiRegisters, Event};
use devices::acpi_hotplug::cpu::CpuHotplug;
use devices::acpi_hotplug::memory::{MemoryHotplug, Module};
use devices::acpi_hotplug::pci::PciHotplug;
use machine::bus::{BusHandle, Range};
use machine::clock::Clock;
use machine::interrupt::InterruptLine;
use std::sync::{Arc, Mutex};

/// How many pieces of memory may come and go.
pub const MEMORY_SLOTS: u32 = 32;

/// Where the registers are.
pub(super) struct Places {
    pub(super) registers: Range,
    pub(super) cpus: Range,
    pub(super) memory: Range,
    pub(super) pci: Range,
}

struct Controllers {
    registers: Arc<Mutex<AcpiRegisters>>,
    cpus: Arc<Mutex<CpuHotplug>>,
    memory: Arc<Mutex<MemoryHotplug>>,
    pci: Arc<Mutex<PciHotplug>>,
}

/// The devices through which a guest is told. A machine without ACPI has none of them: its guest hears of nothing.
pub struct Notifier(Option<Controllers>);

impl Notifier {
    /// Puts the devices on `bus`, if the machine is to have them. `line` is the interrupt of the generic event device.
    ///
    /// # Errors
    /// When something else is at their places.
    pub(super) fn new(
        config: &VmConfig,
        board: &mut Mainboard,
        bus: &BusHandle,
        places: &Places,
        clock: &Arc<dyn Clock>,
        line: InterruptLine,
    ) -> Result<Self> {
        if !has_acpi(config) {
            return Ok(Self(None));
        }
        let registers = AcpiRegisters::new(Arc::clone(clock), line);
        let registers = board.put("ACPI registers", bus, places.registers, registers)?;
        let pci = PciHotplug::new(config.platform.num_pci_segments);
        let pci = board.put("PCI hotplug", bus, places.pci, pci)?;
        let cpus = CpuHotplug::new(config.cpus.limit(), config.cpus.boot_vcpus);
        let cpus = board.put("CPU hotplug", bus, places.cpus, cpus)?;
        let memory = board.put("memory hotplug", bus, places.memory, MemoryHotplug::new(MEMORY_SLOTS))?;
        Ok(Self(Some(Controllers { registers, cpus, memory, pci })))
    }

    fn change_cpus(&self, change: impl FnOnce(&mut CpuHotplug), event: Option<Event>) {
        if let Some(controllers) = &self.0 {
            change(&mut lock(&controllers.cpus));
            controllers.tell(event);
        }
    }

    fn change_memory(&self, change: impl FnOnce(&mut MemoryHotplug), event: Option<Event>) {
        if let Some(controllers) = &self.0 {
            change(&mut lock(&controllers.memory));
            controllers.tell(event);
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        if let Some(controllers) = &self.0 {
            lock(&controllers.registers).press_power_button();
        }
    }

    /// Tells the guest that a device came at number `device` (1 to 31) of the root bus of PCI segment `segment`. Its
    /// configuration space answers already.
    pub fn pci_device_came(&self, segment: u16, device: u8) {
        match &self.0 {
            Some(controllers) => {
                lock(&controllers.pci).plug(segment, device);
                controllers.tell(Some(Event::Pci));
            }
            None => tracing::warn!(
                "device {device} on the root bus of PCI segment {segment} is seen after the guest's next restart"
            ),
        }
    }

    /// Asks the guest to let go of a device. When it has, which may be never, it answers with
    /// [`machine::effect::Effect::Eject`]; it may be asked again.
    pub fn ask_to_release_pci_device(&self, segment: u16, device: u8) {
        match &self.0 {
            Some(controllers) => {
                lock(&controllers.pci).request_unplug(segment, device);
                controllers.tell(Some(Event::Pci));
            }
            None => tracing::warn!(
                "the guest cannot be asked to release device {device} on the root bus of PCI segment {segment}"
            ),
        }
    }

    /// A device is gone: what the guest has not heard of it yet, it does not hear any more.
    pub fn pci_device_gone(&self, segment: u16, device: u8) {
        if let Some(controllers) = &self.0 {
            lock(&controllers.pci).forget(segment, device);
        }
    }

    /// Tells the guest that a CPU came. It waits to be started.
    pub fn cpu_came(&self, number: u32) {
        self.change_cpus(|cpus| cpus.plug(number), Some(Event::Cpu));
    }

    /// Asks the guest to let go of a CPU. When it has, which may be never, it answers with
    /// [`machine::effect::Effect::EjectCpu`].
    pub fn ask_to_release_cpu(&self, number: u32) {
        self.change_cpus(|cpus| cpus.request_unplug(number), Some(Event::Cpu));
    }

    /// A CPU is to stay after all; the guest may have been asked already.
    pub fn keep_cpu(&self, number: u32) {
        self.change_cpus(|cpus| cpus.withdraw_request(number), None);
    }

    /// A CPU is gone.
    pub fn cpu_gone(&self, number: u32) {
        self.change_cpus(|cpus| cpus.remove(number), None);
    }

    /// There is memory in a slot from the start.
    pub fn memory_is_there(&self, slot: u32, range: Range) {
        self.change_memory(|memory| memory.fill(slot, module(range)), None);
    }

    /// Tells the guest that memory came.
    pub fn memory_came(&self, slot: u32, range: Range) {
        self.change_memory(|memory| memory.plug(slot, module(range)), Some(Event::Memory));
    }

    /// Asks the guest to let go of memory. When it has, which may be never, it answers with
    /// [`machine::effect::Effect::EjectMemory`].
    pub fn ask_to_release_memory(&self, slot: u32) {
        self.change_memory(|memory| memory.request_unplug(slot), Some(Event::Memory));
    }

    /// Memory is to stay after all; the guest may have been asked already.
    pub fn keep_memory(&self, slot: u32) {
        self.change_memory(|memory| memory.withdraw_request(slot), None);
    }

    /// Memory is gone.
    pub fn memory_gone(&self, slot: u32) {
        self.change_memory(|memory| memory.remove(slot), None);
    }
}

impl Controllers {
    fn tell(&self, event: Option<Event>) {
        if let Some(event) = event {
            lock(&self.registers).raise(event);
        }
    }
}

/// Memory that was added belongs to the first NUMA node: there are others only where memory is in zones.
fn module(range: Range) -> Module {
    Module { address: range.start, size: range.size, node: 0 }
}
