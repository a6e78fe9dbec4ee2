//! `net-tx`, `net-rx`, `net-echo`: frames per second over virtio-net (virtio 1.2, 5.1), without offloads.

use super::{Context, Failure, Outcome};
use crate::command_line::Task;
use crate::virtio::ring::{Buffer, Ring};
use crate::virtio::{self, Device, Doorbell, Kind};
use crate::{clock, cpu, memory, report};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const FEATURE_MAC: u64 = 1 << 5;
/// The header before each frame, with VERSION_1 (5.1.6).
const HEADER: u64 = 12;
/// Room for a header and a frame.
const ROOM: u64 = 2048;
/// The EtherType for local experiments (IEEE 802).
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];

struct Net {
    device: Device,
    receive: Ring,
    transmit: Ring,
    receive_doorbell: Doorbell,
    transmit_doorbell: Doorbell,
    mac: [u8; 6],
    slots: u16,
    receive_buffers: u64,
    transmit_buffers: u64,
    kicks: u64,
}

impl Net {
    fn start(context: &Context, task: &Task) -> Result<Net, Failure> {
        let device = virtio::find(context.line, Kind::Net, task.number("dev", 0)?)?;
        let (required, wanted) = super::block::wanted_features(task)?;
        let features = device.negotiate(required, wanted | FEATURE_MAC)?;
        let size = task.number("ring", 256)?.clamp(2, 32768) as u16;
        let receive = device.make_queue(RECEIVE, size, 1, features, false)?;
        let transmit = device.make_queue(TRANSMIT, size, 1, features, false)?;
        device.start();
        let slots = receive.slots().min(transmit.slots());
        let mut mac = [2, 0, 0, 0, 0, 1];
        if features & FEATURE_MAC != 0 {
            mac.iter_mut().enumerate().for_each(|(index, byte)| *byte = device.config8(index as u64));
        }
        Ok(Net {
            receive_doorbell: device.doorbell(RECEIVE),
            transmit_doorbell: device.doorbell(TRANSMIT),
            device,
            receive,
            transmit,
            mac,
            slots,
            receive_buffers: memory::take(ROOM * u64::from(slots), 4096) as u64,
            transmit_buffers: memory::take(ROOM * u64::from(slots), 4096) as u64,
            kicks: 0,
        })
    }

    fn offer_room(&mut self, slot: u16) {
        let buffer = self.receive_buffers + ROOM * u64::from(slot);
        self.receive.add(slot, &[Buffer::writable(buffer, ROOM as u32)]);
    }

    fn publish(&mut self) {
        if self.receive.publish() {
            self.receive_doorbell.ring();
            self.kicks += 1;
        }
        if self.transmit.publish() {
            self.transmit_doorbell.ring();
            self.kicks += 1;
        }
    }
}

fn write_bytes(address: u64, bytes: &[u8]) {
    for (offset, &byte) in bytes.iter().enumerate() {
        cpu::write8(address + offset as u64, byte);
    }
}

/// `aa:bb:cc:dd:ee:ff`.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn report_rate(task: &Task, net: &Net, packets: u64, bytes: u64, begun: u64, end: u64) {
    let cycles = end.saturating_sub(begun).max(1);
    let ns = clock::nanoseconds(cycles).max(1);
    report!(
        "{} packets={packets} bytes={bytes} ns={ns} packets_per_s={} mb_per_s={} kicks={} cycles={cycles}",
        task.name,
        (u128::from(packets) * 1_000_000_000 / u128::from(ns)) as u64,
        (u128::from(bytes) * 1000 / u128::from(ns)) as u64,
        net.kicks
    );
}

