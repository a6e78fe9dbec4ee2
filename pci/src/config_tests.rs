//! Tests of the configuration space by what a guest sees: Linux's BAR sizing, a capability walker of its own, and
//! models of masks and interrupts.

use super::*;
use crate::capability::{ExpressKind, id};
use crate::function::Function;
use crate::msix::Msix;
use crate::msix::NO_VECTOR;
use crate::testing::{BAR0_SIZE, MSIX_PBA, MSIX_TABLE, TestFunction, VECTORS};
use machine::interrupt::recording::{Pins, Sources};
use machine::interrupt::{InterruptLine, MsiMessage};
use machine::state::Saved;
use proptest::prelude::*;
use std::sync::Arc;

fn read32(space: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0xff; 4];
    space.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write32(space: &mut ConfigSpace, offset: u16, value: u32) -> Option<DeviceChange> {
    space.write(offset, &value.to_le_bytes())
}

fn function() -> (TestFunction, Arc<Sources>) {
    let sources = Arc::new(Sources::default());
    (TestFunction::new(sources.clone(), None).unwrap(), sources)
}

/// As Linux sizes a BAR: writes all ones, reads back, restores, and takes the lowest set address bit.
fn linux_size(space: &mut ConfigSpace, offset: u16) -> (u64, u32) {
    let command = read32(space, 4) & 0xffff;
    write32(space, 4, command & !3);
    let mut size_of = |at: u16, ones: u32| {
        let before = read32(space, at);
        write32(space, at, ones);
        let sized = read32(space, at);
        write32(space, at, before);
        assert_eq!(read32(space, at), before);
        sized
    };
    let low = size_of(offset, if offset == 0x30 { !0x7ff } else { !0 });
    let flags = if offset == 0x30 { 0 } else { low & 0xf };
    let (mask, wide) = match (offset, flags & 1, flags & 6) {
        (0x30, ..) => (!0x7ffu32, false),
        (_, 1, _) => (!3, false),
        (_, _, 4) => (!0xf, true),
        _ => (!0xf, false),
    };
    let mut sized = u64::from(low & mask);
    sized |= if wide { u64::from(size_of(offset + 4, !0)) << 32 } else { 0xffff_ffff << 32 };
    write32(space, 4, command);
    (sized & sized.wrapping_neg(), flags)
}

#[test]
fn the_header_identifies_the_function() {
    let (function, _) = function();
    let space = function.config();
    assert_eq!(read32(space, 0), 0x5678_1234);
    assert_eq!(read32(space, 8), 0x0f00_0001);
    assert_eq!(read32(space, 0x2c), 0xdef0_9abc);
    assert_eq!(space.word(register::STATUS), 0x10, "there is a capability list");
}

#[test]
fn linux_finds_every_bar_s_size() {
    let (mut function, _) = function();
    let space = function.config_mut();
    assert_eq!(linux_size(space, 0x10), (BAR0_SIZE, 0xc));
    assert_eq!(linux_size(space, 0x18), (256, 0));
    assert_eq!(linux_size(space, 0x1c), (16, 1));
    assert_eq!(linux_size(space, 0x30).0, 2048);
    assert_eq!(linux_size(space, 0x20).0, 1 << 32, "an absent BAR has no bits");
}

