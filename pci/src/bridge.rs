//! PCI-to-PCI bridges (PCIe 6.0, 7.5.1.3): the type-1 header, and what a bridge lets through.
//!
//! A bridge is reached like any function. What is below it is reached through it only: configuration space at the
//! bus numbers, windows in the address ranges that the guest sets. [`crate::segment`] follows bridges downwards.

use crate::bar::{MappedBar, Space};
use crate::config::{ConfigSpace, Identity, command, register};
use machine::bus::Range;
use std::ops::RangeInclusive;

/// Offsets of the registers that only a type-1 header has.
pub mod bridge_register {
    /// Primary, secondary and subordinate bus number, 1 byte each; then the secondary latency timer.
    pub const BUSES: u16 = 0x18;
    /// I/O base and limit, 1 byte each; then the secondary status.
    pub const IO: u16 = 0x1c;
    /// Memory base and limit, 2 bytes each.
    pub const MEMORY: u16 = 0x20;
    /// Prefetchable memory base and limit, 2 bytes each.
    pub const PREFETCHABLE: u16 = 0x24;
    /// The upper 4 bytes of the prefetchable memory base.
    pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    /// The upper 4 bytes of the prefetchable memory limit.
    pub const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    /// Bridge control, 2 bytes.
    pub const CONTROL: u16 = 0x3e;
    /// The dwords that say what passes, and lie where other functions have no BARs.
    pub(crate) const FURTHER: [u16; 3] = [PREFETCHABLE_BASE_UPPER, PREFETCHABLE_LIMIT_UPPER, CONTROL & !3];
}

/// Bridge control: what is below the bridge is held in reset.
pub const SECONDARY_BUS_RESET: u16 = 1 << 6;
/// The bits of bridge control that the guest may write; beside the reset, error forwarding, which never happens.
const CONTROL_WRITABLE: u16 = SECONDARY_BUS_RESET | 3;

/// Memory windows begin and end at multiples of this.
pub const MEMORY_GRANULARITY: u64 = 1 << 20;
/// I/O windows begin and end at multiples of this.
pub const IO_GRANULARITY: u64 = 1 << 12;

/// What a bridge lets through from above, as its registers say now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The number of the bus right below; 0 if nothing is reached.
    pub secondary: u8,
    /// The highest number of the buses below.
    pub subordinate: u8,
    /// The address windows.
    pub windows: BridgeWindows,
}

/// The address windows of a bridge; `None` for one that is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeWindows {
    /// I/O ports.
    pub io: Option<Range>,
    /// Memory below 4 GiB.
    pub memory: Option<Range>,
    /// Prefetchable memory, anywhere.
    pub prefetchable: Option<Range>,
}

impl Forwarding {
    /// The numbers of the buses below.
    pub fn buses(&self) -> RangeInclusive<u8> {
        self.secondary..=self.subordinate
    }

    /// Whether all accesses in `window` pass. Memory passes through either window, whatever the BAR is.
    pub fn passes(&self, window: MappedBar) -> bool {
        let range = window.range();
        let within = |open: Option<Range>| {
            open.is_some_and(|open| open.start <= range.start && range.last() <= open.last())
        };
        match window.space {
            Space::Io => within(self.windows.io),
            Space::Memory => within(self.windows.memory) || within(self.windows.prefetchable),
        }
    }
}

impl ConfigSpace {
    /// A type-1 header without capabilities and interrupts, its link up. With `io`, it has an I/O window; one without
    /// passes no I/O, and saves the guest from looking for ports to give it.
    pub fn bridge(identity: Identity, io: bool) -> Self {
        let mut space = Self::new(identity);
        space.link = Some(true);
        // The subsystem's numbers are in a capability; here, a type-1 header has something else.
        space.define(register::SUBSYSTEM_VENDOR, 0, 0);
        space.define(0x0c, 1 << 16, 0xff);
        space.define(bridge_register::BUSES, 0, 0x00ff_ffff);
        space.define(bridge_register::IO, 0, if io { 0xf0f0 } else { 0 });
        space.define_clear(bridge_register::IO, 0xf900 << 16);
        space.define(bridge_register::MEMORY, 0, 0xfff0_fff0);
        // The low bits: addresses have 64 bits.
        space.define(bridge_register::PREFETCHABLE, 0x0001_0001, 0xfff0_fff0);
        space.define(bridge_register::PREFETCHABLE_BASE_UPPER, 0, u32::MAX);
        space.define(bridge_register::PREFETCHABLE_LIMIT_UPPER, 0, u32::MAX);
        space.define(register::INTERRUPT_LINE, 0, 0xff | u32::from(CONTROL_WRITABLE) << 16);
        space
    }

