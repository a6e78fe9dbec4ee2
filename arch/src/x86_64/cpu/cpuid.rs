//! What the guest's CPUs say of themselves: CPUID (Intel SDM 2A; AMD APM 3, appendix E).
//!
//! The model is the host's CPU as far as the hypervisor supports it. What tells how CPUs are grouped is
//! rewritten for the machine's [`Topology`], and what a guest cannot use is masked: power management that stays
//! the host's, monitoring of the host, enclaves, encrypted memory, and the difference between kinds of cores.

mod amd_caches;

use crate::caches::{Cache, CacheKind, CacheScope, CacheShape};
use crate::topology::{Place, Topology};
use hypervisor::x86_64::CpuidEntry;

/// Who made the host's CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, or Hygon, whose CPUs are AMD's.
    Amd,
    /// Somebody else, such as Zhaoxin. Treated as Intel where it matters.
    Other,
}

/// What the machine's layout depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// Who made it.
    pub vendor: Vendor,
    /// Guest-physical address bits that the hypervisor supports.
    pub phys_bits: u8,
}

/// Physical address bits of a CPU that does not tell.
const DEFAULT_PHYS_BITS: u8 = 36;

impl HostCpu {
    /// From what the hypervisor supports.
    pub fn of(supported: &[CpuidEntry]) -> Self {
        let vendor = match find(supported, 0, 0).map(|leaf| (leaf.ebx, leaf.edx, leaf.ecx)) {
            Some(INTEL) => Vendor::Intel,
            Some(AMD | HYGON) => Vendor::Amd,
            _ => Vendor::Other,
        };
        // Bits 23:16 are the guest's, where nested page tables reach less than the CPU does.
        let phys_bits = find(supported, ADDRESS_SIZES, 0).map_or(DEFAULT_PHYS_BITS, |leaf| {
            let (cpu, guest) = (leaf.eax as u8, (leaf.eax >> 16) as u8);
            if guest == 0 { cpu } else { cpu.min(guest) }
        });
        Self { vendor, phys_bits }
    }
}

/// The vendor's name, in EBX, EDX and ECX of leaf 0.
const INTEL: (u32, u32, u32) = name(b"GenuineIntel");
const AMD: (u32, u32, u32) = name(b"AuthenticAMD");
const HYGON: (u32, u32, u32) = name(b"HygonGenuine");

const fn name(text: &[u8; 12]) -> (u32, u32, u32) {
    let &[a, b, c, d, e, f, g, h, i, j, k, l] = text;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), u32::from_le_bytes([i, j, k, l]))
}

/// What may be chosen of the CPU model.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// The most physical address bits to show; the host's if it has fewer.
    pub max_phys_bits: u8,
    /// The TSC's frequency in kHz, told to the guest where it is known.
    pub tsc_khz: Option<u32>,
    /// Whether the guest may run guests of its own, if the host can do it.
    pub nested: bool,
    /// Whether messages to the interrupt controllers have 15-bit destination ids (`KVM_FEATURE_MSI_EXT_DEST_ID`),
    /// which interrupts to CPUs beyond APIC id 254 need. The I/O APIC and the hypervisor's routes must agree.
    pub msi_ext_dest_id: bool,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { max_phys_bits: 52, tsc_khz: None, nested: true, msi_ext_dest_id: true }
    }
}

/// The CPUs of one machine.
#[derive(Clone, Debug)]
pub struct CpuModel {
    /// What all CPUs have in common.
    common: Vec<CpuidEntry>,
    topology: Topology,
    vendor: Vendor,
    phys_bits: u8,
}

// Leaves.
const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const MONITOR_WAIT: u32 = 5;
const POWER: u32 = 6;
const EXTENDED_FEATURES: u32 = 7;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const XSAVE: u32 = 0xd;
const TSC: u32 = 0x15;
const FREQUENCY: u32 = 0x16;
const TOPOLOGY_WITH_DIES: u32 = 0x1f;
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
const HYPERVISOR_FREQUENCY: u32 = 0x4000_0010;
const EXTENDED: u32 = 0x8000_0000;
const AMD_FEATURES: u32 = 0x8000_0001;
const ADDRESS_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaves that are the host's own business, or no longer true in a guest: serial number, resource
/// monitoring and allocation, enclaves, kinds of cores, memory encryption, AMD's levels below a die.
const DROPPED: &[u32] = &[3, 0xf, 0x10, 0x12, 0x1a, 0x1b, 0x8000_001f, 0x8000_0020, 0x8000_0023, 0x8000_0026];

