//! The architecture whose machines are tested: what stock kernels call its parts, and what its machines or kernels do not have.
//! The tests are the same for all; what differs is here.

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// A PC.
    X86_64,
    /// An Arm machine.
    Aarch64,
}

use Architecture::{Aarch64, X86_64};

/// The one that this program, and so the monitor under test, is built for.
///
/// # Panics
/// When there are no machines of that architecture.
pub const fn native() -> Architecture {
    match std::env::consts::ARCH.as_bytes() {
        b"x86_64" => X86_64,
        b"aarch64" => Aarch64,
        _ => panic!("there are no machines of this architecture"),
    }
}

impl Architecture {
    /// Linux's name of the serial port.
    pub fn serial(self) -> &'static str {
        match self {
            X86_64 => "ttyS0",
            Aarch64 => "ttyAMA0",
        }
    }

    /// The clocks that a guest may choose as the best.
    pub fn clocks(self) -> &'static [&'static str] {
        match self {
            X86_64 => &["kvm-clock", "tsc"],
            Aarch64 => &["arch_sys_counter"],
        }
    }

    /// What `/proc/interrupts` calls the interrupt controller that PCI pins are wired to.
    pub fn interrupt_controller(self) -> &'static str {
        match self {
            X86_64 => "IO-APIC",
            Aarch64 => "GICv3",
        }
    }

    /// What `/proc/interrupts` calls the clock at its fixed place.
    pub fn clock_interrupt(self) -> &'static str {
        match self {
            X86_64 => "rtc0",
            Aarch64 => "rtc-pl031",
        }
    }

    /// The guest-physical address after the last byte of a machine's `size` bytes of RAM.
    pub fn end_of_ram(self, size: u64) -> u64 {
        const HOLE: std::ops::Range<u64> = 3 << 30..4 << 30;
        match self {
            X86_64 if size > HOLE.start => size + (HOLE.end - HOLE.start),
            X86_64 => size,
            Aarch64 => size + (1 << 30),
        }
    }

    /// The ACPI tables of a machine that has NUMA nodes and a serial port.
    pub fn acpi_tables(self) -> &'static [&'static str] {
        match self {
            X86_64 => &["APIC", "DSDT", "FACP", "MCFG", "SRAT", "SLIT", "PPTT"],
            Aarch64 => {
                &["APIC", "DSDT", "FACP", "MCFG", "SRAT", "SLIT", "PPTT", "GTDT", "IORT", "SPCR", "DBG2"]
            }
        }
    }

    /// How the bare-metal guest says it was entered, and from where it has the frequency of its clock.
    pub fn bare_guest(self) -> (&'static str, &'static str) {
        match self {
            X86_64 => ("pvh", "kvm-clock"),
            Aarch64 => ("linux", "cntfrq"),
        }
    }

    /// GDB's name of the architecture.
    pub fn gdb(self) -> &'static str {
        match self {
            X86_64 => "i386:x86-64",
            Aarch64 => "aarch64",
        }
    }

    /// What Linux puts before the name of a system call, to call the function that handles it.
    pub fn system_call(self) -> &'static str {
        match self {
            X86_64 => "__x64_sys_",
            Aarch64 => "__arm64_sys_",
        }
    }

    /// What addresses of a kernel's code and data begin with, in hexadecimal, when it is where its symbols say.
    pub fn kernel_addresses(self) -> &'static str {
        match self {
            X86_64 => "ffffffff8",
            Aarch64 => "ffff8000",
        }
    }

    /// Numbers of CPUs that a test starts, where more of them take their time.
    pub fn many_cpus(self) -> u32 {
        match self {
            X86_64 => 254,
            // All of them on one emulated CPU.
            Aarch64 => 123,
        }
    }

    /// MiB that a test sends where it sends much.
    pub fn bulk_mib(self) -> u64 {
        match self {
            X86_64 => 100,
            // In emulation on one CPU.
            Aarch64 => 20,
        }
    }

    /// Requests that a test has a disk take at once, in a time that is short beside a second.
    pub fn burst(self) -> u32 {
        match self {
            X86_64 => 3000,
            // In emulation a thousand take most of one.
            Aarch64 => 500,
        }
    }

    /// How many of the `all` variants of a test that takes long are run; the first ones are.
    pub fn variants(self, all: usize) -> usize {
        match self {
            X86_64 => all,
            // In emulation on one CPU.
            Aarch64 => 1,
        }
    }

    /// From how many seeds a test of random calls begins.
    pub fn seeds(self) -> u64 {
        match self {
            X86_64 => 12,
            // In emulation.
            Aarch64 => 3,
        }
    }

    /// How many orders of calls and what they wait for are tried, unless `VIVARIUM_INTERLEAVINGS` says it.
    pub fn interleavings(self) -> u64 {
        let said = std::env::var("VIVARIUM_INTERLEAVINGS").ok().and_then(|number| number.parse().ok());
        said.unwrap_or(match self {
            X86_64 => 150,
            // In emulation.
            Aarch64 => 4,
        })
    }

    /// How often a test restarts a machine, where each restart shows the same.
    pub fn restarts(self) -> u32 {
        match self {
            X86_64 => 10,
            // In emulation.
            Aarch64 => 2,
        }
    }

    /// How often each of the tests that restart a stock kernel does so.
    pub fn kernel_restarts(self) -> u32 {
        match self {
            X86_64 => 3,
            // In emulation each takes several seconds.
            Aarch64 => 1,
        }
    }
}

