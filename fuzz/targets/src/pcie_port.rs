//! `pcie_port`: root port, switch and slots, whose bus numbers and windows go anywhere while devices come and go.

use crate::input::Input;
use machine::bus::{Bus, Range};
use machine::effect::{DeviceChange, Effect, FunctionAddress};
use machine::interrupt::InterruptLine;
use machine::interrupt::recording::{Pins, Sources};
use pci::BarWindow;
use pci::bar::Space;
use pci::function::{Function, FunctionHandle};
use pci::intx::Intx;
use pci::placement::{Placement, Window};
use pci::plan::{Reserve, Windows};
use pci::port::{Port, PortKind, PortOptions, UnplugRequest};
use pci::root::ECAM_BYTES_PER_BUS;
use pci::segment::Segment;
use pci::testing::TestFunction;
use std::hint::black_box;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const STEPS: usize = 200;
const ECAM: Range = Range { start: 0xe000_0000, size: 256 * ECAM_BYTES_PER_BUS };
const LOW: Range = Range { start: 0xc000_0000, size: 0x2000_0000 };
const HIGH: Range = Range { start: 0x1_0000_0000, size: 0x10_0000_0000 };
const PORTS: Range = Range { start: 0x1000, size: 0xf000 };
const WINDOWS: Windows = Windows { memory32: Some(LOW), memory64: Some(HIGH), io: Some(PORTS) };

const fn home(bus: u8, device: u8) -> FunctionAddress {
    FunctionAddress::new(0, bus, device, 0)
}

/// Ports: where they are, what they are, the first and last bus below, and whether they have a slot.
const TREE: [(FunctionAddress, PortKind, u8, u8, bool); 5] = [
    (home(0, 1), PortKind::Root, 1, 1, true),
    (home(0, 2), PortKind::Root, 2, 6, false),
    (home(2, 0), PortKind::Upstream, 3, 6, false),
    (home(3, 0), PortKind::Downstream, 4, 5, true),
    (home(3, 1), PortKind::Downstream, 6, 6, true),
];

/// Registers of ports.
pub fn pcie_port(data: &[u8]) {
    let input = &mut Input::new(data);
    let mut machine = Machine::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        // What the machine is not told of changes nothing there, and is looked at with the next change.
        if machine.step(input) {
            machine.check();
        }
    }
    machine.check();
    machine.finish();
}

struct Machine {
    segment: Segment,
    mmio: Bus,
    port: Bus,
    placement: Placement,
    ports: Vec<(FunctionAddress, u8, Arc<Mutex<Port>>)>,
    /// A device for each slot.
    devices: Vec<(FunctionAddress, usize, FunctionHandle)>,
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    fn new() -> Self {
        let segment = Segment::new(0);
        let sources = Arc::new(Sources::default());
        let lines = Arc::new(Pins::default());
        let mut ports = Vec::new();
        for (number, (address, kind, first, last, slot)) in (0u8..).zip(TREE) {
            let options = PortOptions {
                kind,
                port: number,
                slot: slot.then_some(u16::from(number) + 1),
                io: number & 1 == 0,
            };
            let intx = Intx::new(InterruptLine::new(lines.clone(), 16 + u32::from(number)));
            let port = Port::new(options, sources.clone(), Some(intx)).expect("a port fits");
            let port = Arc::new(Mutex::new(port));
            let reserve = Reserve { io: 4096, memory: 1 << 20, prefetchable: 1 << 24 };
            segment.insert_bridge(address, port.clone(), first..=last, reserve).expect("the tree is one");
            ports.push((address, first, port));
        }
        let mut devices = Vec::new();
        for (index, (_, first, port)) in ports.iter().enumerate() {
            if lock(port).has_slot() {
                let function = TestFunction::new(sources.clone(), None).expect("the host has descriptors");
                let function: FunctionHandle = Arc::new(Mutex::new(function));
                segment.insert(home(*first, 0), Arc::clone(&function)).expect("the address is free");
                lock(port).occupy();
                devices.push((home(*first, 0), index, function));
            }
        }
        let mut mmio = Bus::default();
        mmio.insert(ECAM, Arc::new(Mutex::new(segment.ecam()))).expect("the bus is empty");
        pci::plan::place(&segment, WINDOWS).expect("there is room");
        let placement = Placement::new(vec![LOW, HIGH], vec![PORTS]);
        Self { segment, mmio, port: Bus::default(), placement, ports, devices }
    }

    fn bus(&mut self, window: &Window) -> &mut Bus {
        if window.window.space == Space::Memory { &mut self.mmio } else { &mut self.port }
    }

    fn remap(&mut self, address: FunctionAddress) {
        let mut affected = vec![address];
        if self.ports.iter().any(|(port, ..)| *port == address) {
            self.segment.find_routes();
            affected.extend(self.segment.below(address));
        }
        for function in affected {
            let changes = self.placement.update(function, self.segment.windows(function));
            for gone in changes.unmap {
                self.bus(&gone).remove(gone.window.address).expect("what is unmapped was mapped");
            }
            for new in changes.map {
                let function =
                    self.segment.get(new.function).expect("functions that are gone want no windows");
                let device = Arc::new(Mutex::new(BarWindow::new(function, new.function, new.window.bar)));
                self.bus(&new).insert(new.window.range(), device).expect("windows go where there is room");
            }
        }
    }

