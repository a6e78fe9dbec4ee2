//! What all virtio devices share (virtio 1.2): queues, the PCI transport, and the worker that runs queues.

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

pub mod chain;
pub mod device;
pub mod features;
pub mod pci_transport;
pub mod queue;
pub mod rate_limit;
pub mod service;
pub mod stand_in;
pub mod worker;

mod host_memory;
#[cfg(any(test, feature = "testing"))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
pub mod testing;
