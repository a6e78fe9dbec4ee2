//! The flattened device tree: what a guest that is not booted by firmware learns of the machine (Devicetree Specification
//! 0.4, and the bindings in Linux, `Documentation/devicetree/bindings`).

mod chosen;
mod cpus;
mod interrupts;
mod memory;
mod pci;
mod platform;
#[cfg(test)]
mod tests;

pub use chosen::{Chosen, build_for_efi};

use super::layout::{self, FDT_SIZE};
use super::serial::SerialPort;
use crate::caches::Cache;
use crate::layout::SegmentWindows;
use crate::topology::Topology;
use crate::wiring::InterruptPins;
use hypervisor::aarch64::GicConfig;
use machine::bus::Range;
use thiserror::Error;
use vm_fdt::FdtWriter;

/// What the tree describes.
#[derive(Clone, Debug)]
pub struct FdtConfig {
    /// How CPUs are grouped.
    pub topology: Topology,
    /// The caches of each CPU, nearest first.
    pub caches: Vec<Cache>,
    /// The NUMA node of each CPU that is there.
    pub cpu_nodes: Vec<u32>,
    /// They have a performance monitor.
    pub pmu: bool,
    /// RAM with its NUMA node.
    pub memory: Vec<(Range, u32)>,
    /// Row by row, how far one NUMA node's memory is from another's. Without any the machine has no NUMA nodes.
    pub distances: Vec<Vec<u8>>,
    /// The interrupt controller.
    pub gic: GicConfig,
    /// The PCI segments, by number.
    pub segments: Vec<SegmentWindows>,
    /// The NUMA node of each of them that belongs to one.
    pub segment_nodes: Vec<Option<u32>>,
    /// Where the PCI interrupt pins are wired.
    pub interrupt_pins: InterruptPins,
    /// The serial port, if there is one.
    pub serial: Option<SerialPort>,
    /// The PL031's shared interrupt.
    pub rtc: u32,
    /// The PL061's shared interrupt.
    pub gpio: u32,
    /// The pin of the PL061 that is the power button.
    pub power_button: u8,
    /// There is a pvpanic device.
    pub pvpanic: bool,
    /// There is a firmware configuration device.
    pub fw_cfg: bool,
    /// Banks of flash, of two chips of 16 bits beside each other.
    pub flash: Vec<Range>,
    /// What the kernel is started with.
    pub chosen: Chosen,
}

/// Why there is no tree.
#[derive(Debug, Error)]
pub enum FdtError {
    /// A name or value cannot be in a tree.
    #[error("the device tree cannot be made: {0}")]
    Content(#[from] vm_fdt::Error),
    /// It is larger than kernels take.
    #[error("the device tree takes {size} bytes, and a kernel takes at most {FDT_SIZE}: use fewer CPUs")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
}

type Result<T> = std::result::Result<T, FdtError>;

// Nodes that others refer to.
const PHANDLE_GIC: u32 = 1;
const PHANDLE_ITS: u32 = 0x100;

// Cells of an interrupt (arm,gic-v3.yaml).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Interrupts below are those of software.
const FIRST_PRIVATE: u32 = 16;

/// Makes the tree.
///
/// # Errors
/// When it becomes too large.
pub fn build(config: &FdtConfig) -> Result<Vec<u8>> {
    let mut tree = Tree(FdtWriter::new()?);
    tree.node("", |tree| {
        tree.0.property_string("compatible", "linux,dummy-virt")?;
        tree.0.property_string("model", "vivarium")?;
        tree.0.property_u32("#address-cells", 2)?;
        tree.0.property_u32("#size-cells", 2)?;
        tree.0.property_u32("interrupt-parent", PHANDLE_GIC)?;
        tree.0.property_null("dma-coherent")?;
        let serial = format!("/serial@{:x}", layout::SERIAL);
        chosen::node(tree, &config.chosen, |tree| match config.serial {
            Some(_) => Ok(tree.0.property_string("stdout-path", &serial)?),
            None => Ok(()),
        })?;
        memory::nodes(tree, config)?;
        cpus::nodes(tree, config)?;
        cpus::psci(tree)?;
        cpus::timer(tree)?;
        if config.pmu {
            cpus::pmu(tree)?;
        }
        interrupts::node(tree, config)?;
        platform::nodes(tree, config)?;
        config
            .segments
            .iter()
            .zip(0..)
            .try_for_each(|(segment, number)| pci::node(tree, config, segment, number))
    })?;
    let bytes = tree.0.finish()?;
    let size = bytes.len() as u64;
    if size > FDT_SIZE { Err(FdtError::TooLarge { size }) } else { Ok(bytes) }
}

/// A tree that grows.
struct Tree(FdtWriter);

impl Tree {
    /// Adds a node, and in it what `fill` adds.
    fn node(&mut self, name: &str, fill: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let node = self.0.begin_node(name)?;
        fill(self)?;
        Ok(self.0.end_node(node)?)
    }

    /// Adds the property that says where a device's registers are.
    fn registers(&mut self, ranges: &[Range]) -> Result<()> {
        let cells: Vec<u64> = ranges.iter().flat_map(|range| [range.start, range.size]).collect();
        Ok(self.0.property_array_u64("reg", &cells)?)
    }

    fn strings(&mut self, name: &str, values: &[&str]) -> Result<()> {
        Ok(self.0.property_string_list(name, values.iter().map(|value| (*value).to_owned()).collect())?)
    }

    /// Says which NUMA node it belongs to.
    fn numa(&mut self, config: &FdtConfig, node: u32) -> Result<()> {
        if config.distances.is_empty() {
            return Ok(());
        }
        Ok(self.0.property_u32("numa-node-id", node)?)
    }
}
