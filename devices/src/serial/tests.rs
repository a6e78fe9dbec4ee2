use super::*;
use crate::host_console::testing::Recorder;
use machine::inspect::json;
use machine::interrupt::recording::Pins;
use proptest::prelude::*;
use std::sync::Arc;

struct Bench {
    port: Serial,
    pins: Arc<Pins>,
    output: Recorder,
    room: Doorbell,
}

const IRQ: u32 = 4;

fn bench() -> Bench {
    let pins = Arc::new(Pins::default());
    let output = Recorder::default();
    let room = Doorbell::new().unwrap();
    let line = InterruptLine::new(pins.clone(), IRQ);
    Bench { port: Serial::new(line, Box::new(output.clone()), room.clone()), pins, output, room }
}

impl Bench {
    fn read(&mut self, offset: u64) -> u8 {
        let mut data = [0xff];
        self.port.read(offset, &mut data);
        data[0]
    }

    fn write(&mut self, offset: u64, value: u8) {
        assert_eq!(self.port.write(offset, &[value]), None);
    }

    fn interrupt(&self) -> bool {
        self.pins.level(IRQ)
    }
}

crate::conformance!(conformance, Serial::COM1.size, bench().port);

#[test]
fn transmits_at_once_and_in_order() {
    let mut bench = bench();
    for byte in b"boot\r\n" {
        assert_eq!(bench.read(LSR) & 0x60, 0x60);
        bench.write(DATA, *byte);
    }
    assert_eq!(bench.output.text(), "boot\r\n");
    bench.write(LCR, LCR_DLAB);
    bench.write(DATA, 1);
    bench.write(IER, 0);
    assert_eq!((bench.read(DATA), bench.read(IER)), (1, 0));
    assert_eq!(bench.output.text(), "boot\r\n", "the divisor is not data");
}

#[test]
fn each_enabling_of_the_transmit_interrupt_raises_it() {
    // What Linux does to find ports that do not.
    let mut bench = bench();
    bench.write(IER, IER_TRANSMIT_EMPTY);
    assert!(bench.interrupt());
    assert_eq!(bench.read(IIR_FCR), IIR_TRANSMIT_EMPTY);
    assert_eq!(bench.read(IIR_FCR), IIR_NONE, "shown once");
    assert!(!bench.interrupt());
    bench.write(IER, 0);
    bench.write(IER, IER_TRANSMIT_EMPTY);
    assert_eq!(bench.read(IIR_FCR), IIR_TRANSMIT_EMPTY);
    // And a FIFO full of output makes one edge.
    let edges = bench.pins.edges(IRQ);
    for _ in 0..16 {
        bench.write(DATA, b'x');
    }
    assert_eq!(bench.pins.edges(IRQ), edges + 1);
}

#[test]
fn interrupts_have_their_priorities() {
    let mut bench = bench();
    bench.write(MCR, MCR_RTS);
    bench.write(IIR_FCR, FCR_ENABLE);
    bench.write(IER, IER_WRITABLE);
    // Modem status: entering loopback with outputs off drops all inputs.
    bench.write(MCR, MCR_LOOP | MCR_RTS);
    for _ in 0..17 {
        bench.write(DATA, b'z');
    }
    assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_LINE_STATUS);
    assert_eq!(bench.read(LSR) & LSR_OVERRUN, LSR_OVERRUN);
    for _ in 0..16 {
        assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_RECEIVED);
        assert_eq!(bench.read(DATA), b'z');
    }
    assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_TRANSMIT_EMPTY);
    assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_MODEM_STATUS);
    assert_eq!(bench.read(MSR) & 0x0f, 0x0a, "DSR and DCD changed, CTS did not");
    assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_NONE);
    assert!(!bench.interrupt());
}

#[test]
fn looped_back_outputs_show_as_inputs() {
    let mut bench = bench();
    assert_eq!(bench.read(MSR) & 0xf0, MSR_CTS | MSR_DSR | MSR_DCD);
    // The test by which Linux finds a port at all.
    bench.write(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS);
    assert_eq!(bench.read(MSR) & 0xf0, 0x90);
    bench.write(MCR, MCR_LOOP | MCR_OUT1);
    bench.read(MSR);
    bench.write(MCR, MCR_LOOP);
    assert_eq!(bench.read(MSR), MSR_RI_ENDED);
    bench.write(DATA, b'q');
    assert_eq!(bench.output.text(), "");
    assert_eq!(bench.read(DATA), b'q');
}

#[test]
fn is_taken_for_a_16550a() {
    let mut bench = bench();
    bench.write(IER, 0xff);
    assert_eq!(bench.read(IER), 0x0f);
    bench.write(IER, 0);
    bench.write(IIR_FCR, FCR_ENABLE);
    assert_eq!(bench.read(IIR_FCR) >> 6, 3);
    // A 16750 would set bit 5 for a 64-byte FIFO.
    bench.write(LCR, LCR_DLAB);
    bench.write(IIR_FCR, FCR_ENABLE | 0x20);
    assert_eq!(bench.read(IIR_FCR) >> 5, 6);
    bench.write(LCR, 0);
    bench.write(IIR_FCR, 0);
    assert_eq!(bench.read(IIR_FCR) >> 6, 0);
    bench.write(SCR, 0xa5);
    assert_eq!(bench.read(SCR), 0xa5);
}

