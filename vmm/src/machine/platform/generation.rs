//! The generation id of the virtual machine (Microsoft, "Virtual Machine Generation ID", 2018).

use anyhow::{Context, Result};
use machine::memory::{Bytes, GuestAddress, Memory};

/// Gives the machine a generation id, unless it has one: a restart in place is the same generation.
///
/// # Errors
/// When there is no memory at `place`, or the host gives no random numbers.
pub fn write_id(memory: &Memory, place: GuestAddress) -> Result<()> {
    let mut id = [0u8; 16];
    memory.read_slice(&mut id, place).context("reading the generation id")?;
    if id == [0; 16] {
        // SAFETY: writes at most as many bytes as the buffer has.
        let got = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
        anyhow::ensure!(got == id.len() as isize, "the host gives no random numbers for the generation id");
        memory.write_slice(&id, place).context("writing the generation id")?;
    }
    Ok(())
}
