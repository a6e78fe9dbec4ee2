//! Virtio devices that are neither disks nor networks.

pub mod console;
pub mod rng;

#[cfg(test)]
mod testing;
