//! The PCI Express capability (PCIe 6.0, 7.5.3), and the extended ones that ports have.

use crate::capability::id;
use crate::config::{ConfigError, ConfigSpace};

/// Where a PCI Express function sits (PCIe 6.0, 7.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpressKind {
    /// Below a port.
    Endpoint,
    /// On the root complex's own bus.
    RootComplexIntegratedEndpoint,
    /// A port of the root complex.
    RootPort(PortCapabilities),
    /// The port of a switch that is towards the root complex.
    UpstreamPort,
    /// A port of a switch that is away from the root complex.
    DownstreamPort(PortCapabilities),
}

/// What a port that has a link below it says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCapabilities {
    /// Which of the ports of its root complex or switch it is.
    pub port: u8,
    /// The number of the slot below it in the machine, 0 to 8191; `None` if what is below stays there.
    pub slot: Option<u16>,
}

/// Offsets in the PCI Express capability.
pub mod express_register {
    /// Link capabilities, 4 bytes.
    pub const LINK_CAPABILITIES: u16 = 0x0c;
    /// Link control, 2 bytes; the link status follows it.
    pub const LINK_CONTROL: u16 = 0x10;
    /// Slot capabilities, 4 bytes.
    pub const SLOT_CAPABILITIES: u16 = 0x14;
    /// Slot control, 2 bytes; the slot status follows it.
    pub const SLOT_CONTROL: u16 = 0x18;
}

/// Bits of the slot's registers (PCIe 6.0, 7.5.3.9 to 7.5.3.11).
pub mod slot {
    /// Capabilities: attention button, power controller, attention and power indicator, surprise, hot-plug capable.
    pub const CAPABILITIES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6;
    /// Where the slot's number is in the capabilities.
    pub const NUMBER_SHIFT: u32 = 19;
    /// Control: command completed interrupts.
    pub const COMMAND_COMPLETED_ENABLE: u16 = 1 << 4;
    /// Control: hotplug interrupts.
    pub const INTERRUPT_ENABLE: u16 = 1 << 5;
    /// Control: the attention indicator off.
    pub const ATTENTION_INDICATOR_OFF: u16 = 3 << 6;
    /// Control: where the power indicator is; 1 is on, 2 blinks, 3 is off.
    pub const POWER_INDICATOR: u16 = 3 << 8;
    /// Control: the power indicator on.
    pub const POWER_INDICATOR_ON: u16 = 1 << 8;
    /// Control: the power indicator blinks.
    pub const POWER_INDICATOR_BLINKS: u16 = 2 << 8;
    /// Control: the power is off.
    pub const POWER_OFF: u16 = 1 << 10;
    /// Control: all that the guest may write: there is no interlock.
    pub const CONTROL_WRITABLE: u16 = 0x17ff;
    /// Status: the attention button was pressed.
    pub const ATTENTION_BUTTON: u16 = 1;
    /// Status: a device was put in or taken out.
    pub const PRESENCE_CHANGED: u16 = 1 << 3;
    /// Status: what was written to the control is done.
    pub const COMMAND_COMPLETED: u16 = 1 << 4;
    /// Status: there is a device in the slot.
    pub const PRESENT: u16 = 1 << 6;
    /// Status: the link came up or went down.
    pub const LINK_CHANGED: u16 = 1 << 8;
    /// Status: what the guest clears by writing 1.
    pub const STATUS_CLEAR: u16 = 0x11f;
}

/// Link capabilities: the port tells whether its link is up.
const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
/// Link control: the link is off.
pub(crate) const LINK_DISABLE: u16 = 1 << 4;
/// Link status: the link is up.
pub(crate) const LINK_ACTIVE: u16 = 1 << 13;
/// 16 GT/s, 16 lanes: as the fields of link capabilities and link status.
const PORT_LINK: u16 = 4 | 16 << 4;
/// 2.5 GT/s, one lane.
const ENDPOINT_LINK: u16 = 1 | 1 << 4;

/// The body of a capability being written: offsets count from the capability's start.
struct Body {
    bytes: [u8; 58],
    writable: [u8; 58],
}

