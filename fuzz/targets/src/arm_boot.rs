//! `arm_kernel`: files that are given as a kernel of an Arm machine. `arm_tables`: what describes such a machine.

use crate::input::Input;
use crate::kernel_file::{Files, check_error, memory};
use arch::aarch64::acpi::{self, AcpiConfig, NodeMemory};
use arch::aarch64::boot::load_kernel;
use arch::aarch64::fdt::{self, Chosen, FdtConfig};
use arch::aarch64::layout::{FDT_SIZE, FLASH, LayoutRequest, MemoryLayout, RAM_START};
use arch::aarch64::serial::{SerialModel, SerialPort};
use arch::caches::{Cache, CacheKind, CacheScope, CacheShape};
use arch::topology::Topology;
use arch::wiring::InterruptPins;
use machine::bus::Range;
use machine::memory::{GuestAddress, Memory};
use std::sync::OnceLock;

const RAM: u64 = 16 << 20;
const ACPI_PLACE: Range = Range { start: RAM_START + (1 << 20), size: 1 << 20 };

/// The input is two bytes of choices, the size of the initramfs and the length of the command line, and the file.
pub fn arm_kernel(data: &[u8]) {
    // What an earlier file left in memory must not matter, so it is made only once.
    static MACHINE: OnceLock<(Memory, MemoryLayout)> = OnceLock::new();
    let (memory, layout) = MACHINE.get_or_init(|| {
        let layout = MemoryLayout::new(&LayoutRequest::new(RAM, 40)).expect("there is enough RAM");
        (memory(layout.ram()), layout)
    });
    let Files { mut kernel, mut initramfs, command_line } = Files::of(data);
    match load_kernel(memory, layout, &mut kernel, initramfs.as_mut(), &command_line) {
        Ok(loaded) => {
            let ram = RAM_START..RAM_START + RAM;
            assert!(ram.contains(&loaded.entry.address.0), "the entry is in RAM: {loaded:?}");
            if let Some(place) = loaded.initramfs {
                assert!(ram.contains(&place.last()) && place.start > loaded.entry.address.0, "{loaded:?}");
            }
        }
        Err(error) => check_error(&error),
    }
}

/// A device tree and ACPI tables of a machine that the input chooses: the tree reads back as nodes that are all closed, with
/// a handle for each reference; the tables add up to zero.
pub fn arm_tables(data: &[u8]) {
    let config = machine(&mut Input::new(data));
    let tree = fdt::build(&config).expect("the machine is not too large");
    assert!(tree.len() as u64 <= FDT_SIZE);
    check_tree(&tree);
    let tables = AcpiConfig {
        topology: config.topology,
        caches: config.caches.clone(),
        cpu_nodes: config.cpu_nodes.clone(),
        pmu: config.pmu,
        gic: config.gic,
        segments: config.segments.clone(),
        segment_nodes: config.segment_nodes.clone(),
        interrupt_pins: config.interrupt_pins,
        memory: config
            .memory
            .iter()
            .map(|&(range, node)| NodeMemory { node, range, hotplug: false })
            .collect(),
        distances: config.distances.clone(),
        serial: config.serial,
        // Neither is in a device tree: from none that may be added to all but one.
        present: (config.distances.len() as u32 + 1).min(config.cpu_nodes.len() as u32),
        memory_slots: 8 * config.distances.len() as u32,
        events: config.gpio,
        generation_id: config.fw_cfg.then_some(RAM_START),
        fw_cfg: config.fw_cfg,
        pvpanic: config.pvpanic,
    };
    let tables =
        acpi::build(&tables, ACPI_PLACE, GuestAddress(ACPI_PLACE.start - 64)).expect("the tables fit");
    for (signature, table) in tables.iter() {
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "{signature:?}");
        assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
    }
}

