//! PCI segments (`host-generic-pci.yaml`).

use super::{FdtConfig, LEVEL_HIGH, PHANDLE_GIC, PHANDLE_ITS, Result, SHARED, Tree};
use crate::layout::SegmentWindows;
use crate::wiring::InterruptPins;

/// Adds a segment.
pub(super) fn node(tree: &mut Tree, config: &FdtConfig, segment: &SegmentWindows, number: u32) -> Result<()> {
    const MEMORY_32: u32 = 0x0200_0000;
    const MEMORY_64: u32 = 0x0300_0000;
    const PREFETCHABLE: u32 = 0x4000_0000;
    // EDK2 takes no window for prefetchable memory alone, and would be left without addresses for large BARs.
    let above = if config.flash.is_empty() { MEMORY_64 | PREFETCHABLE } else { MEMORY_64 };
    let buses = u32::from(segment.last_bus()) + 1;
    tree.node(&format!("pcie@{:x}", segment.ecam.start), |tree| {
        tree.0.property_string("compatible", "pci-host-ecam-generic")?;
        tree.0.property_string("device_type", "pci")?;
        tree.registers(&[segment.ecam])?;
        tree.0.property_array_u32("bus-range", &[0, buses - 1])?;
        tree.0.property_u32("linux,pci-domain", number)?;
        tree.0.property_u32("#address-cells", 3)?;
        tree.0.property_u32("#size-cells", 2)?;
        let windows = [(MEMORY_32, segment.bars_32), (above, segment.bars_64)];
        let ranges: Vec<u32> = windows
            .into_iter()
            .filter(|(_, range)| range.size > 0)
            .flat_map(|(kind, range)| {
                let [start, size] =
                    [range.start, range.size].map(|value| [(value >> 32) as u32, value as u32]);
                [kind, start[0], start[1], start[0], start[1], size[0], size[1]]
            })
            .collect();
        tree.0.property_array_u32("ranges", &ranges)?;
        tree.0.property_null("dma-coherent")?;
        if let Some(node) = config.segment_nodes.get(number as usize).copied().flatten() {
            tree.numa(config, node)?;
        }
        tree.0.property_array_u32("msi-map", &[0, PHANDLE_ITS + number, 0, buses << 8])?;
        interrupt_map(tree, config.interrupt_pins)
    })
}

/// Which interrupt each pin of each device on the root bus is wired to.
fn interrupt_map(tree: &mut Tree, pins: InterruptPins) -> Result<()> {
    // The wiring repeats after as many devices as there are interrupts, which is a power of two.
    let period = pins.count.next_power_of_two().min(32) as u8;
    let mut map = Vec::new();
    for device in 0..period {
        for pin in 1..=4u8 {
            let gsi = pins.gsi(device, pin);
            map.extend([
                u32::from(device) << 11,
                0,
                0,
                pin.into(),
                PHANDLE_GIC,
                0,
                0,
                SHARED,
                gsi,
                LEVEL_HIGH,
            ]);
        }
    }
    tree.0.property_u32("#interrupt-cells", 1)?;
    tree.0.property_array_u32("interrupt-map-mask", &[u32::from(period - 1) << 11, 0, 0, 7])?;
    Ok(tree.0.property_array_u32("interrupt-map", &map)?)
}
