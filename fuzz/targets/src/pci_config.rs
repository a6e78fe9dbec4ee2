//! `pci_config`: the root complex with functions of all kinds, whose windows move about on real buses.

use crate::input::Input;
use machine::bus::{Bus, Range};
use machine::clock::ManualClock;
use machine::effect::{DeviceChange, Effect, FunctionAddress};
use machine::interrupt::InterruptLine;
use machine::interrupt::recording::{Pins, Sources};
use pci::BarWindow;
use pci::bar::Space;
use pci::function::FunctionHandle;
use pci::intx::Intx;
use pci::placement::{Placement, Window};
use pci::root::{CONFIG_PORTS, CONFIG_PORTS_SIZE, ECAM_BYTES_PER_BUS};
use pci::segment::Segment;
use pci::testing::TestFunction;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use virtio::pci_transport::{Capabilities, Options, VirtioPci};
use virtio::testing::Echo;

const STEPS: usize = 200;
const ECAM: Range = Range { start: 0xe000_0000, size: ECAM_BYTES_PER_BUS };
const LOW: Range = Range { start: 0xc000_0000, size: 0x2000_0000 };
const HIGH: Range = Range { start: 0x1_0000_0000, size: 0x1_0000_0000 };
const PORTS: Range = Range { start: 0x1000, size: 0xf000 };

/// Configuration space, BARs, MSI and MSI-X.
pub fn pci_config(data: &[u8]) {
    let input = &mut Input::new(data);
    let mut machine = Machine::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        machine.step(input);
    }
    machine.finish();
}

struct Machine {
    segment: Segment,
    mmio: Bus,
    port: Bus,
    placement: Placement,
    functions: Vec<(FunctionAddress, FunctionHandle)>,
    pins: Vec<Intx>,
    virtio: Arc<Mutex<VirtioPci>>,
}

impl Machine {
    fn new() -> Self {
        let segment = Segment::new(0);
        let (mut mmio, mut port) = (Bus::default(), Bus::default());
        mmio.insert(ECAM, Arc::new(Mutex::new(segment.ecam()))).expect("the bus is empty");
        let range = Range { start: CONFIG_PORTS, size: CONFIG_PORTS_SIZE };
        port.insert(range, Arc::new(Mutex::new(segment.config_ports()))).expect("the bus is empty");
        let sources = Arc::new(Sources::default());
        let lines = Arc::new(Pins::default());
        let intx = |gsi| Intx::new(InterruptLine::new(lines.clone(), gsi));
        let capabilities = Capabilities {
            memory: virtio::testing::memory(4096),
            msi: sources.clone(),
            intx: Some(intx(16)),
            clock: Arc::new(ManualClock::default()),
        };
        let virtio = VirtioPci::new(Box::new(Echo::new()), Options::default(), capabilities);
        let virtio = Arc::new(Mutex::new(virtio.expect("the device fits")));
        let pins = vec![intx(17), intx(18)];
        let test = |pin: Option<&Intx>| -> FunctionHandle {
            let function = TestFunction::new(sources.clone(), pin.cloned());
            Arc::new(Mutex::new(function.expect("the host has descriptors")))
        };
        let functions: Vec<(FunctionAddress, FunctionHandle)> = vec![
            (FunctionAddress::new(0, 0, 1, 0), test(Some(&pins[0]))),
            (FunctionAddress::new(0, 0, 1, 1), test(Some(&pins[1]))),
            (FunctionAddress::new(0, 0, 2, 0), test(None)),
            (FunctionAddress::new(0, 0, 31, 7), virtio.clone()),
        ];
        for (address, function) in &functions {
            segment.insert(*address, Arc::clone(function)).expect("the address is free");
        }
        let windows = pci::plan::Windows { memory32: Some(LOW), memory64: Some(HIGH), io: Some(PORTS) };
        pci::plan::place(&segment, windows).expect("there is room");
        let placement = Placement::new(vec![LOW, HIGH], vec![PORTS]);
        let mut machine = Self { segment, mmio, port, placement, functions, pins, virtio };
        for at in 0..machine.functions.len() {
            machine.remap(machine.functions[at].0);
        }
        machine
    }

    fn bus(&mut self, window: &Window) -> &mut Bus {
        if window.window.space == Space::Memory { &mut self.mmio } else { &mut self.port }
    }

    fn remap(&mut self, address: FunctionAddress) {
        let windows = self
            .segment
            .get(address)
            .map_or_else(Vec::new, |function| lock(&function).config().bar_windows());
        let changes = self.placement.update(address, windows);
        for gone in changes.unmap {
            self.bus(&gone).remove(gone.window.address).expect("what is unmapped was mapped");
        }
        for new in changes.map {
            let function = self.segment.get(new.function).expect("functions that are gone want no windows");
            let window = BarWindow::new(function, new.function, new.window.bar);
            let device = Arc::new(Mutex::new(window));
            self.bus(&new)
                .insert(new.window.range(), device)
                .expect("windows are placed where there is room");
        }
    }

    fn apply(&mut self, effect: Option<Effect>) {
        let Some(effect) = effect else { return };
        let Effect::Function(address, change) = effect else { panic!("{effect:?} from a PCI function") };
        match change {
            DeviceChange::Remap => self.remap(address),
            DeviceChange::Reset => {
                if let Some(function) = self.segment.get(address) {
                    lock(&function).reset();
                    self.remap(address);
                }
            }
            DeviceChange::ResetBelow => panic!("there is no bridge"),
            DeviceChange::Deadline => panic!("these functions have no deadlines"),
            DeviceChange::Panicked(_) => panic!("these functions hear of no panics"),
            // Its driver has no memory for rings to speak of: it can do no more than fail to start.
            DeviceChange::Start => {
                let started = lock(&self.virtio).start();
                let tasks = started.unwrap_or_default();
                lock(&self.virtio).stopped(tasks);
            }
            DeviceChange::Stop | DeviceChange::StartQueue(_) | DeviceChange::StopQueue(_) => {
                lock(&self.virtio).stopped(Vec::new());
            }
        }
    }

