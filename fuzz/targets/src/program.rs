//! Drives a virtio device behind its transport: an input is a program of what a guest and the host do to it.
//!
//! A guest is *honest* until it does what no driver may do, such as to scribble over its rings. As long as it is, the
//! device owes it an answer to each request, which is checked. After the program, however hostile it was, the
//! device is reset and has to work.

use crate::input::Input;
use machine::clock::Clock;
use machine::inspect::Inspect;
use machine::memory::{Bytes, GuestAddress};
use machine::state::Saved;
use pci::function::Function;
use std::hint::black_box;
use std::time::Duration;
use virtio::device::Progress;
use virtio::pci_transport::common::register;
use virtio::pci_transport::layout::{
    COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_MULTIPLIER,
};
use virtio::testing::{Completion, Driver, Layout};

/// Where buffers of requests begin in the memory of [`Driver`], and where its RAM ends.
const BUFFERS: u64 = 16 << 20;
const RAM_END: u64 = 64 << 20;
const RINGS: u64 = 0x1000;

/// The most steps of a program: what follows is ignored, so that no input takes long.
const STEPS: usize = 150;
/// How often a handler is run at most in one step. A ring that lies on itself can make work without end, which a worker
/// does in turns with everything else.
const TURNS: usize = 3;

/// What is particular to a kind of device.
pub(crate) trait Subject {
    /// The guest makes a request. `false`: one that no driver may make.
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool;

    /// Something happens on the host.
    fn host(&mut self, driver: &mut Driver, input: &mut Input<'_>);

    /// Checks an answer that an honest guest got.
    fn check(&mut self, queue: u16, completion: &Completion);

    /// Whether requests on `queue` are answered without the host having to do anything.
    fn answers(&self, queue: u16) -> bool;

    /// Nothing is broken or slow on the host any more.
    fn calm(&mut self, driver: &mut Driver);

    /// Checks that the device, whose driver has just initialized it, does its work.
    fn works(&mut self, driver: &mut Driver);
}

/// What a step of a program is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Request,
    Host,
    Run,
    Kick,
    Completions,
    HostileChain,
    PokeRing,
    Common,
    Register,
    Config,
    Time,
    Initialize,
    /// Pauses the machine, or saves and restores it, or looks at it.
    Machine,
}

/// Mostly requests: for the targets that are about queues.
pub(crate) const QUEUE_STEPS: &[Step] = &[
    Step::Request,
    Step::Host,
    Step::Run,
    Step::Kick,
    Step::Request,
    Step::Completions,
    Step::HostileChain,
    Step::PokeRing,
    Step::Request,
    Step::Run,
    Step::Common,
    Step::Register,
    Step::Time,
    Step::Initialize,
    Step::Machine,
];

/// Mostly registers.
pub(crate) const REGISTER_STEPS: &[Step] = &[
    Step::Common,
    Step::Register,
    Step::Config,
    Step::Run,
    Step::Common,
    Step::Request,
    Step::Kick,
    Step::Register,
    Step::Common,
    Step::Config,
    Step::HostileChain,
    Step::PokeRing,
    Step::Initialize,
    Step::Machine,
    Step::Host,
    Step::Completions,
];

/// Runs the program `input` with a device at power-on. `packed` fixes the layout of rings.
pub(crate) fn run(
    driver: Driver,
    subject: &mut dyn Subject,
    steps: &[Step],
    packed: Option<bool>,
    input: &mut Input<'_>,
) {
    let mut guest = Guest { driver, packed, honest: false };
    guest.initialize(input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.choose(steps);
        guest.step(step, subject, input);
    }
    guest.finish(subject);
}

struct Guest {
    driver: Driver,
    packed: Option<bool>,
    honest: bool,
}

impl Guest {
    fn initialize(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let layout = Layout {
            packed: self.packed.unwrap_or(choice & 1 != 0),
            event_idx: choice & 2 == 0,
            indirect: choice & 4 == 0,
        };
        let features = if choice & 8 == 0 { u64::MAX } else { input.u64() };
        self.driver.initialize(layout, features);
        self.honest = true;
    }

