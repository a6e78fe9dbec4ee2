//! The guest-physical map.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0` | `0x9_fc00` | RAM; holds the boot data of the constants below until the kernel takes it over |
//! | `0x9_fc00` | `0xa_0000` | RAM, reserved: the extended BIOS data area |
//! | `0xa_0000` | `0xc_0000` | RAM, reserved: where a VGA frame buffer would be |
//! | `0xc_0000` | `0xf_0000` | RAM, reserved: ACPI tables, the RSDP at their end |
//! | `0xf_0000` | `0x10_0000` | RAM, reserved: SMBIOS tables |
//! | `0x10_0000` | 3 GiB or end of RAM | RAM: kernel, initramfs |
//! | `0xc000_0000` | `0xe000_0000` | 32-bit BARs, divided among the PCI segments |
//! | `0xe000_0000` | `0xf000_0000` | ECAM of PCI segment 0 |
//! | `0xfec0_0000` | `0xfec0_1000` | I/O APIC |
//! | `0xfee0_0000` | `0xfef0_0000` | local APICs and message-signalled interrupts |
//! | [`RESERVED_START`] | +16 KiB | what KVM needs for itself on older Intel CPUs |
//! | 4 GiB | | the rest of RAM |
//! | above RAM | | space for RAM added later, ECAMs of further PCI segments, 64-bit BARs |
//!
//! On AMD CPUs the 12 GiB below 1 TiB belong to HyperTransport and cannot be a target of DMA through the
//! host's IOMMU, so nothing is placed there.

use machine::bus::Range;
use machine::memory::GuestAddress;
use thiserror::Error;

use crate::layout::size;
pub use crate::layout::{SegmentShare, SegmentWindows};
pub use hypervisor::x86_64::{RESERVED_SIZE, RESERVED_START};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 * GIB;

/// Size of a page, and of the units RAM comes in, in bytes.
pub const PAGE_SIZE: u64 = 4 * KIB;

/// Global descriptor table for the kernel's entry; 64 bytes.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// PVH's start information, its module list and memory map; to [`ZERO_PAGE`].
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// Linux's `boot_params`; one page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Page tables for the 64-bit Linux entry: one level-4 table, one level-3 table, up to three level-2 tables.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line, NUL-terminated.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Bytes at [`COMMAND_LINE`], the NUL included.
pub const COMMAND_LINE_SIZE: u64 = 64 * KIB;
/// The extended BIOS data area: the end of usable RAM below 1 MiB.
pub const EBDA: u64 = 0x9_fc00;
/// The end of the EBDA, and what a PC keeps for frame buffer and firmware from there to [`HIGH_RAM`].
pub const EBDA_END: u64 = 0xa_0000;
/// ACPI tables other than the RSDP; up to [`ACPI_RSDP`].
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xc_0000);
/// ACPI's root pointer, where the BIOS area is searched for it (ACPI 6.5, 5.2.5.1). 48 bytes.
pub const ACPI_RSDP: GuestAddress = GuestAddress(0xe_ffc0);
/// The virtual machine's generation id: 16 bytes, after the root pointer.
pub const GENERATION_ID: GuestAddress = GuestAddress(ACPI_RSDP.0 + 0x30);
/// SMBIOS entry point and structures, where the BIOS area is searched for them (SMBIOS 3.7, 5.2.2).
pub const SMBIOS: GuestAddress = GuestAddress(0xf_0000);
/// Bytes at [`SMBIOS`].
pub const SMBIOS_SIZE: u64 = RESET_VECTOR.0 - SMBIOS.0;
/// Where a processor begins in real mode, below 1 MiB. 16 bytes.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// RAM from here is free for the kernel.
pub const HIGH_RAM: u64 = MIB;

/// The hole below 4 GiB starts here; RAM continues at 4 GiB.
pub const HOLE_START: u64 = 3 * GIB;
/// The window of all 32-bit BARs.
pub const BARS_32: Range = Range { start: HOLE_START, size: 512 * MIB };
/// Size of a PCI segment's ECAM: 256 buses.
pub const ECAM_SIZE: u64 = 256 * MIB;
/// ECAM of PCI segment 0.
pub const ECAM_0: Range = Range { start: 0xe000_0000, size: ECAM_SIZE };
/// I/O ports for BARs, all in PCI segment 0. Below are the fixed ports of platform devices, and CF8.
pub const BARS_IO: Range = Range { start: 0x1000, size: 0xf000 };
/// The I/O APIC.
pub const IOAPIC: Range = Range { start: 0xfec0_0000, size: 0x1000 };
/// The local APICs, and where message-signalled interrupts are written.
pub const LOCAL_APIC: Range = Range { start: 0xfee0_0000, size: MIB };
/// What AMD CPUs keep for HyperTransport.
const HYPERTRANSPORT: Range = Range { start: 0xfd_0000_0000, size: 0x3_0000_0000 };

