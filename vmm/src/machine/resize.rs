//! More or less of what a machine has: CPUs, memory, and the balloon.
//!
//! A change is told to the guest, which follows as it can: how far it got is in `vm.info` and in the devices' own trees.

use super::Machine;
use super::added_memory::Place;
use super::control::Control;
use super::memory_devices::{self, GrowingZone};
use crate::api::request::{Resize, ResizeZone};
use crate::api::{Answer, ApiError, ErrorKind, Reply, Respond};
use crate::config::{ByteSize, HotplugMethod, VmConfig};
use anyhow::Result;
use devices::virtio::mem::MemControl;

/// A refusal that names the field at fault.
fn refuse<T>(field: &str, message: String) -> Result<T, ApiError> {
    Err(ApiError { field: Some(field.to_owned()), ..ApiError::bad(message) })
}

/// Sizes of a configuration that nothing runs for yet.
///
/// # Errors
/// When a machine cannot have them.
pub fn with_sizes(config: &VmConfig, resize: &Resize) -> Result<VmConfig, ApiError> {
    let mut config = config.clone();
    if let Some(cpus) = resize.desired_vcpus {
        config.cpus.boot_vcpus = cpus;
    }
    if let Some(size) = resize.desired_ram {
        config.memory.size = size;
    }
    if let Some(size) = resize.desired_balloon {
        match &mut config.balloon {
            Some(balloon) => balloon.size = size,
            None => return no_balloon(),
        }
    }
    config.validate()?;
    Ok(config)
}

/// A zone's size in a configuration that nothing runs for yet.
///
/// # Errors
/// When there is no such zone, or it cannot have that size.
pub fn with_zone_size(config: &VmConfig, resize: &ResizeZone) -> Result<VmConfig, ApiError> {
    let mut config = config.clone();
    let mut zones = config.memory.zones.iter_mut().flatten();
    match zones.find(|zone| zone.id == resize.id) {
        Some(zone) => zone.size = resize.desired_ram,
        None => return no_zone(&resize.id),
    }
    config.validate()?;
    Ok(config)
}

/// A change of sizes that waits for memory from the host.
pub struct Growth {
    resize: Resize,
    respond: Respond,
    place: Option<Place>,
    /// What came of it.
    result: Option<Result<()>>,
}

/// The host refused.
fn failed(error: &anyhow::Error) -> ApiError {
    ApiError::internal(crate::cli::failure(error))
}

fn no_balloon<T>() -> Result<T, ApiError> {
    refuse(
        "desired_balloon",
        "the machine has no balloon; give it one with --balloon, or vm.add-balloon".into(),
    )
}

fn no_zone<T>(id: &str) -> Result<T, ApiError> {
    let message = format!("zone {id}: there is no memory zone of that name; vm.info lists them");
    Err(ApiError { field: Some("id".into()), ..ApiError::new(ErrorKind::NotFound, message) })
}

impl Machine {
    /// Sets how many CPUs and how much memory the guest should have, and how much of that should be in the balloon: all of it, or none
    /// when the machine or the host cannot. Memory that is taken from the host ahead is so by a thread; the machine is busy
    /// until then.
    pub fn resize(&mut self, resize: Resize, respond: Respond) {
        let begun = self.check_sizes(&resize).and_then(|added| {
            let place = self.place_of_added(added).map_err(|error| failed(&error))?;
            let begun = place.map_or(Ok(false), |place| self.begin_populating(place));
            Ok((begun.map_err(|error| failed(&error))?, place))
        });
        match begun {
            Ok((true, place)) => {
                self.growth = Some(Growth { resize, respond, place, result: None });
            }
            Ok((false, place)) => {
                let answer = self.set_sizes(&resize, place);
                self.settle_growth(answer, place, respond);
            }
            Err(error) => respond(Err(error)),
        }
    }

    /// Whether memory is being taken from the host for a change of sizes.
    pub(super) fn growing(&self) -> bool {
        self.growth.is_some()
    }

    /// The host gave the memory for a change of sizes, or cannot.
    pub(super) fn populated(&mut self, result: Result<()>) {
        if let Some(growth) = &mut self.growth {
            growth.result = Some(result);
        }
    }

    /// Completes a change of sizes for which the memory is there. Nothing else is under way.
    pub(super) fn complete_growth(&mut self) {
        let Some(Growth { resize, respond, place, result: Some(result) }) =
            self.growth.take_if(|growth| growth.result.is_some())
        else {
            return;
        };
        let answer = match result {
            Ok(()) => self.set_sizes(&resize, place),
            Err(error) => Err(failed(&error)),
        };
        self.settle_growth(answer, place, respond);
    }