/// What a test needs that not every architecture's machines, or the stock kernels for them, have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A second, older kernel.
    OlderKernel,
    /// CPUs that may come later, in a machine whose guest reads no ACPI tables.
    SpareCpus,
    /// SMBIOS tables.
    Smbios,
    /// Firmware that a machine starts in.
    Firmware,
    /// A kernel that knows the pvpanic device.
    PvpanicDriver,
    /// Kernels in EFI zboot images.
    Zboot,
    /// A device tree that tells a guest of its machine.
    DeviceTree,
    /// An interrupt that CPUs do not mask.
    UnmaskedInterrupt,
    /// A root file system of Debian.
    DebianRoot,
    /// A choice of serial ports, and of how the guest learns of them.
    SerialPortKinds,
    /// I/O ports, and the debug console at one of them.
    Ports,
    /// CPUs with a performance monitor.
    PerformanceMonitor,
    /// A way for a CPU to fail by itself that stops the machine.
    TripleFault,
    /// Instructions whose accesses to devices a hypervisor cannot carry out.
    UndescribedAccesses,
    /// Firmware by which CPUs start and stop each other.
    FirmwareStartsCpus,
    /// Time for a device that waits for twenty seconds.
    LongWaits,
}

/// The known differences: what is missing where, and why.
const MISSING: [(Architecture, Feature, &str); 16] = [
    (X86_64, Feature::Firmware, "these machines do not start in firmware yet"),
    (X86_64, Feature::PerformanceMonitor, "the nested host's CPUs have none to give"),
    (X86_64, Feature::SerialPortKinds, "a PC's serial port is a 16550 at I/O ports"),
    (X86_64, Feature::Zboot, "a bzImage has its decompressor in it"),
    (X86_64, Feature::DeviceTree, "a PC is told of by ACPI"),
    (X86_64, Feature::UndescribedAccesses, "the hypervisor reads the instruction"),
    (X86_64, Feature::FirmwareStartsCpus, "CPUs of a PC do it by interrupts"),
    (
        Aarch64,
        Feature::OlderKernel,
        "one series of kernels is enough: what 6.1 differs in, it differs in on x86_64",
    ),
    (Aarch64, Feature::SpareCpus, "only ACPI tells of CPUs that come"),
    (Aarch64, Feature::Smbios, "a kernel that is loaded directly is told of no SMBIOS tables"),
    (Aarch64, Feature::PvpanicDriver, "Debian's arm64 kernels are built without it, the generic one too"),
    (
        Aarch64,
        Feature::UnmaskedInterrupt,
        "Arm CPUs have no interrupt that the host could raise whatever they mask",
    ),
    (Aarch64, Feature::DebianRoot, "its packages cannot be installed on a machine of another architecture"),
    (Aarch64, Feature::Ports, "Arm has no I/O ports"),
    (Aarch64, Feature::LongWaits, "what waits for so long is the same on each architecture"),
    (Aarch64, Feature::TripleFault, "an Arm CPU that cannot take its own exceptions takes them forever"),
];

fn why_not(feature: Feature) -> Option<&'static str> {
    let missing =
        MISSING.iter().find(|(architecture, known, _)| *architecture == native() && *known == feature);
    missing.map(|(_, _, reason)| *reason)
}

/// Whether the machines under test have something, for tests that can do without.
pub fn has(feature: Feature) -> bool {
    why_not(feature).is_none()
}

/// Whether the machines under test lack something, for tests that are about it. If so it says so, in the form that `scripts/test`
/// counts as a skipped test.
pub fn lacks(feature: Feature) -> bool {
    let missing = why_not(feature);
    if let Some(reason) = missing {
        println!("@@SKIP {feature:?}: {reason}");
    }
    missing.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_of_a_pc_has_a_hole_and_that_of_an_arm_machine_begins_at_1_gib() {
        assert_eq!(X86_64.end_of_ram(128 << 20), 0x800_0000);
        assert_eq!(X86_64.end_of_ram(3584 << 20), 0x1_2000_0000);
        assert_eq!(Aarch64.end_of_ram(3584 << 20), 0x1_2000_0000);
        assert_eq!(Aarch64.end_of_ram(128 << 20), 0x4800_0000);
    }
}
