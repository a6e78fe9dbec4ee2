//! Where BARs and the windows of bridges go before the guest runs, and which numbers buses have.
//!
//! A guest without firmware finds them assigned; an operating system may move them. Each BAR is aligned to its size, so
//! placing them by falling alignment leaves no gaps but the one below the largest, which smaller ones fill. What is
//! below a bridge is put together first, from the bottom up, and then is one block to the bus above.

mod free;
mod late;

use crate::bar::{Bar, BarKind};
use crate::bridge::{BridgeWindows, IO_GRANULARITY, MEMORY_GRANULARITY};
use crate::segment::Segment;
use free::Free;
pub use late::place_late;
use machine::bus::Range;
use machine::effect::FunctionAddress;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use thiserror::Error;

/// The address ranges that a segment hands out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Memory below 4 GiB.
    pub memory32: Option<Range>,
    /// Memory above 4 GiB, for prefetchable windows of bridges, and for 64-bit BARs on bus 0: there, no bridge could
    /// tell prefetchable ones from others.
    pub memory64: Option<Range>,
    /// I/O ports.
    pub io: Option<Range>,
}

/// Address space that a bridge keeps for what is plugged in below it while the guest runs, in bytes, apart from what is
/// there at the start. Rounded up to what a bridge's window can express.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// I/O ports.
    pub io: u64,
    /// Memory below 4 GiB: BARs that are not prefetchable, or have 32 bits.
    pub memory: u64,
    /// Prefetchable memory, above 4 GiB if there is room: prefetchable 64-bit BARs.
    pub prefetchable: u64,
}

/// Something that has no place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{what} needs {} of {space}, of which {} in all are asked for and {} are there: use fewer devices on this PCI \
     segment, keep less for hotplug, or put some on another",
    human(*.size), human(*.wanted), human(*.available)
)]
pub struct PlanError {
    /// What it is, in words.
    pub what: String,
    /// How much it needs, in bytes.
    pub size: u64,
    /// What kind of address space, in words.
    pub space: &'static str,
    /// How much is wanted of that space, in bytes.
    pub wanted: u64,
    /// How much the segment has, in bytes.
    pub available: u64,
}

/// The windows a bridge has, one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    Io,
    Memory,
    Prefetchable,
}

const SPACES: [Space; 3] = [Space::Io, Space::Memory, Space::Prefetchable];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Bar(FunctionAddress, Bar),
    /// A window of the bridge, of which the bus right below is given too.
    Window(FunctionAddress, u8),
    /// Kept for hotplug.
    Spare,
}

/// Something that wants an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    what: What,
    space: Space,
    size: u64,
    /// A power of two.
    align: u64,
}

impl Item {
    /// A BAR of a function on bus 0, or below a bridge.
    fn bar(function: FunctionAddress, bar: Bar) -> Self {
        let space = match bar.kind {
            BarKind::Io => Space::Io,
            BarKind::Memory64 { prefetchable } if prefetchable || function.bus() == 0 => Space::Prefetchable,
            _ => Space::Memory,
        };
        Self { what: What::Bar(function, bar), space, size: bar.size, align: bar.size }
    }

    /// Address space in which BARs find room that are together as large.
    fn spare(space: Space, size: u64) -> Option<Self> {
        let size = round_up(size, granularity(space));
        let align = 1u64.checked_shl(size.checked_ilog2()?).unwrap_or(1);
        Some(Self { what: What::Spare, space, size, align })
    }
}

/// What is in a window of a bridge: items with their offsets.
#[derive(Clone, Debug, Default)]
struct Block {
    items: Vec<(Item, u64)>,
    size: u64,
    align: u64,
}

impl Block {
    /// Items one after the other, those of the largest alignment first.
    fn new(mut items: Vec<Item>, granularity: u64) -> Self {
        sort(&mut items);
        let align = items.first().map_or(granularity, |first| first.align.max(granularity));
        let mut end = 0;
        let place = |item: Item| {
            let offset = round_up(end, item.align);
            end = offset.saturating_add(item.size);
            (item, offset)
        };
        let items = items.into_iter().map(place).collect();
        Self { items, size: round_up(end, granularity), align }
    }
}

