//! Tests of both ways to configuration space (what one shows, the other shows), and of what is below bridges: found by
//! an enumeration of its own, as Linux does it.

use super::*;
use crate::BarWindow;
use crate::bridge::bridge_register;
use crate::plan::{self, Windows};
use crate::port::{Port, PortKind, PortOptions};
use crate::root::ConfigPorts;
use crate::testing::{MSIX_TABLE, TestFunction};
use machine::bus::{BusDevice, Range};
use machine::interrupt::recording::Sources;
use proptest::prelude::*;

fn test_function() -> FunctionHandle {
    Arc::new(Mutex::new(TestFunction::new(Arc::new(Sources::default()), None).unwrap()))
}

fn at(device: u8, function: u8) -> FunctionAddress {
    FunctionAddress::new(3, 0, device, function)
}

fn ecam_read<const N: usize>(segment: &Segment, bdf: u16, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    segment.ecam().read(u64::from(bdf) << 12 | offset, &mut data);
    data
}

#[test]
fn functions_come_and_go_and_absent_ones_read_all_ones() {
    let segment = Segment::new(3);
    assert_eq!(ecam_read(&segment, 0, 0), 0x0008_1b36u32.to_le_bytes(), "the host bridge is always there");
    assert_eq!(ecam_read(&segment, 0, 0x0b), [6], "and is one");
    assert_eq!(segment.free_devices(0).next(), Some(1));
    segment.insert(at(1, 0), test_function()).unwrap();
    assert_eq!(segment.free_devices(0).next(), Some(2));
    assert_eq!(ecam_read(&segment, 8, 0), 0x5678_1234u32.to_le_bytes());
    assert_eq!(segment.insert(at(1, 0), test_function()), Err(SegmentError::Taken(at(1, 0))));
    let elsewhere = FunctionAddress::new(3, 1, 0, 0);
    assert!(matches!(segment.insert(elsewhere, test_function()), Err(SegmentError::NotHere { .. })));
    assert!(segment.remove(at(1, 0)).is_some());
    assert_eq!(ecam_read(&segment, 8, 0), [0xff; 4]);
    assert_eq!(segment.ecam().write(8 << 12 | 4, &[7, 0]), None);
    assert_eq!(ecam_read(&segment, 0xffff, 0xffc), [0xff; 4]);
}

#[test]
fn the_multifunction_bit_follows_the_functions_there_are() {
    let segment = Segment::new(3);
    segment.insert(at(4, 0), test_function()).unwrap();
    let header = |bdf: u16| {
        let [byte] = ecam_read(&segment, bdf, 0x0e);
        let [.., high] = ecam_read::<2>(&segment, bdf, 0x0d);
        let [.., third, _] = ecam_read::<4>(&segment, bdf, 0x0c);
        assert!(byte == high && byte == third, "however it is read");
        byte
    };
    assert_eq!(header(4 << 3), 0);
    segment.insert(at(4, 5), test_function()).unwrap();
    assert_eq!(header(4 << 3), 0x80);
    assert_eq!(header(4 << 3 | 5), 0);
    segment.remove(at(4, 5));
    assert_eq!(header(4 << 3), 0);
}

#[test]
fn a_change_is_returned_with_the_function_s_address() {
    let segment = Segment::new(3);
    let function = test_function();
    segment.insert(at(2, 1), Arc::clone(&function)).unwrap();
    function.lock().unwrap().config_mut().set_bar_address(2, 0xc000_0000);
    let remap = Some(Effect::Function(at(2, 1), DeviceChange::Remap));
    assert_eq!(segment.ecam().write(u64::from(at(2, 1).bdf) << 12 | 4, &[2, 0]), remap);
}

