//! The tables are read back by `iasl`, the reference implementation's disassembler and compiler, and walked from
//! the RSDP in guest memory as an operating system does.

use super::*;
use crate::acpi::testing;
use crate::caches::{CacheKind, CacheScope, CacheShape};
use crate::testing::skip_without;
use machine::memory::{Bytes, GuestRam, Memory};
use std::process::Command;
use std::sync::Arc;

const PLACE: Range = Range { start: 0xc_0000, size: 0x2_ff00 };
const RSDP: GuestAddress = GuestAddress(0xe_ffc0);

fn cache(level: u8, kind: CacheKind, size: u32) -> Cache {
    let scope = if level > 2 { CacheScope::Die } else { CacheScope::Core };
    let shape = CacheShape { size, line: 64, sets: size / 512, ways: 8 };
    Cache { level, kind, scope, shape: Some(shape) }
}

pub(super) fn config() -> AcpiConfig {
    let segment = |n: u64| SegmentWindows {
        ecam: Range {
            start: if n == 0 { 0xe000_0000 } else { (1 << 36) + (n << 28) },
            size: (256 >> (4 * n)) << 20,
        },
        bars_32: Range { start: 0xc000_0000 + (n << 24), size: 1 << 24 },
        bars_64: Range { start: (n + 1) << 40, size: 1 << 40 },
        io: (n == 0).then_some(Range { start: 0x1000, size: 0xf000 }),
    };
    AcpiConfig {
        cpus: (0..4).map(|n| Cpu { apic_id: n, enabled: n < 2, node: n % 2 }).collect(),
        local_apic: 0xfee0_0000,
        io_apic: IoApic { id: 0, address: 0xfec0_0000, first_gsi: 0 },
        segments: (0..2).map(segment).collect(),
        segment_nodes: vec![None, Some(1)],
        interrupt_pins: InterruptPins { first_gsi: 16, count: 8 },
        memory: vec![
            NodeMemory { node: 0, range: Range { start: 0, size: 1 << 30 }, hotplug: false },
            NodeMemory { node: 1, range: Range { start: 1 << 32, size: 1 << 30 }, hotplug: true },
        ],
        processors: Some(Processors {
            topology: Topology::new(2, 1, 1, 2, 4).unwrap(),
            caches: vec![
                cache(1, CacheKind::Data, 32 << 10),
                cache(1, CacheKind::Instruction, 32 << 10),
                cache(2, CacheKind::Unified, 1 << 20),
                cache(3, CacheKind::Unified, 32 << 20),
            ],
        }),
        distances: vec![vec![10, 20], vec![30, 10]],
        registers: Registers {
            sleep_status: 0x600,
            sleep_control: 0x601,
            reset: 0x602,
            reset_value: 1,
            pm_timer: Some(0x608),
        },
        events: EventDevice { port: 0x604, gsi: 5 },
        pci_hotplug: Some(0x620),
        cpu_hotplug: Some(0x640),
        memory_hotplug: Some(MemorySlots { port: 0x660, count: 3 }),
        generation_id: Some(0x9_0000),
        fw_cfg: Some(0x510),
        serial: vec![IsaDevice { port: 0x3f8, gsi: 4 }],
        rtc: Some(IsaDevice { port: 0x70, gsi: 8 }),
        pvpanic: Some(0x505),
    }
}

fn table(tables: &Tables, signature: &[u8; 4]) -> Vec<u8> {
    tables.iter().find(|(found, _)| *found == signature).unwrap_or_else(|| panic!("{signature:?}")).1.to_vec()
}

