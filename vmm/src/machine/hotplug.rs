//! Devices that come and go while the machine runs.
//!
//! A device that is added is told to the guest's hotplug controller, or to the port it is plugged in at. One that is to be removed is asked back from the guest, and
//! goes when the guest has released it (it writes the controller's eject register); until then it works. What the guest does
//! not release in time stays, and the request to it stands.

use super::Machine;
use super::pci_bus::{Completion, PciBus, Plugged, ReleaseRequest};
use super::registry::{self, Site};
use crate::api::request::{AddedReply, DeviceNode, RemoveDevice};
use crate::api::{Answer, ApiError, ErrorKind, Reply, Request, Respond};
use crate::config::{ConfigError, VmConfig};
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

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::bad(error.to_string())
    }
}

/// Adds a device to a configuration that nothing runs for yet, or to the one of a machine.
///
/// # Errors
/// When `request` adds no device, or the device cannot be among the others.
pub fn with_device(config: &VmConfig, request: &Request) -> Result<VmConfig, ApiError> {
    let mut config = config.clone();
    match request {
        Request::AddDisk(disk) => config.disks.push((**disk).clone()),
        Request::AddNet(net) => config.net.push((**net).clone()),
        Request::AddVsock(_) if config.vsock.is_some() => {
            return Err(ApiError::new(ErrorKind::State, "the machine has a socket device already"));
        }
        Request::AddVsock(vsock) => config.vsock = Some((**vsock).clone()),
        _ => return Err(ApiError::internal("this request adds no device")),
    }
    config.name_devices();
    config.validate()?;
    Ok(config)
}

/// Makes the device that was added last to `config` by `request`.
fn make(
    request: &Request,
    config: &VmConfig,
    site: &Site,
    pci: &mut PciBus,
) -> Option<Result<(String, FunctionAddress)>> {
    let made = |id: &Option<String>, address: Result<FunctionAddress>| {
        address.map(|address| (id.clone().unwrap_or_default(), address))
    };
    match request {
        Request::AddDisk(_) => {
            config.disks.last().map(|disk| made(&disk.id, registry::add_disk(site, pci, disk)))
        }
        Request::AddNet(_) => config.net.last().map(|net| made(&net.id, registry::add_net(site, pci, net))),
        Request::AddVsock(_) => {
            config.vsock.as_ref().map(|vsock| made(&vsock.id, registry::add_vsock(site, pci, vsock)))
        }
        _ => None,
    }
}

impl Machine {
    /// Adds a device and tells the guest.
    ///
    /// # Errors
    /// When the device cannot be had, or not among the others. Nothing is changed then.
    pub fn add_device(&mut self, request: &Request) -> Answer {
        let config = with_device(&self.config, request)?;
        let made = make(request, &config, &self.site, &mut self.pci)
            .ok_or_else(|| ApiError::internal("this request adds no device"))?;
        let (id, address) = made.map_err(|error| {
            ApiError::bad(format!("{}{}", crate::cli::failure(&error), crate::landlock::hint(&error)))
        })?;
        self.config = config;
        let plugged = self.pci.plug(address).map_err(|error| ApiError::internal(format!("{error:#}")))?;
        if plugged == Plugged::OnRootBus {
            self.platform.pci_device_came(address.segment, address.device());
        }
        self.events.emit_with(
            "vm",
            "device-added",
            [("id", id.clone().into()), ("bdf", address.to_string().into())],
        );
        Reply::json(&AddedReply { id, bdf: address.to_string() })
    }