/// `net-tx dev=0 size=1500 secs=2 n= mac=`: sends frames as fast as the device takes them. Each has a sequence number
/// in its first eight payload bytes (little-endian).
pub fn transmit(context: &Context, task: &Task) -> Outcome {
    let mut net = Net::start(context, task)?;
    let size = task.number("size", 1500)?.clamp(60, ROOM - HEADER);
    let target = match task.text("mac") {
        Some(text) => parse_mac(text).ok_or(Failure::BadValue("mac"))?,
        None => [0xff; 6],
    };
    let limit = task.number("n", u64::MAX)?;
    let duration = clock::cycles(task.number("secs", 2)?.saturating_mul(1000));
    for slot in 0..u64::from(net.slots) {
        let frame = net.transmit_buffers + ROOM * slot + HEADER;
        write_bytes(frame, &target);
        write_bytes(frame + 6, &net.mac);
        write_bytes(frame + 12, &ETHER_TYPE);
    }
    let begun = cpu::tsc();
    let (mut sent, mut done, mut last_progress) = (0u64, 0u64, begun);
    let mut submit = |net: &mut Net, slot: u16| {
        let buffer = net.transmit_buffers + ROOM * u64::from(slot);
        cpu::write64(buffer + HEADER + 14, sent);
        net.transmit.add(slot, &[Buffer::readable(buffer, (HEADER + size) as u32)]);
        sent += 1;
        sent
    };
    let mut in_flight = 0;
    let mut total = 0;
    for slot in 0..net.slots {
        if total < limit {
            total = submit(&mut net, slot);
            in_flight += 1;
        }
    }
    net.publish();
    let mut now = begun;
    while in_flight > 0 {
        let mut drained = 0;
        while let Some((slot, _)) = net.transmit.take() {
            if slot >= net.slots {
                return Err(Failure::Device("completed a chain that it was not given"));
            }
            drained += 1;
            in_flight -= 1;
            if now - begun < duration && total < limit {
                total = submit(&mut net, slot);
                in_flight += 1;
            }
        }
        now = cpu::tsc();
        if drained > 0 {
            done += drained;
            last_progress = now;
            net.publish();
        } else if now - last_progress > clock::cycles(10_000) {
            return Err(Failure::Timeout("transmission"));
        }
    }
    net.device.reset()?;
    report_rate(task, &net, done, done * size, begun, now);
    Ok(())
}

/// `net-rx dev=0 secs=2 n=`: counts what arrives; time runs from the first frame on.
pub fn receive(context: &Context, task: &Task) -> Outcome {
    poll(context, task, false)
}

/// `net-echo dev=0 secs=2 n=`: sends each frame back to where it came from.
pub fn echo(context: &Context, task: &Task) -> Outcome {
    poll(context, task, true)
}

fn poll(context: &Context, task: &Task, echo: bool) -> Outcome {
    let mut net = Net::start(context, task)?;
    let duration = clock::cycles(task.number("secs", 2)?.saturating_mul(1000));
    let limit = task.number("n", u64::MAX)?;
    (0..net.slots).for_each(|slot| net.offer_room(slot));
    net.publish();
    let [a, b, c, d, e, f] = net.mac;
    report!("{} ready=1 mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}", task.name);
    let begun = cpu::tsc();
    let (mut packets, mut bytes, mut first, mut last) = (0u64, 0u64, 0, begun);
    let mut sending = 0u64;
    // What is on its way back when the count is reached is still waited for, within the time.
    while (packets < limit || sending > 0) && cpu::tsc() - begun < duration {
        let mut moved = false;
        while let Some((slot, written)) = net.receive.take() {
            let length = u64::from(written);
            if slot >= net.slots || !(HEADER..=ROOM).contains(&length) {
                return Err(Failure::Device("completed a receive buffer wrongly"));
            }
            last = cpu::tsc();
            if packets == 0 {
                first = last;
            }
            packets += 1;
            bytes += length - HEADER;
            moved = true;
            if echo {
                send_back(&mut net, slot, length);
                sending += 1;
            } else {
                net.offer_room(slot);
            }
        }
        while let Some((slot, _)) = net.transmit.take() {
            if slot >= net.slots {
                return Err(Failure::Device("completed a chain that it was not given"));
            }
            sending = sending.saturating_sub(1);
            net.offer_room(slot);
            moved = true;
        }
        if moved {
            net.publish();
        }
    }
    net.device.reset()?;
    report_rate(task, &net, packets, bytes, first, last);
    Ok(())
}

/// Sends the frame in a receive buffer with its addresses exchanged; the buffer is given back when that is done.
fn send_back(net: &mut Net, slot: u16, length: u64) {
    let buffer = net.receive_buffers + ROOM * u64::from(slot);
    let frame = buffer + HEADER;
    for offset in 0..6 {
        let (to, from) = (cpu::read8(frame + offset), cpu::read8(frame + 6 + offset));
        cpu::write8(frame + offset, from);
        cpu::write8(frame + 6 + offset, to);
    }
    (0..HEADER).for_each(|offset| cpu::write8(buffer + offset, 0));
    net.transmit.add(slot, &[Buffer::readable(buffer, length as u32)]);
}
