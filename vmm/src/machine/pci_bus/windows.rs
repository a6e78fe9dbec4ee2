//! Where functions answer: their BARs on the buses, and their doorbells at the hypervisor.

use super::{PciBus, lock, of_plan};
use anyhow::{Context, Result};
use arch::layout::SegmentWindows;
use hypervisor::AddressSpace;
use machine::effect::FunctionAddress;
use pci::BarWindow;
use pci::bar::Space;
use pci::placement::{Changes, Window};
use std::sync::{Arc, Mutex};

impl PciBus {
    /// Points all BARs at addresses in the segments' windows, as firmware does.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn place_bars(&mut self, windows: &[SegmentWindows]) -> Result<()> {
        for (segment, windows) in self.segments.iter().zip(windows) {
            pci::plan::place(segment, of_plan(windows))?;
        }
        self.ports.start();
        Ok(())
    }

    /// Checks that a restart can give the windows of a segment their places.
    ///
    /// # Errors
    /// When something does not fit, naming it.
    pub fn check_bars(&self, segment: u16, windows: &[SegmentWindows]) -> Result<()> {
        let number = usize::from(segment);
        let (Some(segment), Some(windows)) = (self.segments.get(number), windows.get(number)) else {
            return Ok(());
        };
        Ok(pci::plan::check(segment, of_plan(windows))?)
    }

    /// Maps a function's windows where its configuration space says they are now; for a bridge, those of all functions
    /// below it where they are reached now.
    ///
    /// # Errors
    /// When the hypervisor refuses a doorbell.
    pub fn remap(&mut self, address: FunctionAddress) -> Result<()> {
        let Some(segment) = self.segments.get(usize::from(address.segment)).cloned() else { return Ok(()) };
        if segment.get(address).is_none() {
            return Ok(());
        }
        let mut affected = vec![address];
        if self.ports.has(address) {
            segment.find_routes();
            affected.extend(segment.below(address));
        }
        for function in affected {
            let changes = self.placement.update(function, segment.windows(function));
            self.carry_out(&changes)?;
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, changes: &Changes) -> Result<()> {
        for window in &changes.unmap {
            self.detach_doorbells(window)?;
            if let Some(memory) = self.shared_memory.get_mut(&(window.function, window.window.bar)) {
                memory.unmap(&*self.surroundings.vm)?;
            }
        }
        for (space, handle) in
            [(Space::Memory, &self.surroundings.mmio), (Space::Io, &self.surroundings.port)]
        {
            let gone = changes.unmap.iter().filter(|window| window.window.space == space);
            let come = changes.map.iter().filter(|window| window.window.space == space);
            let (gone, come): (Vec<_>, Vec<_>) = (gone.collect(), come.collect());
            if gone.is_empty() && come.is_empty() {
                continue;
            }
            handle
                .change(|bus| {
                    for window in gone {
                        bus.remove(window.window.address);
                    }
                    for window in come {
                        let Some(function) = self
                            .segments
                            .get(usize::from(window.function.segment))
                            .and_then(|bus| bus.get(window.function))
                        else {
                            continue;
                        };
                        let device = BarWindow::new(function, window.function, window.window.bar);
                        bus.insert(window.window.range(), Arc::new(Mutex::new(device)))?;
                    }
                    Ok::<_, machine::bus::BusError>(())
                })
                .context("mapping PCI windows")?;
        }
        for window in &changes.map {
            self.attach_doorbells(window);
            if let Some(memory) = self.shared_memory.get_mut(&(window.function, window.window.bar)) {
                memory.map(&*self.surroundings.vm, window.window.address);
            }
        }
        Ok(())
    }

    fn attach_doorbells(&mut self, window: &Window) {
        let Some(function) =
            self.segments.get(usize::from(window.function.segment)).and_then(|bus| bus.get(window.function))
        else {
            return;
        };
        let doorbells = lock(&function).doorbells(window.window.bar);
        let space = match window.window.space {
            Space::Memory => AddressSpace::Mmio,
            Space::Io => AddressSpace::Port,
        };
        let base = window.window.address;
        let mut attached = Vec::with_capacity(doorbells.len());
        for doorbell in doorbells {
            match self.surroundings.vm.attach_doorbell(space, base, &doorbell) {
                Ok(()) => attached.push(doorbell),
                // A guest moves windows as often as it likes, and the host's doorbells are limited. The write then comes to
                // the function like any other, and it rings.
                Err(error) => {
                    tracing::warn!(
                        "PCI function {}: a doorbell is slower than usual: {error}",
                        window.function
                    );
                }
            }
        }
        if !attached.is_empty() {
            self.doorbells.insert((window.function, window.window.bar), (space, base, attached));
        }
    }

    fn detach_doorbells(&mut self, window: &Window) -> Result<()> {
        let Some((space, base, doorbells)) = self.doorbells.remove(&(window.function, window.window.bar))
        else {
            return Ok(());
        };
        for doorbell in &doorbells {
            self.surroundings
                .vm
                .detach_doorbell(space, base, doorbell)
                .with_context(|| format!("detaching a doorbell of PCI function {}", window.function))?;
        }
        Ok(())
    }
}
