//! Devices that go while the machine runs.
//!
//! One that is to be removed is asked back from the guest, and goes when the guest has released it (it writes the hotplug
//! controller's eject register, or turns off the slot of the port); until then it works. What the guest does not release in
//! time stays, and the request to it stands.
//!
//! One that is removed with force is taken away at once: its files are closed, and its name is free. What the guest still has
//! of it is a function that refuses all that is asked of it, until the guest lets go, which it is asked to.

use super::pci_bus::{Completion, ReleaseRequest};
use super::persistent_memory::AfterRestart;
use super::{Machine, ports};
use crate::api::request::{DeviceNode, RemoveDevice};
use crate::api::{Answer, ApiError, ErrorKind, Reply, Respond};
use crate::config::VmConfig;
use anyhow::Result;
use machine::effect::FunctionAddress;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a guest may take to release a device, unless the call says otherwise.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// A device that is to be removed.
pub struct Removal {
    address: FunctionAddress,
    /// CPUs whose eject waits for the workers to stop.
    ejecting: Vec<u32>,
    /// The guest is not asked.
    forced: bool,
    /// Who waits, and how long. Nobody, if the call was given up and the request stands.
    caller: Option<(Respond, Instant, Duration)>,
}

impl Removal {
    /// Answers whoever waits for it.
    pub fn answer(self, answer: Answer) {
        if let Some((respond, ..)) = self.caller {
            respond(answer);
        }
    }
}

/// Takes a device or port out of a configuration that nothing runs for yet.
///
/// # Errors
/// When there is no such device, memory is to come by it, or it is a port that cannot go.
pub fn without_device(config: &VmConfig, id: &str) -> Result<VmConfig, ApiError> {
    if !config.has_device(id) && config.port(id).is_none() {
        return Err(ApiError::new(
            ErrorKind::NotFound,
            format!("device {id}: there is no device of that name; vm.info lists them"),
        ));
    }
    ports::check_goes(config, id)?;
    if let Some((_, size)) = config.growth_of(id)
        && size.0 > 0
    {
        return Err(ApiError::bad(format!(
            "device {id}: hotplugged_size={size} of memory is to come by it; create the machine without that"
        )));
    }
    let mut config = config.clone();
    config.forget_device(id);
    Ok(config)
}

impl Machine {
    /// Begins to remove a device.
    ///
    /// # Errors
    /// When the host fails the machine.
    pub fn remove_device(&mut self, request: RemoveDevice, respond: Respond) -> Result<()> {
        let RemoveDevice { id, force, timeout_ms } = request;
        let address = match self.check_removal(&id, force) {
            Ok(address) => address,
            Err(error) => {
                respond(Err(error));
                return Ok(());
            }
        };
        let limit = timeout_ms.map_or(RELEASE_LIMIT, Duration::from_millis);
        let caller = Some((respond, super::after(limit), limit));
        let ejecting = self.removals.remove(&id).map(|removal| removal.ejecting).unwrap_or_default();
        self.removals.insert(id.clone(), Removal { address, ejecting, forced: force, caller });
        if force {
            for part in self.parts(address) {
                // What stands in for a device already stays.
                if self.pci.id_of(part).is_some() && self.pci.withdraw(part)? == Completion::Done {
                    self.settled(part);
                }
            }
            return Ok(());
        }
        self.events.emit_with("vm", "device-removing", [("id", id.into())]);
        match self.pci.ask_to_release(address) {
            ReleaseRequest::OnRootBus => {
                self.platform.notifier.ask_to_release_pci_device(address.segment, address.device());
            }
            ReleaseRequest::Asked => {}
            ReleaseRequest::Released => return self.take_out(address),
        }
        Ok(())
    }