fn machine(input: &mut Input<'_>) -> FdtConfig {
    let [threads, cores, dies, packages] = [0; 4].map(|_| u32::from(input.below(4)) + 1);
    let limit = threads * cores * dies * packages;
    let topology = Topology::new(threads, cores, dies, packages, limit).expect("it multiplies out");
    let cpus = u32::from(input.below(limit as u16)) + 1;
    let segments = input.below(5) + 1;
    let request = LayoutRequest { segments, ..LayoutRequest::new(1 << 30, 44) };
    let layout = MemoryLayout::new(&request).expect("44 bits suffice");
    let nodes = u32::from(input.below(3)) + 1;
    let cache = |input: &mut Input<'_>| Cache {
        level: input.u8() % 4 + 1,
        kind: input.choose(&[CacheKind::Data, CacheKind::Instruction, CacheKind::Unified]),
        scope: input.choose(&[CacheScope::Core, CacheScope::Die]),
        shape: input.flag().then(|| CacheShape {
            size: input.u32(),
            line: input.u16(),
            sets: input.u32(),
            ways: input.u8(),
        }),
    };
    let mut caches: Vec<_> = (0..input.below(5)).map(|_| cache(input)).collect();
    caches.sort_by_key(|cache| cache.level);
    // A machine has one of a kind at a level.
    caches.dedup_by_key(|cache| cache.level);
    FdtConfig {
        topology,
        caches,
        cpu_nodes: (0..cpus).map(|index| index % nodes).collect(),
        pmu: input.flag(),
        memory: layout.ram().iter().map(|&range| (range, 0)).collect(),
        distances: if nodes > 1 { vec![vec![10; nodes as usize]; nodes as usize] } else { Vec::new() },
        gic: layout.gic(cpus),
        segments: layout.segments().to_vec(),
        segment_nodes: (0..segments).map(|number| Some(u32::from(number) % nodes)).collect(),
        interrupt_pins: InterruptPins { first_gsi: 3, count: 4 },
        serial: input.flag().then(|| SerialPort {
            model: input.choose(&[SerialModel::Pl011, SerialModel::Uart16550]),
            interrupt: 1,
        }),
        rtc: 2,
        gpio: 7,
        power_button: 3,
        pvpanic: input.flag(),
        fw_cfg: input.flag(),
        flash: FLASH.to_vec(),
        chosen: Chosen {
            initramfs: input.flag().then_some(Range { start: RAM_START, size: 4096 }),
            seed: input.bytes(40).to_vec(),
            command_line: input.rest().iter().map(|byte| char::from(byte % 95 + 32)).collect(),
        },
    }
}

/// Reads a flattened tree (Devicetree Specification 0.4, 5).
fn check_tree(tree: &[u8]) {
    const BEGIN: usize = 1;
    const END: usize = 2;
    const PROPERTY: usize = 3;
    const LAST: usize = 9;
    let word = |at: usize| u32::from_be_bytes(tree[at..at + 4].try_into().expect("four bytes")) as usize;
    let text = |at: usize| tree[at..].split(|byte| *byte == 0).next().unwrap_or_default();
    assert_eq!((word(0), word(4)), (0xd00d_feed, tree.len()));
    let (mut at, strings) = (word(8), word(12));
    let (mut depth, mut handles, mut references) = (0, Vec::new(), Vec::new());
    loop {
        let token = word(at);
        at += 4;
        match token {
            BEGIN => {
                depth += 1;
                at += text(at).len() + 1;
            }
            END => depth -= 1,
            PROPERTY => {
                let (length, name) = (word(at), text(strings + word(at + 4)));
                match name {
                    b"phandle" => handles.push(word(at + 8)),
                    b"cpu" | b"next-level-cache" | b"interrupt-parent" => references.push(word(at + 8)),
                    _ => {}
                }
                at += 8 + length;
            }
            LAST => break,
            other => panic!("token {other} at {at}"),
        }
        at = at.next_multiple_of(4);
    }
    assert_eq!(depth, 0, "nodes are closed");
    let count = handles.len();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), count, "handles differ");
    for reference in references {
        assert!(handles.binary_search(&reference).is_ok(), "{reference:#x} is nobody's");
    }
}
