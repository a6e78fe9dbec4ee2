use super::*;
use machine::memory::GuestRam;
use std::sync::Arc;

const REQUEST: u64 = 0x1000;
const BUFFER: u64 = 0x2000;

fn device(registers: Registers) -> FwCfg {
    let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap());
    let mut items = Items::default();
    items.add("opt/b", b"second".to_vec()).unwrap();
    items.add("opt/a", vec![7; 5000]).unwrap();
    FwCfg::new(registers, memory, items)
}

crate::conformance!(at_ports, FwCfg::PORTS.size, device(Registers::Ports));
crate::conformance!(in_memory, FwCfg::WINDOW_SIZE, device(Registers::Memory));

fn read(device: &mut FwCfg, item: u16, count: usize) -> Vec<u8> {
    device.write(0, &item.to_le_bytes());
    let mut byte = [0xff];
    (0..count)
        .map(|_| {
            device.read(1, &mut byte);
            byte[0]
        })
        .collect()
}

fn put_request(device: &FwCfg, control: u32, length: u32, address: u64) {
    let words = [&control.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
    device.memory.write_slice(&words, GuestAddress(REQUEST)).unwrap();
}

fn outcome(device: &FwCfg) -> u32 {
    let mut left = [0; 4];
    device.memory.read_slice(&mut left, GuestAddress(REQUEST)).unwrap();
    u32::from_be_bytes(left)
}

/// Makes a request, and returns the control word it leaves.
fn request(device: &mut FwCfg, control: u32, length: u32, address: u64) -> u32 {
    put_request(device, control, length, address);
    device.write(4, &[0; 4]);
    device.write(8, &(REQUEST as u32).to_be_bytes());
    outcome(device)
}

fn found<const N: usize>(device: &FwCfg, address: u64) -> [u8; N] {
    let mut found = [0xff; N];
    device.memory.read_slice(&mut found, GuestAddress(address)).unwrap();
    found
}

#[test]
fn items_are_read_byte_by_byte() {
    let mut device = device(Registers::Ports);
    assert_eq!(read(&mut device, 0, 6), b"QEMU\0\0");
    assert_eq!(read(&mut device, 1, 4), [3, 0, 0, 0]);
    assert_eq!(read(&mut device, 0x19, 4), [0, 0, 0, 2]);
    assert_eq!(read(&mut device, 0x21, 8), b"second\0\0");
    assert_eq!(read(&mut device, 0x22, 2), [0, 0]);
    let mut signature = [0; 4];
    device.read(8, &mut signature);
    assert_eq!(&signature, b" CFG");
}

#[test]
fn requests_select_skip_and_read() {
    let mut device = device(Registers::Ports);
    assert_eq!(request(&mut device, 0x21 << 16 | SELECT | SKIP, 2, 0), 0);
    assert_eq!(request(&mut device, READ, 6, BUFFER), 0);
    assert_eq!(&found(&device, BUFFER), b"cond\0\0\0");
    assert_eq!(request(&mut device, 0x20 << 16 | SELECT | READ, 5000, BUFFER), 0);
    assert_eq!(found(&device, BUFFER + 4998), [7, 7, 0]);
}

#[test]
fn registers_in_memory_are_wider_and_big_endian() {
    let mut device = device(Registers::Memory);
    let mut data = [0xff; 8];
    device.write(8, &[0, 0x21]);
    device.read(0, &mut data[..4]);
    device.read(0, &mut data[4..5]);
    assert_eq!(&data[..5], b"secon");
    device.read(16, &mut data);
    assert_eq!(data, DMA_SIGNATURE);
    put_request(&device, 0x21 << 16 | SELECT | READ, 6, BUFFER);
    device.write(16, &REQUEST.to_be_bytes());
    assert_eq!(outcome(&device), 0);
    assert_eq!(&found(&device, BUFFER), b"second");
    // What is a register at a port is none here.
    device.write(4, &[0; 4]);
    device.write(8, &(REQUEST as u32).to_be_bytes());
    assert_eq!(device.requests, 1);
}

#[test]
fn what_cannot_be_is_refused_and_the_device_goes_on() {
    let mut device = device(Registers::Ports);
    for (control, length, address) in [
        (0x21 << 16 | SELECT | WRITE, 1, BUFFER),
        (0x21 << 16 | SELECT | READ, 6, 0x3_fffe),
        (0x21 << 16 | SELECT | READ, 6, u64::MAX - 1),
        (0x21 << 16 | SELECT | READ, u32::MAX, BUFFER),
    ] {
        assert_eq!(request(&mut device, control, length, address), ERROR, "{control:#x} {length}");
    }
    // A request that is nowhere.
    device.write(4, &[0xff; 4]);
    device.write(8, &[0xff; 4]);
    assert_eq!(request(&mut device, 0x21 << 16 | SELECT | READ, 6, BUFFER), 0);
    assert_eq!((device.requests, device.refused), (6, 5));
}

#[test]
fn a_guest_writes_what_is_there_for_it_and_only_as_a_whole_request() {
    let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap());
    let mut items = Items::default();
    items.add("opt/a", b"fixed".to_vec()).unwrap();
    let file = items.add_writable("opt/b", b"initial.".to_vec()).unwrap();
    let mut device = FwCfg::new(Registers::Ports, memory, items);
    device.memory.write_slice(b"guest", GuestAddress(BUFFER)).unwrap();
    let write = 0x21 << 16 | SELECT | WRITE;
    for (control, length, address) in [
        (0x20 << 16 | SELECT | WRITE, 5, BUFFER),
        (write, 9, BUFFER),
        (write, u32::MAX, BUFFER),
        (write, 5, 0x3_fffe),
    ] {
        assert_eq!(request(&mut device, control, length, address), ERROR, "{control:#x} {length}");
    }
    assert_eq!(file.content(), b"initial.");
    assert_eq!(request(&mut device, write, 2, BUFFER), 0);
    assert_eq!(request(&mut device, WRITE, 5, BUFFER), 0, "after the part before");
    assert_eq!(request(&mut device, WRITE, 2, BUFFER), ERROR, "one byte is left");
    assert_eq!(read(&mut device, 0x21, 9), b"guguest.\0");

    let state = device.save().unwrap();
    device.reset();
    assert_eq!(file.content(), b"initial.");
    device.restore(&state).unwrap();
    assert_eq!(file.content(), b"guguest.");
    let mut other = self::device(Registers::Ports);
    assert!(other.restore(&state).unwrap_err().to_string().contains("opt/b"));
}