/// The most PCI segments that fit.
pub const MAX_SEGMENTS: u16 = 64;
/// Less RAM than this cannot hold boot data and a kernel.
pub const MIN_RAM: u64 = 2 * MIB;
/// 64-bit BAR windows start at and are sized in multiples of this.
const WINDOW_ALIGNMENT: u64 = GIB;
/// Linux with four-level page tables manages memory, device memory included, up to here only.
const PREFERRED_BITS: u8 = 46;

/// What a layout is made for.
#[derive(Clone, Copy, Debug)]
pub struct LayoutRequest {
    /// RAM in bytes, a multiple of [`PAGE_SIZE`].
    pub ram: u64,
    /// Address space to keep for RAM added later, in bytes.
    pub hotplug: u64,
    /// How many address bits the guest's CPUs have: 32 to 52.
    pub phys_bits: u8,
    /// Number of PCI segments, 1 to [`MAX_SEGMENTS`].
    pub segments: u16,
    /// The least space for 64-bit BARs that each segment must get, in bytes. 0 where any will do.
    pub bar_space: u64,
    /// Whether the host's CPU is AMD's (or Hygon's), where HyperTransport's addresses are kept free.
    pub amd: bool,
}

impl LayoutRequest {
    /// A machine with one segment and nothing special.
    pub fn new(ram: u64, phys_bits: u8) -> Self {
        Self { ram, hotplug: 0, phys_bits, segments: 1, bar_space: 0, amd: false }
    }
}

/// Why a machine has no layout.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Too little RAM.
    #[error("{ram} bytes of RAM cannot hold a kernel: give the machine at least {MIN_RAM}")]
    TooSmall {
        /// What was asked for, in bytes.
        ram: u64,
    },
    /// RAM is not a whole number of pages.
    #[error("{size} bytes of RAM are not a multiple of the page size, {PAGE_SIZE}")]
    Unaligned {
        /// What was asked for, in bytes.
        size: u64,
    },
    /// No or too many PCI segments.
    #[error("{segments} PCI segments: the machine can have 1 to {MAX_SEGMENTS}")]
    Segments {
        /// What was asked for.
        segments: u16,
    },
    /// The addresses do not suffice.
    #[error(
        "{} of RAM, {} for RAM added later and {} for PCI devices do not fit in the {phys_bits} physical \
         address bits of the CPU ({}): give the machine less memory or more address bits",
        size(.ram), size(.hotplug), size(.windows), size(.space)
    )]
    DoesNotFit {
        /// RAM asked for, in bytes.
        ram: u64,
        /// Address space kept for RAM added later, in bytes.
        hotplug: u64,
        /// What the PCI segments need above RAM, in bytes.
        windows: u64,
        /// The CPU's physical address bits.
        phys_bits: u8,
        /// What these address, in bytes.
        space: u64,
    },
}

/// Where everything is in one machine's guest-physical address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    ram: Vec<Range>,
    hotplug: Option<Range>,
    segments: Vec<SegmentWindows>,
}

impl MemoryLayout {
    /// Lays out a machine whose segments get equal windows.
    ///
    /// # Errors
    /// As [`MemoryLayout::with_shares`].
    pub fn new(request: &LayoutRequest) -> Result<Self, LayoutError> {
        Self::with_shares(request, &[])
    }

