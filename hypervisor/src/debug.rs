//! Debugging a guest from outside: what a debugger asks of a CPU, and why the CPU stopped for it.

/// What a debugger asks of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDebug {
    /// Breakpoint instructions (INT3, BRK) exit instead of raising an exception in the guest.
    pub software_breakpoints: bool,
    /// The CPU exits after each instruction.
    pub single_step: bool,
    /// What the CPU's own breakpoint registers watch: what [`crate::native::VcpuState::can_watch`] allows.
    pub hardware_breakpoints: Vec<HardwareBreakpoint>,
}

/// An address that a CPU watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareBreakpoint {
    /// Linear (on Arm: virtual) address.
    pub address: u64,
    /// Bytes watched: 1 for execution; 1, 2, 4 or 8, aligned, for data.
    pub length: u8,
    /// The accesses it stops at.
    pub access: WatchedAccess,
}

/// An access that a breakpoint register watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchedAccess {
    /// Executing an instruction.
    Execute,
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Reading or writing data.
    ReadWrite,
}

/// Why a CPU stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugStop {
    /// Where: the address of the next instruction; of the breakpoint instruction itself for [`DebugCause::Software`].
    pub address: u64,
    /// Why.
    pub cause: DebugCause,
}

/// What made a CPU stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugCause {
    /// A breakpoint instruction.
    Software,
    /// What the CPU watches, by its index in [`GuestDebug::hardware_breakpoints`].
    Hardware(u8),
    /// A single step.
    Step,
}
