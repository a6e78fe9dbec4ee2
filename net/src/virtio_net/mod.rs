//! The virtio network device (virtio 1.2, 5.1).
//!
//! One handler for each receive and each transmit queue, and one for the control queue. They share with the device what the driver
//! may change while they run, and nothing else.

mod control;
pub mod header;
mod receive;
mod state;
mod transmit;

#[cfg(test)]
mod tests;

pub use state::NetState;

use crate::features::Features;
use crate::link::Link;
use crate::mac::MacAddress;
use machine::metrics::Reading;
use machine::state::{Saved, SavedFields, SavedState, StateError};
use state::{Counters, Shared};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio::device::{ActivateError, Activation, QueueTask, VirtioDevice, read_fields};
use virtio::queue::Queue;
use virtio::rate_limit::RateLimiter;
use virtio::service;
use virtio::stand_in::Refusal;

/// Device type (virtio 1.2, 5).
const DEVICE_TYPE: u16 = 1;
/// The most queue pairs (virtio 1.2, 5.1.4: 0x8000; here what taps have).
pub const MAX_PAIRS: usize = 256;
/// Entries in the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Bits of the configuration's status field.
const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

/// What a network device is to be.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The MAC address the driver is told.
    pub mac: MacAddress,
    /// Largest packet in bytes, without Ethernet's header.
    pub mtu: u16,
    /// Entries in each receive and transmit queue, a power of two up to 32768.
    pub queue_size: u16,
    /// Offer partial checksums.
    pub offload_csum: bool,
    /// Offer segmentation of TCP; needs `offload_csum`.
    pub offload_tso: bool,
    /// Offer fragmentation and segmentation of UDP; needs `offload_csum`.
    pub offload_ufo: bool,
}

/// The host's hand on a network device that is behind its transport. Clones are of the same device.
#[derive(Clone)]
pub struct NetHandle {
    shared: Arc<Shared>,
    limiters: [RateLimiter; 2],
}

impl NetHandle {
    /// Plugs the cable in or out. Without it, packets are lost both ways.
    pub fn set_link_up(&self, up: bool) {
        if self.shared.link_up.swap(up, Ordering::Relaxed) != up {
            self.shared.tell_driver();
        }
    }

    /// Whether the cable is plugged in.
    pub fn is_link_up(&self) -> bool {
        self.shared.link_up.load(Ordering::Relaxed)
    }

    /// Asks the driver to announce the guest's addresses to the network, which is needed where it has moved to another
    /// host. No effect with a driver that cannot.
    pub fn announce(&self) {
        self.shared.announce.store(true, Ordering::Relaxed);
        self.shared.tell_driver();
    }

    /// The limits on what is received and on what is transmitted, to be changed.
    pub fn limiters(&self) -> &[RateLimiter; 2] {
        &self.limiters
    }

    /// The MAC address in force.
    pub fn mac(&self) -> [u8; 6] {
        self.shared.mac()
    }
}

/// The network device.
pub struct Net {
    config: NetConfig,
    links: Vec<Arc<dyn Link>>,
    shared: Arc<Shared>,
    receive_counters: Vec<Arc<Counters>>,
    transmit_counters: Vec<Arc<Counters>>,
    receive_limit: RateLimiter,
    transmit_limit: RateLimiter,
}