    /// Lays out a machine. Segments beyond the end of `shares` have the default ones.
    ///
    /// # Errors
    /// When something asked for is out of range, or all of it does not fit in the CPU's address bits.
    pub fn with_shares(request: &LayoutRequest, shares: &[SegmentShare]) -> Result<Self, LayoutError> {
        let &LayoutRequest { ram, hotplug, segments, bar_space, .. } = request;
        if ram < MIN_RAM {
            return Err(LayoutError::TooSmall { ram });
        }
        if let Some(size) = [ram, hotplug].into_iter().find(|size| !size.is_multiple_of(PAGE_SIZE)) {
            return Err(LayoutError::Unaligned { size });
        }
        if !(1..=MAX_SEGMENTS).contains(&segments) {
            return Err(LayoutError::Segments { segments });
        }
        let phys_bits = request.phys_bits.clamp(32, 52);
        let further_ecams = u64::from(segments - 1) * ECAM_SIZE;
        let window = bar_space.max(1).checked_next_multiple_of(WINDOW_ALIGNMENT).unwrap_or(u64::MAX);
        let window = u64::max(window, WINDOW_ALIGNMENT);
        let windows = window.saturating_mul(u64::from(segments));
        [phys_bits.min(PREFERRED_BITS), phys_bits]
            .into_iter()
            .find_map(|bits| Self::place(request, shares, 1 << bits, further_ecams, windows))
            .ok_or(LayoutError::DoesNotFit {
                ram,
                hotplug,
                windows: windows.saturating_add(further_ecams),
                phys_bits,
                space: 1 << phys_bits,
            })
    }

    /// Tries to place everything below `end`, with at least `windows` bytes for 64-bit BARs.
    fn place(
        request: &LayoutRequest,
        shares: &[SegmentShare],
        end: u64,
        further_ecams: u64,
        windows: u64,
    ) -> Option<Self> {
        let low = request.ram.min(HOLE_START);
        let mut ram = vec![Range { start: 0, size: low }];
        let mut rest = request.ram - low;
        let mut next = FOUR_GIB;
        if rest > 0 {
            let size = if request.amd { rest.min(HYPERTRANSPORT.start - FOUR_GIB) } else { rest };
            ram.push(Range { start: FOUR_GIB, size });
            next = FOUR_GIB.checked_add(size)?;
            rest -= size;
        }
        if rest > 0 {
            next = HYPERTRANSPORT.last() + 1;
            ram.push(Range { start: next, size: rest });
            next = next.checked_add(rest)?;
        }
        let mut take = |size: u64, alignment: u64| -> Option<Range> {
            let mut range = Range { start: next.checked_next_multiple_of(alignment)?, size };
            if request.amd && range.overlaps(HYPERTRANSPORT) {
                range.start = HYPERTRANSPORT.last() + 1;
            }
            next = range.start.checked_add(size)?;
            Some(range)
        };
        let hotplug = if request.hotplug > 0 { Some(take(request.hotplug, GIB)?) } else { None };
        let ecams = if further_ecams > 0 { take(further_ecams, ECAM_SIZE)?.start } else { 0 };
        let start = next.checked_next_multiple_of(WINDOW_ALIGNMENT)?;
        let space = free_space(start, end, request.amd, windows)?;

        let count = u64::from(request.segments);
        let shares: Vec<_> =
            (0..usize::from(request.segments)).map(|n| shares.get(n).copied().unwrap_or_default()).collect();
        let sum_32: u64 = shares.iter().map(|share| u64::from(share.bars_32)).sum();
        let sum_64: u64 = shares.iter().map(|share| u64::from(share.bars_64)).sum();
        // Each segment has one unit, and its share of the rest.
        let rest = u128::from(space.size - count * WINDOW_ALIGNMENT);
        let (mut next_32, mut next_64) = (BARS_32.start, space.start);
        let segments = (0..count)
            .zip(shares)
            .map(|(n, share)| {
                let size_32 = prev_power_of_two(BARS_32.size * u64::from(share.bars_32) / sum_32);
                let more = rest * u128::from(share.bars_64) / u128::from(sum_64);
                let size_64 = (more as u64 / WINDOW_ALIGNMENT + 1) * WINDOW_ALIGNMENT;
                let windows = SegmentWindows {
                    ecam: Range {
                        start: n.checked_sub(1).map_or(ECAM_0.start, |further| ecams + further * ECAM_SIZE),
                        size: share.ecam_size(),
                    },
                    bars_32: Range { start: next_32, size: size_32 },
                    bars_64: Range { start: next_64, size: size_64 },
                    io: (n == 0).then_some(BARS_IO),
                };
                next_32 += size_32;
                next_64 += size_64;
                windows
            })
            .collect();
        Some(Self { ram, hotplug, segments })
    }

    /// RAM, ascending. The first range starts at 0.
    pub fn ram(&self) -> &[Range] {
        &self.ram
    }

    /// RAM in bytes.
    pub fn ram_size(&self) -> u64 {
        self.ram.iter().map(|range| range.size).sum()
    }

    /// The end of the RAM that starts at 0.
    pub fn low_ram_end(&self) -> u64 {
        self.ram.first().map_or(0, |range| range.size)
    }

