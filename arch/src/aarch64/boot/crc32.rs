//! CRC-32, as gzip (RFC 1952, 8) and EFI tables (UEFI 2.10, 4.2.1) have it.

/// A checksum that grows.
#[derive(Default)]
pub(super) struct Crc32(u32);

impl Crc32 {
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "the compiler evaluates it")]
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let mut value = n as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 != 0 { 0xedb8_8320 ^ value >> 1 } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };

    /// Goes on with these bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0 = !bytes.iter().fold(!self.0, |value, &byte| {
            let at = (value as u8 ^ byte) as usize;
            Self::TABLE.get(at).copied().unwrap_or(0) ^ value >> 8
        });
    }

    /// That of all bytes so far.
    pub(super) fn value(&self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value that catalogues of such checksums give.
    #[test]
    fn nine_digits_have_the_known_checksum() {
        let mut checksum = Crc32::default();
        checksum.add(b"1234");
        checksum.add(b"56789");
        assert_eq!(checksum.value(), 0xcbf4_3926);
    }
}