    /// Whether a device can be removed. Returns where it is.
    fn check_removal(&self, id: &str, force: bool) -> Result<FunctionAddress, ApiError> {
        let refuse = |kind, message: &str| Err(ApiError::new(kind, format!("device {id}: {message}")));
        let Some(address) = self.pci.address_of(id) else {
            return refuse(ErrorKind::NotFound, "there is no device of that name; vm.info lists them");
        };
        if !self.config.has_device(id) && self.config.port(id).is_none() {
            return refuse(ErrorKind::BadRequest, "is part of the machine and cannot be removed");
        }
        ports::check_goes(&self.config_with_coming()?, id)?;
        let beside = self.pci.beside(address);
        if !beside.is_empty() {
            let named = beside.iter().map(|other| match self.pci.id_of(*other) {
                Some(id) => id.to_owned(),
                None => other.to_string(),
            });
            let message = format!(
                "is at one PCI device number with {}, and a guest lets go of all that is there; give what is to go a number of its own",
                named.collect::<Vec<_>>().join(", ")
            );
            return refuse(ErrorKind::BadRequest, &message);
        }
        if self.pci.is_fixed(address) {
            return refuse(ErrorKind::BadRequest, "is below a port without hotplug and cannot be removed");
        }
        self.check_out_of_use(id)?;
        if self.is_coming(id) {
            return refuse(ErrorKind::Conflict, "is still being added");
        }
        if self.removals.get(id).is_some_and(|removal| removal.caller.is_some()) {
            return refuse(ErrorKind::Conflict, "is being removed already");
        }
        if self.paused() && !force && self.pci.is_held(address) {
            let message = "the machine is paused, and its guest releases nothing; resume it first (vm.resume), or remove the device with \
                           force";
            return refuse(ErrorKind::Conflict, message);
        }
        Ok(address)
    }

    /// The guest released devices: takes them out. The CPU goes on when the last of them is gone.
    pub(super) fn eject(&mut self, cpu: u32, segment: u16, devices: u32) -> Result<Completion> {
        let mut ejected = Vec::new();
        for device in (0..32u8).filter(|device| devices >> device & 1 == 1) {
            let first = FunctionAddress::new(segment, 0, device, 0);
            let functions: Vec<_> = std::iter::once(first).chain(self.pci.beside(first)).collect();
            if !functions.iter().all(|function| self.may_eject(*function)) {
                continue;
            }
            for address in functions {
                let ejecting = match self.pci.id_of(address).map(str::to_owned) {
                    Some(id) => {
                        let removal = Removal { address, ejecting: Vec::new(), forced: false, caller: None };
                        &mut self.removals.entry(id).or_insert(removal).ejecting
                    }
                    None => self.leaving.entry(address).or_default(),
                };
                ejecting.push(cpu);
                ejected.push(address);
            }
        }
        if ejected.is_empty() {
            return Ok(Completion::Done);
        }
        for address in ejected {
            self.take_out(address)?;
        }
        Ok(Completion::Later)
    }

    /// A guest may eject what nobody asked back, but not what is the host's hand on it or part of the machine.
    fn may_eject(&self, address: FunctionAddress) -> bool {
        match self.pci.id_of(address) {
            Some(id) => self.removals.contains_key(id) || self.config.is_for_guest(id),
            None => self.pci.has(address),
        }
    }

    /// The functions below a bridge were reset: if it is a port whose slot the guest turned off because it was asked to,
    /// takes the device out.
    pub(super) fn slot_settled(&mut self, bridge: FunctionAddress) -> Result<()> {
        for address in self.pci.released(bridge) {
            if let Some(id) = self.pci.id_of(address).map(str::to_owned) {
                let removal = Removal { address, ejecting: Vec::new(), forced: false, caller: None };
                self.removals.entry(id).or_insert(removal);
            }
            self.take_out(address)?;
        }
        Ok(())
    }

    fn take_out(&mut self, address: FunctionAddress) -> Result<()> {
        for part in self.parts(address) {
            if self.pci.remove(part)? == Completion::Done {
                self.settled(part);
            }
        }
        Ok(())
    }

    /// What goes with the function at `address`, that last: the ports of a switch, and what stands in for devices that are gone. Each
    /// that has a name is noted to be going.
    fn parts(&mut self, address: FunctionAddress) -> Vec<FunctionAddress> {
        let mut parts = self.pci.below(address);
        parts.reverse();
        for part in &parts {
            if let Some(id) = self.pci.id_of(*part).map(str::to_owned) {
                let removal = Removal { address: *part, ejecting: Vec::new(), forced: false, caller: None };
                self.removals.entry(id).or_insert(removal);
            }
        }
        parts.push(address);
        parts
    }

