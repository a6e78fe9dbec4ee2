use super::*;
use crate::aarch64::layout::{LayoutRequest, MemoryLayout, SegmentShare};
use crate::aarch64::serial::SerialModel;
use crate::caches::{CacheKind, CacheScope, CacheShape};
use std::io::Write;
use std::process::{Command, Stdio};

fn config(cpus: u32, segments: u16) -> FdtConfig {
    let request = LayoutRequest { segments, ..LayoutRequest::new(1 << 30, 44) };
    // All but the first have few buses.
    let few = SegmentShare { buses: 16, ..SegmentShare::default() };
    let shares: Vec<_> = (0..segments).map(|n| if n == 0 { SegmentShare::default() } else { few }).collect();
    let layout = MemoryLayout::with_shares(&request, &shares).unwrap();
    FdtConfig {
        topology: Topology::flat(cpus),
        caches: caches_of_a_server(),
        cpu_nodes: vec![0; cpus as usize],
        pmu: true,
        memory: layout.ram().iter().map(|range| (*range, 0)).collect(),
        distances: Vec::new(),
        gic: layout.gic(cpus),
        segments: layout.segments().to_vec(),
        segment_nodes: Vec::new(),
        interrupt_pins: InterruptPins { first_gsi: 3, count: 4 },
        serial: Some(SerialPort { model: SerialModel::Pl011, interrupt: 1 }),
        rtc: 2,
        gpio: 7,
        power_button: 3,
        pvpanic: true,
        fw_cfg: true,
        flash: layout::FLASH.to_vec(),
        chosen: Chosen {
            command_line: "quiet console=ttyAMA0".into(),
            initramfs: Some(Range { start: 0x7000_0000, size: 0x1234 }),
            seed: vec![0xa5; 40],
        },
    }
}

fn caches_of_a_server() -> Vec<Cache> {
    let shape = |size| Some(CacheShape { size, line: 64, sets: size / 64 / 4, ways: 4 });
    let cache = |level, kind, scope, shape| Cache { level, kind, scope, shape };
    vec![
        cache(1, CacheKind::Instruction, CacheScope::Core, shape(65_536)),
        cache(1, CacheKind::Data, CacheScope::Core, shape(65_536)),
        cache(2, CacheKind::Unified, CacheScope::Core, None),
        cache(3, CacheKind::Unified, CacheScope::Die, shape(32 << 20)),
    ]
}

/// The tree as the device tree compiler reads it, and what it warns of; `None` where there is no such program, which it
/// says.
fn decompiled(tree: &[u8]) -> Option<(String, String)> {
    let dtc = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut dtc = dtc.inspect_err(|_| crate::testing::skip_without("dtc")).ok()?;
    dtc.stdin.take().unwrap().write_all(tree).unwrap();
    let output = dtc.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Some((text(output.stdout), text(output.stderr)))
}

fn config_of_numa() -> FdtConfig {
    FdtConfig {
        topology: Topology::new(2, 2, 1, 2, 8).unwrap(),
        cpu_nodes: vec![0, 0, 0, 0, 1, 1, 1, 1],
        distances: vec![vec![10, 20], vec![20, 10]],
        segment_nodes: vec![Some(1), None, Some(0)],
        serial: Some(SerialPort { model: SerialModel::Uart16550, interrupt: 1 }),
        ..config(8, 3)
    }
}

/// What a device tree compiler before version 1.7.0 misses in each interrupt controller, and the binding of the PL061 does
/// not allow.
const OUTDATED: &str = "(interrupt_provider): /gpio@9030000: Missing #address-cells in interrupt provider";

/// Whether `version`, as the device tree compiler tells its own, is before 1.7.0.
fn is_outdated(version: &str) -> bool {
    let numbers = version.rsplit(' ').next().unwrap().split(['.', '-', '+']);
    let numbers: Vec<u32> = numbers.map_while(|number| number.trim().parse().ok()).collect();
    numbers < vec![1, 7]
}

#[test]
fn the_device_tree_compiler_finds_nothing_to_warn_of() {
    let Ok(version) = Command::new("dtc").arg("--version").output() else {
        return crate::testing::skip_without("dtc");
    };
    let outdated = is_outdated(String::from_utf8(version.stdout).unwrap().trim());
    for config in [config(1, 1), config(123, 1), config_of_numa()] {
        let Some((_, warnings)) = decompiled(&build(&config).unwrap()) else { return };
        let wrong: Vec<_> = warnings.lines().filter(|line| !(outdated && line.contains(OUTDATED))).collect();
        assert!(wrong.is_empty(), "{warnings}");
    }
}

#[test]
fn versions_of_the_device_tree_compiler_are_told_apart() {
    for (version, outdated) in [("1.6.1", true), ("1.7.0", false), ("1.7.2-g1234", false), ("2.0", false)] {
        assert_eq!(is_outdated(&format!("Version: DTC {version}")), outdated, "{version}");
    }
}

