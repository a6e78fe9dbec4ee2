//! The devices at fixed places.

use super::{FdtConfig, LEVEL_HIGH, Result, SHARED, Tree};
use crate::aarch64::layout;
use crate::aarch64::serial::{SerialModel, SerialPort};
use machine::bus::Range;

// Nodes that others refer to.
const PHANDLE_CLOCK: u32 = 2;
const PHANDLE_GPIO: u32 = 3;

/// Linux's key code of a power button.
const KEY_POWER: u32 = 116;
/// The frequency of the clock that PrimeCell devices are told of. Nothing depends on it.
const PRIMECELL_CLOCK_HZ: u32 = 24_000_000;
/// The usual crystal of a 16550. Nothing depends on it.
const UART_CLOCK_HZ: u32 = 1_843_200;

/// Adds the devices.
pub(super) fn nodes(tree: &mut Tree, config: &FdtConfig) -> Result<()> {
    tree.node("apb-pclk", |tree| {
        tree.0.property_string("compatible", "fixed-clock")?;
        tree.0.property_u32("#clock-cells", 0)?;
        tree.0.property_u32("clock-frequency", PRIMECELL_CLOCK_HZ)?;
        Ok(tree.0.property_phandle(PHANDLE_CLOCK)?)
    })?;
    if let Some(port) = config.serial {
        serial(tree, port)?;
    }
    let clock = |tree: &mut Tree| -> Result<()> {
        tree.0.property_u32("clocks", PHANDLE_CLOCK)?;
        Ok(tree.0.property_string("clock-names", "apb_pclk")?)
    };
    primecell(tree, "rtc", "arm,pl031", layout::RTC, Some(config.rtc), clock)?;
    primecell(tree, "gpio", "arm,pl061", layout::GPIO, Some(config.gpio), |tree| {
        clock(tree)?;
        tree.0.property_null("gpio-controller")?;
        tree.0.property_u32("#gpio-cells", 2)?;
        tree.0.property_null("interrupt-controller")?;
        tree.0.property_u32("#interrupt-cells", 2)?;
        Ok(tree.0.property_phandle(PHANDLE_GPIO)?)
    })?;
    tree.node("gpio-keys", |tree| {
        tree.0.property_string("compatible", "gpio-keys")?;
        tree.node("key-power", |tree| {
            tree.0.property_string("label", "Power Button")?;
            tree.0.property_u32("linux,code", KEY_POWER)?;
            Ok(tree.0.property_array_u32("gpios", &[PHANDLE_GPIO, config.power_button.into(), 0])?)
        })
    })?;
    if let Some(first) = config.flash.first() {
        tree.node(&format!("flash@{:x}", first.start), |tree| {
            tree.0.property_string("compatible", "cfi-flash")?;
            tree.registers(&config.flash)?;
            Ok(tree.0.property_u32("bank-width", 4)?)
        })?;
    }
    if config.fw_cfg {
        tree.node(&format!("fw-cfg@{:x}", layout::FW_CFG.start), |tree| {
            tree.0.property_string("compatible", "qemu,fw-cfg-mmio")?;
            tree.registers(&[layout::FW_CFG])?;
            Ok(tree.0.property_null("dma-coherent")?)
        })?;
    }
    if config.pvpanic {
        tree.node(&format!("pvpanic@{:x}", layout::PVPANIC.start), |tree| {
            tree.0.property_string("compatible", "qemu,pvpanic-mmio")?;
            tree.registers(&[Range { start: layout::PVPANIC.start, size: 2 }])
        })?;
    }
    Ok(())
}

/// The serial port (`pl011.yaml`, `8250.yaml`).
fn serial(tree: &mut Tree, port: SerialPort) -> Result<()> {
    let registers = port.model.registers();
    match port.model {
        SerialModel::Pl011 => {
            primecell(tree, "serial", "arm,pl011", registers.start, Some(port.interrupt), |tree| {
                tree.0.property_array_u32("clocks", &[PHANDLE_CLOCK, PHANDLE_CLOCK])?;
                tree.strings("clock-names", &["uartclk", "apb_pclk"])
            })
        }
        SerialModel::Uart16550 => tree.node(&format!("serial@{:x}", registers.start), |tree| {
            tree.0.property_string("compatible", "ns16550a")?;
            tree.registers(&[registers])?;
            tree.0.property_u32("reg-shift", 0)?;
            tree.0.property_u32("reg-io-width", 1)?;
            tree.0.property_u32("clock-frequency", UART_CLOCK_HZ)?;
            Ok(tree.0.property_array_u32("interrupts", &[SHARED, port.interrupt, LEVEL_HIGH])?)
        }),
    }
}

fn primecell(
    tree: &mut Tree,
    kind: &str,
    compatible: &str,
    start: u64,
    interrupt: Option<u32>,
    fill: impl FnOnce(&mut Tree) -> Result<()>,
) -> Result<()> {
    tree.node(&format!("{kind}@{start:x}"), |tree| {
        tree.strings("compatible", &[compatible, "arm,primecell"])?;
        tree.registers(&[Range { start, size: 0x1000 }])?;
        if let Some(interrupt) = interrupt {
            tree.0.property_array_u32("interrupts", &[SHARED, interrupt, LEVEL_HIGH])?;
        }
        fill(tree)
    })
}
