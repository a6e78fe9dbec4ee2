//! What is left of firmware where a PC's begins: a few instructions that restart the machine.
//!
//! Software restarts a PC also by jumping to FFFF:0000 in real mode, as if the processor had just been reset. Linux does
//! so on a machine with hardware-reduced ACPI and without EFI, before it tries the ACPI reset register. There is no
//! firmware to go on with, so the instructions there ask the reset register for a restart.

use super::layout::RESET_VECTOR;
use machine::memory::Memory;
use vm_memory::{Bytes, GuestMemoryError};

/// Writes the instructions, which write `value` to the port `register`.
///
/// # Errors
/// When there is no RAM at the reset vector.
pub fn write(memory: &Memory, register: u16, value: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&code(register, value), RESET_VECTOR)
}

fn code(register: u16, value: u8) -> [u8; 9] {
    let [low, high] = register.to_le_bytes();
    [
        0xb0, value, // mov al, value
        0xba, low, high, // mov dx, register
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::layout::{HIGH_RAM, SMBIOS, SMBIOS_SIZE};

    #[test]
    fn the_code_fits_between_the_tables_and_the_kernels_memory() {
        assert_eq!(RESET_VECTOR.0, 0xffff << 4);
        const { assert!(SMBIOS.0 + SMBIOS_SIZE <= RESET_VECTOR.0) };
        assert!(RESET_VECTOR.0 + code(0, 0).len() as u64 <= HIGH_RAM);
        assert_eq!(code(0x1234, 0x56), [0xb0, 0x56, 0xba, 0x34, 0x12, 0xee, 0xf4, 0xeb, 0xfd]);
    }
}
