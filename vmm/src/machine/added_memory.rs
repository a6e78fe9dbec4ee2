//! Memory modules: memory that is added to the machine while it runs, and taken away again.
//!
//! The region it is put in is part of guest memory from the start, so that devices that were started before reach what is
//! added; the guest is given parts of it. Each addition is a module of its own, which ACPI tells of, and is taken away as
//! a whole, when the guest has let go of it; its pages are given back to the host then.

use super::{Machine, platform};
use crate::api::ApiError;
use crate::config::ByteSize;
use crate::config::hotplug::MODULE;
use crate::host_pages;
use crate::memory::GuestMemory;
use crate::message::Message;
use anyhow::{Context, Result, ensure};
use hypervisor::{MemorySlot, Vm};
use machine::bus::Range;
use machine::inspect::{Value, hex, json};
use machine::memory::HostPages;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The hypervisor's number of the memory in slot 0; those below are of memory that is there from the start.
const FIRST_SLOT: u32 = 0x100;

/// Why a machine without ACPI gets no modules.
const NO_ACPI: &str = "memory modules come and go by ACPI, which the machine does not have; give it --platform acpi=on, or \
     --memory hotplug_method=virtio-mem";

/// Why a machine gets no modules that is not made for them.
const NO_AREA: &str = "nothing can be added to the machine's memory; give --memory hotplug_size";

/// Where a module is: its slot, and its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    slot: u32,
    range: Range,
}

/// A module.
#[derive(Clone, Copy, Debug)]
struct Module {
    range: Range,
    /// The guest is asked to let go of it.
    going: bool,
}

/// The modules there are.
#[derive(Default)]
pub struct Modules {
    by_slot: BTreeMap<u32, Module>,
    /// The host's pages behind them, if there can be any.
    pages: Option<Arc<dyn HostPages>>,
    /// Threads that give pages back.
    releasing: usize,
}

impl Modules {
    /// None yet, of a machine with `memory`.
    ///
    /// # Errors
    /// When the host does not say what kind of pages it has.
    pub fn new(memory: &GuestMemory) -> Result<Self> {
        let pages = memory.modules.map(|_| host_pages::of(&memory.ram)).transpose();
        let pages = pages.context("--memory: asking the host for its kind of pages")?;
        Ok(Self { by_slot: BTreeMap::new(), pages, releasing: 0 })
    }

    /// Their sizes together, in bytes.
    pub fn size(&self) -> u64 {
        self.by_slot.values().map(|module| module.range.size).sum()
    }

    /// Where the guest has memory.
    pub fn ranges(&self) -> impl Iterator<Item = Range> {
        self.by_slot.values().map(|module| module.range)
    }

    /// The modules, for inspection.
    pub fn inspect(&self) -> Value {
        let modules = self.by_slot.iter().map(|(slot, module)| {
            let Module { range, going } = module;
            let value = json!({ "address": hex(&range.start), "size": range.size, "going": going });
            (slot.to_string(), value)
        });
        modules.collect()
    }

    /// A free slot, and the lowest `size` bytes of `area` that no module has.
    fn room(&self, area: Range, size: u64) -> Option<(u32, Range)> {
        let slot = (0..platform::MEMORY_SLOTS).find(|slot| !self.by_slot.contains_key(slot))?;
        let mut taken: Vec<_> = self.ranges().collect();
        taken.sort_by_key(|range| range.start);
        let mut start = area.start;
        for range in taken {
            if range.start.saturating_sub(start) >= size {
                break;
            }
            start = range.last().saturating_add(1);
        }
        let end = area.start.saturating_add(area.size);
        (end.saturating_sub(start) >= size).then_some((slot, Range { start, size }))
    }

    /// Slots whose modules are `size` bytes together: the last that came first. `None` if there are no such ones to be
    /// found so.
    fn to_remove(&self, size: u64) -> Option<Vec<u32>> {
        let mut rest = size;
        let mut slots = Vec::new();
        for (slot, module) in self.by_slot.iter().rev() {
            if let Some(left) = rest.checked_sub(module.range.size) {
                rest = left;
                slots.push(*slot);
            }
        }
        (rest == 0).then_some(slots)
    }

