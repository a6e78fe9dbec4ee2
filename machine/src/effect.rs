//! What a register access asks to be changed outside the device.
//!
//! A device never calls into the machine. Its register methods return an effect; the CPU thread that
//! made the access hands it to the machine thread and lets the guest go on only when it is done, so that
//! to the guest the change is part of the access.

/// A PCI function's address: `bus << 8 | device << 3 | function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionAddress {
    /// PCI segment group.
    pub segment: u16,
    /// Bus, device and function numbers.
    pub bdf: u16,
}

impl FunctionAddress {
    /// The address of `function` (0 to 7) of `device` (0 to 31) on `bus`.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Self {
        Self { segment, bdf: (bus as u16) << 8 | ((device & 0x1f) as u16) << 3 | (function & 7) as u16 }
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        (self.bdf >> 8) as u8
    }

    /// Device number, 0 to 31.
    pub const fn device(self) -> u8 {
        (self.bdf >> 3) as u8 & 0x1f
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.bdf as u8 & 7
    }
}

impl std::fmt::Display for FunctionAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus(), self.device(), self.function())
    }
}

/// What a device asks for about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChange {
    /// Its register windows moved, appeared or vanished: map them anew.
    Remap,
    /// Its queues are configured: take its queue handlers and run them.
    Start,
    /// Stop its queue handlers and give them back; what its driver asked for (mostly a reset) completes then.
    Stop,
    /// Take and run the handler of one more queue.
    StartQueue(u16),
    /// Stop one queue's handler and give it back.
    StopQueue(u16),
    /// It wants to be looked at sooner than before: ask it when.
    Deadline,
    /// The guest reported a panic (pvpanic's event bits).
    Panicked(u8),
    /// A function-level reset: as `Stop`, then the registers return to their defaults.
    Reset,
    /// The functions below this bridge are reset: it was told to, or its link went down. What it lets through changed
    /// too, as for `Remap`.
    ResetBelow,
}

/// What an access asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Restart the machine in place.
    Reset,
    /// Power the machine off.
    PowerOff,
    /// The guest reported a panic (pvpanic's event bits).
    Panicked(u8),
    /// A device on the mainboard wants to be looked at sooner than before: ask it when.
    Deadline,
    /// The guest is to reach the memory of a device on the mainboard directly from now on, or not any more: ask the device of
    /// this number which.
    DirectMemory(u32),
    /// A PCI function wants something about itself.
    Function(FunctionAddress, DeviceChange),
    /// The guest released the devices in these slots of a hotplug controller.
    Eject {
        /// PCI segment group.
        segment: u16,
        /// One bit a device number.
        devices: u32,
    },
    /// The guest let go of the CPU of this number.
    EjectCpu(u32),
    /// The guest let go of the memory in this slot of the memory hotplug controller.
    EjectMemory(u32),
    /// The guest does not let go of what it is asked for (ACPI 6.5, 6.3.5, `_OST`). Once for each time it is asked.
    ReleaseRefused {
        /// What is to go.
        part: HotplugPart,
        /// The CPU's or the slot's number.
        number: u32,
        /// Why (table 6.17).
        status: u32,
    },
}

/// What an operating system can be told to have come or to be asked to go, apart from PCI functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotplugPart {
    /// A CPU.
    Cpu,
    /// Memory.
    Memory,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_address_reads_as_linux_prints_it() {
        let address = FunctionAddress::new(1, 0x1e, 0x1f, 7);
        assert_eq!(address.to_string(), "0001:1e:1f.7");
        assert_eq!((address.bus(), address.device(), address.function()), (0x1e, 0x1f, 7));
    }
}
