//! How often a CPU came out of the guest, by kind, and how long it stayed out.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use machine::inspect::{Inspect, Value};
use machine::metrics::{Counter, Reading};
use std::time::Duration;

/// A kind of exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// The guest reads a port.
    PortRead,
    /// It writes a port.
    PortWrite,
    /// It reads a memory-mapped device.
    MmioRead,
    /// It writes one.
    MmioWrite,
    /// It acknowledged a level-triggered interrupt.
    EndOfInterrupt,
    /// A kick or a signal.
    Interrupted,
    /// A breakpoint or a single step.
    Debug,
    /// Everything else.
    Other,
}

/// Exits of one kind.
#[derive(Debug, Default)]
pub struct Exits {
    count: Counter,
    ns: Counter,
}

machine::inspect!(Exits { count, ns });

/// Counts a CPU's exits. The CPU's thread counts.
#[derive(Debug, Default)]
pub struct ExitCounters {
    kinds: [Exits; 8],
    /// Accesses to addresses that no device has.
    pub unclaimed: Counter,
    /// Accesses to devices by instructions that the hypervisor cannot carry out, for which the guest gets an exception.
    pub undescribed: Counter,
}

/// Each kind with its names: as such, and of its number and its time among the readings.
const KINDS: [(ExitKind, &str, &str, &str); 8] = [
    (ExitKind::PortRead, "port_read", "port_reads", "port_read_ns"),
    (ExitKind::PortWrite, "port_write", "port_writes", "port_write_ns"),
    (ExitKind::MmioRead, "mmio_read", "mmio_reads", "mmio_read_ns"),
    (ExitKind::MmioWrite, "mmio_write", "mmio_writes", "mmio_write_ns"),
    (ExitKind::EndOfInterrupt, "end_of_interrupt", "ends_of_interrupt", "end_of_interrupt_ns"),
    (ExitKind::Interrupted, "interrupted", "interruptions", "interrupted_ns"),
    (ExitKind::Debug, "debug", "debug_exits", "debug_ns"),
    (ExitKind::Other, "other", "other_exits", "other_ns"),
];

impl ExitCounters {
    /// Counts an exit that took the monitor so long.
    #[inline]
    pub fn count(&self, kind: ExitKind, took: Duration) {
        let exits = self.of(kind);
        exits.count.add(1);
        exits.ns.add(took.as_nanos() as u64);
    }

    fn of(&self, kind: ExitKind) -> &Exits {
        let [port_reads, port_writes, mmio_reads, mmio_writes, ends, interruptions, debug, other] =
            &self.kinds;
        match kind {
            ExitKind::PortRead => port_reads,
            ExitKind::PortWrite => port_writes,
            ExitKind::MmioRead => mmio_reads,
            ExitKind::MmioWrite => mmio_writes,
            ExitKind::EndOfInterrupt => ends,
            ExitKind::Interrupted => interruptions,
            ExitKind::Debug => debug,
            ExitKind::Other => other,
        }
    }

    /// For the metrics.
    pub fn readings(&self) -> Vec<Reading> {
        let kinds = KINDS.iter().flat_map(|(kind, _, count, ns)| {
            let exits = self.of(*kind);
            [Reading::total(count, exits.count.get()), Reading::total(ns, exits.ns.get())]
        });
        let accesses = [("unclaimed", &self.unclaimed), ("undescribed", &self.undescribed)];
        kinds.chain(accesses.map(|(name, counter)| Reading::total(name, counter.get()))).collect()
    }
}

impl Inspect for ExitCounters {
    fn inspect(&self) -> Value {
        let kinds = KINDS.iter().map(|(kind, name, ..)| ((*name).to_owned(), self.of(*kind).inspect()));
        let accesses = [("unclaimed", &self.unclaimed), ("undescribed", &self.undescribed)];
        kinds.chain(accesses.map(|(name, counter)| (name.to_owned(), counter.get().into()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_under_its_own_name() {
        let counters = ExitCounters::default();
        for (times, (kind, ..)) in (1..).zip(KINDS) {
            (0..times).for_each(|_| counters.count(kind, Duration::from_nanos(3)));
        }
        let tree = counters.inspect();
        for (times, (_, name, ..)) in (1_u64..).zip(KINDS) {
            assert_eq!(
                (tree[name]["count"].as_u64(), tree[name]["ns"].as_u64()),
                (Some(times), Some(3 * times))
            );
        }
    }
}