proptest! {
    #[test]
    fn a_wide_bar_of_any_size_sizes_and_places(log2 in 4u32..=63, address: u64, prefetchable: bool) {
        let mut space = ConfigSpace::new(Identity::default());
        let size = 1u64 << log2;
        space.add_bar(4, BarKind::Memory64 { prefetchable }, size).unwrap();
        prop_assert_eq!(linux_size(&mut space, 0x20), (size, 4 | u32::from(prefetchable) << 3));
        write32(&mut space, 0x20, address as u32);
        write32(&mut space, 0x24, (address >> 32) as u32);
        let aligned = address & !(size - 1);
        prop_assert_eq!(space.bar_address(4), Some(aligned));
        write32(&mut space, 4, command::MEMORY.into());
        let windows = space.bar_windows();
        if aligned == 0 {
            prop_assert!(windows.is_empty());
        } else {
            let expected = MappedBar { bar: 4, space: Space::Memory, address: aligned, size };
            prop_assert_eq!(windows, vec![expected]);
        }
        let mut firmware = ConfigSpace::new(Identity::default());
        firmware.add_bar(4, BarKind::Memory64 { prefetchable }, size).unwrap();
        firmware.set_bar_address(4, address);
        prop_assert_eq!(firmware.bar_address(4), Some(aligned));
    }

    /// The space behaves as bytes with a mask: the reference is the plainest one there is.
    #[test]
    fn writes_change_the_writable_bits_and_nothing_else(
        writes in prop::collection::vec((0u16..256, 0usize..4, any::<u32>()), 1..60)
    ) {
        let body: Vec<u8> = (0..62).map(|i| i as u8).collect();
        let mask: Vec<u8> = (0..62).map(|i| (i * 37) as u8).collect();
        let mut space = ConfigSpace::new(Identity { vendor: 1, device: 2, ..Identity::default() });
        let at = usize::from(space.add_capability(id::VENDOR_SPECIFIC, &body, &mask).unwrap());
        let mut model: Vec<u8> = (0..64u16).flat_map(|i| read32(&space, i * 4).to_le_bytes()).collect();
        let mut writable = vec![0u8; 256];
        writable[at + 2..at + 64].copy_from_slice(&mask);
        writable[4..6].copy_from_slice(&command::WRITABLE.to_le_bytes());
        writable[0x0c] = 0xff;
        writable[0x3c] = 0xff;
        for (offset, size, value) in writes {
            let size = [1, 2, 4, 3][size];
            let bytes = &value.to_le_bytes()[..size];
            prop_assert!(space.write(offset, bytes).is_none());
            if usize::from(offset & 3) + size <= 4 {
                for (i, byte) in bytes.iter().enumerate() {
                    let at = usize::from(offset) + i;
                    model[at] = (model[at] & !writable[at]) | (byte & writable[at]);
                }
            }
            let seen: Vec<u8> = (0..64u16).flat_map(|i| read32(&space, i * 4).to_le_bytes()).collect();
            prop_assert_eq!(&seen, &model);
        }
    }

    /// Whatever is written anywhere: no panic, the identity stands, what is saved restores to itself, and a reset
    /// makes the function as new.
    #[test]
    fn a_hostile_guest_cannot_break_a_function(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u8..8, 0u64..0x2010, 1usize..9, any::<u64>()), 1..200)
    ) {
        let (mut function, _) = function();
        let fresh = function.save().unwrap();
        for (config, bar, offset, size, value) in accesses {
            let bytes = &value.to_le_bytes()[..size];
            let mut data = [0xff; 8];
            if config {
                function.config_write(offset as u16, &bytes[..size.min(4)]);
                function.config_read(offset as u16, &mut data[..size.min(4)]);
            } else {
                function.bar_write(bar, offset, bytes);
                function.bar_read(bar, offset, &mut data[..size]);
            }
        }
        prop_assert_eq!(read32(function.config(), 0), 0x5678_1234);
        for window in function.config().bar_windows() {
            prop_assert!(window.address % window.size == 0 && window.address != 0);
        }
        let saved = function.save().unwrap();
        let (mut other, _) = self::function();
        other.restore(&saved).unwrap();
        prop_assert_eq!(&other.save().unwrap(), &saved);
        for bar in [0, 2, 3, 6] {
            function.config_mut().set_bar_address(bar, 0);
        }
        function.reset();
        prop_assert_eq!(function.save().unwrap(), fresh);
    }

    /// MSI-X against a model: a signal is delivered at once, or once when its vector opens, or is lost while the
    /// capability is off.
    #[test]
    fn msix_delivers_each_signal_or_keeps_it_pending(
        steps in prop::collection::vec((0u8..4, 0u16..VECTORS + 1, any::<bool>()), 1..80)
    ) {
        let (mut function, sources) = function();
        let place = capabilities(function.config()).iter().find(|c| c.0 == id::MSI_X).unwrap().1;
        let signal = function.config().msix().unwrap().handle();
        let (mut enabled, mut function_masked) = (false, false);
        let mut masked = [true; VECTORS as usize];
        let mut pending = [false; VECTORS as usize];
        let mut delivered = 0;
        for (step, vector, on) in steps {
            let v = usize::from(vector);
            match step {
                0 => {
                    signal.signal(vector);
                    if enabled && v < masked.len() {
                        if masked[v] || function_masked { pending[v] = true } else { delivered += 1 }
                    }
                }
                1 if v < masked.len() => {
                    let at = u64::from(MSIX_TABLE) + 16 * u64::from(vector) + 12;
                    function.bar_write(0, at, &u32::from(on).to_le_bytes());
                    masked[v] = on;
                }
                2 => {
                    enabled = on;
                    let control = u16::from(enabled) << 15 | u16::from(function_masked) << 14;
                    function.config_write(place + 2, &control.to_le_bytes());
                }
                3 => {
                    function_masked = on;
                    let control = u16::from(enabled) << 15 | u16::from(function_masked) << 14;
                    function.config_write(place + 2, &control.to_le_bytes());
                }
                _ => {}
            }
            for v in 0..masked.len() {
                if !enabled {
                    pending[v] = false;
                } else if pending[v] && !masked[v] && !function_masked {
                    pending[v] = false;
                    delivered += 1;
                }
            }
            let mut bits = [0];
            function.bar_read(0, MSIX_PBA.into(), &mut bits);
            let expected = pending.iter().enumerate().fold(0, |bits, (v, on)| bits | u8::from(*on) << v);
            prop_assert_eq!(bits[0], expected);
            prop_assert_eq!(sources.fired(), delivered);
        }
    }
}