    /// Takes back the new module if nothing comes of the change, and answers.
    fn settle_growth(&mut self, answer: Answer, place: Option<Place>, respond: Respond) {
        if let (Err(_), Some(place)) = (&answer, place) {
            self.withdraw_module(place);
        }
        respond(answer);
    }

    /// The machine ends: answers who waits.
    pub(super) fn refuse_growth(&mut self, refused: impl Fn() -> ApiError) {
        if let Some(growth) = self.growth.take() {
            (growth.respond)(Err(refused()));
        }
    }

    /// Checks all of the sizes. Returns what is to be in addition to the memory of the start, if that is to change.
    fn check_sizes(&self, resize: &Resize) -> Result<Option<u64>, ApiError> {
        if let Some(count) = resize.desired_vcpus {
            self.check_cpu_count(count)?;
        }
        let added = match resize.desired_ram {
            None => None,
            Some(size) => match self.config.memory.hotplug_method {
                HotplugMethod::VirtioMem => Some(self.to_be_added(size)?),
                HotplugMethod::Acpi => Some(self.to_be_in_modules(size)?),
            },
        };
        if let Some(size) = resize.desired_balloon {
            self.check_balloon(size)?;
        }
        Ok(added)
    }

    /// Where the module is to be that has what is missing of `added`.
    fn place_of_added(&self, added: Option<u64>) -> Result<Option<Place>> {
        match (added, self.config.memory.hotplug_method) {
            (Some(added), HotplugMethod::Acpi) => self.place_of_new_module(added),
            _ => Ok(None),
        }
    }

    /// Sets all of the sizes, with a new module at `place`. Of an error, the module may be there; nothing else is.
    fn set_sizes(&mut self, resize: &Resize, place: Option<Place>) -> Answer {
        // The guest may have let go of something meanwhile.
        let added = self.check_sizes(resize)?;
        if let Some(place) = place {
            if !self.fills(place, added) {
                return Err(ApiError::new(
                    ErrorKind::Conflict,
                    "the guest let go of memory while more was made ready; try again",
                ));
            }
            self.add_module(place).map_err(|error| failed(&error))?;
        }
        let (cpus, method) = (resize.desired_vcpus, self.config.memory.hotplug_method);
        let new = cpus
            .map_or(Ok(Vec::new()), |count| self.add_missing_cpus(count))
            .map_err(|error| failed(&error))?;
        if let (Some(added), HotplugMethod::VirtioMem) = (added, method)
            && let Err(error) = self.grow("", added)
        {
            self.withdraw_cpus(&new);
            return Err(error);
        }
        if let Some(count) = cpus {
            self.resize_cpus(count, &new);
        }
        if let (Some(added), HotplugMethod::Acpi) = (added, method) {
            self.resize_modules(added, place);
        }
        if let (Some(size), Some(balloon)) = (resize.desired_balloon, self.balloon()) {
            balloon.resize(size.0);
            if let Some(config) = &mut self.config.balloon {
                config.size = size;
            }
        }
        self.events.emit("vm", "resized");
        Ok(Reply::Done)
    }

    /// Sets how much memory a zone should have.
    ///
    /// # Errors
    /// When there is no such zone, or it cannot have that much; names the field.
    pub fn resize_zone(&mut self, resize: &ResizeZone) -> Answer {
        let ResizeZone { id, desired_ram } = resize;
        if !self.config.memory.zones.iter().flatten().any(|zone| zone.id == *id) {
            return no_zone(id);
        }
        let added = self.beyond_boot("id", id, *desired_ram)?;
        self.grow(id, added)?;
        self.events.emit("vm", "resized");
        Ok(Reply::Done)
    }

    /// What the one zone that is not named gets in addition, for the memory to be `size`.
    fn to_be_added(&self, size: ByteSize) -> Result<u64, ApiError> {
        if self.config.memory.zones.iter().flatten().next().is_some() {
            return refuse(
                "desired_ram",
                "the machine's memory is in zones; resize one of them (vm.resize-zone)".into(),
            );
        }
        self.beyond_boot("desired_ram", "", size)
    }

