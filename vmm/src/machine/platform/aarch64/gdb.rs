//! What stands for debugging and core dumps where the architecture has neither yet: whoever asks is told so.

use crate::api::request::Coredump;
use crate::api::{ApiError, ErrorKind, Respond};
use crate::machine::Machine;
use crate::message::Inbox;
use anyhow::{Result, bail};
use hypervisor::DebugStop;
use std::path::Path;

/// What the machine knows of its debugger: there is none.
#[derive(Default)]
pub struct Debugger(());

impl Debugger {
    /// Memory is loaded anew.
    pub fn memory_is_lost(&mut self) {}
}

/// Serves no debugger.
///
/// # Errors
/// Always, naming the option.
pub fn serve(path: &Path, _: Inbox) -> Result<()> {
    bail!(
        "--gdb path={}: machines of this architecture cannot be debugged; leave the option out",
        path.display()
    )
}

/// What a debugger that says `bytes` is answered: nothing.
///
/// # Errors
/// Never.
pub fn answers(_: &[u8]) -> Result<Vec<u8>> {
    Ok(Vec::new())
}

impl Machine {
    /// There is no debugger to wait for.
    pub fn hold_for_debugger(&mut self) {}

    /// There is no debugger that stopped the others.
    pub(in crate::machine) fn hold_new_cpu(&self, _: &crate::cpu::CpuThread) {}

    /// A CPU stopped by itself, which nothing has it do: it goes on.
    pub(in crate::machine) fn stopped_for_debugger(&mut self, number: u32, _: DebugStop) -> Result<()> {
        if let Some(cpu) = self.cpus.get(number) {
            cpu.release();
        }
        Ok(())
    }

    /// Refuses to write a core dump.
    pub fn dump(&mut self, _: &Coredump, respond: Respond) {
        let message = "core dumps of machines of this architecture are not written";
        respond(Err(ApiError::new(ErrorKind::NotSupported, message)));
    }

    /// No core dump is ever complete.
    pub(in crate::machine) fn dumped(&mut self, _: Result<(), ApiError>) {}
}