/// Walks the capability list as the specification tells software to: ids and offsets.
fn capabilities(space: &ConfigSpace) -> Vec<(u8, u16)> {
    let byte = |at: u16| {
        let mut data = [0];
        space.read(at, &mut data);
        data[0]
    };
    let mut found = Vec::new();
    let mut at = u16::from(byte(0x34));
    while at != 0 {
        assert!(at >= 0x40 && at % 4 == 0 && found.len() < 48, "the list is sound");
        found.push((byte(at), at));
        at = u16::from(byte(at + 1));
    }
    found
}

#[test]
fn a_walker_finds_every_capability() {
    let (function, _) = function();
    let ids: Vec<u8> = capabilities(function.config()).iter().map(|c| c.0).collect();
    assert_eq!(ids, [0x01, 0x10, 0x05, 0x11, 0x09]);
    let space = function.config();
    let mut extended = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        let header = read32(space, at);
        extended.push((header as u16, header >> 16 & 0xf));
        at = (header >> 20) as u16;
    }
    assert_eq!(extended, [(3, 1), (0xb, 1)]);
    assert_eq!(read32(&ConfigSpace::new(Identity::default()), 0x100), 0, "without any, the list is empty");
}

#[test]
fn windows_follow_the_command_register_the_power_state_and_the_rom_enable() {
    let (mut function, _) = function();
    let place = |function: &TestFunction, id| {
        capabilities(function.config()).iter().find(|c| c.0 == id).map(|c| c.1).unwrap()
    };
    let power = place(&function, id::POWER_MANAGEMENT);
    let space = function.config_mut();
    for (bar, address) in [(0, 1 << 40), (2, 0xc000_0000), (3, 0x1000), (6, 0xc001_0000)] {
        space.set_bar_address(bar, address);
    }
    let bars = |space: &ConfigSpace| space.bar_windows().iter().map(|w| w.bar).collect::<Vec<_>>();
    assert!(bars(space).is_empty());
    assert_eq!(write32(space, 4, 1), Some(DeviceChange::Remap));
    assert_eq!(bars(space), [3]);
    assert_eq!(write32(space, 4, 3), Some(DeviceChange::Remap));
    assert_eq!(write32(space, 4, 3 | 4), None, "bus mastering moves no window");
    assert_eq!(bars(space), [0, 2, 3]);
    assert_eq!(write32(space, 0x30, 0xc001_0001), Some(DeviceChange::Remap));
    assert_eq!(bars(space), [0, 2, 3, 6]);

    assert_eq!(write32(space, power + 4, 3), Some(DeviceChange::Remap), "in D3hot nothing answers");
    assert!(bars(space).is_empty());
    assert_eq!(write32(space, power + 4, 1), None, "D1 is not supported");
    assert_eq!(read32(space, power + 4) & 3, 3);
    assert_eq!(write32(space, power + 4, 0), Some(DeviceChange::Remap));

    assert_eq!(write32(space, 0x1c, 0xfff8_0001), Some(DeviceChange::Remap));
    assert_eq!(bars(space), [0, 2, 6], "there are no ports that high");
    assert_eq!(write32(space, 0x18, 0), Some(DeviceChange::Remap));
    assert_eq!(bars(space), [0, 6], "a BAR at zero is not placed");

    space.reset();
    assert!(bars(space).is_empty());
    assert_eq!(space.bar_address(0), Some(1 << 40), "a reset leaves BARs where they are");
}

