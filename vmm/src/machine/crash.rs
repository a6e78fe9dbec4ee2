//! What is done when the guest crashed: its kernel panicked, or a CPU cannot go on. The machine is paused, its core dump is
//! written if one is asked for, and then it is restarted, ended, left paused, or goes on.

use super::life::Phase;
use super::{Ended, Machine};
use crate::api::request::Coredump;
use crate::config::VmConfig;
use crate::config::crash::CrashAction;
use crate::message::Failure;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// A crash that is being dealt with.
pub struct Crash {
    /// Why the machine cannot go on, unless the guest's kernel told of a panic.
    failure: Option<Failure>,
}

/// Checks that there is a folder for the core dump that is written when the guest crashes: nobody could do anything about it then.
///
/// # Errors
/// When there is none.
pub(super) fn check_folder(config: &VmConfig) -> Result<()> {
    let Some(path) = config.on_crash.as_ref().and_then(|crash| crash.coredump.as_deref()) else {
        return Ok(());
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let option = || format!("--on-crash coredump={}", path.display());
    let kind = std::fs::metadata(folder).with_context(|| format!("{}: {}", option(), folder.display()))?;
    ensure!(kind.is_dir(), "{}: {} is not a folder", option(), folder.display());
    Ok(())
}

impl Machine {
    /// The guest's kernel panicked, or the machine cannot go on.
    pub(super) fn crashed(&mut self, failure: Option<Failure>) -> Option<Ended> {
        match &failure {
            Some(Failure::Cpu { cpu, reason, .. }) => {
                let properties = [("cpu", (*cpu).into()), ("reason", reason.as_str().into())];
                self.events.emit_for_guest("guest", "cpu-failed", properties);
            }
            Some(Failure::Memory { address }) => {
                let address = format!("{address:#x}");
                self.events.emit_for_guest("vm", "memory-lost", [("address", address.into())]);
            }
            None => {}
        }
        let memory = matches!(failure, Some(Failure::Memory { .. }));
        match &mut self.crash {
            // What a page of zeros is in place of may be shared with others: no machine goes on with it.
            Some(crash) if memory => crash.failure = failure.clone(),
            _ => {}
        }
        if self.crash.is_some() || self.ending() {
            // Another one did, too.
            return None;
        }
        if memory && self.resetting() {
            return failure.and_then(|failure| self.end(Ended::Failed(failure)));
        }
        let asks_for_nothing = match &self.config.on_crash {
            Some(config) => config.coredump.is_none() && config.action == CrashAction::None,
            None => true,
        };
        if asks_for_nothing {
            return failure.and_then(|failure| self.end(Ended::Failed(failure)));
        }
        self.crash = Some(Crash { failure });
        match self.phase {
            Phase::Running => self.pause(Box::new(drop)),
            Phase::Paused => return self.dump_crash(),
            // It comes to rest already.
            _ => {}
        }
        None
    }

    /// The machine is at rest: if it crashed, begins its dump.
    pub(super) fn dump_crash(&mut self) -> Option<Ended> {
        let path = self.config.on_crash.as_ref().and_then(|config| config.coredump.clone());
        let Some(path) = path.filter(|_| self.crash.is_some()) else { return self.after_crash() };
        let url =
            format!("file://{}", std::path::absolute(&path).as_deref().unwrap_or(Path::new("")).display());
        let events = self.events.clone();
        self.dump(
            &Coredump { destination_url: url },
            Box::new(move |answer| {
                if let Err(error) = answer {
                    tracing::error!("--on-crash coredump={}: {error}", path.display());
                    events.emit_for_guest("vm", "coredump-failed", [("reason", error.to_string().into())]);
                }
            }),
        );
        // Else it is being written, and a message tells when that is done.
        if self.dump.is_none() { self.after_crash() } else { None }
    }

    /// What is left of a crash is done.
    pub(super) fn after_crash(&mut self) -> Option<Ended> {
        let Crash { failure } = self.crash.take().filter(|_| !self.ending())?;
        let action = self.config.on_crash.as_ref().map_or(CrashAction::None, |config| config.action);
        match (action, failure) {
            (_, Some(failure @ Failure::Memory { .. })) => self.end(Ended::Failed(failure)),
            (CrashAction::Pause, _) => None,
            (CrashAction::Reset, _) => {
                self.reset(None);
                None
            }
            (CrashAction::Poweroff | CrashAction::None, Some(failure)) => self.end(Ended::Failed(failure)),
            (CrashAction::Poweroff, None) => self.end(Ended::PoweredOff),
            (CrashAction::None, None) => {
                self.resume();
                None
            }
        }
    }
}
