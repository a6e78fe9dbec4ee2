//! Where BARs go before the guest runs.
//!
//! A guest without firmware finds its BARs assigned; an operating system may move them. Each BAR is aligned to
//! its size, so placing them by falling size leaves no gaps but the one below the largest, which smaller ones fill.

use crate::bar::{Bar, BarKind};
use crate::function::FunctionHandle;
use machine::bus::Range;
use machine::effect::FunctionAddress;
use std::cmp::Reverse;
use std::sync::PoisonError;
use thiserror::Error;

/// The address ranges that a segment hands out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Memory below 4 GiB.
    pub memory32: Option<Range>,
    /// Memory above 4 GiB, for 64-bit BARs, prefetchable or not: on the root bus there is no bridge that could
    /// tell them apart.
    pub memory64: Option<Range>,
    /// I/O ports.
    pub io: Option<Range>,
}

/// A BAR that wants an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose BAR it is.
    pub function: FunctionAddress,
    /// The BAR.
    pub bar: Bar,
}

/// A BAR and the address chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Whose BAR it is.
    pub function: FunctionAddress,
    /// The BAR.
    pub bar: Bar,
    /// Its address, a multiple of its size.
    pub address: u64,
}

/// A BAR that has no place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "BAR {} of PCI function {function} needs {} of {space}, of which {} in all are asked for and {} are there: \
     use fewer devices on this PCI segment, or put some on another",
    .bar.number, size(.bar.size), size(*.wanted), size(*.available)
)]
pub struct PlanError {
    /// Whose BAR it is.
    pub function: FunctionAddress,
    /// The BAR.
    pub bar: Bar,
    /// What kind of address space, in words.
    pub space: &'static str,
    /// How much all BARs of that space want, in bytes.
    pub wanted: u64,
    /// How much the segment has, in bytes.
    pub available: u64,
}

/// Chooses addresses for all `requests`.
///
/// 64-bit BARs go above 4 GiB, or below when there is no room above.
///
/// # Errors
/// When one does not fit; it is named with how much there is.
pub fn assign(requests: &[Request], windows: Windows) -> Result<Vec<Assignment>, PlanError> {
    let mut requests = requests.to_vec();
    // Stable: equal sizes stay in the order of their functions.
    requests.sort_by_key(|request| Reverse(request.bar.size));
    let mut memory32 = Free::new(windows.memory32);
    let mut memory64 = Free::new(windows.memory64);
    let mut io = Free::new(windows.io);
    let mut assignments = Vec::with_capacity(requests.len());
    let mut remaining = Vec::new();
    for &request in &requests {
        match request.bar.kind {
            BarKind::Memory64 { .. } => match memory64.take(request.bar.size) {
                Some(address) => assignments.push(request.at(address)),
                None => remaining.push(request),
            },
            _ => remaining.push(request),
        }
    }
    // By falling size again, so that 64-bit BARs left over do not break the alignment of the others.
    for &request in &remaining {
        let space = if request.bar.kind == BarKind::Io { &mut io } else { &mut memory32 };
        let address = space.take(request.bar.size).ok_or_else(|| refusal(request, &requests, windows))?;
        assignments.push(request.at(address));
    }
    Ok(assignments)
}

/// Chooses addresses for the BARs of `functions` and points them there.
///
/// # Errors
/// As [`assign`]; no BAR is then changed.
pub fn place(functions: &[(FunctionAddress, FunctionHandle)], windows: Windows) -> Result<(), PlanError> {
    let mut requests = Vec::new();
    for (address, function) in functions {
        let function = function.lock().unwrap_or_else(PoisonError::into_inner);
        requests.extend(function.config().bars().map(|bar| Request { function: *address, bar }));
    }
    for assignment in assign(&requests, windows)? {
        if let Some((_, function)) = functions.iter().find(|(address, _)| *address == assignment.function) {
            let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
            function.config_mut().set_bar_address(assignment.bar.number, assignment.address);
        }
    }
    Ok(())
}

impl Request {
    fn at(self, address: u64) -> Assignment {
        Assignment { function: self.function, bar: self.bar, address }
    }
}

/// The free parts of a window, by address, first and last address of each.
struct Free(Vec<(u64, u64)>);

impl Free {
    fn new(window: Option<Range>) -> Self {
        // Address 0 means "not placed" in a BAR.
        let free = window.filter(|window| window.size > 0).map(|window| (window.start.max(1), window.last()));
        Self(free.into_iter().collect())
    }

