//! Networks: links to the host's network, and the virtio network device.
//!
//! A [`link`] carries packets between a guest and the host: a tap, or a socket in tests and fuzzing. [`virtio_net`] is what
//! the guest sees.

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

pub mod features;
pub mod link;
pub mod mac;
pub mod virtio_net;