    /// Where a module of `size` bytes is to be.
    ///
    /// # Errors
    /// When there is no room.
    fn place(&self, memory: &GuestMemory, size: u64) -> Result<Place> {
        let area = memory.modules.context(NO_AREA)?;
        let (slot, range) = self
            .room(area, size)
            .with_context(|| format!("there is no room for another {} in one piece", ByteSize(size)))?;
        Ok(Place { slot, range })
    }

    /// Gives the guest the memory of a place.
    fn add(&mut self, vm: &dyn Vm, memory: &GuestMemory, place: Place) -> Result<()> {
        let (Some(region), Some(area)) = (memory.modules_region(), memory.modules) else {
            anyhow::bail!(NO_AREA);
        };
        let Place { slot, range } = place;
        let offset = usize::try_from(range.start.saturating_sub(area.start))?;
        let mapping = MemorySlot {
            slot: FIRST_SLOT.saturating_add(slot),
            guest_address: range.start,
            size: range.size,
            // The range lies in the region.
            host_address: region.as_ptr().wrapping_add(offset),
            readonly: false,
            log_dirty: false,
        };
        // SAFETY: the region stays mapped as long as the machine's memory, which is dropped after the machine.
        unsafe { vm.map_memory(mapping) }.context("giving memory to the guest")?;
        self.by_slot.insert(slot, Module { range, going: false });
        Ok(())
    }

    /// Takes a module from the guest.
    fn remove(&mut self, vm: &dyn Vm, slot: u32) -> Result<Option<Range>> {
        let Some(module) = self.by_slot.remove(&slot) else { return Ok(None) };
        vm.unmap_memory(FIRST_SLOT.saturating_add(slot)).context("taking memory from the guest")?;
        Ok(Some(module.range))
    }
}

/// Takes the pages of a new module from the host, which takes its time.
fn populate(pages: &dyn HostPages, range: Range) -> Result<()> {
    let size = ByteSize(range.size);
    pages
        .populate(range)
        .with_context(|| format!("the host cannot give another {size}; leave prefault off, or free some"))
}

impl Machine {
    /// Gives the guest the memory that its configuration says was added.
    ///
    /// # Errors
    /// When the host cannot give it.
    pub(super) fn add_configured_memory(&mut self) -> Result<()> {
        let config = &self.config.memory;
        let size = config.hotplugged_size.map_or(0, |size| size.0);
        if size == 0 || config.modules_size() == 0 {
            return Ok(());
        }
        ensure!(platform::has_acpi(&self.config), "--memory hotplugged_size={}: {NO_ACPI}", ByteSize(size));
        let prefault = config.prefault;
        let place = self.modules.place(&self.memory, size).and_then(|place| {
            if let Some(pages) = self.modules.pages.as_ref().filter(|_| prefault) {
                populate(&**pages, place.range)?;
            }
            self.modules.add(&*self.vm, &self.memory, place)?;
            Ok(place)
        });
        let Place { slot, range } =
            place.with_context(|| format!("--memory hotplugged_size={}", ByteSize(size)))?;
        self.platform.notifier.memory_is_there(slot, range);
        Ok(())
    }

    /// What is to be in modules for the memory to be `desired`, in bytes.
    ///
    /// # Errors
    /// When the machine cannot have as much or as little.
    pub(super) fn to_be_in_modules(&self, desired: ByteSize) -> Result<u64, ApiError> {
        let refused = |message: String| {
            let mut error = ApiError::bad(format!("desired_ram={desired}: {message}"));
            error.field = Some("desired_ram".into());
            Err(error)
        };
        if self.config.memory.zones.iter().flatten().next().is_some() {
            return refused("the machine's memory is in zones; resize one of them (vm.resize-zone)".into());
        }
        let (boot, room) = (self.config.memory.boot_size(), self.config.memory.modules_size());
        let Some(wanted) = desired.0.checked_sub(boot) else {
            return refused(format!(
                "the machine has {} from the start, which stays; use the balloon",
                ByteSize(boot)
            ));
        };
        if wanted > room {
            return refused(format!(
                "the machine can have at most {}; --memory hotplug_size sets how much can be added",
                ByteSize(boot.saturating_add(room))
            ));
        }
        if !wanted.is_multiple_of(MODULE) {
            return refused(format!(
                "memory is added in multiples of {} to the {} of the start",
                ByteSize(MODULE),
                ByteSize(boot)
            ));
        }
        if wanted != self.modules.size() && !platform::has_acpi(&self.config) {
            return refused(NO_ACPI.into());
        }
        if let Some(surplus) = self.modules.size().checked_sub(wanted)
            && self.modules.to_remove(surplus).is_none()
        {
            let sizes: Vec<_> = self.modules.ranges().map(|range| ByteSize(range.size).to_string()).collect();
            return refused(format!(
                "memory is taken away in the pieces in which it was added, which are {}",
                sizes.join(", ")
            ));
        }
        Ok(wanted)
    }

