//! Which interrupts wires end at.

/// How the interrupt pins of PCI devices are spread over global system interrupts, the same in each segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptPins {
    /// The first interrupt.
    pub first_gsi: u32,
    /// How many there are, at least 1.
    pub count: u32,
}

impl InterruptPins {
    /// The interrupt of pin `pin` (1 to 4 for INTA to INTD) of PCI device `device` (0 to 31) on bus 0. Devices that
    /// follow each other have different ones.
    pub fn gsi(self, device: u8, pin: u8) -> u32 {
        let turn = u32::from(device) + u32::from(pin.saturating_sub(1));
        self.first_gsi + turn % self.count.max(1)
    }
}