#[test]
fn input_waits_with_the_host_and_none_is_lost() {
    let mut bench = bench();
    let input: Vec<u8> = (0..100).collect();
    assert_eq!(bench.port.receive(&input), 0, "nobody listens yet");
    // A driver probes and opens the port.
    bench.write(MCR, MCR_LOOP | MCR_RTS);
    bench.write(MCR, 0);
    bench.read(LSR);
    assert!(!bench.room.take(), "RTS is used, and off");
    bench.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVE | 0x80);
    bench.write(IER, IER_RECEIVED);
    bench.write(MCR, MCR_RTS | MCR_DTR | MCR_OUT2);
    let mut got = Vec::new();
    let mut given = 0;
    while bench.room.take() {
        given += bench.port.receive(&input[given..]);
        assert!(bench.interrupt());
        while bench.read(LSR) & LSR_DATA_READY != 0 {
            got.push(bench.read(DATA));
        }
        assert!(!bench.interrupt());
    }
    assert_eq!(got, input);
}

#[test]
fn a_polling_guest_without_rts_gets_input_too() {
    let mut bench = bench();
    assert_eq!(bench.port.receive(b"ab"), 0);
    assert_eq!(bench.read(LSR) & LSR_DATA_READY, 0);
    assert!(bench.room.take());
    assert_eq!(bench.port.receive(b"ab"), 1, "without FIFOs one byte fits");
    assert_eq!(bench.read(LSR) & LSR_DATA_READY, LSR_DATA_READY);
    assert_eq!(bench.read(DATA), b'a');
    assert!(bench.room.take());
    assert_eq!(bench.port.receive(b"b"), 1);
    assert_eq!(bench.read(DATA), b'b');
    assert!(!bench.room.take(), "all was taken");
}

#[test]
fn below_the_trigger_level_input_is_a_timeout() {
    let mut bench = bench();
    bench.write(IIR_FCR, FCR_ENABLE | 0x80);
    bench.write(IER, IER_RECEIVED);
    bench.port.receive(b"1234567");
    assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_TIMEOUT);
    bench.port.receive(b"8");
    assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_RECEIVED);
}

#[test]
fn a_break_is_a_zero_with_its_status() {
    let mut bench = bench();
    assert!(!bench.port.receive_break(), "nobody listens");
    bench.write(IER, IER_LINE_STATUS | IER_RECEIVED);
    assert!(bench.port.receive_break());
    assert_eq!(bench.read(IIR_FCR), IIR_LINE_STATUS);
    assert_eq!(bench.read(LSR) & (LSR_BREAK | LSR_DATA_READY), LSR_BREAK | LSR_DATA_READY);
    assert_eq!(bench.read(DATA), 0);
    assert_eq!(bench.read(LSR) & (LSR_BREAK | LSR_DATA_READY), 0);
}

#[test]
fn a_restored_port_raises_its_line_and_keeps_its_input() {
    let mut old = bench();
    old.write(IIR_FCR, FCR_ENABLE);
    old.write(IER, IER_RECEIVED);
    old.port.receive(b"typed");
    let mut new = bench();
    new.port.restore(&old.port.save().unwrap()).unwrap();
    assert!(new.interrupt());
    let typed: Vec<u8> = (0..5).map(|_| new.read(DATA)).collect();
    assert_eq!(typed, b"typed");
    assert!(!new.interrupt());
}

#[test]
fn a_state_that_overfills_the_fifo_is_refused() {
    let mut bench = bench();
    let mut state = bench.port.save().unwrap();
    state.fields["received"] = json!(vec![0; 17]);
    assert!(matches!(bench.port.restore(&state), Err(StateError::Value { .. })));
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64),
    Write(u64, u8),
    Receive(usize),
    Break,
    SaveAndRestore,
}

fn step() -> impl Strategy<Value = Step> {
    // Values that matter are more likely than others.
    let value = prop_oneof![any::<u8>(), (0..8_u32).prop_map(|bit| 1 << bit), Just(0xc1), Just(0x0b)];
    prop_oneof![
        4 => (0..8_u64).prop_map(Step::Read),
        4 => (0..8_u64, value).prop_map(|(offset, value)| Step::Write(offset, value)),
        2 => (0..40_usize).prop_map(Step::Receive),
        1 => Just(Step::Break),
        1 => Just(Step::SaveAndRestore),
    ]
}

proptest! {
    /// Whatever is done: the line is held exactly while the IIR says that an interrupt is pending, no more is in the FIFO
    /// than fits, and a host that was refused is told when there is room.
    #[test]
    fn line_fifo_and_doorbell_agree_with_the_registers(steps in proptest::collection::vec(step(), 1..80)) {
        let mut bench = bench();
        let mut waiting = false;
        for step in steps {
            match step {
                Step::Read(offset) => {
                    bench.read(offset);
                }
                Step::Write(offset, value) => bench.write(offset, value),
                Step::Receive(count) => waiting = bench.port.receive(&vec![b'i'; count]) < count,
                Step::Break => {
                    bench.port.receive_break();
                }
                Step::SaveAndRestore => {
                    let state = bench.port.save().unwrap();
                    bench.port.restore(&state).unwrap();
                }
            }
            let registers = &bench.port.registers;
            prop_assert!(registers.received.len() <= registers.capacity());
            prop_assert_eq!(bench.interrupt(), registers.pending() & 1 == 0);
            if bench.room.take() {
                prop_assert!(waiting && registers.room() > 0);
                waiting = false;
            }
            let could = registers.received.is_empty() && registers.room() > 0;
            prop_assert!(!(waiting && could), "the host waits for ever");
        }
    }
}
