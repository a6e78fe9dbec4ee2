//! Why a CPU stopped running the guest.

use crate::{CpuCall, DebugStop};

/// What the guest did, or what happened to it. The buffers are the CPU's own: what is written to `data`
/// of a read is what the guest gets when the CPU runs on.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Reads from an I/O port; `data` holds `count` units of `size` bytes (a string instruction has more than one).
    PortRead {
        /// Port number.
        port: u16,
        /// Unit size in bytes: 1, 2 or 4.
        size: u8,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// Writes to an I/O port, in units as for a read.
    PortWrite {
        /// Port number.
        port: u16,
        /// Unit size in bytes: 1, 2 or 4.
        size: u8,
        /// What is written.
        data: &'a [u8],
    },
    /// Reads memory that is not RAM.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// To be filled; 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// Writes memory that is not RAM.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What is written; 1 to 8 bytes.
        data: &'a [u8],
    },
    /// Accesses memory that is not RAM by an instruction that the processor does not describe to the hypervisor (aarch64: of
    /// two registers, of vectors, with write-back). The guest gets an exception for it when the CPU runs on.
    Undescribed {
        /// Guest-physical address.
        address: u64,
    },
    /// The guest acknowledged a level-triggered interrupt with this vector.
    EndOfInterrupt {
        /// Interrupt vector.
        vector: u8,
    },
    /// The CPU halts with nothing to wake it (only where the hypervisor does not wait itself).
    Halted,
    /// [`crate::Kick::kick`], or a signal.
    Interrupted,
    /// x86 triple fault, or the like.
    TripleFault,
    /// The guest asked the firmware (PSCI on aarch64) for something.
    System(SystemEvent),
    /// The guest asked the firmware about a CPU. What comes of it is told by [`crate::Vcpu::answer`] before the CPU is run again.
    CpuCall(CpuCall),
    /// The guest stopped the CPU: it is off, see [`crate::Vcpu::is_off`].
    Stopped,
    /// A breakpoint or single step for the debugger.
    Debug(DebugStop),
    /// The hypervisor cannot go on with this CPU.
    Failed {
        /// What it said, with its numbers.
        reason: String,
    },
}

/// What a guest asks of its firmware interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// Power off.
    PowerOff,
    /// Restart.
    Reset,
    /// The guest says it crashed.
    Crash,
}
