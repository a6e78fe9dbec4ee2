//! What memory layouts have in common.

use machine::bus::Range;

/// Bytes as text, in the largest unit in which they are whole.
pub(crate) fn size(bytes: &u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |(shift, _): &(u32, &str)| *bytes != 0 && bytes.is_multiple_of(1 << shift);
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

/// What a PCI segment gets: of the windows for BARs by weights, compared with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentShare {
    /// The weight for 32-bit BARs; at least 1.
    pub bars_32: u32,
    /// The weight for 64-bit BARs; at least 1.
    pub bars_64: u32,
    /// How many buses its configuration space reaches: 1 to 256.
    pub buses: u16,
}

impl Default for SegmentShare {
    fn default() -> Self {
        Self { bars_32: 1, bars_64: 1, buses: 256 }
    }
}

impl SegmentShare {
    /// How large the ECAM is: 1 MiB for each bus (PCIe 6.0, 7.2.2).
    pub(crate) fn ecam_size(&self) -> u64 {
        u64::from(self.buses.clamp(1, 256)) << 20
    }
}

impl SegmentWindows {
    /// The last bus that the ECAM reaches.
    pub fn last_bus(&self) -> u8 {
        ((self.ecam.size >> 20).clamp(1, 256) - 1) as u8
    }
}

/// The address windows of one PCI segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentWindows {
    /// Configuration space: 1 MiB for each bus that the segment has.
    pub ecam: Range,
    /// 32-bit BARs.
    pub bars_32: Range,
    /// 64-bit BARs.
    pub bars_64: Range,
    /// I/O BARs, where there is port I/O; only in segment 0.
    pub io: Option<Range>,
}
