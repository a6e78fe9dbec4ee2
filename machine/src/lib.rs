//! The vocabulary that devices speak.
//!
//! A device is given capabilities and nothing else: guest memory ([`memory`]), interrupt sources
//! ([`interrupt`]), doorbells ([`doorbell`]), a clock ([`clock`]). It answers register accesses that a
//! [`bus`] routes to it, and tells what should change outside of itself by returning an [`effect`].
//! Its state is saved and restored through [`state`], and looked at through [`mod@inspect`]; what it does is counted in
//! [`metrics`].
//!
//! This crate knows no hypervisor, no bus standard and no I/O, and everything above builds on it.

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

pub mod bus;
pub mod clock;
pub mod doorbell;
pub mod effect;
pub mod inspect;
pub mod interrupt;
pub mod memory;
pub mod metrics;
pub mod state;