    /// Address space kept for RAM added later.
    pub fn hotplug(&self) -> Option<Range> {
        self.hotplug
    }

    /// Windows of each PCI segment, by its number.
    pub fn segments(&self) -> &[SegmentWindows] {
        &self.segments
    }

    /// Divides RAM, from address 0 up, into pieces of the given sizes, such as the zones of a NUMA machine. A piece
    /// that a hole interrupts has several ranges. Sizes beyond the end of RAM get nothing.
    pub fn split_ram(&self, sizes: &[u64]) -> Vec<Vec<Range>> {
        let mut ranges = self.ram.iter().copied();
        let mut current = ranges.next();
        sizes
            .iter()
            .map(|&size| {
                let mut wanted = size;
                let mut piece = Vec::new();
                while wanted > 0 {
                    let Some(range) = &mut current else { break };
                    let taken = wanted.min(range.size);
                    piece.push(Range { start: range.start, size: taken });
                    wanted -= taken;
                    range.start += taken;
                    range.size -= taken;
                    if range.size == 0 {
                        current = ranges.next();
                    }
                }
                piece
            })
            .collect()
    }
}

/// The free run of addresses from `start` to `end` that has at least `needed` bytes: the lowest that does.
fn free_space(start: u64, end: u64, amd: bool, needed: u64) -> Option<Range> {
    let after = HYPERTRANSPORT.last() + 1;
    let runs = if amd && start < after && end > HYPERTRANSPORT.start {
        [(start, HYPERTRANSPORT.start), (after, end)]
    } else {
        [(start, end), (end, end)]
    };
    runs.into_iter()
        .map(|(start, end)| Range { start, size: end.saturating_sub(start) })
        .find(|run| run.size >= needed)
}

