//! The guest-physical map.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0` | `0x800_0000` | flash: firmware, and its variables |
//! | `0x800_0000` | `0x801_0000` | interrupt distributor |
//! | `0x808_0000` | | interrupt translation services, one for each PCI segment |
//! | `0x900_0000` | `0xa00_0000` | devices at fixed places |
//! | `0xa00_0000` | `0x1000_0000` | interrupt redistributors |
//! | `0x2000_0000` | `0x3000_0000` | 32-bit BARs, divided among the PCI segments |
//! | `0x3000_0000` | `0x4000_0000` | ECAM of PCI segment 0 |
//! | 1 GiB | | RAM, in one piece; the device tree and ACPI tables are in its first 2 MiB, the kernel follows |
//! | above RAM | | space for RAM added later, ECAMs of further PCI segments, 64-bit BARs |

use machine::bus::Range;
use machine::memory::GuestAddress;
use thiserror::Error;

use crate::layout::size;
pub use crate::layout::{SegmentShare, SegmentWindows};
use hypervisor::aarch64::GicConfig;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Size of the units RAM comes in, in bytes: a page of the largest size that a guest's kernel may use.
pub const PAGE_SIZE: u64 = 64 * KIB;

/// Flash for firmware, and behind it flash for its variables.
pub const FLASH: [Range; 2] = [Range { start: 0, size: 64 * MIB }, Range { start: 64 * MIB, size: 64 * MIB }];
/// The interrupt distributor.
pub const GIC_DISTRIBUTOR: u64 = 0x800_0000;
/// The first interrupt translation service.
pub const GIC_ITS: u64 = 0x808_0000;
/// The PL011 serial port.
pub const SERIAL: u64 = 0x900_0000;
/// The firmware configuration device.
pub const FW_CFG: Range = Range { start: 0x902_0000, size: 24 };
/// The PL031 clock.
pub const RTC: u64 = 0x901_0000;
/// The PL061 that the power button is on.
pub const GPIO: u64 = 0x903_0000;
/// The pvpanic device: one byte.
pub const PVPANIC: Range = Range { start: 0x904_0000, size: 1 };
/// The ACPI registers.
pub const ACPI_REGISTERS: Range = Range { start: 0x905_0000, size: 12 };
/// The CPU hotplug controller.
pub const CPU_HOTPLUG: Range = Range { start: 0x906_0000, size: 20 };
/// The memory hotplug controller.
pub const MEMORY_HOTPLUG: Range = Range { start: 0x907_0000, size: 40 };
/// The PCI hotplug controller.
pub const PCI_HOTPLUG: Range = Range { start: 0x908_0000, size: 16 };
/// The interrupt redistributors, enough for [`MAX_CPUS`]. EFI firmware for such machines (EDK2) maps devices only up to their end,
/// whatever the device tree says.
pub const GIC_REDISTRIBUTORS: Range = Range { start: 0xa00_0000, size: 96 * MIB };
/// The window of all 32-bit BARs.
pub const BARS_32: Range = Range { start: 0x2000_0000, size: 256 * MIB };
/// Size of a PCI segment's ECAM: 256 buses.
pub const ECAM_SIZE: u64 = 256 * MIB;
/// ECAM of PCI segment 0.
pub const ECAM_0: Range = Range { start: 0x3000_0000, size: ECAM_SIZE };
/// RAM.
pub const RAM_START: u64 = GIB;
/// The flattened device tree.
pub const FDT: GuestAddress = GuestAddress(RAM_START);
/// Bytes at [`FDT`]. A kernel takes no larger one (Linux, `Documentation/arch/arm64/booting.rst`).
pub const FDT_SIZE: u64 = 2 * MIB;
/// What EFI firmware would have left. This and the ACPI tables take most of what is kept for the device tree: a machine with
/// tables has next to nothing in that.
pub const EFI: Range = Range { start: RAM_START + MIB / 2, size: MIB / 2 };
/// The ACPI tables but the RSDP.
pub const ACPI_TABLES: Range = Range { start: RAM_START + MIB, size: MIB - 64 * KIB };
/// The RSDP.
pub const ACPI_RSDP: GuestAddress = GuestAddress(ACPI_TABLES.start + ACPI_TABLES.size);
/// The generation id of the virtual machine, in a page of its own.
pub const GENERATION_ID: GuestAddress = GuestAddress(ACPI_RSDP.0 + 4 * KIB);
/// A kernel's image is somewhere from here on.
pub const KERNEL: u64 = RAM_START + FDT_SIZE;

/// The most CPUs whose redistributors fit.
pub const MAX_CPUS: u32 = (GIC_REDISTRIBUTORS.size / GicConfig::REDISTRIBUTOR_SIZE) as u32;
/// Shared interrupts of the interrupt controller.
pub const SHARED_INTERRUPTS: u32 = 64;
/// The most PCI segments that fit.
pub const MAX_SEGMENTS: u16 = 64;
/// Less RAM than this cannot hold a device tree and a kernel.
pub const MIN_RAM: u64 = 16 * MIB;
/// 64-bit BAR windows start at and are sized in multiples of this.
const WINDOW_ALIGNMENT: u64 = GIB;
/// What a segment's window for 64-bit BARs has at least, where nothing else is asked for.
const USUAL_WINDOW: u64 = 16 * GIB;
/// No machine has fewer address bits.
const FEWEST_BITS: u8 = 36;

