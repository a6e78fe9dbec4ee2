//! Ports and switches that come while the guest runs.

use super::{PciBus, of_plan};
use crate::config::{PciPortConfig, PciPortKind};
use anyhow::{Context, Result, bail, ensure};
use arch::layout::SegmentWindows;
use machine::effect::FunctionAddress;
use pci::plan;
use std::ops::RangeInclusive;

impl PciBus {
    /// Adds a root port, or an upstream port with the downstream ports that are given after it. The guest is then to be told of the
    /// first, see [`PciBus::plug`]; the others are there when it looks. Returns where they are.
    ///
    /// The bus numbers and windows of a root port are set as firmware sets them, where the guest has left room. Those of a
    /// switch are the guest's to give out, from what the port above keeps.
    ///
    /// # Errors
    /// When one cannot be where it is to be, or there are too few bus numbers or too little address space; nothing is added then.
    pub fn add_late_ports(
        &mut self,
        ports: &[PciPortConfig],
        windows: &[SegmentWindows],
    ) -> Result<Vec<FunctionAddress>> {
        let mut added = Vec::new();
        let result = self.try_ports(ports, windows, &mut added);
        if let Err(error) = result {
            for address in added.into_iter().rev() {
                self.take_out(address)?;
            }
            return Err(error);
        }
        Ok(added)
    }

    fn try_ports(
        &mut self,
        ports: &[PciPortConfig],
        windows: &[SegmentWindows],
        added: &mut Vec<FunctionAddress>,
    ) -> Result<()> {
        self.check_kept(ports)?;
        for port in ports {
            let option = || format!("--pci-port id={}", port.id);
            let address = self.resolve(&port.place()).with_context(option)?;
            let buses = self.buses_of(port, address, ports).with_context(option)?;
            self.add_port(port, address, buses).with_context(option)?;
            added.push(address);
        }
        let Some((&first, port)) = added.first().zip(ports.first()) else { return Ok(()) };
        let option = || format!("--pci-port id={}", port.id);
        let segment = self.segment(first.segment)?;
        let windows = windows.get(usize::from(first.segment)).map(of_plan).unwrap_or_default();
        // A restart gives everything its place anew.
        plan::check(segment, windows).with_context(option)?;
        if port.kind == PciPortKind::Root {
            plan::place_late(segment, first, windows);
        }
        Ok(())
    }

    /// The buses that a port is to have below it: one, those of the `ports` below, and those that it keeps.
    fn buses_of(
        &self,
        port: &PciPortConfig,
        address: FunctionAddress,
        ports: &[PciPortConfig],
    ) -> Result<RangeInclusive<u8>> {
        let below = ports.iter().filter(|other| other.bus.as_ref() == Some(&port.id));
        let own =
            std::iter::once(port).chain(below).map(|port| u16::from(port.bus_reserve).saturating_add(1));
        let wanted = own.fold(0, u16::saturating_add);
        let count = u8::try_from(wanted).unwrap_or(u8::MAX);
        let (number, segment) = (address.segment, self.segment(address.segment)?);
        let found = segment.free_buses(address.bus(), count);
        match (found, &port.bus) {
            (Ok(buses), _) if u16::from(count) == wanted => Ok(buses),
            (Ok(_), Some(bus)) => {
                bail!("needs {wanted} bus numbers, and {bus} has fewer; give it fewer ports")
            }
            (Err(free), Some(bus)) => bail!(
                "needs {wanted} bus numbers (one for each of its ports), and bus={bus} has {free} left; begin with \
                 bus_reserve={wanted} or more for {bus}"
            ),
            (found, None) => bail!(
                "needs {wanted} bus numbers, and PCI segment {number} has {} left in a row; lower bus_reserve, {}use another segment \
                 (--platform num_pci_segments)",
                found.err().unwrap_or(u8::MAX),
                match segment.last_bus() {
                    u8::MAX => "or ".into(),
                    _ => format!("begin with more (--pci-segment pci_segment={number},buses=256), or "),
                },
            ),
        }
    }

    /// Checks that the port above a switch keeps what the ports of the switch are told to keep.
    fn check_kept(&self, ports: &[PciPortConfig]) -> Result<()> {
        let Some(port) = ports.first() else { return Ok(()) };
        let Some(bus) = &port.bus else { return Ok(()) };
        let Some((_, above)) = self.ports.named(bus) else { return Ok(()) };
        let sum = |of: fn(&PciPortConfig) -> u64| ports.iter().map(of).fold(0, u64::saturating_add);
        let kept = [
            ("mem_reserve", sum(|port| port.mem_reserve.unwrap_or_default().0), above.reserve.memory),
            ("pref_reserve", sum(|port| port.pref_reserve.unwrap_or_default().0), above.reserve.prefetchable),
            ("io_reserve", sum(|port| port.io_reserve.0), above.reserve.io),
        ];
        for (key, wanted, kept) in kept {
            ensure!(
                wanted <= kept,
                "--pci-port id={}: {key}: the switch is to keep {}, of the {} that bus={bus} keeps; lower it, or begin with more \
                 for {bus}",
                port.id,
                crate::config::ByteSize(wanted),
                crate::config::ByteSize(kept),
            );
        }
        Ok(())
    }
}
