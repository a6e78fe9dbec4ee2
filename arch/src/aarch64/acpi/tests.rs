//! The tables are read back by `iasl`, the reference implementation's disassembler and compiler.

use super::*;
use crate::aarch64::layout::{self, LayoutRequest, MemoryLayout, SegmentShare};
use crate::aarch64::serial::SerialModel;
use crate::acpi::testing::through_iasl;
use crate::caches::{CacheKind, CacheScope, CacheShape};

const PLACE: Range = layout::ACPI_TABLES;
const RSDP: GuestAddress = layout::ACPI_RSDP;

pub(crate) fn config(topology: Topology, segments: u16) -> AcpiConfig {
    let request = LayoutRequest { segments, ..LayoutRequest::new(1 << 30, 44) };
    // All but the first have few buses.
    let few = SegmentShare { buses: 16, ..SegmentShare::default() };
    let shares: Vec<_> = (0..segments).map(|n| if n == 0 { SegmentShare::default() } else { few }).collect();
    let layout = MemoryLayout::with_shares(&request, &shares).unwrap();
    let shape = |size| Some(CacheShape { size, line: 64, sets: size / 64 / 4, ways: 4 });
    let cache = |level, kind, scope, shape| Cache { level, kind, scope, shape };
    AcpiConfig {
        topology,
        caches: vec![
            cache(1, CacheKind::Instruction, CacheScope::Core, shape(65_536)),
            cache(1, CacheKind::Data, CacheScope::Core, shape(65_536)),
            cache(2, CacheKind::Unified, CacheScope::Core, None),
            cache(3, CacheKind::Unified, CacheScope::Die, shape(32 << 20)),
        ],
        cpu_nodes: (0..topology.cpus()).map(|index| topology.place(index).package).collect(),
        pmu: true,
        gic: layout.gic(topology.cpus()),
        segments: layout.segments().to_vec(),
        segment_nodes: vec![None, Some(1)],
        interrupt_pins: InterruptPins { first_gsi: 3, count: 4 },
        memory: layout.ram().iter().map(|&range| NodeMemory { node: 0, range, hotplug: false }).collect(),
        distances: vec![vec![10, 20], vec![20, 10]],
        serial: Some(SerialPort { model: SerialModel::Pl011, interrupt: 1 }),
        present: topology.cpus().div_ceil(2),
        events: 8,
        memory_slots: 32,
        generation_id: Some(layout::GENERATION_ID.0),
        fw_cfg: true,
        pvpanic: true,
    }
}

#[test]
fn iasl_takes_every_table() {
    let config = config(Topology::new(2, 2, 1, 2, 8).unwrap(), 2);
    let Some(sources) = through_iasl("arm", &build(&config, PLACE, RSDP).unwrap()) else { return };
    let source = |name: &str| &sources.iter().find(|(found, _)| found == name).unwrap().1;
    for (name, expected) in [
        ("dsdt", "Notify (\\_SB.PWRB, 0x80)"),
        ("dsdt", "OperationRegion (CREG, SystemMemory, 0x09060000, 0x14)"),
        ("dsdt", "Name (_HID, \"ACPI0007\" /* Processor Device */)"),
        ("dsdt", "\\_SB.MHPC.MSCN ()"),
        ("dsdt", "Name (_PXM, One)  // _PXM: Device Proximity"),
        ("dsdt", "0x000F, // Range Maximum"),
        ("dsdt", "0x00000028,"),
        ("dsdt", "0x00000021,"),
        ("facp", "Hardware Reduced (V5) : 1"),
        ("facp", "PSCI Compliant : 1"),
        ("facp", "Must use HVC for PSCI : 1"),
        ("apic", "ARM MPIDR : 0000000000000007"),
        ("apic", "Performance Interrupt : 00000017"),
        ("apic", "Base Address : 00000000080A0000"),
        ("gtdt", "Virtual Timer Interrupt : 0000001B"),
        ("pptt", "Physical package : 1"),
        ("pptt", "Cache Type : 2"),
        ("mcfg", "Base Address : 0000000030000000"),
        ("mcfg", "End Bus Number : 0F"),
        ("iort", "PCI Segment Number : 00000001"),
        ("iort", "ID Count : 0000FFFF"),
        ("iort", "ID Count : 00000FFF"),
        ("spcr", "Interrupt : 00000021"),
        ("dbg2", "Namepath : \"\\_SB.COM0\""),
        ("srat", "Acpi Processor UID : 00000007"),
        ("slit", "Locality   1 : 14 0A"),
    ] {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = source(name).lines().any(|line| words(line).contains(&words(expected)));
        assert!(found, "{expected:?} is not in {name}:\n{}", source(name));
    }
}

