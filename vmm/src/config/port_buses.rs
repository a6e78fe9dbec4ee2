//! Bus numbers: of `--pci-port`, and how many a `--pci-segment` has.

use super::validate::ConfigError;
use super::{PciPortConfig, VmConfig};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// How many bus numbers a segment has at least, unless it is told. Linux on x86_64 reads 32 registers on each bus that has no bridge,
/// by two I/O ports each, before it starts its first program.
const LEAST_BUSES: u16 = 16;

/// How many of them at least are for ports that come later.
const SPARE_BUSES: u16 = 8;

/// All that there can be.
const MOST_BUSES: u16 = 256;

impl VmConfig {
    /// The buses of each port when the machine begins: the one right below it, and those further down. Numbers go down each branch
    /// before the next.
    ///
    /// # Errors
    /// When they do not suffice.
    pub fn port_buses(&self) -> Result<Vec<RangeInclusive<u8>>, ConfigError> {
        let narrow = |(numbered, port): (Numbered, &PciPortConfig)| {
            let count = self.told_buses(numbered.segment).unwrap_or(MOST_BUSES);
            let [first, last] = [*numbered.buses.start(), *numbered.buses.end()].map(u8::try_from);
            match (first, last) {
                (Ok(first), Ok(last)) if u16::from(last) < count => Ok(first..=last),
                _ => Err(ConfigError {
                    option: format!("--pci-port id={}", port.id),
                    reason: match count {
                        MOST_BUSES => "bus numbers end at 255; use fewer ports, lower bus_reserve, or use more PCI segments".into(),
                        _ => format!(
                            "bus numbers end at {}; use fewer ports, lower bus_reserve, or begin with more (buses of --pci-segment \
                             pci_segment={})",
                            count.saturating_sub(1),
                            numbered.segment
                        ),
                    },
                }),
            }
        };
        self.numbered().into_iter().zip(&self.pci_ports).map(narrow).collect()
    }

    /// How many bus numbers each PCI segment has when a machine is made: 1 to 256. Ports that come later find theirs among these.
    pub fn buses(&self) -> Vec<u16> {
        let mut needed = vec![1u16; self.platform.num_pci_segments.into()];
        for port in self.numbered() {
            if let Some(needed) = needed.get_mut(usize::from(port.segment)) {
                *needed = port.buses.end().saturating_add(1).max(*needed);
            }
        }
        let usual = |needed: u16| {
            let wanted = needed.saturating_add(SPARE_BUSES).min(MOST_BUSES);
            wanted.next_power_of_two().max(LEAST_BUSES)
        };
        let told = |(segment, needed)| self.told_buses(segment).unwrap_or_else(|| usual(needed));
        (0..).zip(needed).map(told).collect()
    }

    fn told_buses(&self, segment: u16) -> Option<u16> {
        self.pci_segments.iter().find(|told| told.pci_segment == segment)?.buses
    }

    /// What each port has, also of numbers that there are not.
    fn numbered(&self) -> Vec<Numbered> {
        let ports = &self.pci_ports;
        let mut numbered = vec![Numbered { segment: 0, buses: 0..=0 }; ports.len()];
        let mut next = BTreeMap::new();
        for (index, port) in ports.iter().enumerate().filter(|(_, port)| port.bus.is_none()) {
            visit(index, ports, port.pci_segment, next.entry(port.pci_segment).or_insert(1), &mut numbered);
        }
        numbered
    }
}

/// The buses below a port.
#[derive(Clone)]
struct Numbered {
    segment: u16,
    buses: RangeInclusive<u16>,
}

fn visit(index: usize, ports: &[PciPortConfig], segment: u16, next: &mut u16, numbered: &mut [Numbered]) {
    let Some(port) = ports.get(index) else { return };
    let first = *next;
    *next = next.saturating_add(1);
    // Beyond the last number nobody has to look further down.
    if u8::try_from(first).is_ok() {
        let below = (0..).zip(ports).filter(|(_, other)| other.bus.as_deref() == Some(port.id.as_str()));
        for (child, _) in below {
            visit(child, ports, segment, next, numbered);
        }
        *next = next.saturating_add(port.bus_reserve.into());
    }
    if let Some(place) = numbered.get_mut(index) {
        *place = Numbered { segment, buses: first..=next.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PciPortKind, PciSegmentConfig};

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

    #[test]
    fn a_segment_has_some_numbers_to_spare_unless_it_is_told() {
        let mut config = VmConfig::default();
        assert_eq!(config.buses(), [16]);
        config.platform.num_pci_segments = 2;
        // What is below the ports of a segment counts there, whatever segment it is said to be in.
        let root = PciPortConfig { pci_segment: 1, ..port("rp0", PciPortKind::Root, None, 15) };
        config.pci_ports = vec![root, port("up0", PciPortKind::Upstream, Some("rp0"), 0)];
        assert_eq!(config.buses(), [16, 32]);
        config.pci_ports.push(port("rp1", PciPortKind::Root, None, 6));
        assert_eq!(config.buses(), [16, 32]);
        config.pci_ports.push(port("rp2", PciPortKind::Root, None, 0));
        assert_eq!(config.buses(), [32, 32]);
        config.pci_ports.push(port("rp3", PciPortKind::Root, None, 246));
        assert_eq!(config.buses(), [256, 32]);
        config.port_buses().unwrap();
        config.pci_segments =
            vec![PciSegmentConfig { pci_segment: 1, buses: Some(18), ..PciSegmentConfig::default() }];
        assert_eq!(config.buses(), [256, 18]);
        config.port_buses().unwrap();
        config.pci_segments[0].buses = Some(17);
        let error = config.port_buses().unwrap_err().to_string();
        assert!(
            error.contains(
                "id=rp0: bus numbers end at 16; use fewer ports, lower bus_reserve, or begin with more"
            ),
            "{error}"
        );
    }
}