/// Leaf 1, ECX: MONITOR and MWAIT.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
/// Leaf 1, ECX: SpeedStep, and the second thermal monitor.
const INTEL_POWER: u32 = 1 << 7 | 1 << 8;
const X2APIC: u32 = 1 << 21;
/// Leaf 1, ECX: the local APIC's timer takes a TSC value. KVM always emulates it, and leaves saying so to us.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1, EDX: thermal control and monitor; several CPUs in the package.
const THERMAL: u32 = 1 << 22 | 1 << 29;
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 6, EAX: the APIC timer runs in deep sleep.
const ARAT: u32 = 1 << 2;
/// Leaf 7, EBX: enclaves; resource monitoring and allocation.
const SGX: u32 = 1 << 2;
const RESOURCES: u32 = 1 << 12 | 1 << 15;
/// Leaf 7, ECX: launch control of enclaves.
const SGX_LC: u32 = 1 << 30;
/// Leaf 7, EDX: kinds of cores; `IA32_ARCH_CAPABILITIES`; matrix extensions.
const HYBRID: u32 = 1 << 15;
const ARCH_CAPABILITIES: u32 = 1 << 29;
const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// Leaf 7, subleaf 1, EAX, and leaf 0xD, EAX: matrix extensions.
const AMX_FP16: u32 = 1 << 21;
const XTILE: u32 = 0b11 << 17;
/// Leaf 0x8000_0001, ECX: several cores in the package; SVM; leaf 0x8000_001E.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 0x4000_0001, EAX: `KVM_FEATURE_MSI_EXT_DEST_ID`.
const MSI_EXT_DEST_ID: u32 = 1 << 15;
/// Frequency of KVM's local APIC timer in kHz.
const APIC_TIMER_KHZ: u32 = 1_000_000;

impl CpuModel {
    /// Makes the model from what the hypervisor supports.
    pub fn new(supported: &[CpuidEntry], topology: Topology, options: &CpuOptions) -> Self {
        let HostCpu { vendor, phys_bits } = HostCpu::of(supported);
        let phys_bits = phys_bits.min(options.max_phys_bits).max(32);
        let mut leaves: Vec<_> = supported
            .iter()
            .filter(|leaf| !DROPPED.contains(&leaf.function))
            .filter(|leaf| ![TOPOLOGY, TOPOLOGY_WITH_DIES, AMD_TOPOLOGY].contains(&leaf.function))
            .copied()
            .collect();
        mask_features(&mut leaves, vendor, options);
        if vendor == Vendor::Amd {
            extend_topology(&mut leaves);
        }
        group_caches(&mut leaves, topology);
        describe_groups(&mut leaves, vendor, topology);
        tell_frequencies(&mut leaves, vendor, options);
        for leaf in leaves.iter_mut().filter(|leaf| leaf.function == ADDRESS_SIZES) {
            leaf.eax = leaf.eax & 0x0000_ff00 | u32::from(phys_bits);
        }
        leaves.sort_by_key(|leaf| (leaf.function, leaf.index));
        Self { common: leaves, topology, vendor, phys_bits }
    }

    /// How the CPUs are grouped.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// Who the guest is told made the CPU.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Physical address bits that the guest is told.
    pub fn phys_bits(&self) -> u8 {
        self.phys_bits
    }

    /// The caches, as CPUID tells them.
    pub fn caches(&self) -> Vec<Cache> {
        let function = if self.vendor == Vendor::Amd { AMD_CACHES } else { CACHES };
        let leaves = self.common.iter().filter(|leaf| leaf.function == function);
        leaves.filter_map(cache).collect()
    }

    /// What CPUID returns on CPU number `index`.
    pub fn cpuid(&self, index: u32) -> Vec<CpuidEntry> {
        let apic_id = self.topology.apic_id(index);
        let Place { core, die, package, .. } = self.topology.place(index);
        let mut leaves = self.common.clone();
        for leaf in &mut leaves {
            match leaf.function {
                FEATURES => leaf.ebx = leaf.ebx & 0x00ff_ffff | apic_id << 24,
                TOPOLOGY | TOPOLOGY_WITH_DIES => leaf.edx = apic_id,
                AMD_TOPOLOGY => {
                    leaf.eax = apic_id;
                    leaf.ebx |= (die * self.topology.cores() + core) & 0xff;
                    leaf.ecx |= (package * self.topology.dies() + die) & 0xff;
                }
                _ => {}
            }
        }
        leaves
    }
}

