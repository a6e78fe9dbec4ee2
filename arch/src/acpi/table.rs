//! What all tables share: the header (ACPI 6.5, 5.2.6), the checksum and their makers' names.

/// Who made the tables.
pub(crate) const OEM_ID: [u8; 6] = *b"VIVARM";
/// Which machine they are of.
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"VIVARIUM";
/// Version of the tables.
pub(crate) const OEM_REVISION: u32 = 1;
const CREATOR_ID: [u8; 4] = *b"VIVM";
const CREATOR_REVISION: u32 = 1;

/// Size of the header every table but the RSDP begins with.
pub(super) const HEADER_SIZE: usize = 36;

const LENGTH: usize = 4;
const CHECKSUM: usize = 9;

/// Appends a table's fields after its header.
pub(crate) struct TableWriter(Vec<u8>);

impl TableWriter {
    /// A table that is its header so far.
    pub(crate) fn new(signature: [u8; 4], revision: u8) -> Self {
        let mut table = Self(Vec::with_capacity(256));
        table.bytes(&signature);
        table.u32(0);
        table.bytes(&[revision, 0]);
        table.bytes(&OEM_ID);
        table.bytes(&OEM_TABLE_ID);
        table.u32(OEM_REVISION);
        table.bytes(&CREATOR_ID);
        table.u32(CREATOR_REVISION);
        table
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// The table, its length and checksum filled in.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut table = self.0;
        let length = (table.len() as u32).to_le_bytes();
        table[LENGTH..LENGTH + 4].copy_from_slice(&length);
        table[CHECKSUM] = checksum(&table);
        table
    }
}

/// The root pointer to the XSDT at `xsdt` (ACPI 6.5, 5.2.5.3). The first checksum covers what ACPI 1.0 defined.
pub(crate) fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut rsdp = b"RSD PTR ".to_vec();
    rsdp.push(0);
    rsdp.extend(OEM_ID);
    rsdp.push(2);
    // There is no RSDT.
    rsdp.extend(0u32.to_le_bytes());
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend(xsdt.to_le_bytes());
    rsdp.extend([0; 4]);
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// The byte that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Tables begin at multiples of 16.
pub(crate) fn aligned(length: usize) -> usize {
    length.next_multiple_of(16)
}
