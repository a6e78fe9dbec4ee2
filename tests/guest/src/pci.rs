//! PCI functions: finding them, their BARs and capabilities, MSI-X.
//!
//! Configuration space is reached through the ports 0xCF8/0xCFC; where a machine lacks them, or with `ecam=1`, through
//! ECAM at the address that the MCFG table gives (`ecam=<address>` overrides it).
//!
//! BARs stay where firmware or the monitor put them; those at 0 are placed in the 32-bit window from
//! [`BAR_WINDOW`] upwards, because some monitors leave that to the operating system.

use crate::native::BAR_WINDOW;
use crate::{cpu, memory};
use core::sync::atomic::{AtomicU64, Ordering};

static WINDOW_NEXT: AtomicU64 = AtomicU64::new(BAR_WINDOW.start);

/// What `ecam=` asks for, the address of the RSDP, and the ECAM base in use ([`UNKNOWN`] before the first access, 0
/// for the ports).
static ECAM_WANTED: AtomicU64 = AtomicU64::new(0);
static RSDP: AtomicU64 = AtomicU64::new(0);
static ECAM: AtomicU64 = AtomicU64::new(UNKNOWN);
const UNKNOWN: u64 = u64::MAX;

const COMMAND: u16 = 0x04;
const HEADER_TYPE: u16 = 0x0e;
const BAR_0: u16 = 0x10;
const SECONDARY_BUS: u16 = 0x19;
const CAPABILITIES: u16 = 0x34;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
/// Capability ID of power management (PCI PM 1.2, 3.2.1).
pub const POWER_MANAGEMENT: u8 = 0x01;
/// Capability ID of MSI-X.
pub const MSIX: u8 = 0x11;
/// Capability ID of vendor-specific capabilities, which virtio uses.
pub const VENDOR: u8 = 0x09;
/// More capabilities than fit a configuration space.
const CAPABILITIES_MAXIMUM: usize = 48;

/// A function's address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

/// A base address register as it is programmed.
#[derive(Clone, Copy)]
pub struct Bar {
    /// Address; 0 if not placed.
    pub address: u64,
    /// Size in bytes, a power of two.
    pub size: u64,
    /// In I/O space.
    pub io: bool,
    /// Takes the next register too.
    pub wide: bool,
    /// Prefetchable.
    pub prefetchable: bool,
}

impl Function {
    /// Where a register is: an address in memory (ECAM), or a port once the function is selected.
    fn place(self, offset: u16) -> Place {
        let function = u32::from(self.bus) << 8 | u32::from(self.device) << 3 | u32::from(self.function);
        match ecam() {
            0 => {
                cpu::out32(0xcf8, 1 << 31 | function << 8 | u32::from(offset & 0xfc));
                Place::Port(0xcfc + (offset & 3))
            }
            base => Place::Memory(base + (u64::from(function) << 12) + u64::from(offset)),
        }
    }

    /// Reads a configuration byte.
    pub fn read8(self, offset: u16) -> u8 {
        match self.place(offset) {
            Place::Port(port) => cpu::in8(port),
            Place::Memory(address) => cpu::read8(address),
        }
    }

    /// Reads an aligned configuration word.
    pub fn read16(self, offset: u16) -> u16 {
        match self.place(offset) {
            Place::Port(port) => cpu::in16(port),
            Place::Memory(address) => cpu::read16(address),
        }
    }

    /// Reads an aligned configuration double word.
    pub fn read32(self, offset: u16) -> u32 {
        match self.place(offset) {
            Place::Port(port) => cpu::in32(port),
            Place::Memory(address) => cpu::read32(address),
        }
    }

    /// Writes a configuration byte.
    pub fn write8(self, offset: u16, value: u8) {
        match self.place(offset) {
            Place::Port(port) => cpu::out8(port, value),
            Place::Memory(address) => cpu::write8(address, value),
        }
    }

    /// Writes an aligned configuration word.
    pub fn write16(self, offset: u16, value: u16) {
        match self.place(offset) {
            Place::Port(port) => cpu::out16(port, value),
            Place::Memory(address) => cpu::write16(address, value),
        }
    }

