//! `net_rx`, `net_tx`, `net_control`: the network device, with requests on one kind of queue and some on the others.

use crate::input::Input;
use crate::link::{HEADER, MemoryLink};
use crate::program::{self, QUEUE_STEPS, Subject};
use machine::clock::ManualClock;
use net::link::Link;
use net::mac::MacAddress;
use net::virtio_net::{Net, NetConfig, NetHandle};
use std::sync::Arc;
use std::time::Duration;
use virtio::rate_limit::{Limit, RateLimiter};
use virtio::testing::{Completion, Driver};

const PAIRS: u16 = 2;
const RX: u16 = 0;
const TX: u16 = 1;
/// Without this feature there is one pair, and the control queue follows it.
const F_MQ: u64 = 1 << 22;

/// Receiving.
pub fn net_rx(data: &[u8]) {
    run(data, Focus::Receive);
}

/// Transmitting.
pub fn net_tx(data: &[u8]) {
    run(data, Focus::Transmit);
}

/// Commands.
pub fn net_control(data: &[u8]) {
    run(data, Focus::Control);
}

#[derive(Clone, Copy)]
enum Focus {
    Receive,
    Transmit,
    Control,
}

fn run(data: &[u8], focus: Focus) {
    let input = &mut Input::new(data);
    let clock = Arc::new(ManualClock::default());
    let choice = input.u8();
    let links: Vec<_> = (0..PAIRS).map(|_| Arc::new(MemoryLink::default())).collect();
    let config = NetConfig {
        mac: MacAddress::new([0x52, 0x54, 0, 1, 2, 3]).expect("the address is one"),
        mtu: if choice & 1 == 0 { 1500 } else { 9000 },
        queue_size: 16,
        offload_csum: choice & 2 == 0,
        offload_tso: choice & 4 == 0,
        offload_ufo: choice & 8 == 0,
    };
    let limit = if choice & 0x30 == 0x30 {
        let limit = Limit { size: 4096, refill_time: Duration::from_millis(1), one_time_burst: 0 };
        RateLimiter::new(Some(limit), None, clock.clone())
    } else {
        RateLimiter::unlimited(clock.clone())
    };
    let ends = links.iter().map(|link| Arc::clone(link) as Arc<dyn Link>).collect();
    let net = Net::new(config, ends, limit.clone(), limit).expect("the host has descriptors");
    let mut subject = Network { focus, links, handle: net.handle(), pairs: PAIRS };
    let driver = Driver::attach_with(clock, Box::new(net));
    program::run(driver, &mut subject, QUEUE_STEPS, None, input);
}

struct Network {
    focus: Focus,
    links: Vec<Arc<MemoryLink>>,
    handle: NetHandle,
    /// Queue pairs that the driver may use.
    pairs: u16,
}

/// How much follows a header: of usual sizes, or any.
fn size(input: &mut Input<'_>) -> usize {
    match input.below(4) {
        0 => usize::from(input.u8()),
        1 => usize::from(input.u16()),
        2 => 1514,
        _ => 64,
    }
}

impl Network {
    /// The index of the control queue.
    fn control(&self) -> u16 {
        self.pairs * 2
    }

    fn receive(&mut self, driver: &mut Driver, input: &mut Input<'_>) {
        let queue = input.below(self.pairs) * 2;
        let sizes: Vec<u32> = (0..=input.below(3)).map(|_| 1 + size(input) as u32).collect();
        driver.request(queue, &[], &sizes);
    }

    fn transmit(&mut self, driver: &mut Driver, input: &mut Input<'_>) {
        let queue = input.below(self.pairs) * 2 + 1;
        let mut packet = [0; HEADER].to_vec();
        if input.flag() {
            let bytes = input.bytes(HEADER);
            packet[..bytes.len()].copy_from_slice(bytes);
        }
        packet.resize(HEADER + size(input), 0x55);
        let cut = usize::from(input.u8()).min(packet.len());
        let (first, second) = packet.split_at(cut);
        let parts: Vec<&[u8]> = [first, second].into_iter().filter(|part| !part.is_empty()).collect();
        driver.request(queue, &parts, &[]);
    }

    fn command(&mut self, driver: &mut Driver, input: &mut Input<'_>) {
        let mut command = vec![input.below(7) as u8, input.below(6) as u8];
        match input.below(4) {
            0 => command.push(input.u8()),
            1 => command.extend(u16::from(input.u8()).to_le_bytes()),
            2 => {
                // Two tables of addresses, whose lengths may be wrong.
                for _ in 0..2 {
                    let entries = usize::from(input.below(4));
                    let claimed = if input.below(8) == 0 { input.u32() } else { entries as u32 };
                    command.extend(claimed.to_le_bytes());
                    command.resize(command.len() + entries * 6, 2);
                }
            }
            _ => {
                let count = input.below(16);
                command.extend(input.bytes(count.into()));
            }
        }
        driver.request(self.control(), &[&command], &[1]);
    }
}

impl Subject for Network {
    fn request(&mut self, driver: &mut Driver, input: &mut Input<'_>) -> bool {
        self.pairs = if driver.features() & F_MQ != 0 { PAIRS } else { 1 };
        match (input.below(8), self.focus) {
            (0, _) => self.receive(driver, input),
            (1, _) => self.transmit(driver, input),
            (2, _) => self.command(driver, input),
            (_, Focus::Receive) => self.receive(driver, input),
            (_, Focus::Transmit) => self.transmit(driver, input),
            (_, Focus::Control) => self.command(driver, input),
        }
        true
    }

    fn host(&mut self, _driver: &mut Driver, input: &mut Input<'_>) {
        let link = &self.links[usize::from(input.below(PAIRS))];
        match input.below(8) {
            0 => self.handle.set_link_up(input.flag()),
            1 => self.handle.announce(),
            2 => {
                let choice = input.u8();
                link.set(choice & 1 != 0, choice & 6 == 6);
            }
            _ => {
                let length = size(input);
                link.inject(vec![input.u8(); length]);
            }
        }
    }

    fn check(&mut self, queue: u16, completion: &Completion) {
        if queue == self.control() {
            assert!(matches!(completion.data[..], [0 | 1]), "a command is carried out or refused");
            assert_eq!(completion.written, 1);
        } else if queue % 2 == 1 {
            assert_eq!(completion.written, 0, "nothing is written to what is sent");
        }
    }

    fn answers(&self, queue: u16) -> bool {
        queue % 2 == 1 && queue < self.control()
    }

    fn calm(&mut self, _driver: &mut Driver) {
        self.handle.set_link_up(true);
        for link in &self.links {
            link.set(false, false);
        }
    }

    fn works(&mut self, driver: &mut Driver) {
        for link in &self.links {
            link.clear();
        }
        let packet = [0; 100];
        let sent = self.links[0].sent();
        driver.call(TX, &[&packet], &[]);
        assert_eq!(self.links[0].sent(), sent + 1, "a packet is sent");
        self.links[0].inject(vec![7; 100]);
        let answer = driver.call(RX, &[], &[2000]);
        assert_eq!(answer.written, 100, "a packet is received");
        assert_eq!((&answer.data[10..12], &answer.data[12..100]), (&[1, 0][..], &[7; 88][..]));
        let answer = driver.call(PAIRS * 2, &[&[0, 0, 1]], &[1]);
        assert_eq!(answer.data, [0], "a command is carried out");
    }
}