/// What a layout is made for.
#[derive(Clone, Copy, Debug)]
pub struct LayoutRequest {
    /// RAM in bytes, a multiple of [`PAGE_SIZE`].
    pub ram: u64,
    /// Address space to keep for RAM added later, in bytes.
    pub hotplug: u64,
    /// How many address bits a machine can have on this host: 32 to 52.
    pub phys_bits: u8,
    /// Number of PCI segments, 1 to [`MAX_SEGMENTS`].
    pub segments: u16,
    /// The least space for 64-bit BARs that each segment must get, in bytes. 0 where any will do.
    pub bar_space: u64,
}

impl LayoutRequest {
    /// A machine with one segment and nothing special.
    pub fn new(ram: u64, phys_bits: u8) -> Self {
        Self { ram, hotplug: 0, phys_bits, segments: 1, bar_space: 0 }
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
    #[error("{size} bytes of RAM are not a multiple of {PAGE_SIZE}, the largest page a kernel may use")]
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
        "{} of RAM, {} for RAM added later and {} for PCI devices do not fit in the {phys_bits} \
         address bits that a machine can have on this host ({}): give the machine less memory",
        size(.ram), size(.hotplug), size(.windows), size(.space)
    )]
    DoesNotFit {
        /// RAM asked for, in bytes.
        ram: u64,
        /// Address space kept for RAM added later, in bytes.
        hotplug: u64,
        /// What the PCI segments need above RAM, in bytes.
        windows: u64,
        /// The host's address bits.
        phys_bits: u8,
        /// What these address, in bytes.
        space: u64,
    },
}

/// Where everything is in one machine's guest-physical address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    ram: [Range; 1],
    hotplug: Option<Range>,
    segments: Vec<SegmentWindows>,
    address_bits: u8,
}

impl MemoryLayout {
    /// Lays out a machine whose segments get equal windows.
    ///
    /// # Errors
    /// As [`MemoryLayout::with_shares`].
    pub fn new(request: &LayoutRequest) -> Result<Self, LayoutError> {
        Self::with_shares(request, &[])
    }

    /// Lays out a machine, in as few address bits as will do. Segments beyond the end of `shares` have the default ones.
    ///
    /// # Errors
    /// When something asked for is out of range, or all of it does not fit in the host's address bits.
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
        let window = |least: u64| {
            let size = bar_space.max(least).checked_next_multiple_of(WINDOW_ALIGNMENT).unwrap_or(u64::MAX);
            size.saturating_mul(u64::from(segments))
        };
        // A host with few bits gives segments less than usual, rather than nothing.
        let (usual, least) = (window(USUAL_WINDOW), window(1));
        let bits = |windows| (FEWEST_BITS.min(phys_bits)..=phys_bits).map(move |bits| (bits, windows));
        bits(usual)
            .chain(bits(least))
            .find_map(|(bits, windows)| Self::place(request, shares, bits, windows))
            .ok_or_else(|| LayoutError::DoesNotFit {
                ram,
                hotplug,
                windows: least.saturating_add(u64::from(segments - 1) * ECAM_SIZE),
                phys_bits,
                space: 1 << phys_bits,
            })
    }

    /// Tries to place everything in so many address bits, with at least `windows` bytes for 64-bit BARs.
    fn place(
        request: &LayoutRequest,
        shares: &[SegmentShare],
        address_bits: u8,
        windows: u64,
    ) -> Option<Self> {
        let ram = [Range { start: RAM_START, size: request.ram }];
        let mut next = RAM_START.checked_add(request.ram)?;
        let mut take = |size: u64, alignment: u64| -> Option<Range> {
            let range = Range { start: next.checked_next_multiple_of(alignment)?, size };
            next = range.start.checked_add(size)?;
            Some(range)
        };
        let hotplug = if request.hotplug > 0 { Some(take(request.hotplug, GIB)?) } else { None };
        let count = u64::from(request.segments);
        let ecams = if count > 1 { take((count - 1) * ECAM_SIZE, ECAM_SIZE)?.start } else { 0 };
        let start = next.checked_next_multiple_of(WINDOW_ALIGNMENT)?;
        let space = (1u64 << address_bits).checked_sub(start)?;
        if space < windows {
            return None;
        }

        let shares: Vec<_> =
            (0..usize::from(request.segments)).map(|n| shares.get(n).copied().unwrap_or_default()).collect();
        let sum_32: u64 = shares.iter().map(|share| u64::from(share.bars_32)).sum();
        let sum_64: u64 = shares.iter().map(|share| u64::from(share.bars_64)).sum();
        // Each segment has what it must have, and its share of the rest.
        let least = windows / count;
        let rest = u128::from(space - windows);
        let (mut next_32, mut next_64) = (BARS_32.start, start);
        let segments = (0..count)
            .zip(shares)
            .map(|(n, share)| {
                let size_32 = prev_power_of_two(BARS_32.size * u64::from(share.bars_32) / sum_32);
                let more = rest * u128::from(share.bars_64) / u128::from(sum_64);
                let size_64 = least + more as u64 / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
                let windows = SegmentWindows {
                    ecam: Range {
                        start: n.checked_sub(1).map_or(ECAM_0.start, |further| ecams + further * ECAM_SIZE),
                        size: share.ecam_size(),
                    },
                    bars_32: Range { start: next_32, size: size_32 },
                    bars_64: Range { start: next_64, size: size_64 },
                    io: None,
                };
                next_32 += size_32;
                next_64 += size_64;
                windows
            })
            .collect();
        Some(Self { ram, hotplug, segments, address_bits })
    }

    /// RAM: one range.
    pub fn ram(&self) -> &[Range] {
        &self.ram
    }

    /// RAM in bytes.
    pub fn ram_size(&self) -> u64 {
        self.ram[0].size
    }

    /// The end of RAM.
    pub fn ram_end(&self) -> u64 {
        RAM_START + self.ram_size()
    }

    /// Address space kept for RAM added later.
    pub fn hotplug(&self) -> Option<Range> {
        self.hotplug
    }

    /// Windows of each PCI segment, by its number.
    pub fn segments(&self) -> &[SegmentWindows] {
        &self.segments
    }

    /// How many bits the machine's addresses need.
    pub fn address_bits(&self) -> u8 {
        self.address_bits
    }

    /// The interrupt controller of a machine with `cpus` CPUs, at most [`MAX_CPUS`].
    pub fn gic(&self, cpus: u32) -> GicConfig {
        GicConfig {
            distributor: GIC_DISTRIBUTOR,
            redistributors: GIC_REDISTRIBUTORS.start,
            first_its: GIC_ITS,
            its_count: self.segments.len() as u32,
            cpus,
            spis: SHARED_INTERRUPTS,
        }
    }
}