    /// Writes an aligned configuration double word.
    pub fn write32(self, offset: u16, value: u32) {
        match self.place(offset) {
            Place::Port(port) => cpu::out32(port, value),
            Place::Memory(address) => cpu::write32(address, value),
        }
    }

    /// What its memory accesses are known by: bus, device and function in 16 bits.
    pub fn requester_id(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }

    /// Vendor and device ID.
    pub fn id(self) -> (u16, u16) {
        let value = self.read32(0);
        (value as u16, (value >> 16) as u16)
    }

    /// Whether this is a PCI-to-PCI bridge, which has only two BARs.
    pub fn is_bridge(self) -> bool {
        self.read8(HEADER_TYPE) & 0x7f == 1
    }

    /// How many BAR registers the header has.
    pub fn bar_count(self) -> u8 {
        if self.is_bridge() { 2 } else { 6 }
    }

    /// Calls `visit` with each capability's ID and offset; a chain that loops ends after as many as can exist.
    pub fn capabilities(self, mut visit: impl FnMut(u8, u16)) {
        let mut offset = u16::from(self.read8(CAPABILITIES) & 0xfc);
        for _ in 0..CAPABILITIES_MAXIMUM {
            if offset < 0x40 {
                return;
            }
            visit(self.read8(offset), offset);
            offset = u16::from(self.read8(offset + 1) & 0xfc);
        }
    }

    /// Offset of the first capability with this ID.
    pub fn capability(self, id: u8) -> Option<u16> {
        let mut found = None;
        self.capabilities(|each, offset| {
            if each == id && found.is_none() {
                found = Some(offset);
            }
        });
        found
    }

    /// Reads and sizes BAR `index` (PCI 3.0, 6.2.5.1). Decoding is off meanwhile.
    pub fn bar(self, index: u8) -> Option<Bar> {
        let offset = BAR_0 + 4 * u16::from(index);
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !3);
        let low = self.read32(offset);
        self.write32(offset, u32::MAX);
        let low_mask = self.read32(offset);
        self.write32(offset, low);
        let io = low_mask & 1 != 0;
        let wide = !io && low_mask & 6 == 4;
        let (mut address, mut mask) = if io {
            (u64::from(low & !3), u64::from(low_mask & !3) | 0xffff_ffff_ffff_0000)
        } else {
            (u64::from(low & !15), u64::from(low_mask & !15) | 0xffff_ffff_0000_0000)
        };
        if wide {
            let high = self.read32(offset + 4);
            self.write32(offset + 4, u32::MAX);
            let high_mask = self.read32(offset + 4);
            self.write32(offset + 4, high);
            address |= u64::from(high) << 32;
            mask = u64::from(low_mask & !15) | u64::from(high_mask) << 32;
        }
        self.write16(COMMAND, command);
        let present = low_mask & if io { !3 } else { !15 } != 0 || wide && mask != 0;
        present.then(|| Bar {
            address,
            size: (!mask).wrapping_add(1),
            io,
            wide,
            prefetchable: low_mask & 8 != 0,
        })
    }

    /// Moves BAR `index`, whose shape is `bar`, to `address`. Decoding is off meanwhile.
    pub fn move_bar(self, index: u8, bar: &Bar, address: u64) {
        let offset = BAR_0 + 4 * u16::from(index);
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !3);
        self.write32(offset, address as u32);
        if bar.wide {
            self.write32(offset + 4, (address >> 32) as u32);
        }
        self.write16(COMMAND, command);
    }

    /// Places and maps BAR `index` if it is a memory BAR; returns its address.
    pub fn place_bar(self, index: u8) -> Option<u64> {
        let mut bar = self.bar(index).filter(|bar| !bar.io)?;
        if bar.address == 0 {
            bar.address = WINDOW_NEXT.load(Ordering::Relaxed).next_multiple_of(bar.size);
            if bar.address + bar.size > BAR_WINDOW.end {
                return None;
            }
            WINDOW_NEXT.store(bar.address + bar.size, Ordering::Relaxed);
            self.move_bar(index, &bar, bar.address);
        }
        memory::map(bar.address, bar.size);
        Some(bar.address)
    }

    /// Lets the function answer memory accesses and reach RAM; legacy interrupts stay off.
    pub fn enable(self) {
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX);
    }
}

