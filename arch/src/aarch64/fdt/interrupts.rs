//! The interrupt controller, with a translation service for each PCI segment (`arm,gic-v3.yaml`).

use super::{FdtConfig, PHANDLE_GIC, PHANDLE_ITS, Result, Tree};
use hypervisor::aarch64::GicConfig;
use machine::bus::Range;

/// Adds the controller.
pub(super) fn node(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    let gic = config.gic;
    tree.node(&format!("interrupt-controller@{:x}", gic.distributor), |tree| {
        tree.0.property_string("compatible", "arm,gic-v3")?;
        tree.0.property_u32("#interrupt-cells", 3)?;
        tree.0.property_null("interrupt-controller")?;
        let redistributors = u64::from(gic.cpus) * GicConfig::REDISTRIBUTOR_SIZE;
        tree.registers(&[
            Range { start: gic.distributor, size: GicConfig::DISTRIBUTOR_SIZE },
            Range { start: gic.redistributors, size: redistributors },
        ])?;
        tree.0.property_u32("#address-cells", 2)?;
        tree.0.property_u32("#size-cells", 2)?;
        tree.0.property_null("ranges")?;
        tree.0.property_phandle(PHANDLE_GIC)?;
        for (start, number) in gic.its().zip(0..) {
            tree.node(&format!("msi-controller@{start:x}"), |tree| {
                tree.0.property_string("compatible", "arm,gic-v3-its")?;
                tree.0.property_null("msi-controller")?;
                tree.0.property_u32("#msi-cells", 1)?;
                tree.registers(&[Range { start, size: GicConfig::ITS_SIZE }])?;
                Ok(tree.0.property_phandle(PHANDLE_ITS + number)?)
            })?;
        }
        Ok(())
    })
}
