//! The handler of the control queue (virtio 1.2, 5.1.6.5).

use super::state::Shared;
use crate::features::Features;
use crate::link::Link;
use crate::mac::MacAddress;
use machine::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio::chain::Chain;
use virtio::queue::QueueError;
use virtio::service::Service;

/// Answers.
const OK: u8 = 0;
pub(super) const ERROR: u8 = 1;

const CLASS_RECEIVE_MODE: u8 = 0;
/// Promiscuous to "no broadcast": commands 0 to 5; those from 2 on are the extra ones.
const LAST_MODE: u8 = 5;
const FIRST_EXTRA_MODE: u8 = 2;

const CLASS_MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDRESS_SET: u8 = 1;

const CLASS_ANNOUNCE: u8 = 3;
const ANNOUNCE_ACK: u8 = 0;

const CLASS_MQ: u8 = 4;
const MQ_PAIRS_SET: u8 = 0;

const CLASS_OFFLOADS: u8 = 5;
const OFFLOADS_SET: u8 = 0;

/// Bytes of a command before its data: class and command.
const HEADER: u64 = 2;
/// The most entries a table of MAC addresses is read for; it is not kept.
const MAX_TABLE: u32 = 4096;

/// Carries out the commands of the control queue.
pub(super) struct Control {
    shared: Arc<Shared>,
    links: Vec<Arc<dyn Link>>,
    features: Features,
    clock: Arc<dyn Clock>,
    /// Queue pairs the driver enabled.
    pairs: u16,
    commands: u64,
    refused: u64,
}

impl Control {
    /// For a driver that accepted `features` and enabled so many `pairs` of queues.
    pub(super) fn new(
        shared: Arc<Shared>,
        links: Vec<Arc<dyn Link>>,
        features: Features,
        clock: Arc<dyn Clock>,
        pairs: u16,
    ) -> Self {
        Self { shared, links, features, clock, pairs, commands: 0, refused: 0 }
    }

    /// Carries out the command in `chain`; `None`: it is none, or is refused.
    fn execute(&self, chain: &Chain) -> Option<()> {
        let [class, command] = chain.read_array(0)?;
        match (class, command) {
            (CLASS_RECEIVE_MODE, 0..=LAST_MODE) => {
                let needed =
                    if command < FIRST_EXTRA_MODE { Features::CTRL_RX } else { Features::CTRL_RX_EXTRA };
                self.need(needed)?;
                let [on] = chain.read_array(HEADER)?;
                let bit = 1_u8.wrapping_shl(command.into());
                let mode = self.shared.receive_mode.load(Ordering::Relaxed);
                let mode = if on == 0 { mode & !bit } else { mode | bit };
                self.shared.receive_mode.store(mode, Ordering::Relaxed);
                Some(())
            }
            (CLASS_MAC, MAC_TABLE_SET) => {
                self.need(Features::CTRL_RX)?;
                check_tables(chain)
            }
            (CLASS_MAC, MAC_ADDRESS_SET) => {
                self.need(Features::CTRL_MAC_ADDR)?;
                self.shared.set_mac(MacAddress::new(chain.read_array(HEADER)?).ok()?);
                Some(())
            }
            (CLASS_ANNOUNCE, ANNOUNCE_ACK) => {
                self.need(Features::GUEST_ANNOUNCE)?;
                if self.shared.announce.swap(false, Ordering::Relaxed) {
                    self.shared.tell_driver();
                }
                Some(())
            }
            (CLASS_MQ, MQ_PAIRS_SET) => {
                self.need(Features::MQ)?;
                let pairs = u16::from_le_bytes(chain.read_array(HEADER)?);
                if pairs == 0 || pairs > self.pairs {
                    return None;
                }
                self.may_change(pairs.abs_diff(self.shared.active_pairs()))?;
                set_active_pairs(&self.shared, &self.links, pairs).ok()
            }
            (CLASS_OFFLOADS, OFFLOADS_SET) => {
                self.need(Features::CTRL_GUEST_OFFLOADS)?;
                let offloads = Features::from_bits_retain(u64::from_le_bytes(chain.read_array(HEADER)?));
                // Only what was negotiated may be turned off and on.
                if !(self.features & Features::GUEST_OFFLOADS).contains(offloads) {
                    return None;
                }
                self.may_change(u16::from(self.shared.offloads() != Some(offloads)))?;
                self.links.first()?.set_offloads(offloads).ok()?;
                self.shared.set_offloads(Some(offloads));
                Some(())
            }
            _ => None,
        }
    }

    /// Whether so many settings of the host's link may be changed now.
    fn may_change(&self, settings: u16) -> Option<()> {
        let changes = self.shared.changes.as_ref().filter(|_| settings > 0);
        changes
            .is_none_or(|changes| changes.consume(settings.into(), self.clock.monotonic_ns()).is_ok())
            .then_some(())
    }

    fn need(&self, features: Features) -> Option<()> {
        self.features.contains(features).then_some(())
    }
}

/// Checks that the two tables of MAC addresses, of stations and of groups, are as long as they say.
fn check_tables(chain: &Chain) -> Option<()> {
    const COUNT: u64 = 4;
    const ADDRESS: u64 = 6;
    let mut at = HEADER;
    for _ in 0..2 {
        let entries = u32::from_le_bytes(chain.read_array(at)?);
        if entries > MAX_TABLE {
            return None;
        }
        at = at.checked_add(COUNT)?.checked_add(u64::from(entries).checked_mul(ADDRESS)?)?;
    }
    (at <= chain.readable_len()).then_some(())
}

/// Makes the first `pairs` queue pairs the ones in use. In an order that never has a queue pair in use that the link does not
/// serve.
pub(super) fn set_active_pairs(shared: &Shared, links: &[Arc<dyn Link>], pairs: u16) -> std::io::Result<()> {
    let before = shared.active_pairs();
    if pairs < before {
        shared.set_active_pairs(pairs);
    }
    for (pair, link) in links.iter().enumerate() {
        let enabled = pair < usize::from(pairs);
        if let Err(error) = link.set_enabled(enabled) {
            tracing::warn!(pair, enabled, %error, "cannot change whether a queue pair of a network link is in use");
            return Err(error);
        }
    }
    if pairs > before {
        shared.set_active_pairs(pairs);
    }
    Ok(())
}

impl Service for Control {
    fn answer(&mut self, request: &Chain) -> Result<u32, QueueError> {
        self.commands = self.commands.wrapping_add(1);
        let answer = if self.execute(request).is_some() { OK } else { ERROR };
        if answer != OK {
            self.refused = self.refused.wrapping_add(1);
        }
        // A command without room for its answer goes without.
        Ok(request.write_at(0, &[answer]) as u32)
    }
}

machine::inspect!(Control { commands, refused });
