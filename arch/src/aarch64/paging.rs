//! The guest's page tables, as its CPU walks them at EL1 (VMSAv8-64 stage 1; Arm ARM, D8): for debuggers and core dumps, which
//! see memory by virtual addresses. Permissions and access flags are left aside.

use crate::mapping::{self, Mapping};
use hypervisor::aarch64::{RegisterId, VcpuState};
use machine::memory::{Bytes, GuestAddress, GuestRam};

/// SCTLR_EL1: addresses are translated.
const SCTLR_M: u64 = 1;
/// SCTLR_EL1: tables are in big-endian order.
const SCTLR_EE: u64 = 1 << 25;
/// TCR_EL1: 52-bit addresses with granules of 4 and 16 KiB (FEAT_LPA2).
const TCR_DS: u64 = 1 << 59;
/// TCR_EL1.IPS for addresses of 52 bits.
const IPS_52: u64 = 6;

const VALID: u64 = 1;
/// The entry points to a table; in a table of the last level, it maps a page. Without it, it maps a block.
const TABLE: u64 = 1 << 1;

/// What of a CPU says how it finds memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
}

/// What of a CPU says how it finds memory.
///
/// # Errors
/// When the host refuses.
pub fn state(cpu: &dyn VcpuState) -> hypervisor::Result<State> {
    Ok(State {
        sctlr: cpu.register(RegisterId::SCTLR_EL1)?,
        tcr: cpu.register(RegisterId::TCR_EL1)?,
        ttbr: [cpu.register(RegisterId::TTBR0_EL1)?, cpu.register(RegisterId::TTBR1_EL1)?],
    })
}

/// Which bits of an entry are an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// 48 bits.
    Plain,
    /// 52 bits with granules of 64 KiB: the upper four are in bits 12 to 15 (FEAT_LPA).
    Lpa,
    /// 52 bits with other granules: the upper two are in bits 8 and 9 (FEAT_LPA2).
    Lpa2,
}

impl Output {
    /// The address in an entry, a multiple of two to the power of `bits`.
    fn address(self, entry: u64, bits: u32) -> u64 {
        let address = match self {
            Self::Plain => entry & (u64::MAX >> 16),
            Self::Lpa => entry & (u64::MAX >> 16) | (entry >> 12 & 0xf) << 48,
            Self::Lpa2 => entry & (u64::MAX >> 14) | (entry >> 8 & 0b11) << 50,
        };
        address & !((1 << bits) - 1)
    }
}

/// How one half of the virtual addresses is translated.
#[derive(Clone, Copy, Debug)]
struct Half {
    /// Whether it is the upper one.
    upper: bool,
    /// The first table.
    table: u64,
    /// Size of a table and of the smallest page, as a power of two: 12, 14 or 16.
    granule: u32,
    /// Bits of an address that are translated.
    bits: u32,
    /// Whether the upper eight bits do not count.
    ignores_top_byte: bool,
    output: Output,
    big_endian: bool,
}

impl Half {
    /// `None`: nothing is translated there.
    fn of(state: &State, upper: bool) -> Option<Self> {
        let tcr = state.tcr;
        let (size, walks_end, granule, top_byte, table) = if upper {
            // TG1 has other numbers than TG0.
            let granule = match tcr >> 30 & 0b11 {
                0b01 => 14,
                0b10 => 12,
                0b11 => 16,
                _ => return None,
            };
            (tcr >> 16 & 0x3f, tcr >> 23 & 1, granule, tcr >> 38 & 1, state.ttbr[1])
        } else {
            let granule = match tcr >> 14 & 0b11 {
                0b00 => 12,
                0b01 => 16,
                0b10 => 14,
                _ => return None,
            };
            (tcr & 0x3f, tcr >> 7 & 1, granule, tcr >> 37 & 1, state.ttbr[0])
        };
        let output = match granule {
            16 if tcr >> 32 & 0b111 == IPS_52 => Output::Lpa,
            12 | 14 if tcr & TCR_DS != 0 => Output::Lpa2,
            _ => Output::Plain,
        };
        let bits = 64 - size as u32;
        // 64 KiB granules have 52 bits by FEAT_LVA, which says nothing of the size of physical addresses.
        let most = if granule == 16 || output == Output::Lpa2 { 52 } else { 48 };
        if walks_end != 0 || bits > most || bits <= granule {
            return None;
        }
        let half = Self {
            upper,
            table: 0,
            granule,
            bits,
            ignores_top_byte: top_byte != 0,
            output,
            big_endian: state.sctlr & SCTLR_EE != 0,
        };
        // The first table may be smaller than others, and is aligned to its size.
        let (low, high) = match output {
            Output::Plain => (half.first_shift().abs_diff(half.bits) + 3, 0),
            Output::Lpa | Output::Lpa2 => (6, table >> 2 & 0xf),
        };
        let low_bits = table & (u64::MAX >> 16) & !((1 << low) - 1);
        Some(Self { table: low_bits | high << 48, ..half })
    }