    /// The workers of a function have come to rest: if it was removed, tells so.
    pub(super) fn settled(&mut self, address: FunctionAddress) {
        if !self.pci.has(address)
            && let Some(cpus) = self.leaving.remove(&address)
        {
            self.gone(address, &cpus);
        }
        if self.pci.id_of(address).is_some() {
            return;
        }
        let ids: Vec<_> = self.removals.iter().filter(|(_, removal)| removal.address == address).collect();
        let Some(id) = ids.first().map(|(id, _)| (*id).clone()) else { return };
        let restarting = self.unmap_pmem(&id);
        self.after_restart(restarting, AfterRestart::Removed { id });
    }

    /// Nothing of a device is in use any more.
    pub(super) fn removed(&mut self, id: String) {
        let Some(removal) = self.removals.remove(&id) else { return };
        let address = removal.address;
        self.config.forget_device(&id);
        self.pci.forget_place(&id);
        self.watchdogs_told.remove(&id);
        self.passed_files.remove(&id);
        if self.pci.has(address) {
            self.ask_to_let_go(address);
        } else {
            self.gone(address, &removal.ejecting);
        }
        self.events.emit_with(
            "vm",
            "device-removed",
            [("id", id.into()), ("bdf", address.to_string().into())],
        );
        removal.answer(Ok(Reply::Done));
    }

    /// Asks the guest to let go of what stands in for a device, so that its place can be had again.
    fn ask_to_let_go(&mut self, address: FunctionAddress) {
        match self.pci.ask_to_release(address) {
            ReleaseRequest::OnRootBus => {
                self.platform.notifier.ask_to_release_pci_device(address.segment, address.device());
            }
            ReleaseRequest::Asked => {}
            ReleaseRequest::Released => {
                if let Err(error) = self.take_out(address) {
                    tracing::error!("PCI function {address}: cannot be taken out: {error:#}");
                }
            }
        }
    }

    /// A function is out of the machine. CPUs whose accesses took it out go on.
    fn gone(&mut self, address: FunctionAddress, cpus: &[u32]) {
        if address.bus() == 0 {
            self.platform.notifier.pci_device_gone(address.segment, address.device());
        }
        for cpu in &self.cpus {
            cpu.refresh_maps();
        }
        for cpu in cpus {
            // A CPU whose eject took out several devices goes on with the last of them.
            let waits = |ejecting: &Vec<u32>| ejecting.contains(cpu);
            if !self.removals.values().any(|other| waits(&other.ejecting))
                && !self.leaving.values().any(waits)
            {
                self.effect_done(*cpu);
            }
        }
    }

    /// Takes out what the guest was asked to release. No worker runs.
    pub(super) fn complete_removals(&mut self) -> Result<()> {
        self.leaving.clear();
        // CPUs wait for nothing any more.
        self.removals.values_mut().for_each(|removal| removal.ejecting.clear());
        let mut addresses: Vec<_> = self.removals.values().map(|removal| removal.address).collect();
        addresses.extend(self.pci.stand_ins());
        for address in addresses {
            self.take_out(address)?;
        }
        Ok(())
    }

    /// When the first removal is to be given up.
    pub(super) fn removal_deadline(&self) -> Option<Instant> {
        self.removals.values().filter_map(|removal| removal.caller.as_ref().map(|caller| caller.1)).min()
    }

    /// Answers those who waited for the guest to release a device, and it did not.
    pub(super) fn give_up_removals(&mut self, now: Instant) {
        for (id, removal) in &mut self.removals {
            if removal.caller.as_ref().is_some_and(|caller| caller.1 <= now)
                && let Some((respond, _, limit)) = removal.caller.take()
            {
                self.events.emit_with("vm", "device-removal-overdue", [("id", id.clone().into())]);
                let limit = limit.as_millis();
                let reason = if removal.forced {
                    format!(
                        "device {id}: has requests in flight that the host did not complete within {limit} ms; it goes when it has"
                    )
                } else {
                    format!(
                        "device {id}: the guest did not release it within {limit} ms; it stays until it does, or until it is \
                         removed with force"
                    )
                };
                respond(Err(ApiError::new(ErrorKind::Timeout, reason)));
            }
        }
    }

    /// The devices that can be named, for `vm.info`.
    pub fn device_tree(&self) -> BTreeMap<String, DeviceNode> {
        let node = |(id, address): (&str, FunctionAddress)| {
            let bdf = Some(address.to_string());
            (id.to_owned(), DeviceNode { id: id.to_owned(), children: Vec::new(), pci_bdf: bdf })
        };
        self.pci.ids().map(node).collect()
    }
}
