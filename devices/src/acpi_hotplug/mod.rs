//! The controllers through which ACPI methods add and remove parts of a running machine (ACPI 6.5, 5.6.6).
//!
//! The machine tells a controller what came or is asked to go, and then raises the [`crate::acpi::Event`] of that kind.
//! The guest's method for the event reads here what it is about, and notifies its operating system. When that has let
//! go of something, a method writes here, which returns an effect: the machine takes the part away.
//!
//! All registers are 32-bit words. An access of another size or alignment reads as zero and changes nothing.

pub mod cpu;
pub mod memory;
pub mod pci;
mod slots;

/// The offset of the word an access is to; `None` if it is not one to a whole word.
fn word(offset: u64, size: usize) -> Option<u64> {
    (size == size_of::<u32>() && offset.is_multiple_of(size_of::<u32>() as u64)).then_some(offset)
}

/// Answers a read of a word by `register`.
fn read_word(offset: u64, data: &mut [u8], register: impl FnOnce(u64) -> u32) {
    let value = word(offset, data.len()).map_or(0, register);
    crate::platform::put_value(data, value.into());
}

/// The word written and its offset.
fn written_word(offset: u64, data: &[u8]) -> Option<(u64, u32)> {
    let bytes = data.try_into().ok()?;
    Some((word(offset, data.len())?, u32::from_le_bytes(bytes)))
}
