//! Which of the windows that functions want are mapped.
//!
//! The guest may point a BAR anywhere: onto RAM, another device or another BAR. Such a window is not mapped until
//! what is in its way is gone. A window that is mapped keeps its place whatever others want. All functions are
//! looked at together, so that a window gets its turn when another one moves away.

use crate::bar::{MappedBar, Space};
use machine::bus::Range;
use machine::effect::FunctionAddress;
use std::collections::BTreeMap;

/// One window of one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Whose it is.
    pub function: FunctionAddress,
    /// Where it is.
    pub window: MappedBar,
}

/// What the machine thread is to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Windows to take off their bus.
    pub unmap: Vec<Window>,
    /// Windows to put on their bus.
    pub map: Vec<Window>,
}

/// What functions want, and what of it is mapped. Owned by the machine thread.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    allowed_memory: Vec<Range>,
    allowed_io: Vec<Range>,
    wanted: BTreeMap<FunctionAddress, Vec<MappedBar>>,
    mapped: Vec<Window>,
}

impl Placement {
    /// Windows are mapped only if they lie within one of these ranges, which hold no RAM and no other devices.
    pub fn new(allowed_memory: Vec<Range>, allowed_io: Vec<Range>) -> Self {
        Self { allowed_memory, allowed_io, ..Self::default() }
    }

    /// `function` now wants `windows` (none: it is gone). Returns what has to change.
    pub fn update(&mut self, function: FunctionAddress, windows: Vec<MappedBar>) -> Changes {
        let mut changes = Changes::default();
        self.mapped.retain(|mapped| {
            let stays = mapped.function != function || windows.contains(&mapped.window);
            if !stays {
                changes.unmap.push(*mapped);
            }
            stays
        });
        if windows.is_empty() {
            self.wanted.remove(&function);
        } else {
            self.wanted.insert(function, windows);
        }
        for (&function, windows) in &self.wanted {
            for &window in windows {
                let candidate = Window { function, window };
                if !self.mapped.contains(&candidate) && self.fits(window) {
                    self.mapped.push(candidate);
                    changes.map.push(candidate);
                }
            }
        }
        changes
    }

    /// The windows that are mapped.
    pub fn mapped(&self) -> &[Window] {
        &self.mapped
    }

    /// The windows that are wanted and have something in their way.
    pub fn waiting(&self) -> Vec<Window> {
        let wanted = self
            .wanted
            .iter()
            .flat_map(|(&function, windows)| windows.iter().map(move |&window| Window { function, window }));
        wanted.filter(|window| !self.mapped.contains(window)).collect()
    }

    fn fits(&self, window: MappedBar) -> bool {
        let allowed = match window.space {
            Space::Memory => &self.allowed_memory,
            Space::Io => &self.allowed_io,
        };
        let range = window.range();
        allowed.iter().any(|allowed| allowed.start <= range.start && range.last() <= allowed.last())
            && !self
                .mapped
                .iter()
                .any(|other| other.window.space == window.space && other.window.range().overlaps(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn function(device: u8) -> FunctionAddress {
        FunctionAddress::new(0, 0, device, 0)
    }

    fn memory(bar: u8, address: u64, size: u64) -> MappedBar {
        MappedBar { bar, space: Space::Memory, address, size }
    }

    fn placement() -> Placement {
        let allowed = vec![Range { start: 0x1000, size: 0x1000 }, Range { start: 0x2000, size: 0x1000 }];
        Placement::new(allowed, vec![Range { start: 0x1000, size: 0x100 }])
    }

    #[test]
    fn a_window_moved_onto_another_waits_until_the_other_moves_away() {
        let mut placement = placement();
        let (a, b) = (memory(0, 0x1000, 0x100), memory(0, 0x1100, 0x100));
        placement.update(function(1), vec![a]);
        placement.update(function(2), vec![b]);
        let changes = placement.update(function(2), vec![a]);
        assert_eq!(changes.unmap, [Window { function: function(2), window: b }]);
        assert_eq!(changes.map, []);
        assert_eq!(placement.waiting(), [Window { function: function(2), window: a }]);
        let changes = placement.update(function(1), vec![b]);
        assert_eq!(changes.unmap, [Window { function: function(1), window: a }]);
        let expected =
            [Window { function: function(1), window: b }, Window { function: function(2), window: a }];
        assert_eq!(changes.map, expected);
    }

    #[test]
    fn windows_outside_the_allowed_ranges_are_not_mapped() {
        let mut placement = placement();
        let straddling = memory(0, 0x1f00, 0x200);
        for bad in [memory(0, 0xf00, 0x100), straddling, memory(0, !0xff, 0x100), memory(0, 0x3000, 1)] {
            assert_eq!(placement.update(function(1), vec![bad]), Changes::default(), "{bad:?}");
        }
        // Spaces do not collide with each other.
        let io = MappedBar { bar: 1, space: Space::Io, address: 0x1000, size: 0x10 };
        assert_eq!(placement.update(function(1), vec![memory(0, 0x1000, 0x10), io]).map.len(), 2);
    }

    proptest! {
        /// After any sequence, what is mapped is disjoint and wanted, nothing that fits waits, and the changes
        /// told along the way add up to it.
        #[test]
        fn changes_add_up(
            steps in prop::collection::vec(
                (0u8..4, prop::collection::vec((0u64..0x40, 0u32..4), 0..3)), 1..40)
        ) {
            let mut placement = placement();
            let mut bus = Vec::new();
            let mut wanted = BTreeMap::new();
            for (device, windows) in steps {
                let windows: Vec<_> = windows.into_iter().zip(0..)
                    .map(|((at, log2), bar)| memory(bar, at * 0x100, 0x100 << log2)).collect();
                wanted.insert(device, windows.clone());
                let changes = placement.update(function(device), windows);
                for gone in changes.unmap {
                    let at = bus.iter().position(|w| *w == gone).expect("only mapped windows are unmapped");
                    bus.remove(at);
                }
                bus.extend(changes.map);
                for (i, a) in bus.iter().enumerate() {
                    prop_assert!(wanted[&a.function.device()].contains(&a.window));
                    for b in &bus[i + 1..] {
                        prop_assert!(!a.window.range().overlaps(b.window.range()));
                    }
                }
                for waiting in placement.waiting() {
                    let range = waiting.window.range();
                    let inside = |start: u64| start <= range.start && range.start + range.size <= start + 0x1000;
                    prop_assert!(
                        !(inside(0x1000) || inside(0x2000))
                            || bus.iter().any(|other| other.window.range().overlaps(range))
                    );
                }
            }
        }
    }
}