#[test]
fn error_bits_are_cleared_by_writing_one() {
    let mut space = ConfigSpace::new(Identity::default());
    space.set_dword(register::COMMAND, 0xc000 << 16, 0xc000 << 16);
    write32(&mut space, 4, 0);
    assert_eq!(space.word(register::STATUS), 0xc000);
    space.write(register::STATUS + 1, &[0x80]);
    assert_eq!(space.word(register::STATUS), 0x4000, "only the bit written as 1");
    let saved = space.save();
    let mut other = ConfigSpace::new(Identity::default());
    other.restore(&saved).unwrap();
    assert_eq!(other.word(register::STATUS), 0x4000);
}

#[test]
fn a_function_level_reset_is_asked_for_only_where_it_is_offered() {
    let (mut function, _) = function();
    let at = capabilities(function.config()).iter().find(|c| c.0 == id::EXPRESS).unwrap().1;
    let space = function.config_mut();
    assert_eq!(space.write(at + 8, &0x2810u16.to_le_bytes()), None);
    assert_eq!(space.write(at + 8, &0xa810u16.to_le_bytes()), Some(DeviceChange::Reset));
    assert_eq!(space.word(at + 8), 0x2810, "the bit reads as zero");
    assert_eq!(space.write(at + 9, &[0x80]), Some(DeviceChange::Reset));

    let mut without = ConfigSpace::new(Identity::default());
    let at = without.add_express(ExpressKind::Endpoint, false).unwrap();
    assert_eq!(without.write(at + 9, &[0x80]), None);
}

#[test]
fn builders_refuse_what_cannot_be() {
    let mut space = ConfigSpace::new(Identity::default());
    let wide = BarKind::Memory64 { prefetchable: false };
    let narrow = BarKind::Memory32 { prefetchable: false };
    space.add_bar(0, wide, 4096).unwrap();
    space.add_bar(4, wide, 4096).unwrap();
    for (number, kind) in
        [(0, narrow), (1, narrow), (5, narrow), (3, wide), (6, narrow), (7, narrow), (2, BarKind::Rom)]
    {
        assert_eq!(space.add_bar(number, kind, 4096), Err(ConfigError::BarNumber { number, kind }));
    }
    for (kind, size) in [(narrow, 1 << 32), (narrow, 8), (narrow, 4097), (BarKind::Io, 512)] {
        assert_eq!(space.add_bar(2, kind, size), Err(ConfigError::BarSize { number: 2, kind, size }));
    }
    let msix = || Msix::new(128, Arc::new(Sources::default()));
    assert!(space.add_msix(0, 2048, 4096, msix()).is_err(), "the pending bits lie outside the BAR");
    space.add_msix(0, 1024, 3072, msix()).unwrap();
    assert_eq!(space.add_msix(0, 1024, 3072, msix()), Err(ConfigError::CapabilityTwice(0x11)));
    let room = space.add_capability(9, &[0; 200], &[]);
    assert_eq!(room, Err(ConfigError::CapabilityRoom { id: 9, size: 202 }));
}

