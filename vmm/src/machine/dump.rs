//! Dumping a machine's memory and registers to a file, while it is paused.

use super::coredump;
use super::platform::core_notes::CpuState;
use crate::api::request::Coredump;
use crate::api::{ApiError, ErrorKind, Reply, Respond};
use crate::machine::Machine;
use crate::message::Message;
use crate::seccomp::{self, ThreadKind};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// The file that a URL names.
fn destination(url: &str) -> Result<&Path, ApiError> {
    let path = url.strip_prefix("file://").map(Path::new).filter(|path| path.is_absolute());
    path.ok_or_else(|| ApiError {
        field: Some("destination_url".into()),
        ..ApiError::bad(format!("destination_url {url}: write file:// and an absolute path"))
    })
}

impl Machine {
    /// Begins to write a core dump; `respond` is called when it is complete. The machine is busy until then. If it ends before, the dump
    /// is completed all the same.
    pub fn dump(&mut self, coredump: &Coredump, respond: Respond) {
        match self.begin_dump(coredump) {
            Ok(()) => self.dump = Some(respond),
            Err(error) => respond(Err(error)),
        }
    }

    fn begin_dump(&self, Coredump { destination_url }: &Coredump) -> Result<(), ApiError> {
        if !self.paused() {
            return Err(ApiError::new(
                ErrorKind::State,
                "the machine is running; pause it with vm.pause first",
            ));
        }
        let path = destination(destination_url)?.to_owned();
        let internal = |error: anyhow::Error| ApiError::internal(format!("{error:#}"));
        let mut cpus = Vec::new();
        for cpu in &self.cpus {
            let state = cpu.call(|vcpu| CpuState::read(vcpu.native())).map_err(internal)?;
            cpus.push(state.map_err(|error| internal(error.into()))?);
        }
        let (memory, mailbox, work) = (Arc::clone(&self.memory.ram), self.mailbox.clone(), self.work.clone());
        let kernel_note = self.vmcoreinfo.as_ref().and_then(|info| info.read(&memory));
        let write = move || {
            // The file system may take its time, which nobody else has to wait for.
            let file = make(&path);
            seccomp::confine(ThreadKind::Dump);
            let written = file.map_err(|error| not_made(&path, &error)).and_then(|file| {
                coredump::write(&file, &memory, &cpus, kernel_note.as_deref()).map_err(|error| {
                    // A part of a dump is of no use, and in the way of the next one.
                    let left = match std::fs::remove_file(&path) {
                        Ok(()) => String::new(),
                        Err(error) => format!("; {} is left: {error}", path.display()),
                    };
                    ApiError::internal(format!("the core dump could not be written: {error}{left}"))
                })
            });
            // A machine that ended meanwhile has its memory back before anybody is told.
            drop(memory);
            drop(work);
            mailbox.post(Message::Dumped(written));
        };
        let thread = std::thread::Builder::new().name("coredump".into()).stack_size(256 << 10);
        thread.spawn(write).map_err(|error| ApiError::internal(format!("starting a thread: {error}")))?;
        self.tell("coredumping");
        Ok(())
    }

    /// The dump is written, or could not be.
    pub(in crate::machine) fn dumped(&mut self, result: Result<(), ApiError>) {
        let Some(respond) = self.dump.take() else { return };
        self.tell(if result.is_ok() { "coredumped" } else { "coredump-failed" });
        respond(result.map(|()| Reply::Done));
    }
}

/// Makes the file, for this user only: it has all that the guest has.
fn make(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn not_made(path: &Path, error: &io::Error) -> ApiError {
    let (kind, remedy) = match error.kind() {
        io::ErrorKind::AlreadyExists => (ErrorKind::Conflict, "give a file that is not there yet"),
        _ => (ErrorKind::BadRequest, "correct the path, or allow making the file"),
    };
    let remedy = format!("{remedy}{}", crate::landlock::hint(&anyhow::Error::msg(error.to_string())));
    let field = Some("destination_url".into());
    ApiError { field, ..ApiError::new(kind, format!("{}: {error}; {remedy}", path.display())) }
}
