//! Where a bridge lets accesses through that comes while the guest runs.

use super::free::Free;
use super::{Plan, SPACES, Space, Windows};
use crate::bar::BarKind;
use crate::bridge::BridgeWindows;
use crate::segment::Segment;
use machine::bus::Range;
use machine::effect::FunctionAddress;
use std::ops::RangeInclusive;
use std::sync::PoisonError;

/// Numbers the buses of `bridge`, which has come to bus 0 and has nothing below it, and opens windows for what it keeps, as firmware
/// does that sees it come: where the registers of the others on bus 0 say that nothing is. The guest may have moved those; where
/// nothing is left, the numbers are 0 or a window is closed, and the guest is to see to it.
pub fn place_late(segment: &Segment, bridge: FunctionAddress, windows: Windows) {
    let bridges = segment.bridges();
    let Some((&below, own)) = bridges.iter().find(|(_, own)| own.home == bridge.bdf) else { return };
    let Some(function) = segment.get(bridge) else { return };
    let taken = Taken::beside(segment, bridge);
    let mut memory32 = beside(windows.memory32, &taken.memory);
    let mut memory64 = beside(windows.memory64, &taken.memory);
    let mut io = beside(windows.io, &taken.io);
    let plan = Plan::new(segment);
    let mut window = |space| {
        let block = plan.blocks.get(&(below, space)).filter(|block| block.size > 0)?;
        let take = |free: &mut Free| free.take(block.size, block.align);
        let start = match space {
            Space::Io => take(&mut io),
            Space::Memory => take(&mut memory32),
            Space::Prefetchable => take(&mut memory64).or_else(|| take(&mut memory32)),
        };
        Some(Range { start: start?, size: block.size })
    };
    let [io, memory, prefetchable] = SPACES.map(&mut window);
    let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
    let config = function.config_mut();
    if !taken.buses.iter().any(|buses| *buses.start() <= own.last && below <= *buses.end()) {
        config.set_buses(bridge.bus(), below, own.last);
    }
    config.set_windows(BridgeWindows { io, memory, prefetchable });
    drop(function);
    segment.find_routes();
}

/// What the registers of the functions on bus 0 say that they take.
#[derive(Default)]
struct Taken {
    memory: Vec<Range>,
    io: Vec<Range>,
    buses: Vec<RangeInclusive<u8>>,
}

impl Taken {
    /// By all but `bridge`.
    fn beside(segment: &Segment, bridge: FunctionAddress) -> Self {
        let mut taken = Self::default();
        let functions = segment.functions().into_iter();
        for (_, function) in functions.filter(|(address, _)| address.bus() == 0 && *address != bridge) {
            let function = function.lock().unwrap_or_else(PoisonError::into_inner);
            let config = function.config();
            for bar in config.bars() {
                let range = config.bar_address(bar.number).map(|start| Range { start, size: bar.size });
                let ranges = if bar.kind == BarKind::Io { &mut taken.io } else { &mut taken.memory };
                ranges.extend(range);
            }
            if config.forwarding().is_some() {
                let windows = config.windows();
                taken.io.extend(windows.io);
                taken.memory.extend(windows.memory.into_iter().chain(windows.prefetchable));
                taken.buses.extend(config.numbered());
            }
        }
        taken
    }
}

/// What of a window is beside what is taken.
fn beside(window: Option<Range>, taken: &[Range]) -> Free {
    let mut free = Free::new(window);
    taken.iter().for_each(|range| free.exclude(*range));
    free
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Reserve, check, place};
    use crate::port::{Port, PortKind, PortOptions};
    use machine::interrupt::recording::Sources;
    use std::sync::{Arc, Mutex};

    const WINDOWS: Windows = Windows {
        memory32: Some(Range { start: 0xc000_0000, size: 0x100_0000 }),
        memory64: Some(Range { start: 1 << 40, size: 8 << 30 }),
        io: Some(Range { start: 0x1000, size: 0xf000 }),
    };

    fn add(segment: &Segment, device: u8, buses: RangeInclusive<u8>, reserve: Reserve) -> Arc<Mutex<Port>> {
        let options = PortOptions { kind: PortKind::Root, port: device, slot: Some(1), io: reserve.io > 0 };
        let port = Arc::new(Mutex::new(Port::new(options, Arc::new(Sources::default()), None).unwrap()));
        let address = FunctionAddress::new(0, 0, device, 0);
        segment.insert_bridge(address, port.clone(), buses, reserve).unwrap();
        port
    }

    fn forwarding(port: &Mutex<Port>) -> (Option<RangeInclusive<u8>>, BridgeWindows) {
        use crate::function::Function;
        let port = port.lock().unwrap();
        (port.config().numbered(), port.config().windows())
    }

    #[test]
    fn a_port_that_comes_late_gets_what_nobody_has() {
        let segment = Segment::new(0);
        let reserve = Reserve { io: 4096, memory: 2 << 20, prefetchable: 1 << 30 };
        let first = add(&segment, 1, 1..=1, reserve);
        place(&segment, WINDOWS).unwrap();
        let (_, before) = forwarding(&first);
        let late = add(&segment, 2, 2..=4, reserve);
        assert_eq!(check(&segment, WINDOWS), Ok(()));
        place_late(&segment, FunctionAddress::new(0, 0, 2, 0), WINDOWS);
        let range = |start, size| Some(Range { start, size });
        let expected = BridgeWindows {
            io: range(0x2000, 4096),
            memory: range(0xc020_0000, 2 << 20),
            prefetchable: range((1 << 40) + (1 << 30), 1 << 30),
        };
        assert_eq!(forwarding(&late), (Some(2..=4), expected));
        assert_eq!(forwarding(&first), (Some(1..=1), before), "that of the others stays");
    }

    #[test]
    fn what_a_guest_has_put_somewhere_is_left_to_it() {
        let segment = Segment::new(0);
        let reserve = Reserve { io: 0, memory: 2 << 20, prefetchable: 8 << 30 };
        let first = add(&segment, 1, 1..=1, Reserve { prefetchable: 0, ..reserve });
        place(&segment, WINDOWS).unwrap();
        {
            use crate::function::Function;
            let mut first = first.lock().unwrap();
            // It reaches over the numbers that the other would have, and has moved its windows.
            first.config_mut().set_buses(0, 1, 9);
            let [memory, prefetchable] = [(0xc000_0000, 0x100_0000), (1 << 40, 1 << 20)];
            let range = |(start, size)| Some(Range { start, size });
            first.config_mut().set_windows(BridgeWindows {
                io: None,
                memory: range(memory),
                prefetchable: range(prefetchable),
            });
        }
        let late = add(&segment, 2, 2..=2, reserve);
        place_late(&segment, FunctionAddress::new(0, 0, 2, 0), WINDOWS);
        assert_eq!(forwarding(&late), (None, BridgeWindows::default()));
        let third = add(&segment, 3, 3..=3, Reserve { prefetchable: 9 << 30, ..reserve });
        let refusal = check(&segment, WINDOWS).unwrap_err();
        assert!(refusal.what.contains("0000:00:0"), "{refusal}");
        drop(third);
    }
}