/// The largest power of two that is at most `value`.
fn prev_power_of_two(value: u64) -> u64 {
    value.checked_ilog2().map_or(0, |log| 1 << log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_machine_has_as_few_address_bits_as_will_do() {
        let bits =
            |ram, host| MemoryLayout::new(&LayoutRequest::new(ram, host)).map(|layout| layout.address_bits);
        assert_eq!(bits(512 * MIB, 48), Ok(36));
        assert_eq!(bits(60 * GIB, 48), Ok(37));
        assert_eq!(bits(60 * GIB, 36), Ok(36), "with less than the usual for BARs");
        assert_eq!(bits(3000 * GIB, 48), Ok(42));
        let error = bits(64 * GIB, 36).unwrap_err().to_string();
        assert!(error.contains("64 GiB of RAM") && error.contains("36 address bits"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let error = |request| MemoryLayout::new(&request).unwrap_err().to_string();
        assert!(error(LayoutRequest::new(MIB, 40)).contains("at least"));
        assert!(error(LayoutRequest::new(512 * MIB + 4096, 40)).contains("multiple of 65536"));
        assert!(error(LayoutRequest { segments: 65, ..LayoutRequest::new(GIB, 40) }).contains("1 to 64"));
    }

    proptest! {
        #[test]
        fn nothing_overlaps(
            ram in (MIN_RAM / PAGE_SIZE..(1 << 30) / 16).prop_map(|pages| pages * PAGE_SIZE),
            hotplug in (0u64..1 << 16).prop_map(|pages| pages * PAGE_SIZE),
            phys_bits in 36u8..=52,
            shares in prop::collection::vec((1u32..20, 1u32..20, 1u16..=256), 1..8),
        ) {
            let request = LayoutRequest {
                hotplug, segments: shares.len() as u16, ..LayoutRequest::new(ram, phys_bits)
            };
            let shares: Vec<_> =
                shares.into_iter().map(|(bars_32, bars_64, buses)| SegmentShare { bars_32, bars_64, buses }).collect();
            let Ok(layout) = MemoryLayout::with_shares(&request, &shares) else { return Ok(()) };
            let its = layout.gic(1).its().map(|start| Range { start, size: GicConfig::ITS_SIZE });
            let mut all = vec![
                Range { start: GIC_DISTRIBUTOR, size: GicConfig::DISTRIBUTOR_SIZE },
                Range { start: SERIAL, size: 16 * MIB },
                GIC_REDISTRIBUTORS,
            ];
            all.extend(FLASH);
            all.extend(its);
            all.extend(layout.ram());
            all.extend(layout.hotplug());
            for segment in layout.segments() {
                all.extend([segment.ecam, segment.bars_32, segment.bars_64]);
            }
            for (n, a) in all.iter().enumerate() {
                prop_assert!(a.size > 0 && a.last() < 1 << layout.address_bits());
                for b in &all[n + 1..] {
                    prop_assert!(!a.overlaps(*b), "{:x?} {:x?}", a, b);
                }
            }
        }
    }
}