    /// What the bridge lets through now; `None` if the function is no bridge. Nothing while its link is down, it is
    /// not in power state D0, or what is below is held in reset.
    pub fn forwarding(&self) -> Option<Forwarding> {
        let link = self.link?;
        if !link || !self.powered() || self.word(bridge_register::CONTROL) & SECONDARY_BUS_RESET != 0 {
            return Some(Forwarding::default());
        }
        let [_, secondary, subordinate, _] = self.dword(bridge_register::BUSES).to_le_bytes();
        let mut windows = self.windows();
        if self.command() & command::IO == 0 {
            windows.io = None;
        }
        if self.command() & command::MEMORY == 0 {
            (windows.memory, windows.prefetchable) = (None, None);
        }
        Some(Forwarding { secondary, subordinate, windows })
    }

    /// The numbers of the buses below that the registers describe, whether anything is reached there or not; `None` if there are
    /// none.
    pub(crate) fn numbered(&self) -> Option<RangeInclusive<u8>> {
        self.link?;
        let [_, secondary, subordinate, _] = self.dword(bridge_register::BUSES).to_le_bytes();
        (secondary != 0 && secondary <= subordinate).then_some(secondary..=subordinate)
    }

    /// The windows that the registers describe, enabled or not.
    pub(crate) fn windows(&self) -> BridgeWindows {
        let range = |base: u64, limit: u64, granularity: u64| {
            let last = limit | granularity.wrapping_sub(1);
            let size = last.checked_sub(base)?.checked_add(1)?;
            Some(Range { start: base, size })
        };
        let io = self.dword(bridge_register::IO);
        let has_io = self.writable(bridge_register::IO) & 0xf0f0 != 0;
        let io = range(u64::from(io & 0xf0) << 8, u64::from(io & 0xf000), IO_GRANULARITY);
        let split = |offset| {
            let register = self.dword(offset);
            (u64::from(register & 0xfff0) << 16, u64::from(register & 0xfff0_0000))
        };
        let (base, limit) = split(bridge_register::MEMORY);
        let memory = range(base, limit, MEMORY_GRANULARITY);
        let (base, limit) = split(bridge_register::PREFETCHABLE);
        let upper = |offset| u64::from(self.dword(offset)) << 32;
        let base = base | upper(bridge_register::PREFETCHABLE_BASE_UPPER);
        let limit = limit | upper(bridge_register::PREFETCHABLE_LIMIT_UPPER);
        let prefetchable = range(base, limit, MEMORY_GRANULARITY);
        BridgeWindows { io: io.filter(|_| has_io), memory, prefetchable }
    }

    /// Whether the bridge has an I/O window at all.
    pub fn has_io_window(&self) -> bool {
        self.link.is_some() && self.writable(bridge_register::IO) & 0xf0f0 != 0
    }

    /// The link below the bridge comes up or goes down. What is to follow from it is the caller's.
    pub fn set_link(&mut self, up: bool) {
        if let Some(link) = self.link.as_mut() {
            *link = up;
        }
    }

    /// Gives the bridge its bus numbers, as firmware does.
    pub fn set_buses(&mut self, primary: u8, secondary: u8, subordinate: u8) {
        let value = u32::from_le_bytes([primary, secondary, subordinate, 0]);
        self.set_dword(bridge_register::BUSES, 0x00ff_ffff, value);
    }

