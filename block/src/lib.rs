//! Disks: image formats, I/O engines, the virtio block device and persistent memory.
//!
//! An [`image`] is what is on the host: it knows its size and how requests for parts of it become operations
//! on files. An [`engine`] performs such operations without waiting. [`virtio_blk`] and [`virtio_pmem`] are what the guest sees.

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

pub mod engine;
mod host;
pub mod image;
pub mod virtio_blk;
pub mod virtio_pmem;