fn prev_power_of_two(n: u64) -> u64 {
    n.checked_ilog2().map_or(0, |bit| 1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(request: LayoutRequest) -> MemoryLayout {
        MemoryLayout::new(&request).unwrap()
    }

    /// Everything that has an address, besides what is inside the BIOS area.
    fn occupied(layout: &MemoryLayout) -> Vec<Range> {
        let mut all = layout.ram().to_vec();
        all.extend([IOAPIC, LOCAL_APIC, Range { start: RESERVED_START, size: RESERVED_SIZE }]);
        all.extend(layout.hotplug());
        for segment in layout.segments() {
            all.extend([segment.ecam, segment.bars_32, segment.bars_64]);
        }
        all
    }

    #[test]
    fn ram_goes_around_the_holes() {
        let range = |start, size| Range { start, size };
        assert_eq!(layout(LayoutRequest::new(64 * MIB, 36)).ram(), [range(0, 64 * MIB)]);
        assert_eq!(layout(LayoutRequest::new(3 * GIB, 36)).ram(), [range(0, 3 * GIB)]);
        assert_eq!(
            layout(LayoutRequest::new(3 * GIB + PAGE_SIZE, 36)).ram(),
            [range(0, 3 * GIB), range(4 * GIB, PAGE_SIZE)]
        );
        let amd = LayoutRequest { amd: true, ..LayoutRequest::new(1024 * GIB, 48) };
        assert_eq!(
            layout(amd).ram(),
            [range(0, 3 * GIB), range(4 * GIB, 1008 * GIB), range(1024 * GIB, 13 * GIB)]
        );
        let intel = LayoutRequest::new(1024 * GIB, 48);
        assert_eq!(layout(intel).ram(), [range(0, 3 * GIB), range(4 * GIB, 1021 * GIB)]);
    }

    #[test]
    fn bars_get_the_low_addresses_that_suffice() {
        let amd = LayoutRequest { amd: true, ..LayoutRequest::new(GIB, 48) };
        let bars = |request| layout(request).segments()[0].bars_64;
        assert_eq!(bars(amd), Range { start: 4 * GIB, size: 1008 * GIB });
        let huge = LayoutRequest { bar_space: 2048 * GIB, ..amd };
        assert_eq!(bars(huge).start, 1024 * GIB, "above HyperTransport, where there is room");
        let intel = LayoutRequest { amd: false, ..amd };
        assert_eq!(bars(intel), Range { start: 4 * GIB, size: (1 << 46) - 4 * GIB });
        let beyond = LayoutRequest { bar_space: 1 << 46, ..intel };
        assert_eq!(bars(beyond).last(), (1 << 48) - 1, "the preferred limit gives way to the need");
    }

    #[test]
    fn segments_get_what_their_shares_say() {
        let request = LayoutRequest { segments: 3, ..LayoutRequest::new(GIB, 40) };
        let shares = [
            SegmentShare { bars_32: 2, bars_64: 1, buses: 256 },
            SegmentShare { bars_32: 1, bars_64: 6, buses: 2 },
        ];
        let layout = MemoryLayout::with_shares(&request, &shares).unwrap();
        let [a, b, c] = layout.segments() else { panic!("three segments") };
        assert_eq!([a.bars_32.size, b.bars_32.size, c.bars_32.size], [256 * MIB, 128 * MIB, 128 * MIB]);
        assert_eq!((b.bars_64.size - GIB) / (a.bars_64.size - GIB), 6);
        assert_eq!(a.bars_64.size, c.bars_64.size);
        assert!(c.bars_64.last() < 1 << 40);
        assert_eq!(b.bars_64.start, a.bars_64.last() + 1);
        assert_eq!([a, b, c].map(|segment| segment.last_bus()), [255, 1, 255]);
        assert_eq!((a.ecam, b.ecam.size, c.ecam.start), (ECAM_0, 2 * MIB, b.ecam.start + ECAM_SIZE));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_numbers() {
        let error = MemoryLayout::new(&LayoutRequest::new(63 * GIB, 36)).unwrap_err().to_string();
        for number in ["63 GiB of RAM", "1 GiB for PCI", "36 physical address bits", "(64 GiB)"] {
            assert!(error.contains(number), "{error}");
        }
        assert!(MemoryLayout::new(&LayoutRequest::new(62 * GIB, 36)).is_ok());
        let refused = |request| MemoryLayout::new(&request).unwrap_err();
        assert_eq!(refused(LayoutRequest::new(0, 36)), LayoutError::TooSmall { ram: 0 });
        assert_eq!(
            refused(LayoutRequest::new(MIB * 4 + 1, 36)),
            LayoutError::Unaligned { size: MIB * 4 + 1 }
        );
        let none = LayoutRequest { segments: 0, ..LayoutRequest::new(GIB, 36) };
        assert_eq!(refused(none), LayoutError::Segments { segments: 0 });
    }

    #[test]
    fn pieces_of_ram_follow_each_other_across_the_hole() {
        let layout = layout(LayoutRequest::new(6 * GIB, 40));
        let range = |start, size| Range { start, size };
        assert_eq!(
            layout.split_ram(&[GIB, 4 * GIB, GIB, GIB]),
            [
                vec![range(0, GIB)],
                vec![range(GIB, 2 * GIB), range(4 * GIB, 2 * GIB)],
                vec![range(6 * GIB, GIB)],
                vec![]
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_nothing_is_lost(
            ram in (MIN_RAM / PAGE_SIZE)..(1 << 31),
            hotplug in prop_oneof![Just(0u64), 1u64..(1 << 30)],
            phys_bits in 36u8..=52,
            segments in 1u16..=MAX_SEGMENTS,
            bar_space in prop_oneof![Just(0u64), 0u64..(1 << 44)],
            amd: bool,
        ) {
            let request = LayoutRequest {
                ram: ram * PAGE_SIZE, hotplug: hotplug * PAGE_SIZE, phys_bits, segments, bar_space, amd,
            };
            let Ok(layout) = MemoryLayout::new(&request) else {
                let least = request.ram + request.hotplug
                    + u64::from(segments) * (bar_space.max(1).next_multiple_of(GIB) + ECAM_SIZE);
                // Holes and alignment cost less than 32 GiB. (On AMD the smaller part around the hole goes unused.)
                prop_assert!(amd || least > (1u64 << phys_bits) - 32 * GIB);
                return Ok(());
            };
            prop_assert_eq!(layout.ram_size(), request.ram);
            prop_assert_eq!(layout.segments().len(), usize::from(segments));
            let all = occupied(&layout);
            for (n, a) in all.iter().enumerate() {
                prop_assert!(a.size > 0);
                prop_assert!(a.last() < (1 << phys_bits).max(FOUR_GIB));
                prop_assert!(!(amd && a.overlaps(HYPERTRANSPORT)));
                for b in &all[n + 1..] {
                    prop_assert!(!a.overlaps(*b), "{:x?} {:x?}", a, b);
                }
            }
            for segment in layout.segments() {
                prop_assert!(segment.bars_64.size >= bar_space);
                prop_assert!(segment.bars_32.size.is_power_of_two());
            }
        }
    }
}
