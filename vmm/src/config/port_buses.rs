//! Bus numbers of `--pci-port`.

use super::validate::ConfigError;
use super::{PciPortConfig, VmConfig};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

impl VmConfig {
    /// The buses of each port when the machine begins: the one right below it, and those further down. Numbers go down each branch
    /// before the next.
    ///
    /// # Errors
    /// When they do not suffice.
    pub fn port_buses(&self) -> Result<Vec<RangeInclusive<u8>>, ConfigError> {
        let ports = &self.pci_ports;
        let mut buses = vec![0..=0; ports.len()];
        let mut next = BTreeMap::new();
        for (index, port) in ports.iter().enumerate().filter(|(_, port)| port.bus.is_none()) {
            visit(index, ports, next.entry(port.pci_segment).or_insert(1), &mut buses);
        }
        let narrow = |(buses, port): (RangeInclusive<u16>, &PciPortConfig)| {
            let [first, last] = [*buses.start(), *buses.end()].map(u8::try_from);
            match (first, last) {
                (Ok(first), Ok(last)) => Ok(first..=last),
                _ => Err(ConfigError {
                    option: format!("--pci-port id={}", port.id),
                    reason:
                        "bus numbers end at 255; use fewer ports, lower bus_reserve, or use more PCI segments"
                            .into(),
                }),
            }
        };
        buses.into_iter().zip(ports).map(narrow).collect()
    }
}

fn visit(index: usize, ports: &[PciPortConfig], next: &mut u16, buses: &mut [RangeInclusive<u16>]) {
    let Some(port) = ports.get(index) else { return };
    let first = *next;
    *next = next.saturating_add(1);
    // Beyond the last number nobody has to look further down.
    if u8::try_from(first).is_ok() {
        let below = (0..).zip(ports).filter(|(_, other)| other.bus.as_deref() == Some(port.id.as_str()));
        for (child, _) in below {
            visit(child, ports, next, buses);
        }
        *next = next.saturating_add(port.bus_reserve.into());
    }
    if let Some(place) = buses.get_mut(index) {
        *place = first..=next.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PciPortKind;

    fn port(id: &str, kind: PciPortKind, bus: Option<&str>, reserve: u8) -> PciPortConfig {
        PciPortConfig {
            id: id.into(),
            kind,
            bus: bus.map(str::to_owned),
            bus_reserve: reserve,
            ..PciPortConfig::default()
        }
    }

    fn buses(ports: &[PciPortConfig]) -> Result<Vec<RangeInclusive<u8>>, ConfigError> {
        VmConfig { pci_ports: ports.to_vec(), ..VmConfig::default() }.port_buses()
    }

    #[test]
    fn buses_are_numbered_down_each_branch_whatever_the_order_of_options() {
        use PciPortKind::*;
        let ports = [
            port("rp0", Root, None, 0),
            port("rp1", Root, None, 0),
            port("up0", Upstream, Some("rp0"), 0),
            port("dp0", Downstream, Some("up0"), 2),
            port("dp1", Downstream, Some("up0"), 0),
        ];
        assert_eq!(buses(&ports).unwrap(), [1..=6, 7..=7, 2..=6, 3..=5, 6..=6]);
        let many = [port("a", Root, None, 200), port("b", Root, None, 200)];
        assert!(buses(&many).unwrap_err().to_string().contains("--pci-port id=b"));
        // What is kept is kept beside what has come meanwhile: a machine that begins anew needs numbers for both.
        let mut config = VmConfig { pci_ports: vec![port("a", Root, None, 253)], ..VmConfig::default() };
        config.validate_pci_ports().unwrap();
        config.put_ports(port("up0", Upstream, Some("a"), 0), vec![port("dp0", Root, None, 0)]).unwrap();
        assert!(config.validate_pci_ports().unwrap_err().to_string().contains("bus numbers end at 255"));
    }
}