#[test]
fn a_source_is_allocated_and_routed_only_when_needed() {
    let (mut function, sources) = function();
    function.config_mut().set_requester(0x18);
    let at = capabilities(function.config()).iter().find(|c| c.0 == id::MSI_X).unwrap().1;
    let entry = u64::from(MSIX_TABLE) + 16;
    function.bar_write(0, entry, &0x0000_0000_fee0_1003u64.to_le_bytes());
    function.bar_write(0, entry + 8, &0x41u64.to_le_bytes());
    assert!(sources.get(0).is_none(), "MSI-X is off");
    function.config_write(at + 2, &0xc000u16.to_le_bytes());
    assert!(sources.get(0).is_none(), "the function is masked");
    function.config_write(at + 2, &0x8000u16.to_le_bytes());
    let source = sources.get(0).expect("the one open vector has a source");
    assert!(sources.get(1).is_none());
    let message = MsiMessage { address: 0xfee0_1000, data: 0x41, requester: 0x18 };
    assert_eq!(source.message(), Some(message));

    // A message changed while the vector is open takes effect at once.
    function.bar_write(0, entry + 8, &0x42u32.to_le_bytes());
    assert_eq!(source.message().map(|m| m.data), Some(0x42));
    let handle = function.config().msix().unwrap().handle();
    handle.signal(VECTORS);
    handle.signal(NO_VECTOR);
    assert_eq!((handle.out_of_range(), sources.fired()), (1, 0));

    function.reset();
    assert_eq!(source.message(), None, "after a reset nothing can fire");
    assert!(!handle.enabled());
}

#[test]
fn msi_grants_masks_and_delivers() {
    let (mut function, sources) = function();
    let at = capabilities(function.config()).iter().find(|c| c.0 == id::MSI).unwrap().1;
    let space = function.config_mut();
    write32(space, at + 4, 0xfee0_0000);
    space.write(at + 12, &0x4043u16.to_le_bytes());
    // Two of four vectors granted, the second masked.
    write32(space, at + 16, 2);
    space.write(at + 2, &[1 << 4 | 1]);
    let handle = space.msi().unwrap().handle();
    for vector in 0..4 {
        handle.signal(vector);
    }
    assert_eq!(sources.fired(), 1);
    assert_eq!(sources.get(0).unwrap().message().unwrap().data, 0x4042, "the low bits are the vector");
    assert_eq!(read32(space, at + 20), 2, "the masked vector is pending, those not granted are lost");
    write32(space, at + 16, 0);
    assert_eq!(sources.fired(), 2);
    assert_eq!(read32(space, at + 20), 0);
    assert_eq!(sources.get(1).unwrap().message().unwrap().data, 0x4043);
}

#[test]
fn the_pin_is_silent_while_disabled_and_while_messages_are_enabled() {
    let pins = Arc::new(Pins::default());
    let intx = Intx::new(InterruptLine::new(pins.clone(), 17));
    let mut function = TestFunction::new(Arc::new(Sources::default()), Some(intx.clone())).unwrap();
    let at = capabilities(function.config()).iter().find(|c| c.0 == id::MSI_X).unwrap().1;
    let space = function.config_mut();
    assert_eq!(read32(space, 0x3c) & 0xffff, 0x0111);
    intx.set(true);
    assert!(pins.level(17));
    assert_eq!(space.word(register::STATUS) & 8, 8);
    space.write(4, &command::INTX_DISABLE.to_le_bytes());
    assert!(!pins.level(17));
    assert_eq!(space.word(register::STATUS) & 8, 8, "the status bit is set regardless");
    space.write(4, &[0, 0]);
    assert!(pins.level(17));
    space.write(at + 2, &0x8000u16.to_le_bytes());
    assert!(!pins.level(17));
    space.write(at + 2, &[0, 0]);
    assert!(pins.level(17));
    space.reset();
    assert!(!pins.level(17));
}