enum Place {
    Port(u16),
    Memory(u64),
}

/// Notes what the command line says of ECAM and where the ACPI tables are; nothing is probed before the first access.
pub fn install(ecam: Option<u64>, rsdp: u64) {
    ECAM_WANTED.store(ecam.unwrap_or(0), Ordering::Relaxed);
    RSDP.store(rsdp, Ordering::Relaxed);
}

/// The ECAM base in use; 0 for the ports.
pub fn ecam() -> u64 {
    match ECAM.load(Ordering::Relaxed) {
        UNKNOWN => {
            let base = choose_ecam();
            ECAM.store(base, Ordering::Relaxed);
            base
        }
        base => base,
    }
}

fn choose_ecam() -> u64 {
    let wanted = ECAM_WANTED.load(Ordering::Relaxed);
    if wanted == 0 {
        // The address register keeps what it is given; where there is none, the port reads as all ones.
        cpu::out32(0xcf8, 1 << 31);
        if cpu::in32(0xcf8) == 1 << 31 {
            return 0;
        }
    }
    let base = match wanted {
        // PCI Firmware 3.3, 4.1.2: the first allocation follows a header of 44 bytes.
        0 | 1 => memory::acpi_table(RSDP.load(Ordering::Relaxed), *b"MCFG")
            .map_or(0, |(table, _)| cpu::read64(table + 44)),
        address => address,
    };
    memory::map(base, 1 << 28);
    base
}

/// Calls `visit` with every function on bus 0 and on the buses behind its bridges, in the order of their addresses.
pub fn functions(mut visit: impl FnMut(Function)) {
    scan(0, 0, &mut visit);
}

fn scan(bus: u8, depth: u8, visit: &mut dyn FnMut(Function)) {
    for device in 0..32 {
        let first = Function { bus, device, function: 0 };
        if first.id().0 == 0xffff {
            continue;
        }
        let count = if first.read8(HEADER_TYPE) & 0x80 != 0 { 8 } else { 1 };
        for function in 0..count {
            let each = Function { bus, device, function };
            if function != 0 && each.id().0 == 0xffff {
                continue;
            }
            visit(each);
            let secondary = if each.is_bridge() { each.read8(SECONDARY_BUS) } else { 0 };
            if secondary > bus && depth < 4 {
                scan(secondary, depth + 1, visit);
            }
        }
    }
}

/// The MSI-X capability of a function (PCIe 6.0, 7.7.2) with its table mapped.
#[derive(Clone, Copy)]
pub struct Msix {
    function: Function,
    capability: u16,
    /// Address of the table.
    pub table: u64,
    /// Entries in the table.
    pub entries: u16,
}

impl Msix {
    /// Finds the capability and maps the table.
    pub fn of(function: Function) -> Option<Msix> {
        let capability = function.capability(MSIX)?;
        let control = function.read16(capability + 2);
        let location = function.read32(capability + 4);
        let table = function.place_bar((location & 7) as u8)? + u64::from(location & !7);
        Some(Msix { function, capability, table, entries: (control & 0x7ff) + 1 })
    }

    /// See [`Function::requester_id`].
    pub fn requester_id(self) -> u16 {
        self.function.requester_id()
    }

    /// Turns MSI-X on or off.
    pub fn enable(self, on: bool) {
        let control = self.function.read16(self.capability + 2) & !0xc000;
        self.function.write16(self.capability + 2, control | if on { 0x8000 } else { 0 });
    }

    /// Writes entry `index`: message address, data, and whether it is masked.
    pub fn set(self, index: u16, address: u64, data: u32, masked: bool) {
        let entry = self.table + 16 * u64::from(index);
        cpu::write32(entry, address as u32);
        cpu::write32(entry + 4, (address >> 32) as u32);
        cpu::write32(entry + 8, data);
        cpu::write32(entry + 12, u32::from(masked));
    }
}
