//! What the program of a simulated CPU does to the machine's registers, wherever its architecture has them.

use hypervisor::SystemEvent;
use hypervisor::sim::SimCpu;
use vivarium_tests::registers::Register::{self, Memory, Port};
use vivarium_tests::{Architecture, native};

pub fn read32(cpu: &mut SimCpu<'_>, register: Register) -> u32 {
    match register {
        Port(port) => cpu.port_read32(port),
        Memory(address) => cpu.read32(address),
    }
}

pub fn write32(cpu: &mut SimCpu<'_>, register: Register, value: u32) {
    match register {
        Port(port) => cpu.port_write32(port, value),
        Memory(address) => cpu.write32(address, value),
    }
}

pub fn read8(cpu: &mut SimCpu<'_>, register: Register) -> u8 {
    match register {
        Port(port) => cpu.port_read8(port),
        Memory(address) => cpu.read8(address),
    }
}

pub fn write8(cpu: &mut SimCpu<'_>, register: Register, value: u8) {
    match register {
        Port(port) => cpu.port_write8(port, value),
        Memory(address) => cpu.write8(address, value),
    }
}

/// Reads so many bytes of an item of the firmware configuration device.
pub fn fw_cfg_item(cpu: &mut SimCpu<'_>, number: u16, count: usize) -> Vec<u8> {
    let [selector, data] = native().fw_cfg();
    match selector {
        Port(port) => cpu.port_write16(port, number),
        Memory(address) => cpu.write16(address, number.swap_bytes()),
    }
    (0..count).map(|_| read8(cpu, data)).collect()
}

/// A file of the firmware configuration device.
pub fn fw_cfg_file(cpu: &mut SimCpu<'_>, name: &str) -> Vec<u8> {
    const DIRECTORY: u16 = 0x19;
    const ENTRY: usize = 64;
    let count = fw_cfg_item(cpu, DIRECTORY, 4);
    let count = u32::from_be_bytes(count.try_into().unwrap()) as usize;
    let directory = fw_cfg_item(cpu, DIRECTORY, 4 + ENTRY * count);
    let mut entries = directory[4..].chunks(ENTRY);
    let entry = entries.find(|entry| entry[8..].split(|&byte| byte == 0).next() == Some(name.as_bytes()));
    let entry = entry.unwrap_or_else(|| panic!("there is no {name}"));
    let size = u32::from_be_bytes(entry[..4].try_into().unwrap()) as usize;
    fw_cfg_item(cpu, u16::from_be_bytes([entry[4], entry[5]]), size)
}

/// Ends the machine: by the sleep control register of the FADT on a PC, by PSCI on Arm.
pub fn power_off(cpu: &mut SimCpu<'_>) {
    match native() {
        Architecture::X86_64 => cpu.port_write8(0x601, 5 << 2 | 1 << 5),
        Architecture::Aarch64 => cpu.ask_firmware(SystemEvent::PowerOff),
    }
}

/// Restarts the machine: by the reset register of the FADT on a PC, by PSCI on Arm.
pub fn reset(cpu: &mut SimCpu<'_>) {
    match native() {
        Architecture::X86_64 => cpu.port_write8(0x602, 1),
        Architecture::Aarch64 => cpu.ask_firmware(SystemEvent::Reset),
    }
}

/// Reads configuration space of device `device` on bus 0: through the ports on a PC, in memory on Arm.
pub fn config(cpu: &mut SimCpu<'_>, device: u8, offset: u8) -> u32 {
    let register = config_register(cpu, device, offset);
    read32(cpu, register)
}

/// Writes configuration space, as [`config`] reads it.
pub fn write_config(cpu: &mut SimCpu<'_>, device: u8, offset: u8, value: u32) {
    let register = config_register(cpu, device, offset);
    write32(cpu, register, value);
}

fn config_register(cpu: &mut SimCpu<'_>, device: u8, offset: u8) -> Register {
    let (device, offset) = (u32::from(device), u32::from(offset & 0xfc));
    match native() {
        Architecture::X86_64 => {
            cpu.port_write32(0xcf8, 1 << 31 | device << 11 | offset);
            Port(0xcfc)
        }
        Architecture::Aarch64 => Memory(0x3000_0000 + u64::from(device << 15 | offset)),
    }
}