/// What the kernel's own schemas say. `VIVARIUM_DT_VALIDATE` is a program with its options that checks a tree and says
/// nothing if it is right.
#[test]
fn the_tree_is_as_the_bindings_have_it() {
    let Ok(program) = std::env::var("VIVARIUM_DT_VALIDATE") else {
        println!("@@SKIP VIVARIUM_DT_VALIDATE does not name a program");
        return;
    };
    let words: Vec<_> = program.split(' ').collect();
    let path = std::env::temp_dir().join(format!("vivarium-fdt-{}.dtb", std::process::id()));
    for config in [config(20, 1), config_of_numa()] {
        std::fs::write(&path, build(&config).unwrap()).unwrap();
        let output = Command::new(words[0]).args(&words[1..]).arg(&path).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // Linux's binding of NUMA (numa.txt) has it in host bridges; their own schema does not know.
        const NOT_IN_SCHEMA: &str = "Unevaluated properties are not allowed ('numa-node-id' was unexpected)";
        let mut lines = text.lines().filter(|line| !line.is_empty());
        while let Some(line) = lines.next() {
            assert!(line.contains("(pci-host-ecam-generic): ") && line.ends_with(NOT_IN_SCHEMA), "{text}");
            assert!(lines.next().is_some_and(|line| line.trim().starts_with("from schema $id: ")), "{text}");
        }
    }
}

#[test]
fn every_cpu_leads_to_its_caches() {
    let Some((text, _)) = decompiled(&build(&config_of_numa()).unwrap()) else { return };
    let node = |name: &str| {
        let start = text.find(&format!("{name} {{")).unwrap_or_else(|| panic!("{name} in\n{text}"));
        text[start..].split("};").next().unwrap().to_owned()
    };
    assert!(node("cpu@0").contains("d-cache-size = <0x10000>"));
    let phandle = |name: &str| {
        let node = node(name);
        node.split("\tphandle = ").nth(1).unwrap().split(';').next().unwrap().to_owned()
    };
    for (from, to) in [
        ("cpu@0", "l2-cache0"),
        ("cpu@3", "l2-cache2"),
        ("cpu@7", "l2-cache6"),
        ("l2-cache2", "l3-cache0"),
        ("l2-cache6", "l3-cache4"),
    ] {
        let expected = format!("next-level-cache = {};", phandle(to));
        assert!(node(from).contains(&expected), "{from} {to}: {}", node(from));
    }
    assert!(!node("l3-cache0").contains("next-level-cache"));
}

#[test]
fn the_tree_says_what_the_machine_has() {
    let Some((text, _)) = decompiled(&build(&config(20, 2)).unwrap()) else { return };
    for expected in [
        "bootargs = \"quiet console=ttyAMA0\"",
        "stdout-path = \"/serial@9000000\"",
        "linux,initrd-end = <0x00 0x70001234>",
        "memory@40000000",
        "cpu@103 {",
        "msi-controller@80a0000",
        "msi-map = <0x00 0x100 0x00 0x10000>",
        "bus-range = <0x00 0xff>",
        "msi-map = <0x00 0x101 0x00 0x1000>",
        "bus-range = <0x00 0x0f>",
        "linux,pci-domain = <0x01>",
        "interrupts = <0x01 0x07 0x04>",
        "flash@0 {",
        "reg = <0x00 0x00 0x00 0x4000000 0x00 0x4000000 0x00 0x4000000>",
    ] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    assert_eq!(text.matches("enable-method = \"psci\"").count(), 20);
}

#[test]
fn a_machine_with_most_cpus_has_a_tree() {
    let size = build(&config(layout::MAX_CPUS, layout::MAX_SEGMENTS)).unwrap().len() as u64;
    assert!(size < FDT_SIZE, "{size}");
}

#[test]
fn a_segment_is_in_its_node() {
    let Some((text, _)) = decompiled(&build(&config_of_numa()).unwrap()) else { return };
    let segments = text.split("\tpcie@").skip(1).map(|rest| rest.split("};").next().unwrap());
    let nodes = ["<0x01>", "", "<0x00>"].map(|node| Some(node).filter(|node| !node.is_empty()));
    let found: Vec<_> = segments
        .map(|node| node.split("numa-node-id = ").nth(1).map(|rest| rest.split(';').next().unwrap()))
        .collect();
    assert_eq!(found, nodes);
}

#[test]
fn a_serial_port_of_either_kind_is_the_console() {
    for (config, compatible, size) in
        [(config(1, 1), "arm,pl011\\0arm,primecell", "0x1000"), (config_of_numa(), "ns16550a", "0x08")]
    {
        let Some((text, _)) = decompiled(&build(&config).unwrap()) else { return };
        let node = text.split("serial@9000000 {").nth(1).unwrap().split("};").next().unwrap();
        for expected in
            [compatible, &format!("reg = <0x00 0x9000000 0x00 {size}>"), "interrupts = <0x00 0x01 0x04>"]
        {
            assert!(node.contains(expected), "{expected} in\n{node}");
        }
        assert!(text.contains("stdout-path = \"/serial@9000000\""));
    }
}