    /// The zone `id`, and what it grows by. `field` said so.
    fn growing_zone(&self, field: &str, id: &str) -> Result<(&GrowingZone, &MemControl), ApiError> {
        let Some(zone) = self.memory_devices.zones.iter().find(|zone| zone.id == id) else {
            let (zone, option) = match id {
                "" => ("nothing can be added to the machine's memory".into(), "--memory hotplug_size"),
                id => (format!("zone {id}: nothing can be added to it"), "it hotplug_size"),
            };
            return refuse(field, format!("{zone}; give {option}"));
        };
        let device = self.config.mem.iter().find(|mem| mem.zone == id).and_then(|mem| mem.id.as_deref());
        if let Some(device) = device
            && self.removals.contains_key(device)
        {
            let message = format!(
                "device {device}, by which this memory is resized, is being removed; have it go (vm.remove-device, with force if the \
                 guest keeps it), and add it again"
            );
            return Err(ApiError {
                field: Some(field.into()),
                ..ApiError::new(ErrorKind::Conflict, message)
            });
        }
        match memory_devices::of_zone(&self.pci, id) {
            Some(control) => Ok((zone, control)),
            None => {
                let what = if id.is_empty() { "the machine's memory".into() } else { format!("zone {id}") };
                let body = if id.is_empty() { String::new() } else { format!(" zone={id}") };
                refuse(
                    field,
                    format!("{what} has no device by which it is resized; add one (vm.add-mem{body})"),
                )
            }
        }
    }

    /// What is added to what the zone `id` has from the start, for all to be `size`. `field` named the zone.
    fn beyond_boot(&self, field: &str, id: &str, size: ByteSize) -> Result<u64, ApiError> {
        let (zone, control) = self.growing_zone(field, id)?;
        beyond_boot(size, zone.boot, control)
    }

    /// Checks that a device by which memory comes can go: that nothing of its memory is in use, and nothing is to come.
    ///
    /// # Errors
    /// When it cannot.
    pub(super) fn check_out_of_use(&self, id: &str) -> Result<(), ApiError> {
        let Some(Control::Mem { zone, device }) = self.pci.control(id) else { return Ok(()) };
        let boot = self.memory_devices.zones.iter().find(|known| known.id == *zone);
        let (used, boot) = (ByteSize(device.in_use()), ByteSize(boot.map_or(0, |zone| zone.boot)));
        if used.0 == 0 {
            return Ok(());
        }
        let what = if zone.is_empty() { "the memory".into() } else { format!("zone {zone}") };
        let verb = if zone.is_empty() { "vm.resize" } else { "vm.resize-zone" };
        let message = format!(
            "device {id}: the guest has, or is to get, {used} of memory by it; resize {what} to {boot} first ({verb}), and wait until the \
             guest has given it back (memory_actual_size in vm.info)"
        );
        Err(ApiError::new(ErrorKind::Conflict, message))
    }

    fn check_balloon(&self, size: ByteSize) -> Result<(), ApiError> {
        let Some(balloon) = self.balloon() else { return no_balloon() };
        if size.0 > balloon.most() {
            return refuse(
                "desired_balloon",
                format!("{size} is more than all of the machine's memory, {}", ByteSize(balloon.most())),
            );
        }
        Ok(())
    }

    /// Tells the guest, and keeps it for a restart.
    fn grow(&mut self, id: &str, added: u64) -> Result<(), ApiError> {
        let (_, control) = self.growing_zone("desired_ram", id)?;
        control.resize(added).map_err(|error| ApiError::bad(error.to_string()))?;
        let memory = &mut self.config.memory;
        let size = match memory.zones.iter_mut().flatten().find(|zone| zone.id == id) {
            Some(zone) => &mut zone.hotplugged_size,
            None => &mut memory.hotplugged_size,
        };
        *size = Some(ByteSize(added));
        Ok(())
    }
}

/// What is added to `boot` bytes for all to be `size`.
fn beyond_boot(size: ByteSize, boot: u64, control: &MemControl) -> Result<u64, ApiError> {
    let field = "desired_ram";
    let Some(added) = size.0.checked_sub(boot) else {
        return refuse(
            field,
            format!("{size} is less than the {} that the machine has from the start", ByteSize(boot)),
        );
    };
    if added > control.most() {
        let most = ByteSize(boot.saturating_add(control.most()));
        return refuse(field, format!("{size} is more than {most}, which includes all of hotplug_size"));
    }
    if !added.is_multiple_of(control.block_size()) {
        let block = ByteSize(control.block_size());
        return refuse(field, format!("{size}: memory is added in blocks of {block}"));
    }
    Ok(added)
}
