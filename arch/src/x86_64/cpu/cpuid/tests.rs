//! CPUID is read back by decoders written from the manuals, apart from the encoder.

use super::*;

fn leaf(function: u32, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry { function, index: 0, indexed: false, eax, ebx, ecx, edx }
}

fn subleaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry { index, indexed: true, ..leaf(function, registers) }
}

/// Type 1 (data), and as many CPUs sharing it as fit: nonsense that must be overwritten.
fn cache(function: u32, index: u32, level: u32) -> CpuidEntry {
    subleaf(function, index, [0xffff_c001 | level << 5, 0x01c0_003f, 63, 0])
}

fn intel() -> Vec<CpuidEntry> {
    vec![
        leaf(0, [0x16, INTEL.0, INTEL.2, INTEL.1]),
        leaf(1, [0x806f8, 0x0510_0800, 0x7ffa_3203 | MONITOR | VMX | INTEL_POWER, 0xbfe9_fbff]),
        cache(4, 0, 1),
        cache(4, 1, 2),
        cache(4, 2, 3),
        subleaf(4, 3, [0; 4]),
        leaf(5, [64, 64, 3, 0x20]),
        leaf(6, [0x77, 2, 9, 0]),
        subleaf(7, 0, [1, SGX | 0x1000_0fbb, SGX_LC | 2, 0xbc00_0400 | AMX | HYBRID]),
        subleaf(7, 1, [AMX_FP16 | 0x10, 0, 0, 0]),
        leaf(0xa, [0x0830_0802, 0, 0, 0x603]),
        subleaf(0xb, 0, [1, 2, 0x100, 77]),
        subleaf(0xb, 1, [7, 80, 0x201, 77]),
        subleaf(0xd, 0, [0x2e7, 0x240, 0xa88, 0]),
        subleaf(0x12, 0, [1, 0, 0, 0]),
        leaf(0x15, [2, 200, 24_000_000, 0]),
        leaf(HYPERVISOR, [HYPERVISOR_FEATURES, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(HYPERVISOR_FEATURES, [0x0100_7efb, 0, 0, 0]),
        leaf(EXTENDED, [ADDRESS_SIZES, 0, 0, 0]),
        leaf(AMD_FEATURES, [0, 0, 0x121, 0x2c10_0800]),
        leaf(ADDRESS_SIZES, [0x3934, 0, 0, 0]),
    ]
}

fn amd() -> Vec<CpuidEntry> {
    vec![
        leaf(0, [0x10, AMD.0, AMD.2, AMD.1]),
        leaf(1, [0x00a2_0f12, 0x0810_0800, 0x7ef8_320b, 0x178b_fbff]),
        subleaf(7, 0, [0, SGX, 0, ARCH_CAPABILITIES]),
        leaf(HYPERVISOR, [HYPERVISOR_FEATURES, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(HYPERVISOR_FEATURES, [0x0100_7efb, 0, 0, 0]),
        leaf(EXTENDED, [0x8000_001a, 0, 0, 0]),
        leaf(AMD_FEATURES, [0, 0, TOPOLOGY_EXTENSIONS | SVM, 0x2fd3_fbff]),
        leaf(ADDRESS_SIZES, [0x0030_3034, 0, 0x0002_70ff, 0]),
        cache(AMD_CACHES, 0, 1),
        cache(AMD_CACHES, 2, 2),
        cache(AMD_CACHES, 3, 3),
    ]
}

fn model(supported: &[CpuidEntry], topology: Topology) -> CpuModel {
    CpuModel::new(supported, topology, &CpuOptions { tsc_khz: Some(2_400_000), ..CpuOptions::default() })
}

fn shapes() -> Vec<Topology> {
    [
        (1, 1, 1, 1),
        (1, 4, 1, 1),
        (2, 4, 1, 2),
        (2, 3, 1, 1),
        (1, 5, 3, 2),
        (2, 6, 2, 3),
        (1, 254, 1, 1),
        (2, 32, 2, 4),
    ]
    .into_iter()
    .map(|(t, c, d, p)| Topology::new(t, c, d, p, t * c * d * p).unwrap())
    .collect()
}

fn get(leaves: &[CpuidEntry], function: u32, index: u32) -> CpuidEntry {
    let found: Vec<_> =
        leaves.iter().filter(|l| l.function == function && (!l.indexed || l.index == index)).collect();
    assert_eq!(found.len(), 1, "leaf {function:#x} subleaf {index}");
    *found[0]
}

/// Walks leaf 0xB or 0x1F as Linux does: the shift of each level, by its type, and the id.
fn walk(leaves: &[CpuidEntry], function: u32) -> (u32, Vec<(u32, u32, u32)>) {
    let mut levels = Vec::new();
    for index in 0.. {
        let level = get(leaves, function, index);
        assert_eq!(level.ecx & 0xff, index);
        if level.ecx >> 8 & 0xff == 0 {
            assert_eq!((level.eax, level.ebx), (0, 0));
            return (level.edx, levels);
        }
        levels.push((level.ecx >> 8 & 0xff, level.eax & 0x1f, level.ebx & 0xffff));
    }
    unreachable!()
}

#[test]
fn the_levels_of_ids_tell_the_topology() {
    for supported in [intel(), amd()] {
        for topology in shapes() {
            let model = model(&supported, topology);
            let (threads, cores, dies) = (topology.threads(), topology.cores(), topology.dies());
            let mut seen = std::collections::BTreeSet::new();
            for index in 0..topology.cpus() {
                let leaves = model.cpuid(index);
                assert!(get(&leaves, 0, 0).eax >= 0x1f);
                let (id, basic) = walk(&leaves, 0xb);
                let (same, full) = walk(&leaves, 0x1f);
                assert_eq!(id, same);
                assert!(seen.insert(id), "ids are unique");
                assert_eq!(get(&leaves, 1, 0).ebx >> 24, id & 0xff);

                let shift = |levels: &[(u32, u32, u32)], kind| {
                    levels.iter().rev().find(|level| level.0 <= kind).unwrap().1
                };
                let (core_shift, package_shift) = (shift(&basic, 1), shift(&basic, 2));
                let die_shift = shift(&full, 2);
                assert_eq!(shift(&full, 5), package_shift);
                let field = |low: u32, high: u32| id >> low & ((1 << (high - low)) - 1);
                assert_eq!(field(0, core_shift), index % threads);
                assert_eq!(field(core_shift, die_shift), index / threads % cores);
                assert_eq!(field(die_shift, package_shift), index / (threads * cores) % dies);
                assert_eq!(id >> package_shift, index / (threads * cores * dies));

                let counts: Vec<_> = full.iter().map(|level| (level.0, level.2)).collect();
                let mut expected = vec![(1, threads), (2, threads * cores)];
                if dies > 1 {
                    expected.push((5, threads * cores * dies));
                }
                assert_eq!(counts, expected);
                assert_eq!(basic.iter().map(|l| l.2).collect::<Vec<_>>(), [threads, threads * cores * dies]);
            }
        }
    }
}

#[test]
fn intel_caches_are_shared_by_cores_and_dies() {
    let topology = Topology::new(2, 6, 2, 3, 72).unwrap();
    let model = model(&intel(), topology);
    for (subleaf, shared) in [(0, 2), (1, 2), (2, 16)] {
        let cache = get(&model.cpuid(0), 4, subleaf);
        assert_eq!((cache.eax >> 14 & 0xfff) + 1, shared, "ids that share the cache");
        assert_eq!((cache.eax >> 26) + 1, 16, "ids of cores in a package");
        assert_eq!((cache.ebx, cache.ecx), (0x01c0_003f, 63), "its size stays");
    }
    assert_eq!(get(&model.cpuid(0), 4, 3).eax, 0, "the end of the list stays");
    let one = get(&model.cpuid(0), 1, 0);
    assert_eq!((one.ebx >> 16 & 0xff, one.edx >> 28 & 1), (32, 1));
    let alone =
        get(&super::CpuModel::new(&intel(), Topology::flat(1), &CpuOptions::default()).cpuid(0), 1, 0);
    assert_eq!((alone.ebx >> 16 & 0xff, alone.edx >> 28 & 1), (1, 0));
}

#[test]
fn amd_leaves_tell_cores_threads_and_nodes() {
    let topology = Topology::new(2, 6, 2, 3, 72).unwrap();
    let model = model(&amd(), topology);
    for index in 0..topology.cpus() {
        let leaves = model.cpuid(index);
        assert!(get(&leaves, EXTENDED, 0).eax >= 0x8000_001e);
        let groups = get(&leaves, 0x8000_001e, 0);
        assert_eq!(groups.eax, topology.apic_id(index));
        assert_eq!((groups.ebx >> 8 & 0xff) + 1, 2, "threads per core");
        assert_eq!(groups.ebx & 0xff, index / 2 % 12, "core in its package");
        assert_eq!((groups.ecx >> 8 & 7) + 1, 2, "nodes per package");
        assert_eq!(groups.ecx & 0xff, index / 12, "node");
        let sizes = get(&leaves, ADDRESS_SIZES, 0);
        assert_eq!((sizes.ecx & 0xff) + 1, 24, "threads in the package");
        assert_eq!(1u32 << (sizes.ecx >> 12 & 0xf), 32, "ids in the package");
        assert_eq!(sizes.ecx & 0x3_0000, 0x2_0000, "what else is in there stays");
        for (subleaf, shared) in [(0, 2), (2, 2), (3, 16)] {
            assert_eq!((get(&leaves, AMD_CACHES, subleaf).eax >> 14 & 0xfff) + 1, shared);
        }
    }
    assert_eq!(get(&model.cpuid(0), AMD_FEATURES, 0).ecx & CMP_LEGACY, CMP_LEGACY);
    assert_eq!(get(&model.cpuid(0), 7, 0).edx & ARCH_CAPABILITIES, 0);
}

#[test]
fn amd_caches_are_told_by_hosts_that_do_not_group_them() {
    let mut old = amd();
    old.retain(|leaf| leaf.function != AMD_CACHES);
    old.iter_mut().find(|leaf| leaf.function == AMD_FEATURES).unwrap().ecx = 0;
    // 32 KiB 8-way, 64 KiB 4-way, 512 KiB 8-way, 16 MiB 16-way; 64-byte lines.
    old.push(leaf(0x8000_0005, [0, 0, 0x2008_0140, 0x4004_0140]));
    old.push(leaf(0x8000_0006, [0, 0, 0x0200_6140, 0x0080_8140]));
    let leaves = model(&old, Topology::new(2, 4, 1, 1, 8).unwrap()).cpuid(0);
    assert_eq!(get(&leaves, AMD_FEATURES, 0).ecx & TOPOLOGY_EXTENSIONS, TOPOLOGY_EXTENSIONS);
    assert_eq!(get(&leaves, 0x8000_001e, 0).ebx >> 8, 1);
    let mut found = Vec::new();
    for index in 0.. {
        let cache = get(&leaves, AMD_CACHES, index);
        if cache.eax & 0x1f == 0 {
            break;
        }
        let (ways, line, sets) = ((cache.ebx >> 22) + 1, (cache.ebx & 0xfff) + 1, cache.ecx + 1);
        let kib = ways * line * sets * ((cache.ebx >> 12 & 0x3ff) + 1) / 1024;
        found.push((cache.eax >> 5 & 7, cache.eax & 0x1f, kib, (cache.eax >> 14 & 0xfff) + 1));
    }
    assert_eq!(found, [(1, 1, 32, 2), (1, 2, 64, 2), (2, 3, 512, 2), (3, 3, 16384, 8)]);
}

#[test]
fn what_a_guest_cannot_use_is_masked() {
    let leaves = model(&intel(), Topology::flat(2)).cpuid(1);
    let features = get(&leaves, 1, 0);
    assert_eq!(features.ecx & (MONITOR | INTEL_POWER), 0);
    let always = X2APIC | TSC_DEADLINE | HYPERVISOR_PRESENT;
    assert_eq!(features.ecx & (always | VMX), always | VMX);
    assert_eq!(features.edx & THERMAL, 0);
    assert_eq!(get(&leaves, 5, 0).eax, 0);
    let power = get(&leaves, 6, 0);
    assert_eq!((power.eax, power.ecx), (ARAT, 0));
    let extended = get(&leaves, 7, 0);
    assert_eq!((extended.ebx & SGX, extended.ecx, extended.edx & (AMX | HYBRID)), (0, 2, 0));
    assert_eq!(extended.edx & ARCH_CAPABILITIES, ARCH_CAPABILITIES);
    assert_eq!(get(&leaves, 7, 1).eax, 0x10);
    assert!(!leaves.iter().any(|leaf| leaf.function == 0x12));

    let mut with_tiles = intel();
    with_tiles.iter_mut().find(|leaf| leaf.function == XSAVE).unwrap().eax |= XTILE;
    assert_eq!(get(&model(&with_tiles, Topology::flat(1)).cpuid(0), 7, 0).edx & AMX, AMX);

    let options = CpuOptions { nested: false, ..CpuOptions::default() };
    assert_eq!(get(&CpuModel::new(&intel(), Topology::flat(1), &options).cpuid(0), 1, 0).ecx & VMX, 0);
    assert_eq!(
        get(&CpuModel::new(&amd(), Topology::flat(1), &options).cpuid(0), AMD_FEATURES, 0).ecx & SVM,
        0
    );
}

#[test]
fn frequencies_agree() {
    let leaves = model(&intel(), Topology::flat(1)).cpuid(0);
    let tsc = get(&leaves, 0x15, 0);
    assert_eq!(u64::from(tsc.ecx) * u64::from(tsc.ebx) / u64::from(tsc.eax), 2_400_000_000);
    let kvm = get(&leaves, HYPERVISOR_FREQUENCY, 0);
    assert_eq!((kvm.eax, kvm.ebx), (2_400_000, tsc.ecx / 1000));
    assert_eq!(get(&leaves, 0x16, 0).eax, 2400);
    assert!(get(&leaves, HYPERVISOR, 0).eax >= HYPERVISOR_FREQUENCY);

    let unknown = CpuModel::new(&intel(), Topology::flat(1), &CpuOptions::default()).cpuid(0);
    assert!(!unknown.iter().any(|leaf| [0x15, 0x16, HYPERVISOR_FREQUENCY].contains(&leaf.function)));
}

#[test]
fn address_bits_are_the_least_of_host_and_choice() {
    assert_eq!(HostCpu::of(&intel()), HostCpu { vendor: Vendor::Intel, phys_bits: 52 });
    assert_eq!(HostCpu::of(&amd()), HostCpu { vendor: Vendor::Amd, phys_bits: 48 });
    let options = CpuOptions { max_phys_bits: 46, ..CpuOptions::default() };
    let model = CpuModel::new(&intel(), Topology::flat(1), &options);
    assert_eq!(model.phys_bits(), 46);
    assert_eq!(get(&model.cpuid(0), ADDRESS_SIZES, 0).eax, 0x392e);
}
