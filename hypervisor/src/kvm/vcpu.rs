//! One CPU on KVM: entering the guest, and telling why it left.

use super::kick::KickTarget;
use super::native;
use crate::{Error, Exit, Kick, Result, SystemEvent, Vcpu};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::fmt::Write;
use std::io;
use std::sync::Arc;

/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`: the exit tells the instruction's bytes.
const HAS_INSTRUCTION_BYTES: u64 = 1;

/// A CPU on KVM.
pub(super) struct KvmVcpu {
    pub(super) id: u32,
    pub(super) fd: VcpuFd,
    pub(super) vm: Arc<VmFd>,
    /// What a debugger asked for.
    pub(super) debug: native::Debug,
    /// Whether it is on, where the monitor is asked to change that.
    #[cfg(target_arch = "aarch64")]
    pub(super) power: native::Power,
    kick: Arc<KickTarget>,
}

impl KvmVcpu {
    pub(super) fn new(id: u32, fd: VcpuFd, vm: Arc<VmFd>) -> io::Result<Self> {
        let kick = Arc::new(KickTarget::new(&fd)?);
        Ok(Self {
            id,
            fd,
            vm,
            debug: native::Debug::default(),
            #[cfg(target_arch = "aarch64")]
            power: native::Power::default(),
            kick,
        })
    }

    /// What failed on this CPU.
    pub(super) fn failed(&self, what: &'static str, errno: kvm_ioctls::Error) -> Error {
        Error::Vcpu { id: self.id, what, source: errno.into() }
    }

    /// Enters the guest. `Ok(None)`: why it left is in the shared page.
    fn enter(&mut self) -> Result<Option<Exit<'static>>> {
        loop {
            match self.fd.run() {
                // The only exit that KVM reports along with an error.
                Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                    let reason = format!(
                        "the host cannot provide the guest memory at {gpa:#x}+{size:#x} (memory fault, flags {flags:#x})"
                    );
                    return Ok(Some(Exit::Failed { reason }));
                }
                Ok(_) => return Ok(None),
                Err(errno) => match errno.errno() {
                    libc::EINTR => {
                        self.kick.take();
                        return Ok(Some(Exit::Interrupted));
                    }
                    // The CPU waited to be started, and something happened to it: wait on.
                    libc::EAGAIN => {}
                    _ => return Err(self.failed("run the guest", errno)),
                },
            }
        }
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.clear_thread();
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        if let Some(exit) = self.enter()? {
            return Ok(exit);
        }
        if self.fd.get_kvm_run().exit_reason == KVM_EXIT_INTR {
            self.kick.take();
            return Ok(Exit::Interrupted);
        }
        if self.fd.get_kvm_run().exit_reason == KVM_EXIT_DEBUG {
            // SAFETY: the exit reason says which member of the union KVM filled in.
            let exit = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.debug }.arch;
            return self.debug_exit(&exit);
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(address) = native::undescribed_access(self.fd.get_kvm_run()) {
            self.inject_external_abort()?;
            return Ok(Exit::Undescribed { address });
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(function) = native::forwarded_call(self.fd.get_kvm_run()) {
            return self.called(function);
        }
        Ok(decode(self.fd.get_kvm_run()))
    }

    #[cfg(target_arch = "aarch64")]
    fn is_off(&self) -> bool {
        self.power.is_off()
    }

    #[cfg(target_arch = "aarch64")]
    fn start(&mut self, start: &crate::CpuStart) -> Result<()> {
        self.power_on(start)
    }

    #[cfg(target_arch = "aarch64")]
    fn answer(&mut self, answer: crate::CpuAnswer) -> Result<()> {
        self.answer_call(answer)
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.kick.set_current_thread();
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    #[cfg(target_arch = "x86_64")]
    fn describe(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => crate::x86_64::describe(&regs, &sregs),
            (Err(errno), _) | (_, Err(errno)) => format!("(the registers cannot be read: {errno})"),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn describe(&self) -> String {
        use crate::aarch64::{VcpuState, describe};
        describe(|id| self.register(id))
    }

    fn native(&mut self) -> &mut dyn crate::native::VcpuState {
        self
    }
}

/// Why the guest left, from the page that KVM shares.
fn decode(run: &mut kvm_run) -> Exit<'_> {
    let exit_reason = run.exit_reason;
    match exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: the exit reason says which member of the union KVM filled in.
            let io = unsafe { run.__bindgen_anon_1.io };
            let length = usize::from(io.size).saturating_mul(io.count as usize);
            let start: *mut u8 = std::ptr::from_mut(run).cast();
            // SAFETY: KVM places the data at this offset in the area it shares, all of which is mapped for as long
            // as the CPU lives; the returned slice borrows the CPU.
            let data = unsafe { std::slice::from_raw_parts_mut(start.add(io.data_offset as usize), length) };
            if u32::from(io.direction) == KVM_EXIT_IO_OUT {
                Exit::PortWrite { port: io.port, size: io.size, data }
            } else {
                Exit::PortRead { port: io.port, size: io.size, data }
            }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: as above.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let address = mmio.phys_addr;
            let length = (mmio.len as usize).min(mmio.data.len());
            let data = mmio.data.get_mut(..length).unwrap_or_default();
            if mmio.is_write != 0 {
                Exit::MmioWrite { address, data }
            } else {
                Exit::MmioRead { address, data }
            }
        }
        KVM_EXIT_IOAPIC_EOI => {
            // SAFETY: as above.
            let eoi = unsafe { run.__bindgen_anon_1.eoi };
            Exit::EndOfInterrupt { vector: eoi.vector }
        }
        KVM_EXIT_HLT => Exit::Halted,
        KVM_EXIT_SHUTDOWN => Exit::TripleFault,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: as above.
            let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
            match kind {
                KVM_SYSTEM_EVENT_SHUTDOWN => Exit::System(SystemEvent::PowerOff),
                KVM_SYSTEM_EVENT_RESET => Exit::System(SystemEvent::Reset),
                KVM_SYSTEM_EVENT_CRASH => Exit::System(SystemEvent::Crash),
                _ => Exit::Failed { reason: format!("KVM reports the unknown system event {kind}") },
            }
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let entry = unsafe { run.__bindgen_anon_1.fail_entry };
            Exit::Failed {
                reason: format!(
                    "the processor refused to enter the guest: hardware reason {:#x} on host CPU {}",
                    entry.hardware_entry_failure_reason, entry.cpu
                ),
            }
        }
        KVM_EXIT_INTERNAL_ERROR => Exit::Failed { reason: internal_error(run) },
        _ => Exit::Failed { reason: format!("KVM left the guest for the unknown reason {exit_reason}") },
    }
}

/// What KVM says about an error of its own.
fn internal_error(run: &kvm_run) -> String {
    // SAFETY: called for `KVM_EXIT_INTERNAL_ERROR`, for which KVM fills in this member.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let meaning = match internal.suberror {
        1 => "it cannot emulate an instruction",
        2 => "simultaneous exceptions",
        3 => "an event could not be delivered",
        4 => "an unexpected exit of the processor",
        _ => "unknown",
    };
    let mut text = format!("KVM internal error {} ({meaning})", internal.suberror);
    let count = (internal.ndata as usize).min(internal.data.len());
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION && count >= 3 {
        // SAFETY: for this suberror KVM fills in this member, if it gives that many words of data.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        // SAFETY: the flag tells that the instruction is there.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        if failure.flags & HAS_INSTRUCTION_BYTES != 0 {
            let size = usize::from(instruction.insn_size);
            text.push_str(": instruction bytes");
            for byte in instruction.insn_bytes.iter().take(size) {
                // Writing to a string cannot fail.
                let _ = write!(text, " {byte:02x}");
            }
            return text;
        }
    }
    if count > 0 {
        text.push_str(": data");
        for word in internal.data.iter().take(count) {
            let _ = write!(text, " {word:#x}");
        }
    }
    text
}
