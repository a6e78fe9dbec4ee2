//! What memory layouts have in common.

use machine::bus::Range;

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