#[test]
fn a_pending_interrupt_survives_saving_and_fires_when_unmasked() {
    let (mut function, _) = function();
    let at = capabilities(function.config()).iter().find(|c| c.0 == id::MSI_X).unwrap().1;
    function.config_write(at + 2, &0x8000u16.to_le_bytes());
    function.config().msix().unwrap().handle().signal(2);
    let saved = function.save().unwrap();
    let (mut other, sources) = self::function();
    other.restore(&saved).unwrap();
    assert!(sources.get(0).is_none(), "a masked vector needs no source");
    other.bar_write(0, u64::from(MSIX_TABLE) + 2 * 16 + 12, &[0; 4]);
    assert_eq!(sources.fired(), 1);
}

#[test]
fn a_state_of_another_function_is_refused() {
    let (mut function, _) = function();
    let mut state = function.config().save();
    state.device = 1;
    let error = function.config_mut().restore(&state).unwrap_err().to_string();
    assert!(error.contains("1234:0001") && error.contains("1234:5678"), "{error}");
    let mut state = function.config().save();
    state.msix.as_mut().unwrap().pending = vec![VECTORS];
    assert!(function.config_mut().restore(&state).is_err());
    state.registers.insert(0, 0xdead_beef);
    state.msix.as_mut().unwrap().pending.clear();
    function.config_mut().restore(&state).unwrap();
    assert_eq!(read32(function.config(), 0), 0x5678_1234, "a saved state cannot change what is read-only");
}

/// Shows a space to `lspci`, as a dump of its own format. `None` when it is not installed.
fn lspci(space: &ConfigSpace) -> Option<String> {
    let mut dump = String::from("00:03.0 Unassigned class [ff00]: a function\n");
    for row in (0..4096u16).step_by(16) {
        let bytes = (0..4).flat_map(|dword| read32(space, row + dword * 4).to_le_bytes());
        let bytes: Vec<_> = bytes.map(|byte| format!("{byte:02x}")).collect();
        dump += &format!("{row:02x}: {}\n", bytes.join(" "));
    }
    let path = std::env::temp_dir().join(format!("vivarium-lspci-{}", std::process::id()));
    std::fs::write(&path, dump).unwrap();
    let output = std::process::Command::new("lspci").arg("-F").arg(&path).args(["-vvv", "-n"]).output();
    std::fs::remove_file(&path).unwrap();
    let output = output.ok()?;
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn lspci_reads_what_was_meant() {
    let (mut function, _) = function();
    let space = function.config_mut();
    space.set_bar_address(0, 0x12_0000_0000);
    space.set_bar_address(2, 0xc000_0100);
    space.set_bar_address(3, 0x1010);
    write32(space, 4, 7);
    let Some(said) = lspci(space) else {
        eprintln!("skipped: lspci is not installed");
        return;
    };
    for expected in [
        "00:03.0 0f00: 1234:5678 (rev 01)",
        "Subsystem: 9abc:def0",
        "Control: I/O+ Mem+ BusMaster+",
        "Region 0: Memory at 1200000000 (64-bit, prefetchable)",
        "Region 2: Memory at c0000100 (32-bit, non-prefetchable)",
        "Region 3: I/O ports at 1010",
        "Power Management version 3",
        "NoSoftRst+",
        "Express (v2) Root Complex Integrated Endpoint",
        "FLReset+",
        "MSI: Enable- Count=1/4 Maskable+ 64bit+",
        "MSI-X: Enable- Count=4 Masked-",
        "Vector table: BAR=0 offset=00000800",
        "PBA: BAR=0 offset=00001000",
        "Vendor Specific Information: Len=08",
        "Device Serial Number 07-07-07-07-07-07-07-07",
        "Vendor Specific Information: ID=0000 Rev=0 Len=00c",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
    for bad in ["broken", "nknown", "denied"] {
        assert!(!said.contains(bad), "{bad:?} is in:\n{said}");
    }
}