/// Clears what a guest cannot use, sets what it always has.
fn mask_features(leaves: &mut [CpuidEntry], vendor: Vendor, options: &CpuOptions) {
    // The host's process has to ask for matrix registers; without, KVM does not show their state.
    let has_tiles = find(leaves, XSAVE, 0).is_some_and(|leaf| leaf.eax & XTILE == XTILE);
    for leaf in leaves {
        match (leaf.function, leaf.index) {
            (FEATURES, _) => {
                leaf.ecx &= !(MONITOR | INTEL_POWER);
                leaf.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR_PRESENT;
                leaf.edx &= !THERMAL;
                if !options.nested {
                    leaf.ecx &= !VMX;
                }
            }
            (MONITOR_WAIT, _) => clear(leaf),
            (POWER, _) => {
                let eax = leaf.eax & ARAT;
                clear(leaf);
                leaf.eax = eax;
            }
            (EXTENDED_FEATURES, 0) => {
                leaf.ebx &= !(SGX | RESOURCES);
                leaf.ecx &= !SGX_LC;
                leaf.edx &= !HYBRID;
                if vendor == Vendor::Amd {
                    // KVM emulates Intel's register on AMD too, which some guests take badly.
                    leaf.edx &= !ARCH_CAPABILITIES;
                }
                if !has_tiles {
                    leaf.edx &= !AMX;
                }
            }
            (EXTENDED_FEATURES, 1) if !has_tiles => leaf.eax &= !AMX_FP16,
            (PERFORMANCE, _) if leaf.eax & 0xff == 0 => clear(leaf),
            (AMD_FEATURES, _) if !options.nested => leaf.ecx &= !SVM,
            (HYPERVISOR_FEATURES, _) if options.msi_ext_dest_id => leaf.eax |= MSI_EXT_DEST_ID,
            _ => {}
        }
    }
}