/// Finds all tables in guest memory, starting from the RSDP, checking every checksum on the way.
fn walk(memory: &Memory) -> Vec<([u8; 4], Vec<u8>)> {
    let read = |address: u64, size: usize| {
        let mut bytes = vec![0; size];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    };
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let read_table = |address: u64| {
        assert_eq!(address % 16, 0);
        let length = u32::from_le_bytes(read(address + 4, 4).try_into().unwrap());
        let bytes = read(address, length as usize);
        assert_eq!(sum(&bytes), 0, "checksum of the table at {address:#x}");
        (<[u8; 4]>::try_from(&bytes[..4]).unwrap(), bytes)
    };
    let rsdp = read(RSDP.0, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = read_table(u64_at(&rsdp, 24)).1;
    let mut found = Vec::new();
    for entry in xsdt[36..].chunks(8) {
        let (signature, bytes) = read_table(u64_at(entry, 0));
        if &signature == b"FACP" {
            found.push(read_table(u64_at(&bytes, 140)));
        }
        found.push((signature, bytes));
    }
    found
}

#[test]
fn all_tables_are_found_from_the_rsdp() {
    let memory: Memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    build(&config(), PLACE, RSDP).unwrap().write(&memory).unwrap();
    let found: Vec<_> =
        walk(&memory).into_iter().map(|(s, _)| String::from_utf8(s.to_vec()).unwrap()).collect();
    assert_eq!(found, ["DSDT", "FACP", "APIC", "MCFG", "SRAT", "SLIT", "PPTT"]);

    let plain = AcpiConfig { memory: Vec::new(), distances: Vec::new(), processors: None, ..config() };
    build(&plain, PLACE, RSDP).unwrap().write(&memory).unwrap();
    assert_eq!(walk(&memory).len(), 4, "without NUMA nodes and groups of CPUs their tables are left out");
}

#[test]
fn refusals_name_sizes_and_places() {
    let error = build(&config(), Range { size: 256, ..PLACE }, RSDP).unwrap_err().to_string();
    assert!(error.contains("and 256 are kept"), "{error}");
    let memory: Memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    let error = build(&config(), PLACE, RSDP).unwrap().write(&memory).unwrap_err().to_string();
    assert!(error.contains("0xc0000"), "{error}");
}

#[test]
fn large_apic_ids_have_the_x2apic_structures() {
    let cpus = (0..300).map(|n| Cpu { apic_id: n, enabled: true, node: 0 }).collect();
    let tables = build(&AcpiConfig { cpus, ..config() }, PLACE, RSDP).unwrap();
    let count = |signature: &[u8; 4], first: usize| {
        let bytes = table(&tables, signature);
        let mut counts = [0; 16];
        let mut at = first;
        while at < bytes.len() {
            counts[usize::from(bytes[at])] += 1;
            at += usize::from(bytes[at + 1]);
        }
        assert_eq!(at, bytes.len(), "structures end with the table");
        counts
    };
    let madt = count(b"APIC", 44);
    assert_eq!((madt[0], madt[9], madt[1], madt[4], madt[10]), (255, 45, 1, 1, 1));
    let srat = count(b"SRAT", 48);
    assert_eq!((srat[0], srat[2], srat[1]), (255, 45, 2));
}

#[test]
fn interrupt_pins_are_spread() {
    let pins = InterruptPins { first_gsi: 16, count: 8 };
    assert_eq!([pins.gsi(0, 1), pins.gsi(1, 1), pins.gsi(7, 2), pins.gsi(31, 4)], [16, 17, 16, 18]);
}

fn through_iasl(name: &str, config: &AcpiConfig) -> Option<Vec<(String, String)>> {
    testing::through_iasl(name, &build(config, PLACE, RSDP).unwrap())
}

#[test]
fn iasl_takes_every_table() {
    let Some(sources) = through_iasl("full", &config()) else { return };
    let source = |name: &str| &sources.iter().find(|(found, _)| found == name).unwrap().1;
    for (name, expected) in [
        ("dsdt", "PNP0A08"),
        ("dsdt", "Notify (\\_SB.PWRB, 0x80)"),
        ("dsdt", "0x0000010000000000, // Range Minimum"),
        ("facp", "Hardware Reduced (V5) : 1"),
        ("facp", "Reset Register Supported (V2) : 1"),
        ("apic", "Local Apic ID : 03"),
        ("dsdt", "0x000F, // Range Maximum"),
        ("mcfg", "Base Address : 0000001010000000"),
        ("mcfg", "End Bus Number : FF"),
        ("mcfg", "End Bus Number : 0F"),
        ("srat", "Hot Pluggable : 1"),
        ("slit", "Locality   1 : 1E 0A"),
        ("pptt", "Physical package : 1"),
        ("pptt", "Processor is a thread : 1"),
        ("pptt", "Size : 02000000"),
    ] {
        let found = source(name).lines().any(|line| {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            words(line).contains(&words(expected))
        });
        assert!(found, "{expected:?} is not in {name}:\n{}", source(name));
    }
}

#[test]
fn iasl_takes_a_machine_with_little_and_one_with_much() {
    let little = AcpiConfig {
        cpus: vec![Cpu { apic_id: 0, enabled: true, node: 0 }],
        segments: config().segments[..1].to_vec(),
        memory: Vec::new(),
        distances: Vec::new(),
        processors: None,
        registers: Registers { pm_timer: None, ..config().registers },
        pci_hotplug: None,
        cpu_hotplug: None,
        memory_hotplug: None,
        generation_id: None,
        fw_cfg: None,
        serial: Vec::new(),
        rtc: None,
        pvpanic: None,
        ..config()
    };
    through_iasl("little", &little);
    let segment = config().segments[1];
    let much = AcpiConfig {
        cpus: (0..300).map(|n| Cpu { apic_id: n, enabled: true, node: n % 4 }).collect(),
        segments: vec![segment; 64],
        memory_hotplug: Some(MemorySlots { port: 0x660, count: 64 }),
        serial: (0..4).map(|n| IsaDevice { port: 0x2e8 + n * 0x10, gsi: 3 }).collect(),
        ..config()
    };
    through_iasl("much", &much);
}

/// Runs `command` with the reference interpreter on the DSDT, its registers filled with `fill`. `None` when it is
/// not installed, which it says.
fn acpiexec(name: &str, fill: &str, command: &str) -> Option<String> {
    let path = std::env::temp_dir().join(format!("vivarium-acpiexec-{name}-{}.aml", std::process::id()));
    std::fs::write(&path, table(&build(&config(), PLACE, RSDP).unwrap(), b"DSDT")).unwrap();
    let output = Command::new("acpiexec").args(["-fv", fill, "-b", command]).arg(&path).output();
    std::fs::remove_file(&path).unwrap();
    let output = output.inspect_err(|_| skip_without("acpiexec")).ok()?;
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn methods_do_what_they_should_when_interpreted() {
    // What an operating system hands to _OSC, and what comes back: status bits, and what it may control.
    let pcie = "5B4DDB33F71F1C4096577441C03DD766";
    let other = "004DDB33F71F1C4096577441C03DD766";
    let calls = [
        (pcie, 1, "1D000000", "00 00 00 00 00 00 00 00 1D 00 00 00"),
        (pcie, 1, "FF000000", "10 00 00 00 00 00 00 00 3D 00 00 00"),
        (pcie, 2, "01000000", "08 00 00 00 00 00 00 00 01 00 00 00"),
        (other, 1, "FF000000", "04 00 00 00 00 00 00 00 FF 00 00 00"),
    ];
    // The interpreter takes most of a second to start, so all calls are made in one run.
    let commands = calls.map(|(uuid, revision, asked, _)| {
        format!("evaluate \\_SB.PC00._OSC ({uuid}) {revision} 3 (0000000000000000{asked})")
    });
    let Some(said) = acpiexec("osc", "0", &commands.join(";")) else { return };
    let answers: Vec<_> =
        said.lines().filter_map(|line| line.split_once("0000: ")).map(|(_, bytes)| bytes).collect();
    assert_eq!(answers.len(), calls.len(), "{said}");
    for ((_, _, _, expected), answer) in calls.iter().zip(answers) {
        assert!(answer.starts_with(expected), "{expected}: {said}");
    }
    for (fill, pressed) in [("0x01", true), ("0x1e", false)] {
        let said = acpiexec("ged", fill, "evaluate \\_SB.GED0._EVT 5").unwrap();
        assert!(said.contains("No object was returned"), "{said}");
        assert_eq!(said.contains("PWRB"), pressed, "events {fill}: {said}");
    }
    // All registers read 9: the devices 0 and 3 of each segment came, and are asked to go.
    let said = acpiexec("pci", "0x09", "evaluate \\_SB.PHPC.PSCN;evaluate \\_SB.PC01.S01F._EJ0 1").unwrap();
    for expected in ["0x00", "0x01", "0x03"] {
        let told = said.lines().filter(|line| line.contains("S003") && line.contains(expected)).count();
        assert_eq!(told, 2, "{expected} in both segments: {said}");
    }
    assert!(!said.contains("S001") && !said.contains("AE_"), "{said}");
    // Registers read 0x01010101 until they are written: what is in each slot is present, and there is no slot of that
    // number.
    let commands = [
        "evaluate \\_SB.CPUS.C003._STA",
        "evaluate \\_SB.CPUS.CSCN",
        "evaluate \\_SB.CPUS.C003._OST 3 0 (00)",
        "evaluate \\_SB.CPUS.C003._EJ0 1",
        "evaluate \\_SB.CPUS.C003._MAT",
        "evaluate \\_SB.MHPC.M002._CRS",
        "evaluate \\_SB.MHPC.M002._PXM",
    ];
    let said = acpiexec("slots", "0x01", &commands.join(";")).unwrap();
    for expected in [
        "[Integer] = 000000000000000F",
        "00 08 03 03 01 00 00 00",
        // Cacheable memory: where it begins and ends, no translation, and its size.
        "0C 03 00 00 00 00 00 00 00 00 01 01",
        "01 01 01 01 01 01 01 02 02 02 02 02 02 02 00 00",
        "00 00 00 00 00 00 01 01 01 01 01 01 01 01 79 00",
        "[Integer] = 0000000001010101",
    ] {
        let found = said.contains(expected);
        assert!(found, "{expected}: {said}");
    }
    assert!(!said.contains("AE_"), "{said}");
}