#[test]
fn items_are_replaced_and_what_has_another_name_or_is_the_guests_stays() {
    let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap());
    let mut items = Items::default();
    items.set(number::KERNEL_SIZE, number::KERNEL_DATA, b"old".to_vec()).unwrap();
    items.set(number::INITRAMFS_SIZE, number::INITRAMFS_DATA, b"gone".to_vec()).unwrap();
    items.add("etc/b", b"old table".to_vec()).unwrap();
    items.add("opt/user", b"user's".to_vec()).unwrap();
    let guests = items.add_writable("etc/note", vec![0; 4]).unwrap();
    let mut device = FwCfg::new(Registers::Ports, memory, items);
    device.memory.write_slice(b"told", GuestAddress(BUFFER)).unwrap();
    assert_eq!(request(&mut device, 0x21 << 16 | SELECT | WRITE, 4, BUFFER), 0);

    let mut items = Items::default();
    items.set(number::KERNEL_SIZE, number::KERNEL_DATA, b"newer".to_vec()).unwrap();
    items.add("etc/b", b"new table".to_vec()).unwrap();
    items.add("etc/a", b"more".to_vec()).unwrap();
    items.add_writable("etc/note", vec![0; 4]).unwrap();
    device.replace(items);
    assert_eq!(read(&mut device, number::KERNEL_SIZE, 4), [5, 0, 0, 0]);
    assert_eq!(read(&mut device, number::KERNEL_DATA, 6), b"newer\0");
    assert_eq!(read(&mut device, number::INITRAMFS_DATA, 1), [0]);
    assert_eq!(read(&mut device, 0x19, 4), [0, 0, 0, 4]);
    for (number, content) in (0x20..).zip([&b"more"[..], b"new table", b"told", b"user's"]) {
        assert_eq!(read(&mut device, number, content.len()), content);
    }
    assert_eq!(guests.content(), b"told");
    device.reset();
    assert_eq!(guests.content(), [0; 4], "it is still the device's");
}
