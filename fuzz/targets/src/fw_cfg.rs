//! `fw_cfg`: the registers of the firmware configuration device at ports and in memory, and requests in guest memory.

use crate::input::Input;
use devices::fw_cfg::vmcoreinfo::VmcoreInfo;
use devices::fw_cfg::{FwCfg, Items, Registers, number};
use devices::platform::PlatformDevice;
use machine::bus::BusDevice;
use machine::inspect::Inspect;
use machine::memory::{Bytes, GuestAddress, GuestRam, Memory};
use machine::state::Saved;
use std::hint::black_box;
use std::sync::{Arc, LazyLock};

const MEMORY_SIZE: u64 = 0x4000;
/// Where requests are most of the time.
const REQUEST: u64 = 0x100;
const BUFFER: u64 = 0x1000;
const SHORT: &[u8] = b"what the guest reads";

/// Accesses, requests and saved states.
pub fn fw_cfg(data: &[u8]) {
    let input = &mut Input::new(data);
    let registers = if input.flag() { Registers::Memory } else { Registers::Ports };
    let (device, info) = make(registers);
    let mut machine = Machine { registers, device, info };
    while !input.is_empty() {
        machine.step(input);
    }
    machine.finish();
}

/// Made once: what a run leaves in it is what an input may find, and requests are written before they are made.
static MEMORY: LazyLock<Memory> = LazyLock::new(|| {
    let regions =
        [(GuestAddress(0), MEMORY_SIZE as usize), (GuestAddress(2 * MEMORY_SIZE), MEMORY_SIZE as usize)];
    Arc::new(GuestRam::from_ranges(&regions).expect("memory suffices"))
});

fn make(registers: Registers) -> (FwCfg, VmcoreInfo) {
    let mut items = Items::default();
    items.add("opt/a", SHORT.to_vec()).expect("the name is good");
    items.add("opt/b", vec![0x5a; 9000]).expect("the name is good");
    // Its name comes before the others'.
    let info = VmcoreInfo::add(&mut items).expect("there is none");
    items.set(number::KERNEL_SIZE, number::KERNEL_DATA, vec![1; 100]).expect("it is small");
    (FwCfg::new(registers, Arc::clone(&MEMORY), items), info)
}

struct Machine {
    registers: Registers,
    device: FwCfg,
    info: VmcoreInfo,
}

impl Machine {
    fn step(&mut self, input: &mut Input<'_>) {
        let window = if self.registers == Registers::Ports { FwCfg::PORTS.size } else { FwCfg::WINDOW_SIZE };
        match input.below(8) {
            0 => {
                let size = (1 << input.below(4)).min(window);
                let offset = u64::from(input.u8()) % (window - size + 1);
                self.device.read(offset, &mut [0xff; 8][..size as usize]);
            }
            1 => {
                let size = (1 << input.below(4)).min(window);
                let offset = u64::from(input.u8()) % (window - size + 1);
                black_box(self.device.write(offset, &input.u64().to_le_bytes()[..size as usize]));
            }
            2 => {
                let item = if input.flag() { input.u16() } else { input.below(0x24) };
                self.select(item);
            }
            3 | 4 => {
                let control = u32::from(input.below(0x24)) << 16 | u32::from(input.below(32));
                let length = if input.flag() { input.u32() } else { input.u16().into() };
                let address = if input.flag() { input.u64() } else { input.u16().into() };
                let place = if input.below(8) == 0 { input.u64() } else { REQUEST };
                self.request(control, length, address, place);
            }
            5 => {
                let mut byte = [0xff];
                for _ in 0..input.u8() {
                    self.device.read(if self.registers == Registers::Ports { 1 } else { 0 }, &mut byte);
                }
            }
            6 => {
                let state = self.device.save().expect("the state can be saved");
                let (mut other, info) = make(self.registers);
                other.restore(&state).expect("a device takes the state of its like");
                assert_eq!(other.save().expect("the state can be saved"), state);
                assert_eq!(info.place(), self.info.place());
                (self.device, self.info) = (other, info);
            }
            _ => {
                if input.flag() {
                    self.device.reset();
                } else {
                    black_box(self.info.read(&MEMORY));
                    black_box(self.device.inspect());
                }
            }
        }
    }

    fn select(&mut self, item: u16) {
        if self.registers == Registers::Ports {
            self.device.write(0, &item.to_le_bytes());
        } else {
            self.device.write(8, &item.to_be_bytes());
        }
    }

    fn request(&mut self, control: u32, length: u32, address: u64, place: u64) {
        let words = [&control.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
        // Some requests are nowhere.
        let _ = MEMORY.write_slice(&words, GuestAddress(place));
        let dma = if self.registers == Registers::Ports { 4 } else { 16 };
        self.device.write(dma, &((place >> 32) as u32).to_be_bytes());
        self.device.write(dma + 4, &(place as u32).to_be_bytes());
    }

    /// A driver that keeps the rules reads what there is.
    fn finish(&mut self) {
        self.device.reset();
        self.request(0x21 << 16 | 0b1010, SHORT.len() as u32, BUFFER, REQUEST);
        let (mut outcome, mut found) = ([0xff; 4], [0; SHORT.len()]);
        MEMORY.read_slice(&mut outcome, GuestAddress(REQUEST)).expect("this is memory");
        MEMORY.read_slice(&mut found, GuestAddress(BUFFER)).expect("this is memory");
        assert_eq!((outcome, found.as_slice()), ([0; 4], SHORT));
    }
}