#[test]
fn the_ports_obey_their_enable_bit_and_their_size() {
    let segment = Segment::new(0);
    let mut ports = segment.config_ports();
    let read = |ports: &mut ConfigPorts, port: u64, size: usize| {
        let mut data = vec![0; size];
        ports.read(port, &mut data);
        data
    };
    assert_eq!(read(&mut ports, 4, 4), [0xff; 4], "not enabled");
    ports.write(0, &0xff00_0003u32.to_le_bytes());
    assert_eq!(read(&mut ports, 0, 4), 0x8000_0000u32.to_le_bytes(), "reserved bits read as zero");
    assert_eq!(read(&mut ports, 4, 4), 0x0008_1b36u32.to_le_bytes());
    assert_eq!(read(&mut ports, 6, 2), [0x08, 0x00]);
    assert_eq!(read(&mut ports, 7, 2), [0xff; 2], "an access over the end of the data port");
    // Linux's probe for this mechanism writes a byte to the last address port first.
    ports.write(3, &[1]);
    assert_eq!(read(&mut ports, 0, 4), 0x8000_0000u32.to_le_bytes());
    assert_eq!(read(&mut ports, 0, 2), [0xff; 2]);

    let saved = ports.save().unwrap();
    let mut other = segment.config_ports();
    other.restore(&saved).unwrap();
    assert_eq!(other.save().unwrap(), saved);
    assert_eq!(read(&mut other, 4, 2), [0x36, 0x1b]);
}

