//! Flash: the firmware that a machine starts in, and its variables.
//!
//! While a bank's reads give its content, the guest has its memory in a slot that it cannot write to: it reads and runs code there
//! without an exit, and each write comes to the device. When the guest has the device answer something else, the slot is taken
//! away, and reads come to the device too.

mod content;

use super::{boot_files, platform};
use crate::config::VmConfig;
use crate::file_lock::Locked;
use anyhow::{Context, Result};
use content::Content;
use devices::pflash::{Parts, Pflash};
use devices::platform::PlatformDevice;
use hypervisor::{MemorySlot, Vm};
use machine::bus::{BusHandle, Range};
use machine::inspect::{Inspect, Value, hex};
use machine::memory::MappedRegion;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The hypervisor's number of the first bank's memory. Those below are of the guest's RAM and what is added to it; those from 0x200 on
/// of other memory.
const FIRST_SLOT: u32 = 0x180;

/// A machine's flash.
#[derive(Default)]
pub struct Flash {
    banks: Vec<Bank>,
}

struct Bank {
    name: &'static str,
    device: Arc<Mutex<Pflash>>,
    memory: Arc<MappedRegion>,
    range: Range,
    slot: u32,
    /// The guest has the memory.
    mapped: bool,
    _lock: Option<Locked>,
}

impl Flash {
    /// That of the machine of `config`: none, unless it is booted by firmware.
    ///
    /// # Errors
    /// When a file cannot be had or is not what it should be, naming its option.
    pub fn add(config: &VmConfig, vm: &dyn Vm, mmio: &BusHandle) -> Result<Self> {
        let mut flash = Self::default();
        let Some(path) = &config.payload.firmware else { return Ok(flash) };
        let option = || format!("--firmware {}", path.display());
        let file = boot_files::open("--firmware", path)?;
        let [code, variables] =
            platform::firmware_places(&content::head(&file).with_context(option)?).with_context(option)?;
        flash.put("firmware", code.start, Content::code(&file, code.size).with_context(option)?, vm, mmio)?;
        let content = match &config.payload.firmware_vars {
            None => Content::volatile()?,
            Some(path) => Content::variables(path, variables.size)
                .with_context(|| format!("--firmware-vars {}", path.display()))?,
        };
        flash.put("firmware variables", variables.start, content, vm, mmio)?;
        Ok(flash)
    }

    fn put(
        &mut self,
        name: &'static str,
        start: u64,
        content: Content,
        vm: &dyn Vm,
        mmio: &BusHandle,
    ) -> Result<()> {
        let number = u32::try_from(self.banks.len())?;
        let Content { memory, read_only, changed, lock } = content;
        let device = Pflash::new(Parts { number, memory: Arc::clone(&memory), read_only, changed });
        let range = device.window(start);
        let device = Arc::new(Mutex::new(device));
        mmio.change(|bus| bus.insert(range, Arc::clone(&device) as _))
            .with_context(|| format!("placing the flash for {name}"))?;
        let slot = FIRST_SLOT.saturating_add(number);
        let mut bank = Bank { name, device, memory, range, slot, mapped: false, _lock: lock };
        bank.follow(vm)?;
        self.banks.push(bank);
        Ok(())
    }

    /// Where it is, in the order of addresses.
    pub fn ranges(&self) -> Vec<Range> {
        self.banks.iter().map(|bank| bank.range).collect()
    }

    /// Gives the guest the memory of a bank, or takes it away, as the device of that number wants.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn follow(&mut self, vm: &dyn Vm, number: u32) -> Result<()> {
        let bank = usize::try_from(number).ok().and_then(|number| self.banks.get_mut(number));
        bank.map_or(Ok(()), |bank| bank.follow(vm))
    }

    /// Back to the state at power-on, in which the content stays. No CPU runs.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn reset(&mut self, vm: &dyn Vm) -> Result<()> {
        self.banks.iter_mut().try_for_each(|bank| {
            bank.lock().reset();
            bank.follow(vm)
        })
    }

    /// The banks, for inspection.
    pub fn inspect(&self) -> Value {
        let tree = |bank: &Bank| {
            let mut tree = bank.lock().inspect();
            if let Value::Object(fields) = &mut tree {
                fields.insert("address".to_owned(), hex(&bank.range.start));
                fields.insert("direct".to_owned(), bank.mapped.into());
            }
            (bank.name.to_owned(), tree)
        };
        self.banks.iter().map(tree).collect()
    }
}

impl Bank {
    fn lock(&self) -> MutexGuard<'_, Pflash> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&mut self, vm: &dyn Vm) -> Result<()> {
        let wanted = self.lock().reads_array();
        if wanted && !self.mapped {
            let slot = MemorySlot {
                slot: self.slot,
                guest_address: self.range.start,
                size: self.range.size,
                host_address: self.memory.as_ptr(),
                readonly: true,
                log_dirty: false,
            };
            // SAFETY: the memory stays mapped as long as this is kept, and the machine drops this after its CPUs.
            unsafe { vm.map_memory(slot) }
                .with_context(|| format!("giving the flash for {} to the guest", self.name))?;
        } else if !wanted && self.mapped {
            vm.unmap_memory(self.slot)
                .with_context(|| format!("taking the flash for {} from the guest", self.name))?;
        }
        self.mapped = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