    /// Where what is missing of `wanted` bytes in modules is to be, if something is.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn place_of_new_module(&self, wanted: u64) -> Result<Option<Place>> {
        let missing = wanted.saturating_sub(self.modules.size());
        (missing > 0).then(|| self.modules.place(&self.memory, missing)).transpose()
    }

    /// Has a thread take the pages of a new module from the host, if that is to be done ahead. `true`: [`Message::Populated`] tells when
    /// that is done.
    ///
    /// # Errors
    /// When the host is out of resources.
    pub(super) fn begin_populating(&self, place: Place) -> Result<bool> {
        let Some(pages) = self.modules.pages.clone().filter(|_| self.config.memory.prefault) else {
            return Ok(false);
        };
        let (mailbox, work) = (self.mailbox.clone(), self.work.clone());
        let take = move || {
            let populated = populate(&*pages, place.range);
            // A machine that ended meanwhile has its memory back before anybody is told.
            drop(pages);
            drop(work);
            mailbox.post(Message::Populated(populated));
        };
        memory_thread(take)?;
        Ok(true)
    }

    /// Gives the guest a new module, of which it is not told yet.
    ///
    /// # Errors
    /// When the host cannot give it.
    pub(super) fn add_module(&mut self, place: Place) -> Result<()> {
        self.modules.add(&*self.vm, &self.memory, place)
    }

    /// Takes back a new module of which the guest was not told, and the pages that were taken for it.
    pub(super) fn withdraw_module(&mut self, place: Place) {
        if let Err(error) = self.modules.remove(&*self.vm, place.slot) {
            tracing::error!("memory that was to be added: {error:#}");
        }
        self.release(place.range);
    }

    /// Makes the modules `wanted` bytes together, one of which is `new`. What is too much is asked back from the guest, and goes when it
    /// lets go of it.
    pub(super) fn resize_modules(&mut self, wanted: u64, new: Option<Place>) {
        let mut go = Vec::new();
        if let Some(Place { slot, range }) = new {
            self.platform.notifier.memory_came(slot, range);
            let size = range.size;
            self.events.emit_with("vm", "memory-added", [("slot", slot.into()), ("size", size.into())]);
        } else {
            let surplus = self.modules.size().saturating_sub(wanted);
            go.extend(self.modules.to_remove(surplus).unwrap_or_default());
        }
        for (slot, module) in &mut self.modules.by_slot {
            module.going = go.contains(slot);
            if module.going {
                self.platform.notifier.ask_to_release_memory(*slot);
            } else {
                self.platform.notifier.keep_memory(*slot);
            }
        }
        self.config.memory.hotplugged_size = Some(ByteSize(wanted));
    }

    /// Whether the guest has `wanted` bytes in modules with one at `place`.
    pub(super) fn fills(&self, place: Place, wanted: Option<u64>) -> bool {
        wanted == self.modules.size().checked_add(place.range.size)
    }

    /// Has a thread give pages back to the host, which takes its time.
    fn release(&mut self, range: Range) {
        let Some(pages) = self.modules.pages.clone() else { return };
        let (mailbox, work) = (self.mailbox.clone(), self.work.clone());
        let give = move || {
            if let Err(error) = pages.release(range) {
                // The guest no longer has it; the host will when the machine ends.
                tracing::warn!("memory that the guest let go of is not given back yet: {error}");
            }
            drop((pages, work));
            mailbox.post(Message::MemoryReleased);
        };
        match memory_thread(give) {
            Ok(()) => self.modules.releasing = self.modules.releasing.saturating_add(1),
            Err(error) => tracing::warn!("memory that the guest let go of is not given back yet: {error:#}"),
        }
    }

    /// Whether pages are being given back: where they were there is no new module yet.
    pub(super) fn releasing_memory(&self) -> bool {
        self.modules.releasing > 0
    }

    /// Pages of a module are given back.
    pub(super) fn memory_released(&mut self) {
        self.modules.releasing = self.modules.releasing.saturating_sub(1);
    }

    fn take_module(&mut self, slot: u32) -> Result<()> {
        let taken = self.modules.remove(&*self.vm, slot)?;
        self.platform.notifier.memory_gone(slot);
        if let Some(range) = taken {
            self.release(range);
            self.events.emit_with(
                "vm",
                "memory-removed",
                [("slot", slot.into()), ("size", range.size.into())],
            );
        }
        Ok(())
    }

    /// The guest let go of a module.
    ///
    /// # Errors
    /// When the host fails the machine.
    pub(super) fn memory_ejected(&mut self, slot: u32) -> Result<()> {
        let asked = self.modules.by_slot.get(&slot).is_some_and(|module| module.going);
        self.take_module(slot)?;
        if !asked {
            self.config.memory.hotplugged_size = Some(ByteSize(self.modules.size()));
        }
        Ok(())
    }

    /// The guest does not let go of the memory that it is asked for.
    pub(super) fn memory_refused(&mut self, slot: u32, status: u32) {
        tracing::warn!("the guest does not let go of the memory in slot {slot} (status {status:#x})");
        self.events.emit_for_guest(
            "vm",
            "memory-release-refused",
            [("slot", slot.into()), ("status", status.into())],
        );
        if let Some(module) = self.modules.by_slot.get_mut(&slot) {
            module.going = false;
        }
        let staying = self.modules.by_slot.values().filter(|module| !module.going);
        let size = staying.map(|module| module.range.size).sum();
        self.config.memory.hotplugged_size = Some(ByteSize(size));
    }

    /// Takes away what the guest was asked to let go of. The machine is being reset, and nothing runs.
    ///
    /// # Errors
    /// When the host fails the machine.
    pub(super) fn settle_memory(&mut self) -> Result<()> {
        let going: Vec<_> =
            self.modules.by_slot.iter().filter(|(_, module)| module.going).map(|(slot, _)| *slot).collect();
        going.into_iter().try_for_each(|slot| self.take_module(slot))
    }
}

