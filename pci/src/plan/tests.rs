//! Placement of BARs and of what is below bridges.

use super::*;
use proptest::prelude::*;

fn request(device: u8, number: u8, kind: BarKind, size: u64) -> Item {
    Item::bar(FunctionAddress::new(0, 0, device, 0), Bar { number, kind, size })
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
    let error = assign(requests.to_vec(), WINDOWS).unwrap_err();
    assert_eq!(
        error.to_string(),
        "BAR 0 of PCI function 0000:00:04.0 needs 256 MiB of 32-bit memory, of which 768 MiB in all are asked \
         for and 512 MiB are there: use fewer devices on this PCI segment, keep less for hotplug, or put some on another"
    );
}

#[test]
fn huge_and_fallback_placements() {
    let requests = [request(1, 0, WIDE, 4096), request(2, 0, WIDE, 256 << 30)];
    let found = assign(requests.to_vec(), WINDOWS).unwrap();
    assert_eq!((found[0].0.size, found[0].1), (256 << 30, 1 << 40), "the largest comes first");
    assert_eq!(found[1].1, (1 << 40) + (256 << 30));

    let below = assign(requests[..1].to_vec(), Windows { memory64: None, ..WINDOWS }).unwrap();
    assert_eq!(below[0].1, 0xc000_0000, "without room above, a 64-bit BAR goes below");
}

#[test]
fn a_window_that_ends_the_address_space_is_used_to_its_end() {
    let windows = Windows { memory64: Some(Range { start: u64::MAX - 0x1fff, size: 0x2000 }), ..WINDOWS };
    let requests = [request(1, 0, WIDE, 4096), request(2, 0, WIDE, 4096), request(3, 0, WIDE, 4096)];
    let addresses: Vec<_> =
        assign(requests.to_vec(), windows).unwrap().iter().map(|(_, address)| *address).collect();
    assert_eq!(addresses, [u64::MAX - 0x1fff, u64::MAX - 0xfff, 0xc000_0000]);
}

#[test]
fn small_bars_fill_what_a_large_one_s_alignment_leaves() {
    let memory64 = Some(Range { start: 5 << 30, size: 11 << 30 });
    let requests = [request(1, 0, WIDE, 8 << 30), request(2, 0, WIDE, 1 << 30), request(3, 0, WIDE, 2 << 30)];
    let addresses: Vec<_> = assign(requests.to_vec(), Windows { memory64, ..WINDOWS }).unwrap();
    let addresses: Vec<_> = addresses.iter().map(|found| (found.0.size >> 30, found.1 >> 30)).collect();
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
    let found = assign(requests.to_vec(), windows).unwrap();
    prop_assert_eq!(found.len(), requests.len());
    for (i, (a, at)) in found.iter().enumerate() {
            prop_assert!(requests.contains(a));
            prop_assert_eq!(at % a.size, 0);
            let window = match a.space {
                Space::Io => windows.io,
                Space::Prefetchable => windows.memory64,
                Space::Memory => windows.memory32,
            }.unwrap();
            prop_assert!(window.start <= *at && at + a.size <= window.start + window.size);
            for (b, other) in &found[i + 1..] {
                let disjoint = at + a.size <= *other || other + b.size <= *at;
                prop_assert!(disjoint || a.space != b.space);
            }
        }
    }
}