    fn step(&mut self, step: Step, subject: &mut dyn Subject, input: &mut Input<'_>) {
        match step {
            Step::Request => self.honest &= subject.request(&mut self.driver, input),
            Step::Host => subject.host(&mut self.driver, input),
            Step::Run => self.turns(),
            Step::Kick => {
                let queue = self.queue(input);
                let at = NOTIFY + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER);
                self.driver.write(at, &queue.to_le_bytes());
            }
            Step::Completions => self.completions(subject),
            Step::HostileChain => self.hostile_chain(input),
            Step::PokeRing => self.poke_ring(input),
            Step::Common => {
                self.honest = false;
                let size = 1 << input.below(4);
                let field = u64::from(input.below(0x40));
                let value = if input.flag() { u64::from(input.u8()) } else { value(input) };
                self.driver.write_common(field, size, value);
            }
            Step::Register => self.register(input),
            Step::Config => self.config(input),
            Step::Time => {
                let time = Duration::from_nanos(u64::from(input.u32()) << input.below(8));
                self.driver.clock.advance(time);
            }
            Step::Initialize => self.initialize(input),
            Step::Machine => match input.below(4) {
                0 | 1 => {
                    self.driver.stop();
                    self.driver.start();
                }
                2 => self.restore(),
                _ => {
                    black_box(self.driver.function.inspect());
                    for task in &self.driver.tasks {
                        black_box(task.handler.inspect());
                    }
                }
            },
        }
    }

    fn queue_count(&mut self) -> u16 {
        self.driver.read_common(register::NUM_QUEUES, 2) as u16
    }

    fn queue(&mut self, input: &mut Input<'_>) -> u16 {
        let count = self.queue_count();
        u16::from(input.u8()) % count
    }

    fn turns(&mut self) {
        let now = self.driver.clock.interval_ns();
        for task in &mut self.driver.tasks {
            for _ in 0..TURNS {
                if task.handler.run(now) != Progress::More && !task.handler.arm() {
                    break;
                }
            }
            black_box(task.handler.has_work());
        }
    }

    fn completions(&mut self, subject: &mut dyn Subject) {
        if !self.honest {
            return;
        }
        for queue in 0..self.queue_count() {
            while let Some(completion) = self.driver.completion(queue) {
                assert!(
                    completion.written as usize <= completion.data.len(),
                    "queue {queue}: more was written than there was room for"
                );
                subject.check(queue, &completion);
            }
        }
    }

    /// A chain of descriptors that may say anything.
    fn hostile_chain(&mut self, input: &mut Input<'_>) {
        self.honest = false;
        let queue = self.queue(input);
        let mut descriptors = Vec::new();
        let indirect = input.flag();
        for _ in 0..=input.below(4) {
            let flags = u16::from(input.u8());
            // Linking is the ring's business; a dangling link can still be made by poking.
            descriptors.push((address(input), length(input), flags & 0b110));
        }
        if indirect {
            let table = self.driver.allocate(descriptors.len() as u64 * 16);
            let packed = self.packed.unwrap_or_else(|| input.flag());
            for (n, &(address, len, flags)) in (0_u16..).zip(&descriptors) {
                let linked = flags | u16::from(!packed && usize::from(n) + 1 < descriptors.len());
                let (third, fourth) = if packed { (0, flags) } else { (linked, n + 1) };
                let rest = u64::from(len) | u64::from(third) << 32 | u64::from(fourth) << 48;
                self.poke(table + u64::from(n) * 16, &address.to_le_bytes());
                self.poke(table + u64::from(n) * 16 + 8, &rest.to_le_bytes());
            }
            descriptors = vec![(table, descriptors.len() as u32 * 16, 4)];
        }
        self.driver.ring(queue).add_raw(&descriptors);
    }

    /// Writes into one of the three parts of a ring.
    fn poke_ring(&mut self, input: &mut Input<'_>) {
        self.honest = false;
        let queue = self.queue(input);
        let area = input.choose(&[register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE]);
        self.driver.write_common(register::QUEUE_SELECT, 2, queue.into());
        let base = self.driver.read_common(area, 8);
        let offset = u64::from(input.u8()) * 2;
        let data = match input.below(4) {
            0 => u16::from(input.u8()).to_le_bytes().to_vec(),
            1 => input.u16().to_le_bytes().to_vec(),
            2 => address(input).to_le_bytes().to_vec(),
            _ => input.bytes(16).to_vec(),
        };
        self.poke(base.wrapping_add(offset), &data);
    }

    /// Writes guest memory, if there is any.
    fn poke(&mut self, address: u64, data: &[u8]) {
        // A guest's own write to where it has no memory is nothing to a device.
        let _ = self.driver.memory.write_slice(data, GuestAddress(address));
    }

    fn register(&mut self, input: &mut Input<'_>) {
        let base = match input.below(8) {
            0 => COMMON,
            1 => ISR,
            2 | 3 => DEVICE,
            4 => NOTIFY,
            5 => u64::from(MSIX_TABLE),
            6 => u64::from(MSIX_PENDING),
            _ => u64::from(input.u8()) << 8,
        };
        let offset = base + u64::from(input.u8());
        let size = 1 << input.below(4);
        if input.flag() {
            self.driver.read(offset, &mut [0; 8][..size]);
        } else {
            self.honest = false;
            let value = value(input).to_le_bytes();
            self.driver.write(offset, &value[..size]);
        }
    }

    fn config(&mut self, input: &mut Input<'_>) {
        let size = 1_u16 << input.below(3);
        let offset = if input.below(4) == 0 { input.u16() & 0xfff } else { input.u8().into() } & !(size - 1);
        let mut data = [0; 4];
        let data = &mut data[..usize::from(size)];
        if input.flag() {
            // The window on the BARs makes even a read one of any register, such as the ISR status.
            self.driver.function.config_read(offset, data);
        } else {
            self.honest = false;
            data.copy_from_slice(&value(input).to_le_bytes()[..data.len()]);
            let change = self.driver.function.config_write(offset, data);
            self.driver.apply(change);
        }
    }

    /// The machine is saved, and goes on from the saved state.
    fn restore(&mut self) {
        self.driver.stop();
        let state = self.driver.function.save().expect("the state can be saved");
        self.driver.function.restore(&state).expect("a device takes its own state");
        let again = self.driver.function.save().expect("the state can be saved");
        assert_eq!(again, state, "restoring makes the same state");
        self.driver.start();
    }

    /// Everything that is owed is given; then the device is reset and works.
    fn finish(mut self, subject: &mut dyn Subject) {
        subject.calm(&mut self.driver);
        if self.honest {
            self.driver.run_to_the_end();
            self.completions(subject);
            for queue in 0..self.queue_count() {
                let in_flight = self.driver.ring(queue).in_flight();
                assert!(in_flight == 0 || !subject.answers(queue), "queue {queue} owes {in_flight} answers");
            }
        }
        self.driver.reset();
        self.driver.function.reset();
        let layout = if self.packed == Some(true) { Layout::PACKED } else { Layout::SPLIT };
        self.driver.initialize(layout, u64::MAX);
        subject.works(&mut self.driver);
    }
}

/// A guest-physical address, likely one that is interesting.
fn address(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0..=3 => BUFFERS + u64::from(input.u16()) * 8,
        4 => RINGS + u64::from(input.u16()),
        5 => RAM_END - u64::from(input.u8()),
        6 => input.choose(&[0, RAM_END, u64::MAX, u64::MAX - 0xfff, 1 << 63, 0xfee0_0000]),
        _ => input.u64(),
    }
}

/// A length, likely one that is interesting.
fn length(input: &mut Input<'_>) -> u32 {
    match input.below(4) {
        0 => input.u8().into(),
        1 => input.u16().into(),
        2 => u32::from(input.u8()) * 512,
        _ => input.choose(&[0, 1, 16, 1 << 31, u32::MAX]),
    }
}

/// A register's value, likely one that is interesting.
fn value(input: &mut Input<'_>) -> u64 {
    match input.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << input.below(64),
        3 => input.u8().into(),
        4 => input.u32().into(),
        _ => input.u64(),
    }
}
