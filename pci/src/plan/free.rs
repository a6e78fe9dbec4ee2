//! The parts of an address window that are free.

use machine::bus::Range;

/// The free parts of a window, by address, first and last address of each.
pub(super) struct Free(Vec<(u64, u64)>);

impl Free {
    pub(super) fn new(window: Option<Range>) -> Self {
        // Address 0 means "not placed" in a BAR.
        let free = window.filter(|window| window.size > 0).map(|window| (window.start.max(1), window.last()));
        Self(free.into_iter().collect())
    }

    /// What is in `range` is not free.
    pub(super) fn exclude(&mut self, range: Range) {
        let split = |&(first, last): &(u64, u64)| {
            let below = range.start.checked_sub(1).map(|end| (first, end.min(last)));
            let above = range.last().checked_add(1).map(|start| (start.max(first), last));
            below.into_iter().chain(above).filter(|(first, last)| first <= last)
        };
        if range.size > 0 {
            self.0 = self.0.iter().flat_map(split).collect();
        }
    }

    /// The lowest free address that is a multiple of `align`, with `size` free addresses. What alignment leaves below
    /// stays free for smaller ones.
    pub(super) fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        let rest = size.checked_sub(1)?;
        let found = self.0.iter().enumerate().find_map(|(index, &(first, last))| {
            let address = first.checked_next_multiple_of(align)?;
            let end = address.checked_add(rest).filter(|end| *end <= last)?;
            Some((index, first, address, end, last))
        });
        let (index, first, address, end, last) = found?;
        let below = address.checked_sub(1).filter(|below| *below >= first).map(|below| (first, below));
        let above = end.checked_add(1).filter(|above| *above <= last).map(|above| (above, last));
        self.0.splice(index..=index, below.into_iter().chain(above));
        Some(address)
    }
}
