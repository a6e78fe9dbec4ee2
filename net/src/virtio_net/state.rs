//! What the parts of a network device share, its counters and its saved state.

use crate::features::Features;
use crate::mac::MacAddress;
use machine::doorbell::Doorbell;
use machine::metrics::{Counter, Reading};
use machine::state::SavedFields;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use virtio::device::ConfigChange;
use virtio::rate_limit::{Limit, TokenBucket};

/// How often drivers may change what the host's link does: for each it takes a lock that all networks of the host share. Far more than
/// a guest that is set up anew needs, with each of its 256 queue pairs.
const CHANGES: Limit = Limit { size: 1024, refill_time: Duration::from_secs(1), one_time_burst: 0 };

/// What may change while the device runs. Each part is read by itself: nothing depends on two of them agreeing.
pub(super) struct Shared {
    /// The MAC address, its first byte lowest.
    mac: AtomicU64,
    pub(super) link_up: AtomicBool,
    /// The driver is asked to announce the guest.
    pub(super) announce: AtomicBool,
    /// Queue pairs in use, at least 1.
    active_pairs: AtomicU16,
    /// What the driver last left on of its offloads, or [`NEGOTIATED`].
    offloads: AtomicU64,
    /// The receive mode's flags, by command. Kept for inspection: everything that the link delivers is passed on,
    /// as a device may that cannot filter.
    pub(super) receive_mode: AtomicU8,
    /// For each queue pair, woken when whether it is in use changes.
    wake: Vec<Doorbell>,
    /// Changes of the host's link that drivers may make now.
    pub(super) changes: Option<TokenBucket>,
    /// Tells the driver, if one is ready. Locked for no longer than a look at it.
    config_changed: Mutex<Option<ConfigChange>>,
}

impl Shared {
    pub(super) fn new(mac: MacAddress, pairs: usize) -> std::io::Result<Self> {
        let shared = Self {
            mac: AtomicU64::new(0),
            link_up: AtomicBool::new(true),
            announce: AtomicBool::new(false),
            active_pairs: AtomicU16::new(1),
            offloads: AtomicU64::new(NEGOTIATED),
            receive_mode: AtomicU8::new(0),
            wake: (0..pairs).map(|_| Doorbell::new()).collect::<std::io::Result<_>>()?,
            changes: TokenBucket::new(CHANGES),
            config_changed: Mutex::new(None),
        };
        shared.set_mac(mac);
        Ok(shared)
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        let [mac @ .., _, _] = self.mac.load(Ordering::Relaxed).to_le_bytes();
        mac
    }

    pub(super) fn set_mac(&self, mac: MacAddress) {
        let [a, b, c, d, e, f] = mac.bytes();
        self.mac.store(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), Ordering::Relaxed);
    }

    /// Queue pairs in use.
    pub(super) fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Ordering::Acquire)
    }

    pub(super) fn is_active(&self, pair: usize) -> bool {
        pair < usize::from(self.active_pairs())
    }

    /// Sets the queue pairs in use, and wakes all.
    pub(super) fn set_active_pairs(&self, pairs: u16) {
        self.active_pairs.store(pairs, Ordering::Release);
        self.wake.iter().for_each(Doorbell::ring);
    }

    /// What wakes a queue pair.
    pub(super) fn wake(&self, pair: usize) -> Option<Doorbell> {
        self.wake.get(pair).cloned()
    }

    /// Sets how to tell the driver that the configuration changed. Returns what was set before.
    pub(super) fn set_config_changed(&self, notify: Option<ConfigChange>) -> Option<ConfigChange> {
        std::mem::replace(&mut *self.config_changed.lock().unwrap_or_else(PoisonError::into_inner), notify)
    }

    /// Tells the driver that the configuration changed.
    pub(super) fn tell_driver(&self) {
        let config_changed = self.config_changed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(config_changed) = config_changed {
            config_changed.notify();
        }
    }

    /// What the driver last left on of its offloads; `None`: those negotiated.
    pub(super) fn offloads(&self) -> Option<Features> {
        let bits = self.offloads.load(Ordering::Relaxed);
        (bits != NEGOTIATED).then(|| Features::from_bits_retain(bits))
    }

    pub(super) fn set_offloads(&self, offloads: Option<Features>) {
        self.offloads.store(offloads.map_or(NEGOTIATED, |offloads| offloads.bits()), Ordering::Relaxed);
    }
}

/// No set of offloads: those negotiated are on.
const NEGOTIATED: u64 = u64::MAX;

/// What one queue has done. Only its handler counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) packets: Counter,
    pub(super) bytes: Counter,
    /// Packets for which there was no room, or no link.
    pub(super) dropped: Counter,
    /// Packets or buffers that make no sense.
    pub(super) malformed: Counter,
    /// Packets the link refused, and failures of the link.
    pub(super) link_errors: Counter,
}

machine::inspect!(Counters { packets, bytes, dropped, malformed, link_errors });

impl Counters {
    /// What the queue did, for the metrics.
    pub(super) fn readings(&self) -> Vec<Reading> {
        vec![
            Reading::total("frames", self.packets.get()),
            Reading::total("bytes", self.bytes.get()),
            Reading::total("dropped", self.dropped.get()),
            Reading::total("malformed", self.malformed.get()),
            Reading::total("link_errors", self.link_errors.get()),
        ]
    }
}

/// What the queues of a network device counted together, for the metrics.
pub(super) fn readings(receive: &[Arc<Counters>], transmit: &[Arc<Counters>]) -> Vec<Reading> {
    let total = |name, queues: &[Arc<Counters>], counter: fn(&Counters) -> &Counter| {
        let numbers = queues.iter().map(|counters| counter(counters).get());
        Reading::total(name, numbers.fold(0, u64::wrapping_add))
    };
    vec![
        total("rx_frames", receive, |counters| &counters.packets),
        total("rx_bytes", receive, |counters| &counters.bytes),
        total("rx_dropped", receive, |counters| &counters.dropped),
        total("rx_malformed", receive, |counters| &counters.malformed),
        total("rx_link_errors", receive, |counters| &counters.link_errors),
        total("tx_frames", transmit, |counters| &counters.packets),
        total("tx_bytes", transmit, |counters| &counters.bytes),
        total("tx_dropped", transmit, |counters| &counters.dropped),
        total("tx_malformed", transmit, |counters| &counters.malformed),
        total("tx_link_errors", transmit, |counters| &counters.link_errors),
    ]
}

/// The saved state of a network device. Whether the cable is plugged in is not in it: that is a setting of the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetState {
    /// The MAC address in force.
    pub mac: Option<MacAddress>,
    /// The driver was asked to announce the guest, and has not yet acknowledged.
    pub announce: bool,
    /// Queue pairs in use.
    pub active_pairs: u16,
    /// The driver's offloads in force, by feature bit; `None`: those negotiated.
    pub offloads: Option<u64>,
    /// The receive mode, one bit for each command of its class.
    pub receive_mode: u8,
}

impl SavedFields for NetState {
    const KIND: &'static str = "virtio-net";
    const VERSION: u32 = 1;
}
