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

/// How much of the windows for BARs a PCI segment gets, compared with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentWeights {
    /// Of 32-bit BARs; at least 1.
    pub bars_32: u32,
    /// Of 64-bit BARs; at least 1.
    pub bars_64: u32,
}

impl Default for SegmentWeights {
    fn default() -> Self {
        Self { bars_32: 1, bars_64: 1 }
    }
}

/// The address windows of one PCI segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentWindows {
    /// Configuration space.
    pub ecam: Range,
    /// 32-bit BARs.
    pub bars_32: Range,
    /// 64-bit BARs.
    pub bars_64: Range,
    /// I/O BARs, where there is port I/O; only in segment 0.
    pub io: Option<Range>,
}
