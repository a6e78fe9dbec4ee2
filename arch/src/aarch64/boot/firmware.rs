//! Firmware: a firmware device image (UEFI Platform Initialization 1.7, volume 3, 3.2), in which a CPU starts at the first byte.

use super::{EntryPoint, layout};
use crate::boot::{fields, looks_like};
use machine::memory::GuestAddress;
use thiserror::Error;

/// The boot CPU starts in flash, as after power-on; the device tree is at the start of RAM, where firmware looks for it.
pub const FIRMWARE: EntryPoint =
    EntryPoint { address: GuestAddress(layout::FLASH[0].start), boot_data: layout::FDT };

/// A firmware volume begins at a multiple of this,
const VOLUME_ALIGNMENT: usize = 4096;
/// and has its signature here.
const SIGNATURE_OFFSET: usize = 40;
const SIGNATURE: &[u8] = b"_FVH";

/// Why a file is not firmware to start in.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FirmwareError {
    /// There is no firmware volume where it begins.
    #[error("is not firmware (it looks like {0}): give it EFI firmware for Arm, such as AAVMF_CODE.fd")]
    NoVolume(&'static str),
    /// It does not begin with an instruction of such a CPU.
    #[error(
        "is firmware of another architecture, or its variables: give it EFI firmware for Arm, such as AAVMF_CODE.fd"
    )]
    NoEntry,
}

/// Checks that a file which begins with `head` is firmware that the boot CPU can start in.
///
/// # Errors
/// When it is something else, and what.
pub fn check_firmware(head: &[u8]) -> Result<(), FirmwareError> {
    let has_signature =
        |volume: &[u8]| volume.get(SIGNATURE_OFFSET..).is_some_and(|rest| rest.starts_with(SIGNATURE));
    if !head.chunks(VOLUME_ALIGNMENT).any(has_signature) {
        return Err(FirmwareError::NoVolume(looks_like(head)));
    }
    // An unconditional branch (Arm Architecture Reference Manual, C6.2, B): the header of a volume has no place for more.
    match fields::u32_at(head, 0) {
        Some(instruction) if instruction >> 26 == 0b000101 => Ok(()),
        _ => Err(FirmwareError::NoEntry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(first: u32, volume: usize) -> Vec<u8> {
        let mut image = vec![0; 0x3000];
        image[..4].copy_from_slice(&first.to_le_bytes());
        image[volume + 40..volume + 44].copy_from_slice(b"_FVH");
        image
    }

    #[test]
    fn firmware_begins_with_a_branch_and_has_a_volume() {
        assert_eq!(check_firmware(&image(0x1400_0400, 0x1000)), Ok(()));
        assert_eq!(check_firmware(&image(0x1400_0400, 0)), Ok(()));
        assert_eq!(check_firmware(&image(0, 0)), Err(FirmwareError::NoEntry), "as a PC's firmware begins");
        assert_eq!(check_firmware(&image(0x1400_0400, 8)), Err(FirmwareError::NoVolume("unknown data")));
        assert_eq!(check_firmware(b"#!/bin/sh"), Err(FirmwareError::NoVolume("a script")));
        assert_eq!(check_firmware(&[]), Err(FirmwareError::NoVolume("zeroes")));
    }
}