    /// The lowest free address that is a multiple of `size`, with `size` free addresses. What alignment leaves
    /// below stays free for smaller ones.
    fn take(&mut self, size: u64) -> Option<u64> {
        let rest = size.checked_sub(1)?;
        let found = self.0.iter().enumerate().find_map(|(index, &(first, last))| {
            let address = first.checked_next_multiple_of(size)?;
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

fn refusal(request: Request, all: &[Request], windows: Windows) -> PlanError {
    let wide = |request: &Request| matches!(request.bar.kind, BarKind::Memory64 { .. });
    let (space, window) = match request.bar.kind {
        BarKind::Io => ("I/O ports", windows.io),
        BarKind::Memory64 { .. } if windows.memory64.is_some() => ("64-bit memory", windows.memory64),
        _ => ("32-bit memory", windows.memory32),
    };
    let same = all.iter().filter(|other| {
        other.bar.kind.space() == request.bar.kind.space()
            && (windows.memory64.is_none() || wide(other) == wide(&request))
    });
    PlanError {
        function: request.function,
        bar: request.bar,
        space,
        wanted: same.fold(0, |sum, other| sum.saturating_add(other.bar.size)),
        available: window.map_or(0, |window| window.size),
    }
}

/// A size as people write it.
fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(log2, _)| bytes != 0 && bytes.trailing_zeros() >= *log2) {
        Some((log2, name)) => format!("{} {name}", bytes.wrapping_shr(log2)),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(device: u8, number: u8, kind: BarKind, size: u64) -> Request {
        Request { function: FunctionAddress::new(0, 0, device, 0), bar: Bar { number, kind, size } }
    }

    const WINDOWS: Windows = Windows {
        memory32: Some(Range { start: 0xc000_0000, size: 0x2000_0000 }),
        memory64: Some(Range { start: 1 << 40, size: 1 << 40 }),
        io: Some(Range { start: 0x1000, size: 0xf000 }),
    };
    const WIDE: BarKind = BarKind::Memory64 { prefetchable: true };
    const NARROW: BarKind = BarKind::Memory32 { prefetchable: false };

    #[test]
    fn a_refusal_names_the_function_the_bar_and_the_sizes() {
        let requests = [request(3, 2, NARROW, 1 << 29), request(4, 0, NARROW, 1 << 28)];
        let error = assign(&requests, WINDOWS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "BAR 0 of PCI function 0000:00:04.0 needs 256 MiB of 32-bit memory, of which 768 MiB in all are asked \
             for and 512 MiB are there: use fewer devices on this PCI segment, or put some on another"
        );
    }

    #[test]
    fn huge_and_fallback_placements() {
        let requests = [request(1, 0, WIDE, 4096), request(2, 0, WIDE, 256 << 30)];
        let found = assign(&requests, WINDOWS).unwrap();
        assert_eq!((found[0].bar.size, found[0].address), (256 << 30, 1 << 40), "the largest comes first");
        assert_eq!(found[1].address, (1 << 40) + (256 << 30));

        let below = assign(&requests[..1], Windows { memory64: None, ..WINDOWS }).unwrap();
        assert_eq!(below[0].address, 0xc000_0000, "without room above, a 64-bit BAR goes below");
    }

    #[test]
    fn a_window_that_ends_the_address_space_is_used_to_its_end() {
        let windows = Windows { memory64: Some(Range { start: u64::MAX - 0x1fff, size: 0x2000 }), ..WINDOWS };
        let requests = [request(1, 0, WIDE, 4096), request(2, 0, WIDE, 4096), request(3, 0, WIDE, 4096)];
        let addresses: Vec<_> = assign(&requests, windows).unwrap().iter().map(|a| a.address).collect();
        assert_eq!(addresses, [u64::MAX - 0x1fff, u64::MAX - 0xfff, 0xc000_0000]);
    }

    #[test]
    fn small_bars_fill_what_a_large_one_s_alignment_leaves() {
        let memory64 = Some(Range { start: 5 << 30, size: 11 << 30 });
        let requests =
            [request(1, 0, WIDE, 8 << 30), request(2, 0, WIDE, 1 << 30), request(3, 0, WIDE, 2 << 30)];
        let addresses: Vec<_> = assign(&requests, Windows { memory64, ..WINDOWS }).unwrap();
        let addresses: Vec<_> =
            addresses.iter().map(|found| (found.bar.size >> 30, found.address >> 30)).collect();
        assert_eq!(addresses, [(8, 8), (2, 6), (1, 5)]);
    }

    proptest! {
        #[test]
        fn placements_are_aligned_disjoint_and_inside(
            bars in prop::collection::vec((0u8..32, 0u8..3, 4u32..30), 0..40),
            shift in 0u64..0x10_0000,
        ) {
            // Windows need not begin at a multiple of anything.
            let windows = Windows {
                memory64: Some(Range { start: (1 << 40) + shift, size: 1 << 40 }),
                memory32: Some(Range { start: 0xc000_0000 + shift, size: 0x2000_0000 }),
                ..WINDOWS
            };
            let requests: Vec<_> = bars.iter().zip(0u8..).map(|(&(device, kind, log2), number)| match kind {
                0 => request(device, number, BarKind::Io, 1 << log2.min(8)),
                1 => request(device, number, NARROW, 1 << log2.min(22)),
                _ => request(device, number, WIDE, 1 << log2),
            }).collect();
            let found = assign(&requests, windows).unwrap();
            prop_assert_eq!(found.len(), requests.len());
            for (i, a) in found.iter().enumerate() {
                let request = Request { function: a.function, bar: a.bar };
                prop_assert!(requests.contains(&request));
                prop_assert_eq!(a.address % a.bar.size, 0);
                let window = match a.bar.kind {
                    BarKind::Io => windows.io,
                    BarKind::Memory64 { .. } => windows.memory64,
                    _ => windows.memory32,
                }.unwrap();
                prop_assert!(window.start <= a.address && a.address + a.bar.size <= window.start + window.size);
                for b in &found[i + 1..] {
                    let disjoint = a.address + a.bar.size <= b.address || b.address + b.bar.size <= a.address;
                    prop_assert!(disjoint || a.bar.kind.space() != b.bar.kind.space());
                }
            }
        }
    }
}