/// Stable: equal ones stay in the order of their functions.
fn sort(items: &mut [Item]) {
    items.sort_by_key(|item| (Reverse(item.align), Reverse(item.size)));
}

fn granularity(space: Space) -> u64 {
    if space == Space::Io { IO_GRANULARITY } else { MEMORY_GRANULARITY }
}

/// The lowest multiple of `to` (a power of two) that is not below `value`; all ones if there is none, which fits nowhere.
fn round_up(value: u64, to: u64) -> u64 {
    value.checked_next_multiple_of(to).unwrap_or(u64::MAX)
}

/// Chooses addresses for the BARs and bridge windows of `segment`, numbers its buses as their homes are, and sets the
/// registers so. Bridges are open then; functions decode nothing yet.
///
/// Wide BARs and prefetchable windows go above 4 GiB, or below when there is no room above. I/O BARs below a bridge
/// without an I/O window get no address: functions of PCI Express work without.
///
/// # Errors
/// When something does not fit; it is named with how much there is. Nothing is then changed.
pub fn place(segment: &Segment, windows: Windows) -> Result<(), PlanError> {
    let plan = Plan::new(segment);
    let mut addresses = Addresses::default();
    for (item, address) in assign(plan.root(), windows)? {
        addresses.put(&plan.blocks, item, address);
    }
    for (function, handle) in segment.functions() {
        let mut handle = handle.lock().unwrap_or_else(PoisonError::into_inner);
        let bars: Vec<_> = handle.config().bars().map(|bar| bar.number).collect();
        for number in bars {
            let address = addresses.bars.get(&(function, number)).copied().unwrap_or(0);
            handle.config_mut().set_bar_address(number, address);
        }
    }
    for (&below, bridge) in &segment.bridges() {
        let address = FunctionAddress { segment: segment.number(), bdf: bridge.home };
        let Some(function) = segment.get(address) else { continue };
        let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
        let window = |space| addresses.windows.get(&(below, space)).copied();
        function.config_mut().set_buses(address.bus(), below, bridge.last);
        function.config_mut().set_windows(BridgeWindows {
            io: window(Space::Io),
            memory: window(Space::Memory),
            prefetchable: window(Space::Prefetchable),
        });
    }
    segment.find_routes();
    Ok(())
}

/// Checks that there is room for what is in `segment`, as for [`place`].
///
/// # Errors
/// When something does not fit; it is named with how much there is.
pub fn check(segment: &Segment, windows: Windows) -> Result<(), PlanError> {
    let plan = Plan::new(segment);
    assign(plan.root(), windows).map(drop)
}

/// What each bus has to place.
struct Plan {
    /// The BARs, by bus.
    bars: BTreeMap<u8, Vec<Item>>,
    /// The bridges on each bus: their homes, and the buses below.
    bridges: Vec<(FunctionAddress, u8)>,
    /// What is in each window of a bridge, by the bus right below.
    blocks: BTreeMap<(u8, Space), Block>,
}

impl Plan {
    fn new(segment: &Segment) -> Self {
        let mut plan = Self { bars: BTreeMap::new(), bridges: Vec::new(), blocks: BTreeMap::new() };
        let mut passes_io = BTreeMap::new();
        for (address, function) in segment.functions() {
            let function = function.lock().unwrap_or_else(PoisonError::into_inner);
            passes_io.insert(address.bdf, function.config().has_io_window());
            let bars = function.config().bars().map(|bar| Item::bar(address, bar));
            plan.bars.entry(address.bus()).or_default().extend(bars);
        }
        // Descending: what is below a bridge has a higher number.
        for (&below, bridge) in segment.bridges().iter().rev() {
            let items = plan.items(below);
            let keep = bridge.reserve;
            let keep = [
                (Space::Io, keep.io),
                (Space::Memory, keep.memory),
                (Space::Prefetchable, keep.prefetchable),
            ];
            let keep: Vec<_> =
                keep.into_iter().filter_map(|(space, size)| Item::spare(space, size)).collect();
            for space in SPACES {
                if space == Space::Io && passes_io.get(&bridge.home) != Some(&true) {
                    continue;
                }
                let items = items.iter().chain(&keep).filter(|item| item.space == space).copied().collect();
                plan.blocks.insert((below, space), Block::new(items, granularity(space)));
            }
            plan.bridges.push((FunctionAddress { segment: segment.number(), bdf: bridge.home }, below));
        }
        plan
    }

