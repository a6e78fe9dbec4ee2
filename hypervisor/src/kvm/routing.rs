//! Interrupt routes: which message each global system interrupt (GSI) delivers.
//!
//! KVM takes the table of routes only as a whole. It is kept here, changed under one lock, and given to
//! KVM when it changed. The first GSIs are the I/O APIC's pins, which KVM looks up to know for which
//! vectors it must report the end of an interrupt; the others are handed out.

use super::refused;
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi};
use kvm_ioctls::VmFd;
use machine::interrupt::{MsiMessage, MsiSource};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// KVM's own limit on routes, and so on GSIs.
const MAX_GSIS: u32 = 4096;

/// What is asked of KVM.
pub(super) trait Interrupts: Send + Sync {
    /// Has these be all routes of the machine (`KVM_SET_GSI_ROUTING`).
    fn set_routes(&self, routes: &KvmIrqRouting) -> io::Result<()>;

    /// Has each write to the event deliver the GSI's interrupt (`KVM_IRQFD`).
    fn listen(&self, event: &EventFd, gsi: u32) -> io::Result<()>;

    /// Undoes [`Self::listen`]. What cannot be undone ends with the machine.
    fn stop_listening(&self, event: &EventFd, gsi: u32);
}

impl Interrupts for VmFd {
    fn set_routes(&self, routes: &KvmIrqRouting) -> io::Result<()> {
        self.set_gsi_routing(routes).map_err(|errno| refused("set the machine's interrupt routes", errno))
    }

    fn listen(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.register_irqfd(event, gsi).map_err(|errno| refused("connect an interrupt to the machine", errno))
    }

    fn stop_listening(&self, event: &EventFd, gsi: u32) {
        let _ = self.unregister_irqfd(event, gsi);
    }
}

/// The routes of one machine.
pub(super) struct Routes {
    vm: Arc<dyn Interrupts>,
    table: Mutex<Table>,
}

struct Table {
    entries: KvmIrqRouting,
    /// GSIs given back.
    free: Vec<u32>,
    /// The first GSI never handed out.
    next: u32,
}

impl Routes {
    /// An empty table, in which the GSIs below `pins` are reserved.
    pub(super) fn new(vm: Arc<dyn Interrupts>, pins: u32) -> io::Result<Self> {
        let entries = KvmIrqRouting::new(0).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { vm, table: Mutex::new(Table { entries, free: Vec::new(), next: pins }) })
    }

    /// A source with a GSI of its own.
    pub(super) fn allocate(self: &Arc<Self>) -> io::Result<Arc<KvmMsi>> {
        let mut table = self.table();
        let gsi = match table.free.pop() {
            Some(gsi) => gsi,
            None if table.next < MAX_GSIS => {
                let gsi = table.next;
                table.next = gsi.saturating_add(1);
                gsi
            }
            None => {
                return Err(io::Error::other(format!(
                    "all {MAX_GSIS} interrupt routes of the machine are in use: give it fewer devices or queues"
                )));
            }
        };
        drop(table);
        Ok(Arc::new(KvmMsi::new(Arc::clone(self), gsi, true)))
    }

    /// The source of I/O APIC pin `pin`. At most one exists for each.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn pin(self: &Arc<Self>, pin: u32) -> Arc<KvmMsi> {
        Arc::new(KvmMsi::new(Arc::clone(self), pin, false))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is changed as a whole or not at all, so it is sound after a panic too.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets or removes the route of one GSI.
    fn set(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = self.table();
        let at = table.entries.as_slice().iter().position(|entry| entry.gsi == gsi);
        let old = at.and_then(|at| table.entries.as_slice().get(at).copied());
        match (at, message) {
            (None, None) => return Ok(()),
            (None, Some(message)) => table
                .entries
                .push(entry(gsi, message))
                .map_err(|_| io::Error::other(format!("more than {MAX_GSIS} interrupt routes are in use")))?,
            (Some(at), Some(message)) => {
                if let Some(present) = table.entries.as_mut_slice().get_mut(at) {
                    *present = entry(gsi, message);
                }
            }
            (Some(_), None) => table.entries.retain(|entry| entry.gsi != gsi),
        }
        self.vm.set_routes(&table.entries).inspect_err(|_| {
            table.entries.retain(|entry| entry.gsi != gsi);
            if let Some(old) = old {
                // There was room for it before.
                let _ = table.entries.push(old);
            }
        })
    }

    fn free(&self, gsi: u32) {
        self.table().free.push(gsi);
    }
}

/// The route of `gsi` in KVM's form.
fn entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let address = kvm_address(message.address);
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    // The GIC's ITS translates by the requester; on x86_64 the message says it all.
    #[cfg(target_arch = "aarch64")]
    {
        entry.flags = kvm_bindings::KVM_MSI_VALID_DEVID;
        entry.u.msi.__bindgen_anon_1.devid = u32::from(message.requester);
    }
    entry
}

/// The message's address as KVM takes it with 32-bit APIC ids enabled: bits 8 to 31 of the destination in
/// bits 40 to 63. A guest that has no interrupt remapping puts bits 8 to 14 of it in bits 5 to 11 instead
/// (the KVM paravirtual feature `MSI_EXT_DEST_ID`).
#[cfg(target_arch = "x86_64")]
fn kvm_address(address: u64) -> u64 {
    if address >> 32 != 0 {
        return address;
    }
    let extended = address >> 5 & 0x7f;
    address & !(0x7f << 5) | extended << 40
}

#[cfg(not(target_arch = "x86_64"))]
fn kvm_address(address: u64) -> u64 {
    address
}

/// A source of interrupts: an eventfd that KVM listens on (irqfd), and the route of its GSI.
pub(super) struct KvmMsi {
    routes: Arc<Routes>,
    gsi: u32,
    /// Whether the GSI goes back to the free ones.
    allocated: bool,
    event: OnceLock<Arc<EventFd>>,
    /// Firing does something.
    routed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    message: Option<MsiMessage>,
    /// KVM listens on the eventfd.
    listening: bool,
}

impl KvmMsi {
    fn new(routes: Arc<Routes>, gsi: u32, allocated: bool) -> Self {
        Self {
            routes,
            gsi,
            allocated,
            event: OnceLock::new(),
            routed: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MsiSource for KvmMsi {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut state = self.state();
        // A message whose event KVM could not be given is tried again.
        if state.message == message && (message.is_none() || state.listening) {
            return Ok(());
        }
        if message.is_none() {
            self.routed.store(false, Ordering::Release);
        }
        self.routes.set(self.gsi, message)?;
        state.message = message;
        if message.is_some() {
            if !state.listening {
                let event = self.event()?;
                self.routes.vm.listen(&event, self.gsi)?;
                state.listening = true;
            }
            self.routed.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn fire(&self) {
        if self.routed.load(Ordering::Acquire)
            && let Some(event) = self.event.get()
        {
            // Fails only when the counter is at its limit, and then the interrupt is already on its way.
            let _ = event.write(1);
        }
    }

    fn event(&self) -> io::Result<Arc<EventFd>> {
        if let Some(event) = self.event.get() {
            return Ok(Arc::clone(event));
        }
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok(Arc::clone(self.event.get_or_init(|| event)))
    }
}

impl Drop for KvmMsi {
    fn drop(&mut self) {
        let state = self.state();
        if state.listening
            && let Some(event) = self.event.get()
        {
            self.routes.vm.stop_listening(event, self.gsi);
        }
        let removed = state.message.is_none() || self.routes.set(self.gsi, None).is_ok();
        if self.allocated && removed {
            self.routes.free(self.gsi);
        }
    }
}

#[cfg(test)]
mod tests;
