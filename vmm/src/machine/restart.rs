//! How a machine restarts in place: CPUs park, workers come to rest, everything is as at power-on, and the kernel is loaded again.
//!
//! The kernel is read by a thread of its own, as it is for a machine that is built: its file system may take as long as it likes.

use super::boot_files::BootFiles;
use super::life::Phase;
use super::workers::Purpose;
use super::{Machine, fw_cfg, platform};
use crate::api::{ApiError, Reply, Respond};
use crate::message::{Message, Work};
use anyhow::{Context, Result};
use arch::native::boot::EntryPoint;
use devices::fw_cfg::Items;
use std::sync::Arc;

/// What was loaded for a machine that restarts.
pub struct Loaded {
    files: BootFiles,
    result: Result<Renewed>,
    _work: Work,
}

/// What a guest starts from.
struct Renewed {
    /// The options whose files were changed.
    changed: Vec<&'static str>,
    entry: EntryPoint,
    /// What the firmware configuration device, if there is one, holds now.
    items: Option<Items>,
}

impl Machine {
    /// Restarts the machine in place.
    pub fn reset(&mut self, respond: Option<Respond>) {
        if self.resetting() {
            return;
        }
        self.watchdogs_told.clear();
        self.tell_of_restart("rebooting", respond.is_none());
        self.phase = Phase::Resetting { respond, parked: false };
        self.park_cpus();
    }

    fn tell_of_restart(&self, event: &'static str, by_guest: bool) {
        if by_guest {
            self.events.emit_for_guest("vm", event, []);
        } else {
            self.events.emit("vm", event);
        }
    }

    /// The CPUs are parked: stops the workers. `true`: some are still to stop.
    pub(super) fn stop_for_reset(&mut self) -> bool {
        // What CPUs asked for before is void, also if it is heard only now: a device that is started while others stop
        // would go on in the memory of the restarted guest.
        self.cpus.forget_effects();
        self.waiting.clear();
        self.held.clear();
        self.pci.stop_all(Purpose::Reset)
    }

    /// Makes all but memory what it was at power-on.
    pub(super) fn power_on(&mut self) -> Result<()> {
        self.resets = self.resets.wrapping_add(1);
        self.all_stopped();
        self.panics = 0;
        self.crash = None;
        // A guest that starts anew has let go of everything.
        self.complete_removals()?;
        self.settle_cpus()?;
        self.settle_memory()?;
        self.pci.reset()?;
        self.pci.place_bars(self.layout.segments())?;
        self.platform.follow_pvpanic(self.config.hears_panics())?;
        self.platform.reset();
        self.flash.reset(&*self.vm)?;
        self.memory_devices.reset(&self.pci);
        self.debugger.memory_is_lost();
        Ok(())
    }

    /// Has a thread load the kernel and write the tables.
    pub(super) fn begin_loading(&mut self) -> Result<()> {
        let mut files = self.files.take().context("the kernel is being loaded already")?;
        let (config, ram, zones) =
            (self.config.clone(), Arc::clone(&self.memory.ram), self.memory.zones.clone());
        let (layout, model, mailbox) = (self.layout.clone(), self.model.clone(), self.mailbox.clone());
        let (flash, work) = (self.flash.ranges(), self.work.clone());
        let load = move || {
            let result = files.changed().and_then(|changed| {
                let entry = platform::load(&mut files, &config, &ram, &zones, &layout, &model, &flash)?;
                let items = fw_cfg::renewed(&config, &files, &zones, &layout, &model)?;
                Ok(Renewed { changed, entry, items })
            });
            // A machine that ended meanwhile has its memory back before anybody is told.
            drop(ram);
            mailbox.post(Message::Loaded(Box::new(Loaded { files, result, _work: work })));
        };
        std::thread::Builder::new().name("load".into()).spawn(load).context("starting a thread")?;
        Ok(())
    }

    /// The kernel was loaded, or could not be: the machine runs.
    ///
    /// # Errors
    /// When the host fails the machine in a way it cannot go on after.
    pub(super) fn loaded(&mut self, loaded: Loaded) -> Result<()> {
        let Loaded { files, result, .. } = loaded;
        self.files = Some(files);
        if !matches!(self.phase, Phase::Loading { .. }) {
            return Ok(());
        }
        // What a debugger has put there meanwhile.
        self.debugger.memory_is_lost();
        let restarted = result.and_then(|Renewed { changed, entry, items }| {
            for option in changed {
                tracing::warn!(
                    "{option}: the file was changed since the machine was made; the guest restarts from what it is now"
                );
                self.events.emit_for_guest("vm", "boot-file-changed", [("option", option.into())]);
            }
            if let Some(items) = items {
                self.platform.replace_fw_cfg(items);
            }
            self.cpus.reset(entry)
        });
        self.answer_restart(restarted)
    }

    /// Answers who asked for a restart that is complete, or failed.
    ///
    /// # Errors
    /// That with which it failed.
    pub(super) fn answer_restart(&mut self, restarted: Result<()>) -> Result<()> {
        let Phase::Loading { respond } = std::mem::replace(&mut self.phase, Phase::Paused) else {
            return restarted;
        };
        if restarted.is_ok() {
            self.start();
            self.release_watchdog();
            self.tell_of_restart("rebooted", respond.is_none());
        }
        if let Some(respond) = respond {
            let failed =
                |error: &anyhow::Error| ApiError::internal(format!("the machine cannot restart: {error:#}"));
            respond(restarted.as_ref().map(|()| Reply::Done).map_err(failed));
        }
        restarted.inspect_err(|error| {
            self.events.emit_with("vm", "restart-failed", [("reason", format!("{error:#}").into())]);
        })
    }
}
