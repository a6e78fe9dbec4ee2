//! PCI Express ports and switches that come while the machine runs, and what has to be so before they go.
//!
//! They have nothing of the host's, so that nothing is opened: they are put in their places at once, and the guest is told as it
//! is of devices. They go as devices do (see [`super::removal`]), when nothing is below them.

use super::Machine;
use crate::api::request::{AddPort, AddedReply, SwitchPorts};
use crate::api::{Answer, ApiError, ErrorKind, Reply};
use crate::config::{PciPortConfig, VmConfig};
use machine::effect::FunctionAddress;

/// Adds a root port or a switch to a configuration. Also returns its ports as they are in the configuration, the upstream port first.
///
/// # Errors
/// When it is no whole, or cannot be among what is there.
pub fn with_ports(config: &VmConfig, add: AddPort) -> Result<(VmConfig, Vec<PciPortConfig>), ApiError> {
    let AddPort { port, switch: SwitchPorts { ports } } = add;
    let mut config = config.clone();
    let ports = config.put_ports(port, ports)?;
    config.validate()?;
    Ok((config, ports))
}

/// Checks that what is named `id` can go, if it is a port.
///
/// # Errors
/// When it is part of a switch that stays, or something is below it.
pub fn check_goes(config: &VmConfig, id: &str) -> Result<(), ApiError> {
    config.check_port_goes(id).map_err(|reason| ApiError::bad(format!("device {id}: {reason}")))
}

impl Machine {
    /// Adds a root port, or a switch, and tells the guest.
    ///
    /// # Errors
    /// When it cannot be where it is to be; nothing is changed then.
    pub fn add_port(&mut self, add: AddPort) -> Answer {
        let (_, mut ports) = with_ports(&self.config_with_coming()?, add)?;
        for port in &ports {
            self.check_stays(port.bus.as_deref())?;
        }
        let added = self.pci.add_late_ports(&ports, self.layout.segments());
        let added = added.map_err(|error| ApiError::bad(crate::cli::failure(&error)))?;
        if let (Some(port), Some(address)) = (ports.first_mut(), added.first())
            && port.bus.is_none()
        {
            // A machine that is built finds its ports first: it is not to have another's place then.
            port.pci_device_id = Some(address.device());
        }
        let names: Vec<_> = ports.iter().map(|port| port.id.clone()).collect();
        self.config.pci_ports.extend(ports);
        let Some((id, address)) = names.first().zip(added.first()) else {
            return Err(ApiError::internal("no port was added"));
        };
        self.tell_guest(*address)?;
        for (id, address) in names.iter().zip(&added) {
            self.tell_added(id, *address);
        }
        Reply::json(&AddedReply { id: id.clone(), bdf: address.to_string() })
    }

    /// The configuration with the devices that are being opened.
    ///
    /// # Errors
    /// When they cannot all be there.
    pub(super) fn config_with_coming(&self) -> Result<VmConfig, ApiError> {
        let mut config = self.config.clone();
        for coming in self.additions.coming() {
            config.put_device(coming.clone())?;
        }
        Ok(config)
    }

    /// Checks that a port, and all above it, are not to be removed.
    ///
    /// # Errors
    /// When one is, naming it.
    pub(super) fn check_stays(&self, bus: Option<&str>) -> Result<(), ApiError> {
        let mut at = bus;
        while let Some(id) = at {
            if self.removals.contains_key(id) {
                let reason = format!(
                    "bus={id}: it is to be removed, and goes when the guest releases it; name another port"
                );
                return Err(ApiError::new(ErrorKind::Conflict, reason));
            }
            // A port is named after those above it: this ends.
            at = self.config.port(id).and_then(|port| port.bus.as_deref());
        }
        Ok(())
    }

    /// Tells of what was added.
    pub(super) fn tell_added(&self, id: &str, address: FunctionAddress) {
        self.events.emit_with("vm", "device-added", [("id", id.into()), ("bdf", address.to_string().into())]);
    }
}
