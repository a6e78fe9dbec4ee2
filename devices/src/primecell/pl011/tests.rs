use super::*;
use crate::host_console::testing::Recorder;
use crate::primecell::WINDOW_SIZE;
use machine::inspect::json;
use machine::interrupt::recording::Pins;
use std::sync::Arc;

const SPI: u32 = 1;

struct Bench {
    port: Pl011,
    pins: Arc<Pins>,
    output: Recorder,
    room: Doorbell,
}

fn bench() -> Bench {
    let pins = Arc::new(Pins::default());
    let output = Recorder::default();
    let room = Doorbell::new().unwrap();
    let line = InterruptLine::new(pins.clone(), SPI);
    Bench { port: Pl011::new(line, Box::new(output.clone()), room.clone()), pins, output, room }
}

impl Bench {
    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.port.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        assert_eq!(self.port.write(offset, &value.to_le_bytes()), None);
    }

    fn interrupt(&self) -> bool {
        self.pins.level(SPI)
    }

    /// As Linux does when a program opens the port.
    fn open(&mut self) {
        self.write(LCR_H, 0x70);
        self.write(CR, CR_ENABLE | CR_TRANSMIT | CR_RECEIVE | CR_RTS | CR_DTR);
        self.write(ICR, INT_ALL);
        self.write(IMSC, INT_RECEIVE | INT_RECEIVE_TIMEOUT);
    }
}

crate::conformance!(conformance, WINDOW_SIZE, bench().port);

#[test]
fn a_port_that_is_set_up_receives_once_a_guest_listens() {
    let mut bench = bench();
    bench.port = bench.port.set_up();
    for _ in 0..2 {
        assert_eq!(bench.port.receive(b"a"), 0, "nobody listens yet");
        bench.write(IMSC, INT_RECEIVE_TIMEOUT);
        assert_eq!(bench.port.receive(b"ab"), 2);
        bench.port.reset();
    }
}

#[test]
fn a_driver_finds_a_pl011_with_deep_fifos() {
    let mut bench = bench();
    let id = [0xfe0, 0xfe4, 0xfe8, 0xfec].map(|offset| bench.read(offset) & 0xff);
    assert_eq!(id[0] | (id[1] & 0xf) << 8, 0x011, "the part number");
    assert!(id[2] >> 4 >= 3, "the revision from which on FIFOs have 32 bytes");
}

#[test]
fn transmits_at_once_whatever_the_access_size() {
    let mut bench = bench();
    for byte in b"boot\r" {
        assert_eq!(bench.read(FR) & (FR_TRANSMIT_EMPTY | 1 << 5 | 1 << 3), FR_TRANSMIT_EMPTY);
        bench.write(DR, u32::from(*byte));
    }
    bench.port.write(DR, b"\n");
    assert_eq!(bench.output.text(), "boot\r\n");
}

#[test]
fn a_written_byte_raises_the_transmit_interrupt_until_it_is_cleared() {
    let mut bench = bench();
    bench.write(IMSC, INT_TRANSMIT);
    assert!(!bench.interrupt(), "nothing has gone out yet");
    bench.write(DR, 65);
    assert!(bench.interrupt());
    bench.write(ICR, INT_TRANSMIT);
    assert!(!bench.interrupt());
}

#[test]
fn all_input_arrives_in_order_however_much_there_is() {
    let mut bench = bench();
    let input: Vec<u8> = (0..100).collect();
    assert_eq!(bench.port.receive(&input), 0, "nobody listens");
    bench.open();
    let (mut given, mut got) = (0, Vec::new());
    while got.len() < input.len() {
        given += bench.port.receive(&input[given..]);
        assert!(bench.interrupt());
        while bench.read(FR) & FR_RECEIVE_EMPTY == 0 {
            assert!(bench.interrupt(), "with {} bytes left", bench.port.registers.received.len());
            got.push(bench.read(DR) as u8);
        }
        assert!(!bench.interrupt());
    }
    assert_eq!(got, input);
}

#[test]
fn the_host_is_told_once_when_there_is_room_again() {
    let mut bench = bench();
    bench.open();
    assert_eq!(bench.port.receive(&[7; 40]), 32);
    bench.room.take();
    for _ in 0..31 {
        bench.read(DR);
        assert!(!bench.room.take());
    }
    bench.read(DR);
    assert!(bench.room.take());
}

#[test]
fn a_break_is_a_byte_with_its_error() {
    let mut bench = bench();
    assert!(!bench.port.receive_break(), "nobody listens");
    bench.open();
    assert!(bench.port.receive_break());
    assert_eq!(bench.read(RIS) & INT_BREAK, INT_BREAK);
    assert_eq!(bench.read(DR), DATA_BREAK);
    assert_eq!(bench.read(RSR), DATA_BREAK >> ERRORS_SHIFT);
    bench.write(RSR, 0);
    assert_eq!(bench.read(RSR), 0);
}

#[test]
fn a_loop_gives_back_what_is_sent_and_tells_of_a_loss() {
    let mut bench = bench();
    bench.write(CR, CR_ENABLE | CR_RECEIVE | CR_TRANSMIT | CR_LOOP | CR_RTS);
    assert_eq!(bench.read(FR) & (FR_CTS | FR_DSR), FR_CTS);
    for byte in [1, 2, 3] {
        bench.write(DR, byte);
    }
    assert_eq!(bench.read(RIS) & INT_OVERRUN, INT_OVERRUN, "without FIFOs there is room for one");
    assert_eq!(bench.read(DR), 1);
    bench.write(DR, 4);
    assert_eq!(bench.read(DR), DATA_OVERRUN | 4);
    assert_eq!(bench.output.text(), "");
}

#[test]
fn a_saved_state_with_too_much_is_refused() {
    let mut bench = bench();
    let mut state = bench.port.save().unwrap();
    state.fields["received"] = json!(vec![0; 33]);
    assert!(bench.port.restore(&state).unwrap_err().to_string().contains("33 bytes"));
}
