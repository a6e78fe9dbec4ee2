//! The buses that bridges may have below them.

use super::{Segment, bus};
use std::ops::RangeInclusive;

impl Segment {
    /// The lowest `count` (1 or more) home buses in a row for a bridge that is to be on home bus `above`: ones that the bridge
    /// above keeps, and that no bridge beside has.
    ///
    /// # Errors
    /// When there are not as many: how many there are in a row.
    pub fn free_buses(&self, above: u8, count: u8) -> Result<RangeInclusive<u8>, u8> {
        let table = self.table.load();
        let last = table.bridges.get(&above).map_or(self.last_bus, |bridge| bridge.last);
        let beside = table.bridges.iter().filter(|(_, bridge)| bus(bridge.home) == above);
        // Ascending, and none overlaps another.
        let beside = beside.map(|(&below, bridge)| (u16::from(below), u16::from(bridge.last)));
        let end = u16::from(last).saturating_add(1);
        let (mut next, mut most) = (u16::from(above).saturating_add(1), 0);
        for (taken, last) in beside.chain([(end, end)]) {
            let free = taken.saturating_sub(next);
            if u16::from(count) <= free {
                let last = next.saturating_add(u16::from(count)).saturating_sub(1);
                return Ok(next as u8..=last as u8);
            }
            most = free.max(most);
            next = last.saturating_add(1);
        }
        Err(most as u8)
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::Reserve;
    use crate::port::{Port, PortKind, PortOptions};
    use crate::segment::Segment;
    use machine::effect::FunctionAddress;
    use machine::interrupt::recording::Sources;
    use std::ops::RangeInclusive;
    use std::sync::{Arc, Mutex};

    fn add(segment: &Segment, bus: u8, device: u8, buses: RangeInclusive<u8>) {
        let options = PortOptions { kind: PortKind::Downstream, port: 0, slot: None, io: false };
        let port = Port::new(options, Arc::new(Sources::default()), None).unwrap();
        let address = FunctionAddress::new(0, bus, device, 0);
        segment.insert_bridge(address, Arc::new(Mutex::new(port)), buses, Reserve::default()).unwrap();
    }

    #[test]
    fn buses_are_found_between_those_beside_and_below_those_above() {
        let segment = Segment::new(0);
        assert_eq!(segment.free_buses(0, 255), Ok(1..=255));
        add(&segment, 0, 1, 1..=6);
        add(&segment, 0, 2, 9..=9);
        assert_eq!(segment.free_buses(0, 2), Ok(7..=8));
        assert_eq!(segment.free_buses(0, 3), Ok(10..=12));
        assert_eq!(segment.free_buses(0, 247), Err(246));
        assert_eq!(segment.free_buses(1, 5), Ok(2..=6));
        assert_eq!(segment.free_buses(1, 6), Err(5));
        add(&segment, 1, 0, 2..=4);
        assert_eq!(segment.free_buses(1, 2), Ok(5..=6));
        assert_eq!(segment.free_buses(2, 3), Err(2));
        assert_eq!(segment.free_buses(9, 1), Err(0));
        let small = Segment::with_last_bus(0, 15);
        assert_eq!(small.free_buses(0, 16), Err(15));
        add(&small, 0, 1, 1..=15);
    }

    #[test]
    fn the_buses_of_a_bridge_go_with_it() {
        let segment = Segment::new(0);
        add(&segment, 0, 1, 1..=3);
        add(&segment, 1, 0, 2..=3);
        let [root, below] = [FunctionAddress::new(0, 0, 1, 0), FunctionAddress::new(0, 1, 0, 0)];
        for bridge in [below, root] {
            assert!(segment.remove(bridge).is_some());
            assert_eq!(segment.below(bridge), []);
        }
        assert_eq!(segment.free_buses(0, 255), Ok(1..=255));
        add(&segment, 0, 7, 1..=255);
    }
}