#[test]
fn a_window_passes_accesses_on() {
    let function = test_function();
    let mut window = BarWindow::new(Arc::clone(&function), at(1, 0), 0);
    assert_eq!(window.write(8, &[1, 2, 3, 4]), None);
    let mut data = [0; 4];
    window.read(8, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    window.read(u64::from(MSIX_TABLE) + 12, &mut data);
    assert_eq!(data, [1, 0, 0, 0], "an MSI-X vector starts masked");
}

#[test]
fn the_host_bridge_can_be_saved() {
    let segment = Segment::new(0);
    let bridge = segment.get(FunctionAddress::new(0, 0, 0, 0)).unwrap();
    segment.ecam().write(4, &[6, 0]);
    let saved = bridge.lock().unwrap().save().unwrap();
    let other = Segment::new(0).get(FunctionAddress::new(0, 0, 0, 0)).unwrap();
    other.lock().unwrap().restore(&saved).unwrap();
    assert_eq!(other.lock().unwrap().config().command(), 6);
    assert!(segment.inspect()["0000:00:00.0"]["pci"]["id"] == "1b36:0008");
}

proptest! {
    /// Random accesses through both ways: they agree with each other and with reading byte by byte.
    #[test]
    fn both_ways_agree(
        accesses in prop::collection::vec((0u16..24, 0u64..256, 0usize..4, prop::option::of(any::<u64>())), 1..100)
    ) {
        let segment = Segment::new(0);
        for (device, function) in [(1, 0), (1, 3), (2, 0)] {
            segment.insert(FunctionAddress::new(0, 0, device, function), test_function()).unwrap();
        }
        let mut ports = segment.config_ports();
        for (bdf, offset, size, write) in accesses {
            let size = [1, 2, 4, 8][size];
            if let Some(value) = write {
                let _ = segment.ecam().write(u64::from(bdf) << 12 | offset, &value.to_le_bytes()[..size]);
            }
            let mut whole = vec![0; size];
            segment.ecam().read(u64::from(bdf) << 12 | offset, &mut whole);
            for (i, byte) in whole.iter().enumerate() {
                let at = offset + i as u64;
                let [alone] = ecam_read(&segment, bdf, at);
                prop_assert_eq!(*byte, alone);
                if at < 256 {
                    let select = 1 << 31 | u32::from(bdf) << 8 | at as u32;
                    prop_assert!(ports.write(0, &select.to_le_bytes()).is_none());
                    let mut data = [0];
                    ports.read(4 + (at & 3), &mut data);
                    prop_assert_eq!(*byte, data[0]);
                }
            }
        }
    }
}

const WINDOWS: Windows = Windows {
    memory32: Some(Range { start: 0xc000_0000, size: 0x2000_0000 }),
    memory64: Some(Range { start: 1 << 40, size: 1 << 40 }),
    io: Some(Range { start: 0x1000, size: 0xf000 }),
};

/// Root ports at 1 and 2; two functions below the first; below the second a switch with two ports, a function each.
struct Tree {
    segment: Segment,
    ports: BTreeMap<FunctionAddress, Arc<Mutex<Port>>>,
    sources: Arc<Sources>,
}

fn place(bus: u8, device: u8, function: u8) -> FunctionAddress {
    FunctionAddress::new(0, bus, device, function)
}

impl Tree {
    fn new() -> Self {
        let sources = Arc::new(Sources::default());
        let mut tree = Self { segment: Segment::new(0), ports: BTreeMap::new(), sources };
        tree.port(place(0, 1, 0), PortKind::Root, 1..=1);
        tree.port(place(0, 2, 0), PortKind::Root, 2..=6);
        tree.port(place(2, 0, 0), PortKind::Upstream, 3..=6);
        tree.port(place(3, 0, 0), PortKind::Downstream, 4..=5);
        tree.port(place(3, 7, 0), PortKind::Downstream, 6..=6);
        for home in Self::endpoints() {
            let function = TestFunction::new(tree.sources.clone(), None).unwrap();
            tree.segment.insert(home, Arc::new(Mutex::new(function))).unwrap();
        }
        tree.segment.insert(place(0, 3, 0), test_function()).unwrap();
        tree
    }

    fn endpoints() -> [FunctionAddress; 4] {
        [place(1, 0, 0), place(1, 0, 3), place(4, 0, 0), place(6, 0, 0)]
    }

    fn port(&mut self, home: FunctionAddress, kind: PortKind, buses: RangeInclusive<u8>) {
        let options = PortOptions { kind, port: home.device(), slot: None, io: true };
        let port = Arc::new(Mutex::new(Port::new(options, self.sources.clone(), None).unwrap()));
        let reserve = Reserve { io: 0, memory: 2 << 20, prefetchable: 1 << 30 };
        self.segment.insert_bridge(home, port.clone(), buses, reserve).unwrap();
        self.ports.insert(home, port);
    }

    fn write(&self, bdf: u16, offset: u16, data: &[u8]) {
        match self.segment.write(bdf, offset, data) {
            None => {}
            Some(Effect::Function(_, DeviceChange::Remap | DeviceChange::ResetBelow)) => {
                self.segment.find_routes();
            }
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, bdf: u16, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.segment.read(bdf, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// All functions, as Linux finds them (pci_scan_child_bus). With `renumber`, it gives out new bus numbers, so many
    /// to skip before each; else it takes those it finds.
    fn scan(&self, bus: u8, renumber: Option<u8>, next: &mut u8, found: &mut Vec<u16>) {
        for device in 0..32u16 {
            for function in 0..8 {
                let bdf = u16::from(bus) << 8 | device << 3 | function;
                let id = self.read(bdf, 0);
                if id == u32::MAX {
                    continue;
                }
                found.push(bdf);
                let header = self.read(bdf, 0x0c) >> 16;
                if header & 0x7f == 1 {
                    let secondary = match renumber {
                        Some(skip) => {
                            let secondary = *next + 1 + skip;
                            *next = secondary;
                            self.write(bdf, bridge_register::BUSES, &[bus, secondary, 0xff, 0]);
                            secondary
                        }
                        None => self.read(bdf, bridge_register::BUSES).to_le_bytes()[1],
                    };
                    if secondary > bus {
                        self.scan(secondary, renumber, next, found);
                    }
                    if renumber.is_some() {
                        self.write(bdf, bridge_register::BUSES + 2, &[*next]);
                    }
                }
                if function == 0 && header & 0x80 == 0 {
                    break;
                }
            }
        }
    }

    fn homes(&self) -> Vec<u16> {
        self.segment.functions().into_iter().map(|(address, _)| address.bdf).collect()
    }
}

#[test]
fn an_enumeration_finds_every_function_at_home_once_buses_are_numbered() {
    let tree = Tree::new();
    let mut found = Vec::new();
    tree.scan(0, None, &mut 0, &mut found);
    found.sort_unstable();
    assert_eq!(found, [0, 1 << 3, 2 << 3, 3 << 3], "before that, bus 0 alone is reached");

    plan::place(&tree.segment, WINDOWS).unwrap();
    let mut found = Vec::new();
    tree.scan(0, None, &mut 0, &mut found);
    found.sort_unstable();
    assert_eq!(found, tree.homes());
    for home in tree.homes() {
        let address = FunctionAddress { segment: 0, bdf: home };
        assert_eq!(tree.segment.present(address), Some(address));
    }
}

#[test]
fn functions_are_where_the_guest_s_bus_numbers_put_them() {
    let tree = Tree::new();
    for skip in [0, 1, 9] {
        plan::place(&tree.segment, WINDOWS).unwrap();
        // As `pci=assign-busses`: all numbers go first.
        for home in tree.ports.keys().rev() {
            tree.write(home.bdf, bridge_register::BUSES, &[0; 4]);
        }
        let mut found = Vec::new();
        tree.scan(0, Some(skip), &mut 0, &mut found);
        assert_eq!(found.len(), tree.homes().len(), "skip {skip}");
        for home in tree.homes() {
            let now = tree.segment.present(FunctionAddress { segment: 0, bdf: home }).unwrap();
            assert!(found.contains(&now.bdf));
            assert_eq!(now.bdf & 0xff, home & 0xff);
        }
        let last = tree.segment.present(place(6, 0, 0)).unwrap();
        // Ports in the order in which they are found: five, the last of them leads here.
        assert_eq!(last.bus(), 5 * (1 + skip));
        // Effects name the function by its home.
        let change = tree.segment.write(last.bdf, 4, &[2, 0]);
        assert!(matches!(change, None | Some(Effect::Function(_, DeviceChange::Remap))));
        if let Some(Effect::Function(address, _)) = change {
            assert_eq!(address, place(6, 0, 0));
        }
        tree.segment.write(last.bdf, 4, &[0, 0]);
    }
}

#[test]
fn of_bridges_that_claim_the_same_bus_one_has_it_and_nothing_loops() {
    let tree = Tree::new();
    plan::place(&tree.segment, WINDOWS).unwrap();
    for home in tree.ports.keys() {
        tree.write(home.bdf, bridge_register::BUSES, &[0, 1, 255, 0]);
    }
    let mut answering = 0;
    for bdf in 0..=u16::MAX {
        let mut data = [0; 2];
        tree.segment.read(bdf, 0, &mut data);
        answering += u32::from(data != [0xff; 2]);
    }
    assert_eq!(answering, 4 + 2, "bus 0, and what is below the first port");
}

#[test]
fn pins_turn_at_each_bridge() {
    let tree = Tree::new();
    assert_eq!(tree.segment.root_pin(place(0, 3, 0), 2), (3, 2));
    assert_eq!(tree.segment.root_pin(place(1, 0, 3), 1), (1, 1));
    // The switch's port is device 7 on its bus.
    assert_eq!(tree.segment.root_pin(place(6, 0, 0), 1), (2, 4));
    assert_eq!(tree.segment.root_pin(place(3, 7, 0), 1), (2, 4));
}

#[test]
fn bridges_have_buses_of_their_own_below_those_above() {
    let tree = Tree::new();
    let port = || {
        let options = PortOptions { kind: PortKind::Root, port: 0, slot: None, io: false };
        Arc::new(Mutex::new(Port::new(options, tree.sources.clone(), None).unwrap()))
    };
    let add = |home, buses| tree.segment.insert_bridge(home, port(), buses, Reserve::default());
    for (home, buses) in [
        (place(0, 9, 0), 1..=1),
        (place(0, 9, 0), 5..=8),
        (place(0, 9, 0), 0..=0),
        (place(4, 0, 1), 6..=6),
        (place(4, 0, 1), 4..=4),
    ] {
        assert!(matches!(add(home, buses), Err(SegmentError::Buses { .. })));
    }
    assert_eq!(add(place(0, 9, 0), 7..=255), Ok(()));
    let small = Segment::with_last_bus(0, 3);
    let beyond = small.insert_bridge(place(0, 9, 0), port(), 1..=4, Reserve::default());
    assert!(matches!(beyond, Err(SegmentError::Buses { first: 1, last: 4, .. })));
    assert_eq!(small.insert_bridge(place(0, 9, 0), port(), 1..=3, Reserve::default()), Ok(()));
    assert_eq!(
        tree.segment.below(place(0, 2, 0)),
        [place(2, 0, 0), place(3, 0, 0), place(3, 7, 0), place(4, 0, 0), place(6, 0, 0)]
    );
    assert_eq!(tree.segment.bridge_above(place(4, 0, 0)), Some(place(3, 0, 0)));
    assert!(tree.segment.below(place(1, 0, 0)).is_empty());
}

/// Everything that is placed answers where it was placed, through all bridges, and nothing overlaps.
#[test]
fn what_is_placed_below_bridges_is_let_through() {
    let tree = Tree::new();
    plan::place(&tree.segment, WINDOWS).unwrap();
    let mut all: Vec<(FunctionAddress, MappedBar)> = Vec::new();
    for home in Tree::endpoints() {
        let function = tree.segment.get(home).unwrap();
        assert!(tree.segment.write(home.bdf, 4, &[3, 0]).is_some());
        // And the ROM, which has an enable bit of its own.
        let rom = tree.read(home.bdf, 0x30) | 1;
        tree.segment.write(home.bdf, 0x30, &rom.to_le_bytes());
        let windows = tree.segment.windows(home);
        assert_eq!(windows, function.lock().unwrap().config().bar_windows());
        assert_eq!(windows.len(), 4);
        for window in windows {
            if window.bar == 0 {
                assert!(window.address >= 1 << 40, "a prefetchable 64-bit BAR is above");
            }
            for (_, other) in &all {
                assert!(other.space != window.space || !other.range().overlaps(window.range()));
            }
            all.push((home, window));
        }
    }
    // Each port's windows have room for what is plugged in later.
    for (home, port) in &tree.ports {
        let windows = port.lock().unwrap().config().forwarding().unwrap().windows;
        assert!(windows.memory.unwrap().size > 2 << 20, "{home}");
        assert!(windows.prefetchable.unwrap().size > 1 << 30, "{home}");
        assert!(windows.prefetchable.unwrap().start >= 1 << 40, "{home}");
    }
    // Closing a bridge up there silences what is below.
    tree.write(2 << 3, 4, &[0, 0]);
    assert!(tree.segment.windows(place(6, 0, 0)).is_empty());
    assert_eq!(tree.segment.windows(place(1, 0, 0)).len(), 4);
}

#[test]
fn what_does_not_fit_below_a_port_is_named_with_the_port() {
    let tree = Tree::new();
    let windows = Windows { memory32: Some(Range { start: 0xc000_0000, size: 8 << 20 }), ..WINDOWS };
    let error = plan::place(&tree.segment, windows).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("what is below the PCI port 0000:00:02.0 needs 12 MiB of 32-bit memory"),
        "{error}"
    );
}

proptest! {
    /// A window answers if and only if it lies in a window of every bridge above it.
    #[test]
    fn windows_pass_all_bridges_or_none(
        ports in prop::collection::vec((0u64..16, 0u64..16, any::<bool>(), any::<bool>()), 3),
        address in 0u64..16,
    ) {
        let tree = Tree::new();
        plan::place(&tree.segment, WINDOWS).unwrap();
        let path = [place(0, 2, 0), place(2, 0, 0), place(3, 7, 0)];
        let at = 0xc000_0000 + (address << 20);
        let function = tree.segment.get(place(6, 0, 0)).unwrap();
        function.lock().unwrap().config_mut().set_bar_address(2, at);
        tree.write(place(6, 0, 0).bdf, 4, &[2, 0]);
        let mut passes = true;
        for (home, (base, limit, enabled, prefetchable)) in path.into_iter().zip(ports) {
            let register = if prefetchable { bridge_register::PREFETCHABLE } else { bridge_register::MEMORY };
            let other = if prefetchable { bridge_register::MEMORY } else { bridge_register::PREFETCHABLE };
            let value = (0xc000 | base << 4) as u32 | ((0xc000 | limit << 4) as u32) << 16;
            // The other one closed: base above limit.
            tree.write(home.bdf, other, &0x0000_fff0u32.to_le_bytes());
            tree.write(home.bdf, register, &value.to_le_bytes());
            tree.write(home.bdf, bridge_register::PREFETCHABLE_BASE_UPPER, &[0; 4]);
            tree.write(home.bdf, bridge_register::PREFETCHABLE_LIMIT_UPPER, &[0; 4]);
            tree.write(home.bdf, 4, &[if enabled { 6 } else { 4 }, 0]);
            passes &= enabled && base <= address && address <= limit;
        }
        let windows = tree.segment.windows(place(6, 0, 0));
        prop_assert_eq!(windows.iter().any(|window| window.bar == 2 && window.address == at), passes);
    }
}