    /// Sets the windows, as firmware does, and opens them. They begin and end at multiples of their granularities.
    pub fn set_windows(&mut self, windows: BridgeWindows) {
        // Base above limit: closed.
        let ends = |window: Option<Range>, closed: u64| match window {
            Some(range) if range.size > 0 => (range.start, range.last()),
            _ => (closed, 0),
        };
        if self.has_io_window() {
            let (base, limit) = ends(windows.io, 0xf000);
            let value = (base >> 8 & 0xf0 | limit & 0xf000) as u32;
            self.set_dword(bridge_register::IO, 0xf0f0, value);
        }
        let (base, limit) = ends(windows.memory, 0xfff0_0000);
        let value = (base >> 16 & 0xfff0 | limit & 0xfff0_0000) as u32;
        self.set_dword(bridge_register::MEMORY, 0xfff0_fff0, value);
        let (base, limit) = ends(windows.prefetchable, 0xfff0_0000);
        let value = (base >> 16 & 0xfff0 | limit & 0xfff0_0000) as u32;
        self.set_dword(bridge_register::PREFETCHABLE, 0xfff0_fff0, value);
        self.set_dword(bridge_register::PREFETCHABLE_BASE_UPPER, u32::MAX, (base >> 32) as u32);
        self.set_dword(bridge_register::PREFETCHABLE_LIMIT_UPPER, u32::MAX, (limit >> 32) as u32);
        let open = command::MEMORY | command::BUS_MASTER | if self.has_io_window() { command::IO } else { 0 };
        self.set_dword(register::COMMAND, open.into(), open.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::effect::DeviceChange;
    use proptest::prelude::*;

    fn bridge() -> ConfigSpace {
        let identity = Identity { vendor: 0x1b36, device: 0x000c, class: 0x06_04_00, ..Identity::default() };
        ConfigSpace::bridge(identity, true)
    }

    fn write(space: &mut ConfigSpace, offset: u16, value: u32, size: usize) -> Option<DeviceChange> {
        space.write(offset, &value.to_le_bytes()[..size])
    }

    #[test]
    fn the_header_is_of_type_1_and_its_registers_size_as_linux_expects() {
        let mut space = bridge();
        assert_eq!(space.dword(0x0c) >> 16 & 0x7f, 1);
        // Linux finds I/O and prefetchable windows by what sticks (pci_read_bridge_windows).
        write(&mut space, 0x1c, 0xe0f0, 2);
        assert_eq!(space.word(0x1c), 0xe0f0);
        write(&mut space, 0x24, 0xffe0_fff0, 4);
        assert_eq!(space.dword(0x24), 0xffe1_fff1, "64-bit addresses");
        let none = ConfigSpace::bridge(Identity::default(), false);
        assert!(!none.has_io_window());
        assert_eq!(none.windows().io, None, "a register of zeros is no window where there is none");
    }

    #[test]
    fn what_passes_follows_command_link_reset_and_power() {
        let mut space = bridge();
        space.add_power_management().unwrap();
        space.set_buses(0, 1, 3);
        let memory = Range { start: 0xc000_0000, size: 2 << 20 };
        let prefetchable = Range { start: 1 << 40, size: 1 << 36 };
        let windows = BridgeWindows { io: None, memory: Some(memory), prefetchable: Some(prefetchable) };
        space.set_windows(windows);
        let open = Forwarding { secondary: 1, subordinate: 3, windows };
        assert_eq!(space.forwarding(), Some(open));
        // Memory decode off.
        assert_eq!(write(&mut space, 4, 1, 2), Some(DeviceChange::Remap));
        assert_eq!(space.forwarding(), Some(Forwarding { windows: BridgeWindows::default(), ..open }));
        assert_eq!(write(&mut space, 4, 7, 2), Some(DeviceChange::Remap));
        // Bus numbers.
        assert_eq!(write(&mut space, 0x19, 2, 1), Some(DeviceChange::Remap));
        assert_eq!(write(&mut space, 0x19, 2, 1), None, "nothing changed");
        assert_eq!(write(&mut space, 0x18, 9, 1), None, "the primary number is software's own");
        write(&mut space, 0x19, 1, 1);
        // Held in reset, and let go.
        assert_eq!(write(&mut space, 0x3e, 0x40, 2), Some(DeviceChange::ResetBelow));
        assert_eq!(space.forwarding(), Some(Forwarding::default()));
        assert_eq!(write(&mut space, 0x3e, 0x40, 2), None, "it is held already");
        assert_eq!(write(&mut space, 0x3e, 0, 2), Some(DeviceChange::Remap));
        assert_eq!(space.forwarding(), Some(open));
        // D3hot.
        assert_eq!(write(&mut space, 0x44, 3, 2), Some(DeviceChange::Remap));
        assert_eq!(space.forwarding(), Some(Forwarding::default()));
        write(&mut space, 0x44, 0, 2);
        space.set_link(false);
        assert_eq!(space.forwarding(), Some(Forwarding::default()));
    }

    proptest! {
        /// What firmware sets is what the registers say, and a window that is closed passes nothing.
        #[test]
        fn windows_survive_their_registers(
            io in prop::option::of((1u64..15, 1u64..4)),
            memory in prop::option::of((0u64..0xe00, 1u64..0x100)),
            prefetchable in prop::option::of((1u64..1 << 40, 1u64..1 << 20)),
        ) {
            let range = |window: Option<(u64, u64)>, shift: u32| {
                window.map(|(start, size)| Range { start: start << shift, size: size << shift })
            };
            let io = range(io, 12).filter(|io| io.last() <= 0xffff);
            let windows =
                BridgeWindows { io, memory: range(memory, 20), prefetchable: range(prefetchable, 20) };
            let mut space = bridge();
            space.set_windows(windows);
            prop_assert_eq!(space.forwarding().unwrap().windows, windows);
            let forwarding = space.forwarding().unwrap();
            for (window, kind) in [(windows.memory, Space::Memory), (windows.prefetchable, Space::Memory), (io, Space::Io)] {
                let Some(window) = window else { continue };
                let bar = |address, size| MappedBar { bar: 0, space: kind, address, size };
                prop_assert!(forwarding.passes(bar(window.start, window.size)));
                let over = bar(window.last(), 2);
                let other = [windows.memory, windows.prefetchable].into_iter().flatten();
                let other = kind == Space::Memory && other.into_iter().any(|range| {
                    range.start <= over.address && over.range().last() <= range.last()
                });
                prop_assert_eq!(forwarding.passes(over), other, "over the end");
            }
        }
    }
}