    fn memory_access(&mut self, address: u64, input: &mut Input<'_>) {
        let size = 1 << input.below(4);
        if input.below(3) == 0 {
            self.mmio.read(address, &mut [0xff; 8][..size]);
        } else {
            let value = value(input).to_le_bytes();
            let effect = self.mmio.write(address, &value[..size]).flatten();
            self.apply(effect);
        }
    }

    fn port_access(&mut self, port: u64, input: &mut Input<'_>) {
        let size = 1 << input.below(3);
        if input.below(3) == 0 {
            self.port.read(port, &mut [0xff; 4][..size]);
        } else {
            let value = value(input).to_le_bytes();
            let effect = self.port.write(port, &value[..size]).flatten();
            self.apply(effect);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=6 => {
                // Mostly of functions that are there, and of the registers that do something.
                let bdf = if input.below(8) == 0 { input.u16() } else { self.function(input).0.bdf };
                let offset = if input.below(4) == 0 { input.u16() & 0xfff } else { input.u8().into() };
                let address = ECAM.start + (u64::from(bdf) << 12) + u64::from(offset);
                self.memory_access(address, input);
            }
            7 => {
                let (address, _) = self.function(input);
                let select = 0x8000_0000 | u32::from(address.bdf) << 8 | u32::from(input.u8());
                let effect = self.port.write(CONFIG_PORTS, &select.to_le_bytes()).flatten();
                assert_eq!(effect, None, "choosing an address does nothing else");
                self.port_access(CONFIG_PORTS + 4 + u64::from(input.u8() & 3), input);
            }
            8 => self.port_access(CONFIG_PORTS + u64::from(input.u8() & 7), input),
            9 | 10 => self.window_access(input),
            11 => {
                let (_, function) = self.function(input);
                let vector = if input.below(8) == 0 { input.u16() } else { input.below(8) };
                let (msi, msix) = {
                    let function = lock(&function);
                    let config = function.config();
                    (config.msi().map(|msi| msi.handle()), config.msix().map(|msix| msix.handle()))
                };
                for handle in msi.into_iter().chain(msix) {
                    handle.signal(vector);
                    black_box(handle.pending(vector));
                }
            }
            12 => self.pins[usize::from(input.below(2))].set(input.flag()),
            13 => {
                let (address, function) = self.function(input);
                // Unplugged if it is there, else plugged.
                if self.segment.remove(address).is_none() {
                    self.segment.insert(address, function).expect("the address is free");
                }
                self.remap(address);
            }
            14 if input.below(4) == 0 => {
                let (address, function) = self.function(input);
                let mut function = lock(&function);
                let state = function.save().expect("the state can be saved");
                function.restore(&state).expect("a function takes its own state");
                assert_eq!(function.save().expect("the state can be saved"), state);
                drop(function);
                self.remap(address);
            }
            15 if input.below(4) == 0 => {
                let (_, function) = self.function(input);
                black_box(lock(&function).inspect());
            }
            _ => self.window_access(input),
        }
    }

    fn function(&self, input: &mut Input<'_>) -> (FunctionAddress, FunctionHandle) {
        let (address, function) = &self.functions[usize::from(input.u8()) % self.functions.len()];
        (*address, Arc::clone(function))
    }

    /// An access to a window that is mapped, its ends included.
    fn window_access(&mut self, input: &mut Input<'_>) {
        let mapped = self.placement.mapped();
        if mapped.is_empty() {
            return;
        }
        let window = mapped[usize::from(input.u8()) % mapped.len()].window;
        let offset = u64::from(input.u16()) % window.size;
        if window.space == Space::Memory {
            self.memory_access(window.address + offset, input);
        } else {
            self.port_access(window.address + offset, input);
        }
    }

    /// After a reset, functions are what they are, with their windows where they can be.
    fn finish(&mut self) {
        for at in 0..self.functions.len() {
            let (address, function) = self.functions[at].clone();
            if self.segment.get(address).is_none() {
                self.segment.insert(address, Arc::clone(&function)).expect("the address is free");
            }
            lock(&function).reset();
            self.remap(address);
            let mut identity = [0; 4];
            self.mmio.read(ECAM.start + (u64::from(address.bdf) << 12), &mut identity);
            let expected = if at < 3 { 0x5678_1234 } else { 0x106f_1af4 };
            assert_eq!(u32::from_le_bytes(identity), expected);
        }
        for mapped in self.placement.mapped() {
            let bus = if mapped.window.space == Space::Memory { &self.mmio } else { &self.port };
            assert!(bus.ranges().any(|range| range == mapped.window.range()), "{mapped:?} is on its bus");
        }
    }
}

fn lock<T: ?Sized>(function: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is written: sizing, addresses in and around the windows, or anything.
fn value(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0 => u64::MAX,
        1 => 0,
        2 => 1 << input.below(64),
        3 => LOW.start + (u64::from(input.u8()) << 8),
        4 => u64::from(input.u16()),
        5 => input.u8().into(),
        6 => input.u32().into(),
        _ => input.u64(),
    }
}