    fn reset_below(&mut self, bridge: FunctionAddress) {
        self.remap(bridge);
        for address in self.segment.below(bridge) {
            if let Some(function) = self.segment.get(address) {
                lock(&function).reset();
            }
            self.remap(address);
        }
        let released =
            self.ports.iter().position(|(port, _, handle)| *port == bridge && lock(handle).released());
        if let Some(index) = released {
            self.unplug(index);
        }
    }

    fn unplug(&mut self, index: usize) {
        let (bridge, first, port) = self.ports[index].clone();
        self.segment.remove(home(first, 0));
        self.remap_gone(home(first, 0));
        lock(&port).unplug();
        self.remap(bridge);
    }

    fn remap_gone(&mut self, address: FunctionAddress) {
        let changes = self.placement.update(address, Vec::new());
        for gone in changes.unmap {
            self.bus(&gone).remove(gone.window.address).expect("what is unmapped was mapped");
        }
        for new in changes.map {
            let function = self.segment.get(new.function).expect("functions that are gone want no windows");
            let device = Arc::new(Mutex::new(BarWindow::new(function, new.function, new.window.bar)));
            self.bus(&new).insert(new.window.range(), device).expect("windows go where there is room");
        }
    }

    fn apply(&mut self, effect: Option<Effect>) {
        match effect {
            None => {}
            Some(Effect::Function(address, DeviceChange::Remap)) => self.remap(address),
            Some(Effect::Function(bridge, DeviceChange::ResetBelow)) => self.reset_below(bridge),
            Some(Effect::Function(address, DeviceChange::Reset)) => {
                if let Some(function) = self.segment.get(address) {
                    lock(&function).reset();
                    self.remap(address);
                }
            }
            other => panic!("{other:?} from a port or a plain function"),
        }
    }

    /// Whether anything came of it that the machine has to follow.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.below(12) {
            0..=7 => {
                // Mostly what a port or a device answers at now, or a few bus numbers anywhere.
                let addresses: Vec<_> =
                    self.segment.functions().into_iter().map(|(address, _)| address).collect();
                let address = addresses[usize::from(input.u8()) % addresses.len()];
                let bdf = match input.below(8) {
                    0 => input.u16(),
                    _ => self.segment.present(address).unwrap_or(address).bdf,
                };
                let offset = if input.below(8) == 0 { input.u16() & 0xfff } else { input.u8().into() };
                let at = ECAM.start + (u64::from(bdf) << 12) + u64::from(offset);
                let size = 1usize << input.below(4);
                if input.below(4) == 0 {
                    self.mmio.read(at, &mut [0xff; 8][..size]);
                    return false;
                } else {
                    let value = match input.below(6) {
                        0 => u64::MAX,
                        1 => 0,
                        2 => 1 << input.below(64),
                        3 => u64::from(input.u8()) * 0x0101_0101,
                        4 => 0xc000_c000 | u64::from(input.u32()),
                        _ => input.u64(),
                    };
                    let effect = self.mmio.write(at, &value.to_le_bytes()[..size]).flatten();
                    let changes = effect.is_some();
                    self.apply(effect);
                    return changes;
                }
            }
            8 => {
                let (address, index, function) =
                    self.devices[usize::from(input.u8()) % self.devices.len()].clone();
                if self.segment.get(address).is_some() {
                    // By surprise.
                    self.unplug(index);
                } else {
                    self.segment.insert(address, function).expect("the address is free");
                    lock(&self.ports[index].2).plug();
                    self.remap(self.ports[index].0);
                }
            }
            9 => {
                let index = usize::from(input.u8()) % self.ports.len();
                let asked = lock(&self.ports[index].2).request_unplug();
                if asked == UnplugRequest::Released {
                    self.unplug(index);
                }
            }
            10 => {
                let (address, _, port) = self.ports[usize::from(input.u8()) % self.ports.len()].clone();
                let mut port = lock(&port);
                let state = machine::state::Saved::save(&*port).expect("the state can be saved");
                machine::state::Saved::restore(&mut *port, &state).expect("a port takes its own state");
                assert_eq!(machine::state::Saved::save(&*port).expect("the state can be saved"), state);
                drop(port);
                self.remap(address);
            }
            _ => {
                let mut all = Vec::new();
                for (address, function) in self.segment.functions() {
                    black_box(machine::inspect::Inspect::inspect(&*lock(&function)));
                    all.push(self.segment.root_pin(address, 1));
                }
                black_box(all);
                return false;
            }
        }
        true
    }

    /// What is mapped is what is let through; presence, link and routes agree.
    fn check(&self) {
        for mapped in self.placement.mapped() {
            assert!(
                self.segment.windows(mapped.function).contains(&mapped.window),
                "{mapped:?} is let through"
            );
        }
        for (_, first, port) in &self.ports {
            let port = lock(port);
            if port.has_slot() {
                let there = self.segment.get(home(*first, 0)).is_some();
                assert_eq!(port.occupied(), there, "a slot knows what is in it");
                if !there {
                    let forwarding = port.config().forwarding().unwrap_or_default();
                    assert_eq!(forwarding.secondary, 0, "the link of an empty slot is down");
                }
            }
        }
    }

    /// After a reset, everything that is there is found where it was at first.
    fn finish(&mut self) {
        for (_, function) in self.segment.functions() {
            lock(&function).reset();
        }
        pci::plan::place(&self.segment, WINDOWS).expect("there is room");
        for (address, _) in self.segment.functions() {
            assert_eq!(self.segment.present(address), Some(address));
            let mut identity = [0xff; 4];
            self.mmio.read(ECAM.start + (u64::from(address.bdf) << 12), &mut identity);
            assert_ne!(identity, [0xff; 4], "{address} answers");
        }
    }
}