    /// What is on bus 0.
    fn root(&self) -> Vec<Item> {
        self.items(0).into_iter().filter(|item| item.size > 0).collect()
    }

    /// What is on a bus: BARs, and the windows of the bridges there, whose blocks are known.
    fn items(&self, bus: u8) -> Vec<Item> {
        let mut items = self.bars.get(&bus).cloned().unwrap_or_default();
        for &(bridge, below) in self.bridges.iter().rev().filter(|(bridge, _)| bridge.bus() == bus) {
            for space in SPACES {
                if let Some(block) = self.blocks.get(&(below, space)).filter(|block| block.size > 0) {
                    let what = What::Window(bridge, below);
                    items.push(Item { what, space, size: block.size, align: block.align });
                }
            }
        }
        items
    }
}

/// The addresses chosen.
#[derive(Default)]
struct Addresses {
    bars: BTreeMap<(FunctionAddress, u8), u64>,
    windows: BTreeMap<(u8, Space), Range>,
}

impl Addresses {
    fn put(&mut self, blocks: &BTreeMap<(u8, Space), Block>, item: Item, address: u64) {
        match item.what {
            What::Bar(function, bar) => {
                self.bars.insert((function, bar.number), address);
            }
            What::Window(_, below) => {
                self.windows.insert((below, item.space), Range { start: address, size: item.size });
                let Some(block) = blocks.get(&(below, item.space)) else { return };
                for &(inner, offset) in &block.items {
                    self.put(blocks, inner, address.saturating_add(offset));
                }
            }
            What::Spare => {}
        }
    }
}

/// Chooses addresses for what is on bus 0.
fn assign(mut items: Vec<Item>, windows: Windows) -> Result<Vec<(Item, u64)>, PlanError> {
    sort(&mut items);
    let mut memory32 = Free::new(windows.memory32);
    let mut memory64 = Free::new(windows.memory64);
    let mut io = Free::new(windows.io);
    let mut assigned = Vec::with_capacity(items.len());
    let mut remaining = Vec::new();
    for &item in &items {
        match item.space {
            Space::Prefetchable => match memory64.take(item.size, item.align) {
                Some(address) => assigned.push((item, address)),
                None => remaining.push(item),
            },
            _ => remaining.push(item),
        }
    }
    // By falling alignment again, so that wide ones left over do not break the alignment of the others.
    for item in remaining {
        let space = if item.space == Space::Io { &mut io } else { &mut memory32 };
        let address = space.take(item.size, item.align).ok_or_else(|| refusal(item, &items, windows))?;
        assigned.push((item, address));
    }
    Ok(assigned)
}

fn refusal(item: Item, all: &[Item], windows: Windows) -> PlanError {
    let (space, window) = match item.space {
        Space::Io => ("I/O ports", windows.io),
        Space::Prefetchable if windows.memory64.is_some() => ("64-bit memory", windows.memory64),
        _ => ("32-bit memory", windows.memory32),
    };
    let same = all.iter().filter(|other| match windows.memory64 {
        Some(_) => other.space == item.space,
        None => (other.space == Space::Io) == (item.space == Space::Io),
    });
    let what = match item.what {
        What::Bar(function, bar) => format!("BAR {} of PCI function {function}", bar.number),
        What::Window(bridge, _) => format!("what is below the PCI port {bridge}"),
        What::Spare => "space for hotplug".to_owned(),
    };
    PlanError {
        what,
        size: item.size,
        space,
        wanted: same.fold(0, |sum, other| sum.saturating_add(other.size)),
        available: window.map_or(0, |window| window.size),
    }
}

/// A size as people write it.
fn human(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(log2, _)| bytes != 0 && bytes.trailing_zeros() >= *log2) {
        Some((log2, name)) => format!("{} {name}", bytes.wrapping_shr(log2)),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests;