/// A thread for what the host does with much memory.
fn memory_thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name("memory".into()).stack_size(256 << 10);
    thread.spawn(work).map(drop).context("starting a thread")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(pieces: &[(u32, u64, u64)]) -> Modules {
        let module = |start, size| Module { range: Range { start, size }, going: false };
        let by_slot = pieces.iter().map(|&(slot, start, size)| (slot, module(start, size))).collect();
        Modules { by_slot, pages: None, releasing: 0 }
    }

    #[test]
    fn modules_are_put_where_there_is_room() {
        let area = Range { start: 100, size: 50 };
        assert_eq!(modules(&[]).room(area, 50), Some((0, area)));
        assert_eq!(modules(&[]).room(area, 51), None);
        let some = modules(&[(0, 110, 10), (2, 130, 10)]);
        assert_eq!(some.room(area, 10), Some((1, Range { start: 100, size: 10 })));
        assert_eq!(some.room(area, 11), None);
        let first = modules(&[(1, 100, 10), (0, 110, 10)]);
        assert_eq!(first.room(area, 30), Some((2, Range { start: 120, size: 30 })));
        let slots: Vec<_> =
            (0..platform::MEMORY_SLOTS).map(|slot| (slot, 100 + u64::from(slot), 1)).collect();
        assert_eq!(modules(&slots).room(Range { start: 100, size: 1000 }, 1), None, "no slot is free");
    }

    #[test]
    fn the_last_modules_that_fit_are_removed() {
        let some = modules(&[(0, 0, 4), (1, 4, 2), (2, 6, 3)]);
        assert_eq!(some.to_remove(0), Some(vec![]));
        assert_eq!(some.to_remove(3), Some(vec![2]));
        assert_eq!(some.to_remove(2), Some(vec![1]));
        assert_eq!(some.to_remove(5), Some(vec![2, 1]));
        assert_eq!(some.to_remove(9), Some(vec![2, 1, 0]));
        assert_eq!(some.to_remove(1), None);
        assert_eq!(some.size(), 9);
    }
}