fn clear(leaf: &mut CpuidEntry) {
    (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
}

/// Makes sure that the leaves that tell an AMD CPU's cores and shared caches are there: every host could have them.
fn extend_topology(leaves: &mut Vec<CpuidEntry>) {
    let Some(features) = leaves.iter_mut().find(|leaf| leaf.function == AMD_FEATURES) else { return };
    features.ecx |= TOPOLOGY_EXTENSIONS;
    if find(leaves, AMD_CACHES, 0).is_none_or(|leaf| leaf.eax == 0) {
        leaves.retain(|leaf| leaf.function != AMD_CACHES);
        amd_caches::add(leaves);
    }
}

/// The levels of caches that cores have to themselves end here.
const LAST_OF_CORE: u8 = 2;

/// The cache that a subleaf describes, if it does (Intel SDM 2A, leaf 4; AMD APM 3, E.4.15).
fn cache(leaf: &CpuidEntry) -> Option<Cache> {
    let kind = match leaf.eax & 0x1f {
        1 => CacheKind::Data,
        2 => CacheKind::Instruction,
        3 => CacheKind::Unified,
        _ => return None,
    };
    let (line, partitions, ways) =
        ((leaf.ebx & 0xfff) + 1, (leaf.ebx >> 12 & 0x3ff) + 1, (leaf.ebx >> 22) + 1);
    let sets = leaf.ecx.saturating_add(1);
    let size = (line * partitions).saturating_mul(ways).saturating_mul(sets);
    let level = (leaf.eax >> 5 & 7) as u8;
    let scope = if level <= LAST_OF_CORE { CacheScope::Core } else { CacheScope::Die };
    // More ways than the field has room for there are in no cache that tells its ways.
    let shape = CacheShape { size, line: line as u16, sets, ways: ways.min(255) as u8 };
    Some(Cache { level, kind, scope, shape: Some(shape) })
}

/// Says which CPUs share a cache: those of a core the first two levels, those of a die the others.
fn group_caches(leaves: &mut [CpuidEntry], topology: Topology) {
    for leaf in leaves {
        let kind = leaf.eax & 0x1f;
        if ![CACHES, AMD_CACHES].contains(&leaf.function) || kind == 0 {
            continue;
        }
        let level = leaf.eax >> 5 & 7;
        let shift =
            if level <= u32::from(LAST_OF_CORE) { topology.core_shift() } else { topology.die_shift() };
        leaf.eax = leaf.eax & 0x0000_3fff | ids_below(shift).min(0xfff) << 14;
        if leaf.function == CACHES {
            let cores = topology.package_shift() - topology.core_shift();
            leaf.eax |= ids_below(cores).min(0x3f) << 26;
        }
    }
}

/// The largest number with `bits` bits.
fn ids_below(bits: u32) -> u32 {
    1u32.checked_shl(bits).map_or(u32::MAX, |count| count - 1)
}

/// Says how the CPUs are grouped, in each of the ways there are.
fn describe_groups(leaves: &mut Vec<CpuidEntry>, vendor: Vendor, topology: Topology) {
    let in_package = topology.cpus_per_package();
    for leaf in leaves.iter_mut() {
        match leaf.function {
            0 => leaf.eax = leaf.eax.max(TOPOLOGY_WITH_DIES),
            FEATURES => {
                // Intel counts ids, gaps included; AMD CPUs.
                let count = if vendor == Vendor::Amd { in_package } else { 1 << topology.package_shift() };
                leaf.ebx = leaf.ebx & 0xff00_ffff | count.min(255) << 16;
                set(&mut leaf.edx, HYPER_THREADING, in_package > 1);
            }
            EXTENDED if vendor == Vendor::Amd => leaf.eax = leaf.eax.max(AMD_TOPOLOGY),
            AMD_FEATURES if vendor == Vendor::Amd => {
                set(&mut leaf.ecx, CMP_LEGACY, in_package > 1);
            }
            ADDRESS_SIZES if vendor == Vendor::Amd => {
                let ids = topology.package_shift().min(0xf) << 12;
                leaf.ecx = leaf.ecx & !0xf0ff | ids | (in_package - 1).min(255);
            }
            _ => {}
        }
    }

    // Per level: the type, the CPUs in one of it, the bits of an APIC id within one of it.
    let thread = (1, topology.threads(), topology.core_shift());
    let core = |cpus, shift| (2, cpus, shift);
    let die = (5, in_package, topology.package_shift());
    let in_die = topology.threads() * topology.cores();
    levels(leaves, TOPOLOGY, &[thread, core(in_package, topology.package_shift())]);
    if topology.dies() == 1 {
        levels(leaves, TOPOLOGY_WITH_DIES, &[thread, core(in_package, topology.package_shift())]);
    } else {
        levels(leaves, TOPOLOGY_WITH_DIES, &[thread, core(in_die, topology.die_shift()), die]);
    }
    if vendor == Vendor::Amd {
        leaves.push(CpuidEntry {
            function: AMD_TOPOLOGY,
            ebx: (topology.threads() - 1).min(255) << 8,
            ecx: (topology.dies() - 1).min(7) << 8,
            ..Default::default()
        });
    }
}

fn set(register: &mut u32, bit: u32, value: bool) {
    *register = if value { *register | bit } else { *register & !bit };
}

/// Adds the subleaves of leaf 0xB or 0x1F, and one that ends them.
fn levels(leaves: &mut Vec<CpuidEntry>, function: u32, levels: &[(u32, u32, u32)]) {
    let end = (0, 0, 0);
    for (index, &(kind, cpus, shift)) in (0..).zip(levels.iter().chain([&end])) {
        leaves.push(CpuidEntry {
            function,
            index,
            indexed: true,
            eax: shift,
            ebx: cpus,
            ecx: kind << 8 | index,
            edx: 0,
        });
    }
}

/// Tells the frequencies that a guest would else have to measure.
fn tell_frequencies(leaves: &mut Vec<CpuidEntry>, vendor: Vendor, options: &CpuOptions) {
    leaves.retain(|leaf| ![TSC, FREQUENCY].contains(&leaf.function));
    let Some(khz) = options.tsc_khz.filter(|&khz| khz > 0) else { return };
    if let Some(hypervisor) = leaves.iter_mut().find(|leaf| leaf.function == HYPERVISOR) {
        hypervisor.eax = hypervisor.eax.max(HYPERVISOR_FREQUENCY);
        leaves.retain(|leaf| leaf.function != HYPERVISOR_FREQUENCY);
        leaves.push(CpuidEntry {
            function: HYPERVISOR_FREQUENCY,
            eax: khz,
            ebx: APIC_TIMER_KHZ,
            ..Default::default()
        });
    }
    if vendor == Vendor::Intel {
        // The "crystal" is what drives the local APIC's timer, so it has that one's frequency.
        leaves.push(CpuidEntry {
            function: TSC,
            eax: APIC_TIMER_KHZ,
            ebx: khz,
            ecx: APIC_TIMER_KHZ * 1000,
            ..Default::default()
        });
        let mhz = khz / 1000;
        leaves.push(CpuidEntry { function: FREQUENCY, eax: mhz, ebx: mhz, ecx: 100, ..Default::default() });
    }
}

/// A leaf, or subleaf.
fn find(leaves: &[CpuidEntry], function: u32, index: u32) -> Option<&CpuidEntry> {
    leaves.iter().find(|leaf| leaf.function == function && (!leaf.indexed || leaf.index == index))
}

#[cfg(test)]
mod tests;