impl Net {
    /// A device with a queue pair for each of `links`, 1 to [`MAX_PAIRS`], all of which are of the same tap. The limits hold for
    /// all queues of their direction together.
    ///
    /// # Errors
    /// When there are no links or too many, or the host is out of descriptors.
    pub fn new(
        config: NetConfig,
        links: Vec<Arc<dyn Link>>,
        receive_limit: RateLimiter,
        transmit_limit: RateLimiter,
    ) -> io::Result<Self> {
        if links.is_empty() || links.len() > MAX_PAIRS {
            let reason = format!("a network device has 1 to {MAX_PAIRS} queue pairs, not {}", links.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let counters = || (0..links.len()).map(|_| Arc::new(Counters::default())).collect();
        let device = Self {
            shared: Arc::new(Shared::new(config.mac, links.len())?),
            receive_counters: counters(),
            transmit_counters: counters(),
            config,
            links,
            receive_limit,
            transmit_limit,
        };
        // A driver that knows of one pair only must get all packets there.
        control::set_active_pairs(&device.shared, &device.links, 1)?;
        Ok(device)
    }

    /// The host's hand on the device, wherever it is.
    pub fn handle(&self) -> NetHandle {
        NetHandle {
            shared: Arc::clone(&self.shared),
            limiters: [self.receive_limit.clone(), self.transmit_limit.clone()],
        }
    }

    fn pairs(&self) -> u16 {
        // At most `MAX_PAIRS`.
        self.links.len() as u16
    }

    /// Features of the offloads that are on and that the link can do.
    fn offload_features(&self) -> Features {
        let link = self.links.first().map_or(Features::empty(), |link| link.offloads());
        let mut features = Features::empty();
        if self.config.offload_csum {
            features |= Features::CSUM | Features::GUEST_CSUM | Features::CTRL_GUEST_OFFLOADS;
            if self.config.offload_tso {
                features |= Features::HOST_TSO4 | Features::HOST_TSO6 | Features::HOST_ECN;
                features |= Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_ECN;
            }
            if self.config.offload_ufo {
                features |= Features::HOST_UFO | Features::GUEST_UFO;
                let both = Features::GUEST_USO4 | Features::GUEST_USO6;
                if link.contains(both) {
                    features |= both | Features::HOST_USO;
                }
            }
        }
        features & (link | !Features::GUEST_OFFLOADS)
    }

    /// The configuration space (virtio 1.2, 5.1.4): MAC address, status, most queue pairs, MTU.
    fn config_space(&self) -> [u8; 12] {
        let mut status = 0;
        if self.shared.link_up.load(Ordering::Relaxed) {
            status |= STATUS_LINK_UP;
        }
        if self.shared.announce.load(Ordering::Relaxed) {
            status |= STATUS_ANNOUNCE;
        }
        let [a, b, c, d, e, f] = self.shared.mac();
        let [g, h] = u16::to_le_bytes(status);
        let [i, j] = self.pairs().to_le_bytes();
        let [k, l] = self.config.mtu.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    /// The handlers of queue pair `pair`'s queues, those that are there.
    fn pair_tasks(
        &self,
        pair: usize,
        features: Features,
        queues: &mut BTreeMap<u16, Queue>,
    ) -> io::Result<Vec<QueueTask>> {
        let mut tasks = Vec::new();
        let receive = (pair as u16).saturating_mul(2);
        let transmit = receive.saturating_add(1);
        let Some(link) = self.links.get(pair) else { return Ok(tasks) };
        if let (Some(counters), Some(wake)) = (self.receive_counters.get(pair), self.shared.wake(pair))
            && let Some(queue) = queues.remove(&receive)
        {
            let handler = receive::Receive::new(receive::Parts {
                queue,
                pair,
                link: Arc::clone(link),
                wake,
                shared: Arc::clone(&self.shared),
                counters: Arc::clone(counters),
                limiter: self.receive_limit.clone(),
                features,
                mtu: self.config.mtu.max(1500),
            })?;
            tasks.push(QueueTask::single(format!("rx{pair}"), receive, handler));
        }
        if let Some(counters) = self.transmit_counters.get(pair)
            && let Some(queue) = queues.remove(&transmit)
        {
            let handler = transmit::Transmit::new(transmit::Parts {
                queue,
                pair,
                link: Arc::clone(link),
                shared: Arc::clone(&self.shared),
                counters: Arc::clone(counters),
                limiter: self.transmit_limit.clone(),
                features,
            })?;
            tasks.push(QueueTask::single(format!("tx{pair}"), transmit, handler));
        }
        Ok(tasks)
    }

    /// What the driver set returns to its default.
    fn forget_driver(&mut self) {
        self.shared.set_mac(self.config.mac);
        self.shared.announce.store(false, Ordering::Relaxed);
        self.shared.receive_mode.store(0, Ordering::Relaxed);
        self.shared.set_offloads(None);
        if self.shared.set_config_changed(None).is_none() {
            // No driver got as far as to change the link.
            self.shared.set_active_pairs(1);
            return;
        }
        // Failures are reported there, and the queue pairs set again when the next driver is ready.
        let _ = control::set_active_pairs(&self.shared, &self.links, 1);
        if let Some(link) = self.links.first()
            && let Err(error) = link.set_offloads(Features::empty())
        {
            tracing::warn!(%error, "cannot turn off a network link's offloads");
        }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let mut features = Features::MAC
            | Features::MTU
            | Features::STATUS
            | Features::MRG_RXBUF
            | Features::CTRL_VQ
            | Features::CTRL_RX
            | Features::CTRL_RX_EXTRA
            | Features::CTRL_MAC_ADDR
            | Features::GUEST_ANNOUNCE
            | self.offload_features();
        features.set(Features::MQ, self.links.len() > 1);
        features.bits()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.config.queue_size; usize::from(self.pairs()).saturating_mul(2)];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config_space(), offset, data);
    }

    /// What is sent is lost, what is asked of the device fails, and nothing is received.
    fn refusal(&self) -> Refusal {
        |asked| {
            let multiple = Features::from_bits_retain(asked.features).contains(Features::MQ);
            let control = if multiple { asked.queues.saturating_sub(1) } else { 2 };
            if asked.queue == control {
                let last = asked.chain.writable_len().saturating_sub(1);
                return Some(asked.chain.write_at(last, &[control::ERROR]) as u32);
            }
            (asked.queue % 2 == 1).then_some(0)
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        let host = |what| move |source| ActivateError::Host { what, source };
        let features = Features::from_bits_retain(activation.features);
        let clock = activation.clock;
        let mut queues: BTreeMap<u16, Queue> = activation.queues.into_iter().collect();
        self.shared.set_config_changed(Some(activation.config_changed));

        let negotiated = features & Features::GUEST_OFFLOADS;
        let offloads = self.shared.offloads().map_or(negotiated, |offloads| offloads & negotiated);
        if let Some(link) = self.links.first() {
            link.set_offloads(offloads).map_err(host("set the link's offloads"))?;
        }
        let active = self.shared.active_pairs();
        control::set_active_pairs(&self.shared, &self.links, active)
            .map_err(host("set the link's queue pairs"))?;

        // Without MQ there is one pair, and the control queue follows it (virtio 1.2, 5.1.2).
        let pairs = if features.contains(Features::MQ) { self.pairs() } else { 1 };
        let mut tasks = Vec::new();
        let mut enabled = 0_u16;
        for pair in 0..usize::from(pairs) {
            let of_pair = self
                .pair_tasks(pair, features, &mut queues)
                .map_err(host("make something to wait for the link with"))?;
            if of_pair.len() == 2 && usize::from(enabled) == pair {
                enabled = enabled.saturating_add(1);
            }
            tasks.extend(of_pair);
        }
        let index = pairs.saturating_mul(2);
        if features.contains(Features::CTRL_VQ)
            && let Some(queue) = queues.remove(&index)
        {
            let control =
                control::Control::new(Arc::clone(&self.shared), self.links.clone(), features, clock, enabled);
            tasks.push(service::task("ctrl", index, queue, control));
        }
        Ok(tasks)
    }

    fn readings(&self) -> Vec<Reading> {
        state::readings(&self.receive_counters, &self.transmit_counters)
    }

    fn queue_readings(&self, queue: u16) -> Vec<Reading> {
        let direction =
            if queue.is_multiple_of(2) { &self.receive_counters } else { &self.transmit_counters };
        direction.get(usize::from(queue / 2)).map_or_else(Vec::new, |counters| counters.readings())
    }

    fn ring_reset(&self) -> bool {
        true
    }

    fn reset(&mut self) {
        self.forget_driver();
    }
}

machine::inspect!(Net, this => {
    mac: MacAddress::text(this.shared.mac()),
    mtu: this.config.mtu,
    link_up: this.shared.link_up,
    announce: this.shared.announce,
    pairs: this.pairs(),
    active_pairs: this.shared.active_pairs(),
    hex offloads: this.shared.offloads().map(|offloads| offloads.bits()),
    receive_mode: this.shared.receive_mode,
    receive: this.receive_counters,
    transmit: this.transmit_counters,
});

impl Saved for Net {
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::of(&NetState {
            mac: MacAddress::new(self.shared.mac()).ok(),
            announce: self.shared.announce.load(Ordering::Relaxed),
            active_pairs: self.shared.active_pairs(),
            offloads: self.shared.offloads().map(|offloads| offloads.bits()),
            receive_mode: self.shared.receive_mode.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.forget_driver();
        let state: NetState = state.read()?;
        let value = |reason| StateError::Value { kind: NetState::KIND, reason };
        if state.active_pairs == 0 || state.active_pairs > self.pairs() {
            let (saved, here) = (state.active_pairs, self.pairs());
            return Err(value(format!("it uses {saved} queue pairs, and this device has {here}")));
        }
        let offloads = state.offloads.map(Features::from_bits_retain);
        if let Some(unknown) = offloads.map(|offloads| offloads.difference(Features::GUEST_OFFLOADS))
            && !unknown.is_empty()
        {
            return Err(value(format!("it has the unknown offloads {:#x}", unknown.bits())));
        }
        if let Some(mac) = state.mac {
            self.shared.set_mac(mac);
        }
        self.shared.announce.store(state.announce, Ordering::Relaxed);
        // The link follows when the device is activated.
        self.shared.set_active_pairs(state.active_pairs);
        self.shared.set_offloads(offloads);
        self.shared.receive_mode.store(state.receive_mode, Ordering::Relaxed);
        Ok(())
    }
}
