//! Virtio devices that are neither files nor networks.

pub mod balloon;
pub mod console;
pub mod mem;
pub mod rng;
pub mod rtc;
pub mod vsock;
pub mod watchdog;

#[cfg(test)]
mod testing;
