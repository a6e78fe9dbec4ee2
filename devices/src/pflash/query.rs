//! The query table of one chip (JESD68.01; the extended table as Intel's command set has it): by it a driver learns what the bank is.

use super::{BLOCK_SIZE, BUFFER_SIZE};

/// Where the table begins: before it there is nothing.
const START: u64 = 0x10;
/// Where the extended table begins.
const EXTENDED: u8 = 0x31;
/// Chips of a bank.
const CHIPS: u64 = 2;

/// The byte at word `word` of each chip of a bank of `size` bytes; 0 outside of the table.
pub(super) fn byte(size: u64, word: u64) -> u8 {
    let index = word.checked_sub(START).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| table(size).get(index).copied()).unwrap_or(0)
}

/// The table from [`START`] on.
#[rustfmt::skip]
fn table(size: u64) -> [u8; 0x30] {
    const CHIP_BLOCK: u64 = BLOCK_SIZE / CHIPS;
    const BUFFER_LOG: u8 = (BUFFER_SIZE as u64 / CHIPS).ilog2() as u8;
    // In units of 256 bytes.
    const BLOCK_UNITS: u16 = (CHIP_BLOCK / 256) as u16;
    let [block_low, block_high] = BLOCK_UNITS.to_le_bytes();
    let size_log = (size / CHIPS).checked_next_power_of_two().and_then(u64::checked_ilog2).unwrap_or(0) as u8;
    let [blocks_low, blocks_high] = ((size / BLOCK_SIZE).saturating_sub(1) as u16).to_le_bytes();
    [
        // 0x10: the signature, the command set and where its extended table is; no other command set.
        b'Q', b'R', b'Y', 0x01, 0x00, EXTENDED, 0, 0, 0, 0, 0,
        // 0x1b: 1.7 to 2.0 volts, and no programming voltage.
        0x17, 0x20, 0, 0,
        // 0x1f: logarithms of the microseconds that a word and a buffer take, and of the milliseconds of a block;
        1, 1, 1, 0,
        // 0x23: and of how much longer they may take.
        4, 4, 4, 0,
        // 0x27: the logarithm of a chip's size; 16 bits wide; the logarithm of its buffer's size.
        size_log, 0x01, 0x00, BUFFER_LOG, 0x00,
        // 0x2c: one region of equal blocks: their number less one, and their size.
        1, blocks_low, blocks_high, block_low, block_high,
        // 0x31: the extended table, version 1.0: blocks can be locked one by one,
        b'P', b'R', b'I', b'1', b'0', 1 << 5, 0, 0, 0, 0,
        // 0x3b: and tell that in bit 0; 1.8 volts, no programming voltage; no protection registers.
        0x01, 0x00, 0x18, 0x00, 0x00,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_what_the_bank_is() {
        let read =
            |from: u64, count: u64| (from..from + count).map(|word| byte(64 << 20, word)).collect::<Vec<_>>();
        assert_eq!(read(0x10, 5), [b'Q', b'R', b'Y', 1, 0]);
        assert_eq!(read(0x27, 1), [25], "32 MiB a chip");
        assert_eq!(read(0x2a, 2), [6, 0], "64 bytes a chip");
        assert_eq!(read(0x2c, 5), [1, 255, 0, 0, 2], "256 blocks of 128 KiB a chip");
        assert_eq!(read(u64::from(EXTENDED), 6), [b'P', b'R', b'I', b'1', b'0', 0x20]);
        assert_eq!([byte(64 << 20, 0), byte(64 << 20, 0x40), byte(64 << 20, u64::MAX)], [0; 3]);
        assert_eq!(
            (byte(768 << 10, 0x27), byte(768 << 10, 0x2d)),
            (19, 2),
            "what is no power of two is rounded up"
        );
    }
}