impl Body {
    fn put(&mut self, at: usize, bytes: &[u8], mask: &[u8]) {
        // The id and the next pointer are not part of the body.
        let at = at.wrapping_sub(2);
        if let Some(place) = self.bytes.get_mut(at..at.wrapping_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
        if let Some(place) = self.writable.get_mut(at..at.wrapping_add(mask.len())) {
            place.copy_from_slice(mask);
        }
    }
}

impl ConfigSpace {
    /// Adds the PCI Express capability. With `function_level_reset`, the guest may ask for one.
    ///
    /// # Errors
    /// When there is one already, or no room.
    pub fn add_express(&mut self, kind: ExpressKind, function_level_reset: bool) -> Result<u16, ConfigError> {
        if self.express.is_some() {
            return Err(ConfigError::CapabilityTwice(id::EXPRESS.into()));
        }
        let (device_type, port) = match kind {
            ExpressKind::Endpoint => (0u16, None),
            ExpressKind::RootComplexIntegratedEndpoint => (9, None),
            ExpressKind::RootPort(port) => (4, Some(port)),
            ExpressKind::UpstreamPort => (5, None),
            ExpressKind::DownstreamPort(port) => (6, Some(port)),
        };
        let slot = port.and_then(|port| port.slot);
        let mut body = Body { bytes: [0; 58], writable: [0; 58] };
        let flags = 2 | device_type << 4 | u16::from(slot.is_some()) << 8;
        body.put(2, &flags.to_le_bytes(), &[]);
        // Device capabilities: role-based error reporting, which is required; 8-bit tags; function-level reset.
        let capabilities: u32 = 1 << 5 | 1 << 15 | u32::from(function_level_reset) << 28;
        body.put(4, &capabilities.to_le_bytes(), &[]);
        // Device control: relaxed ordering, no snoop, 512-byte read requests; all but the reset bit writable.
        body.put(8, &0x2810u16.to_le_bytes(), &0x79ffu16.to_le_bytes());
        match kind {
            ExpressKind::RootComplexIntegratedEndpoint => {}
            ExpressKind::Endpoint => body.link(ENDPOINT_LINK, 0, [0xc3, 0]),
            ExpressKind::UpstreamPort => body.link(PORT_LINK, 0, [0xc3, 0]),
            ExpressKind::RootPort(port) | ExpressKind::DownstreamPort(port) => {
                let reporting = if port.slot.is_some() { LINK_ACTIVE_REPORTING } else { 0 };
                body.link(PORT_LINK, reporting | u32::from(port.port) << 24, [0xd3, 0]);
            }
        }
        if let Some(number) = slot {
            let capabilities = slot::CAPABILITIES | u32::from(number & 0x1fff) << slot::NUMBER_SHIFT;
            body.put(0x14, &capabilities.to_le_bytes(), &[]);
            body.put(0x18, &[], &slot::CONTROL_WRITABLE.to_le_bytes());
        }
        if let ExpressKind::RootPort(_) = kind {
            // Root control: errors and power management events, of which there are none.
            body.put(0x1c, &[], &[0xf, 0]);
        }
        let offset = self.add_capability(id::EXPRESS, &body.bytes, &body.writable)?;
        // Device status: errors are cleared by writing 1.
        self.define_clear(offset.wrapping_add(8), 0xf << 16);
        if slot.is_some() {
            let clear = u32::from(slot::STATUS_CLEAR) << 16;
            self.define_clear(offset.wrapping_add(express_register::SLOT_CONTROL), clear);
        }
        self.express = Some(offset);
        Ok(offset)
    }

    /// Where the PCI Express capability is, if there is one.
    pub fn express(&self) -> Option<u16> {
        self.express
    }

    /// Adds advanced error reporting (PCIe 6.0, 7.8.4) for errors that never happen; with `root`, the registers of a
    /// root port too.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add_error_reporting(&mut self, root: bool) -> Result<u16, ConfigError> {
        // Uncorrectable and correctable errors that a function may mask.
        const UNCORRECTABLE: u32 = 0x007f_f030;
        const CORRECTABLE: u32 = 0x0000_f1c1;
        // The defaults of the severities, and of the correctable mask (advisory non-fatal errors).
        const SEVERITY: u32 = 0x0046_2030;
        const ADVISORY: u32 = 1 << 13;
        let (mut body, mut writable) = (Vec::new(), Vec::new());
        let mut dword = |value: u32, mask: u32| {
            body.extend(value.to_le_bytes());
            writable.extend(mask.to_le_bytes());
        };
        dword(0, 0);
        dword(0, UNCORRECTABLE);
        dword(SEVERITY, UNCORRECTABLE);
        dword(0, 0);
        dword(ADVISORY, CORRECTABLE);
        // Control, and the header log of four dwords.
        for _ in 0..5 {
            dword(0, 0);
        }
        if root {
            // Root error command; status; sources.
            dword(0, 7);
            dword(0, 0);
            dword(0, 0);
        }
        self.add_extended_capability(id::EXTENDED_ERROR_REPORTING, 2, &body, &writable)
    }

    /// Adds access control services (PCIe 6.0, 7.7.11): what is below the port reaches others through the root
    /// complex only, as it always does here, so that a guest may hand each device to a guest of its own.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add_access_control(&mut self) -> Result<u16, ConfigError> {
        // Source validation, translation blocking, request and completion redirect, upstream forwarding.
        const SERVICES: u8 = 0x1f;
        let body = [SERVICES, 0, 0, 0];
        self.add_extended_capability(id::EXTENDED_ACCESS_CONTROL, 1, &body, &[0, 0, SERVICES, 0])
    }
}

impl Body {
    /// Link capabilities, link control and link status; `link` is speed and width, which the link always has.
    fn link(&mut self, link: u16, capabilities: u32, control: [u8; 2]) {
        let at = usize::from(express_register::LINK_CAPABILITIES);
        self.put(at, &(u32::from(link) | capabilities).to_le_bytes(), &[]);
        self.put(0x10, &[0, 0], &control);
        self.put(0x12, &link.to_le_bytes(), &[]);
        if link != ENDPOINT_LINK {
            // Link capabilities 2: all speeds up to the highest.
            self.put(0x2c, &(0xfu32 << 1).to_le_bytes(), &[]);
        }
    }
}