#[test]
fn iasl_takes_a_16550() {
    let port = SerialPort { model: SerialModel::Uart16550, interrupt: 1 };
    let config = AcpiConfig { serial: Some(port), ..config(Topology::flat(1), 1) };
    let Some(sources) = through_iasl("arm-16550", &build(&config, PLACE, RSDP).unwrap()) else { return };
    for (name, expected) in [
        ("dsdt", "EisaId (\"PNP0501\")"),
        ("spcr", "Interface Type : 00"),
        ("spcr", "Interrupt : 00000021"),
        ("dbg2", "Port Subtype : 0000"),
        ("dbg2", "Address Size : 00000008"),
    ] {
        let source = &sources.iter().find(|(found, _)| found == name).unwrap().1;
        let words = source.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(expected), "{expected:?} is not in {name}:\n{source}");
    }
}

#[test]
fn iasl_takes_a_machine_with_little() {
    let config = AcpiConfig {
        caches: Vec::new(),
        pmu: false,
        memory: Vec::new(),
        distances: Vec::new(),
        serial: None,
        memory_slots: 0,
        generation_id: Some(layout::GENERATION_ID.0),
        fw_cfg: false,
        pvpanic: false,
        ..config(Topology::flat(1), 1)
    };
    through_iasl("arm-little", &build(&config, PLACE, RSDP).unwrap());
}

#[test]
fn the_tables_of_most_cpus_fit() {
    build(&config(Topology::flat(layout::MAX_CPUS), layout::MAX_SEGMENTS), PLACE, RSDP).unwrap();
}

#[test]
fn groups_lead_to_their_own_caches() {
    let topology = Topology::new(2, 2, 2, 1, 8).unwrap();
    let caches = config(topology, 1).caches;
    let table = pptt::pptt(topology, 6, &caches);
    let u32_at = |at: usize| u32::from_le_bytes(table[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 36;
    let mut threads = Vec::new();
    while at < table.len() {
        if table[at] == 0 && u32_at(at + 4) & 0b1000 != 0 {
            threads.push(at);
        }
        at += usize::from(table[at + 1]);
    }
    assert_eq!(at, table.len(), "structures end with the table");
    assert_eq!(threads.iter().map(|&at| u32_at(at + 12)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    let core = |cpu: usize| u32_at(threads[cpu] + 8);
    assert_eq!(core(0), core(1));
    assert_ne!(core(1), core(2));
    // Both caches of the first level lead to the second, and that to the third, which dies have one of each.
    let first_level = |cpu| [u32_at(core(cpu) + 20), u32_at(core(cpu) + 24)];
    let third = |cpu| {
        let second = first_level(cpu).map(|cache| u32_at(cache + 8));
        assert_eq!(second[0], second[1]);
        u32_at(second[0] + 8)
    };
    assert_eq!(third(0), third(2));
    assert_ne!(third(0), third(4));
    let die = u32_at(core(4) + 8);
    assert_eq!(u32_at(die + 20), third(4), "a die has its own cache");
    assert_eq!(u32_at(third(4) + 8), 0);
    assert_eq!(u32_at(third(4) + 12), 32 << 20);
}
