//! Tests of both ways to configuration space: what one shows, the other shows.

use super::*;
use crate::BarWindow;
use crate::testing::{MSIX_TABLE, TestFunction};
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
    assert_eq!(segment.free_device(), Some(1));
    segment.insert(at(1, 0), test_function()).unwrap();
    assert_eq!(segment.free_device(), Some(2));
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