    /// Begins to remove a device.
    ///
    /// # Errors
    /// When the host fails the machine.
    pub fn remove_device(&mut self, request: RemoveDevice, respond: Respond) -> Result<()> {
        let RemoveDevice { id, force, timeout_ms } = request;
        let refuse = |kind, message| ApiError::new(kind, format!("device {id}: {message}"));
        let Some(address) = self.pci.address_of(&id) else {
            respond(Err(refuse(ErrorKind::NotFound, "there is no device of that name; vm.info lists them")));
            return Ok(());
        };
        if !self.config.has_device(&id) {
            respond(Err(refuse(ErrorKind::BadRequest, "is part of the machine and cannot be removed")));
            return Ok(());
        }
        if self.pci.is_fixed(address) {
            respond(Err(refuse(
                ErrorKind::BadRequest,
                "is below a port without hotplug and cannot be removed",
            )));
            return Ok(());
        }
        if self.removals.get(&id).is_some_and(|removal| removal.caller.is_some()) {
            respond(Err(refuse(ErrorKind::Conflict, "is being removed already")));
            return Ok(());
        }
        let limit = timeout_ms.map_or(RELEASE_LIMIT, Duration::from_millis);
        let caller = Some((respond, Instant::now() + limit, limit));
        let ejecting = self.removals.remove(&id).map(|removal| removal.ejecting).unwrap_or_default();
        self.removals.insert(id.clone(), Removal { address, ejecting, caller });
        if force {
            return self.take_out(address);
        }
        self.events.emit_with("vm", "device-removing", [("id", id.into())]);
        match self.pci.ask_to_release(address) {
            ReleaseRequest::OnRootBus => {
                self.platform.ask_to_release_pci_device(address.segment, address.device());
            }
            ReleaseRequest::Asked => {}
            ReleaseRequest::Released => return self.take_out(address),
        }
        Ok(())
    }

    /// The guest released devices: takes them out.
    pub(super) fn eject(&mut self, cpu: u32, segment: u16, devices: u32) -> Result<Completion> {
        let mut completion = Completion::Done;
        for device in (0..32u8).filter(|device| devices >> device & 1 == 1) {
            let address = FunctionAddress::new(segment, 0, device, 0);
            // A guest may eject what nobody asked back; what was not added by an option is part of the machine.
            let id = self.pci.id_of(address).map(str::to_owned);
            let Some(id) = id.filter(|id| self.config.has_device(id)) else { continue };
            let removal =
                self.removals.entry(id).or_insert(Removal { address, ejecting: Vec::new(), caller: None });
            removal.ejecting.push(cpu);
            self.take_out(address)?;
            if self.pci.has(address) {
                completion = Completion::Later;
            }
        }
        Ok(completion)
    }

    /// The functions below a bridge were reset: if it is a port whose slot the guest turned off because it was asked to,
    /// takes the device out.
    pub(super) fn slot_settled(&mut self, bridge: FunctionAddress) -> Result<()> {
        for address in self.pci.released(bridge) {
            if let Some(id) = self.pci.id_of(address).map(str::to_owned) {
                let removal = Removal { address, ejecting: Vec::new(), caller: None };
                self.removals.entry(id).or_insert(removal);
            }
            self.take_out(address)?;
        }
        Ok(())
    }

    fn take_out(&mut self, address: FunctionAddress) -> Result<()> {
        if self.pci.remove(address)? == Completion::Done {
            self.settled(address);
        }
        Ok(())
    }

    /// The workers of a function have come to rest: if it was removed, tells so.
    pub(super) fn settled(&mut self, address: FunctionAddress) {
        if self.pci.has(address) {
            return;
        }
        let ids: Vec<_> = self.removals.iter().filter(|(_, removal)| removal.address == address).collect();
        let Some(id) = ids.first().map(|(id, _)| (*id).clone()) else { return };
        let Some(mut removal) = self.removals.remove(&id) else { return };
        self.config.forget_device(&id);
        if address.bus() == 0 {
            self.platform.pci_device_gone(address.segment, address.device());
        }
        for cpu in &self.cpus {
            cpu.refresh_maps();
        }
        self.events.emit_with(
            "vm",
            "device-removed",
            [("id", id.into()), ("bdf", address.to_string().into())],
        );
        for cpu in std::mem::take(&mut removal.ejecting) {
            // A CPU whose eject took out several devices goes on with the last of them.
            if !self.removals.values().any(|other| other.ejecting.contains(&cpu)) {
                self.effect_done(cpu);
            }
        }
        removal.answer(Ok(Reply::Done));
    }

    /// Takes out what the guest was asked to release. No worker runs.
    pub(super) fn complete_removals(&mut self) -> Result<()> {
        let addresses: Vec<_> = self.removals.values().map(|removal| removal.address).collect();
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
                respond(Err(ApiError::new(
                    ErrorKind::Timeout,
                    format!(
                        "device {id}: the guest did not release it within {} ms; it stays until it does, or until it is \
                         removed with force",
                        limit.as_millis()
                    ),
                )));
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