    /// Of which bit of an address on a table of the first level is indexed.
    fn first_shift(&self) -> u32 {
        let stride = self.granule - 3;
        self.granule + (self.bits - self.granule).div_ceil(stride).saturating_sub(1) * stride
    }

    /// Whether `address` is one that is translated.
    fn has(&self, address: u64) -> bool {
        let expected = if self.upper { u64::MAX } else { 0 };
        let counted = if self.ignores_top_byte { u64::MAX >> 8 } else { u64::MAX };
        ((address ^ expected) & counted) >> self.bits == 0
    }

    /// Whether an entry may map two to the power of `shift` bytes, in a table that is not one of the last level.
    fn has_blocks_of(&self, shift: u32) -> bool {
        let levels_up = (shift - self.granule) / (self.granule - 3);
        let most = match (self.granule, self.output) {
            (12, Output::Lpa2) => 3,
            (12, _) | (14, Output::Lpa2) | (16, Output::Lpa) => 2,
            _ => 1,
        };
        levels_up <= most
    }

    /// Walks the tables: the page that `address` is in, and its size as a power of two; or, where nothing is mapped, for how many
    /// address bits that holds.
    fn step(&self, ram: &GuestRam, address: u64) -> Result<(u64, u32), u32> {
        let stride = self.granule - 3;
        let within = address & (u64::MAX >> (64 - self.bits));
        let (mut table, mut shift) = (self.table, self.first_shift());
        loop {
            let index = within >> shift & ((1 << stride) - 1);
            let entry = ram.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap_or(0);
            let entry = if self.big_endian { entry.swap_bytes() } else { entry };
            if entry & VALID == 0 {
                return Err(shift);
            }
            let last = shift == self.granule;
            match (last, entry & TABLE != 0) {
                (true, true) => return Ok((self.output.address(entry, shift), shift)),
                (false, false) if self.has_blocks_of(shift) => {
                    return Ok((self.output.address(entry, shift), shift));
                }
                (false, true) => {
                    table = self.output.address(entry, self.granule);
                    shift -= stride;
                }
                _ => return Err(shift),
            }
        }
    }
}

/// Where virtual `address` is in guest-physical memory, and how many bytes from there on lie in the same page.
pub fn translate(ram: &GuestRam, state: &State, address: u64) -> Option<(u64, u64)> {
    if state.sctlr & SCTLR_M == 0 {
        return Some((address, u64::MAX - address));
    }
    let half = Half::of(state, address >> 55 & 1 != 0).filter(|half| half.has(address))?;
    let (page, bits) = half.step(ram, address).ok()?;
    let size = 1_u64 << bits;
    let offset = address & (size - 1);
    Some((page | offset, size - offset))
}

/// Where the upper half of virtual addresses begins, in which kernels are; `None` if nothing is translated there.
pub fn kernel_half(state: &State) -> Option<u64> {
    let half = Half::of(state, true).filter(|_| state.sctlr & SCTLR_M != 0)?;
    Some(u64::MAX << half.bits)
}

/// What is mapped in the upper half from virtual address `from` on, ascending and joined where possible, up to `most` runs. Looks
/// at as many pages as `most_entries` at most: a guest can make tables that map without end.
pub fn mappings(ram: &GuestRam, state: &State, from: u64, most: usize, most_entries: u64) -> Vec<Mapping> {
    let Some(half) = kernel_half(state).and_then(|_| Half::of(state, true)) else { return Vec::new() };
    mapping::runs(from, most, most_entries, |address| half.step(ram, address))
}

#[cfg(test)]
mod tests;
