//! A backend whose CPUs follow a script, so that whole machines are tested without virtualization.
//!
//! The guest program of a CPU is a Rust closure that is given a [`SimCpu`], whose methods are the
//! instructions a guest has: port and memory accesses, halting, ending an interrupt, starting another CPU.
//!
//! ```
//! use hypervisor::sim::Sim;
//! use hypervisor::{Exit, Hypervisor};
//!
//! let sim = Sim::new();
//! sim.program(0, |cpu| {
//!     let status = cpu.port_read8(0x64);
//!     cpu.port_write8(0x80, status + 1);
//! });
//! let vm = sim.create_vm()?;
//! let mut vcpu = vm.create_vcpu(0)?;
//! let Exit::PortRead { data, .. } = vcpu.run()? else { panic!() };
//! data[0] = 6;
//! assert!(matches!(vcpu.run()?, Exit::PortWrite { port: 0x80, data: [7], .. }));
//! # Ok::<(), hypervisor::Error>(())
//! ```
//!
//! The closure runs on a thread of its own, but only ever between one access and the next, while
//! [`crate::Vcpu::run`] waits for it: everything it does to the machine is done by the thread that calls
//! `run`, in the order of the program. A program loops only around accesses. When it returns, the CPU
//! halts for good; when it panics, `run` returns [`crate::Exit::Failed`] with the message, so that a
//! program may check what it sees with `assert!`.
//!
//! Accesses reach RAM where a slot is mapped, ring attached doorbells, and exit otherwise. Interrupt
//! messages set a bit in the destination CPU's pending vectors and wake it. CPU 0 runs at once, the others when
//! started ([`SimCpu::start_cpu`]), at which the monitor is asked if it wants to be ([`crate::Vm::forward_cpu_calls`]). Setting a CPU's general registers after it ran starts its program
//! anew, which is what a restart of the machine does. Time is [`Sim::clock`] and moves when told to.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod interrupts;
mod lane;
mod memory;
mod program;
mod resources;
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use program::SimCpu;
pub use resources::Resources;

use crate::{AddressSpace, Error, Hypervisor, MemorySlot, Result, Vcpu, Vm};
use interrupts::{Apics, SimMsi};
use machine::clock::{Clock, ManualClock, SystemClock};
use machine::doorbell::DoorbellAddress;
use machine::interrupt::{MsiAllocator, MsiSource};
use memory::Slots;
use std::collections::BTreeMap;
use std::io;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The most CPUs a simulated machine has.
const MAX_VCPUS: u32 = 1024;
/// Input pins of the I/O APIC.
#[cfg(target_arch = "x86_64")]
const PINS: u32 = 24;

/// What a CPU does.
type Program = Arc<dyn Fn(&mut SimCpu<'_>) + Send + Sync>;

/// The simulated backend.
#[derive(Default)]
pub struct Sim {
    programs: Mutex<BTreeMap<u32, Program>>,
    clock: Arc<ManualClock>,
    /// CPUs never ask the monitor to start others.
    answers_cpu_calls: AtomicBool,
    /// The machine that was made last.
    last: Mutex<Weak<Board>>,
    #[cfg(target_arch = "x86_64")]
    cpuid: Vec<crate::x86_64::CpuidEntry>,
}

impl Sim {
    /// A backend whose CPUs have no program yet.
    pub fn new() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            cpuid: x86_64::cpuid(),
            ..Self::default()
        }
    }

    /// Sets the program of the CPU `id` of machines made from now on. It is run from its start each time the CPU
    /// is started. A CPU without one halts.
    pub fn program(&self, id: u32, program: impl Fn(&mut SimCpu<'_>) + Send + Sync + 'static) {
        lock(&self.programs).insert(id, Arc::new(program));
    }

    /// Has machines made from now on start CPUs themselves, whatever the monitor wants, as an older host's do.
    pub fn answer_cpu_calls(&self) {
        self.answers_cpu_calls.store(true, Ordering::Relaxed);
    }

    /// Makes an interrupt pending on a CPU of the machine that was made last, as if a device of its own had sent it.
    pub fn interrupt(&self, cpu: u32, vector: u8) {
        if let Some(board) = self.last() {
            board.apics.interrupt(cpu, vector, false);
        }
    }

    /// Takes back [`Sim::interrupt`], if the CPU has not taken it.
    pub fn withdraw_interrupt(&self, cpu: u32, vector: u8) {
        if let Some(board) = self.last() {
            board.apics.withdraw(cpu, vector);
        }
    }

    fn last(&self) -> Option<Arc<Board>> {
        lock(&self.last).upgrade()
    }

    /// The virtual clock, for the machine's devices.
    pub fn clock(&self) -> Arc<ManualClock> {
        Arc::clone(&self.clock)
    }
}

impl Hypervisor for Sim {
    fn create_vm(&self) -> Result<Arc<dyn Vm>> {
        let board = Arc::new(Board {
            slots: Slots::default(),
            doorbells: Mutex::default(),
            apics: Apics::default(),
            sources: AtomicUsize::new(0),
            clock: self.clock(),
            answers_cpu_calls: self.answers_cpu_calls.load(Ordering::Relaxed),
            forwards_cpu_calls: AtomicBool::new(false),
        });
        *lock(&self.last) = Arc::downgrade(&board);
        Ok(Arc::new(SimVm {
            programs: lock(&self.programs).clone(),
            #[cfg(target_arch = "x86_64")]
            pins: (0..PINS).map(|_| OnceLock::new()).collect(),
            board,
        }))
    }

    fn max_vcpus(&self) -> u32 {
        MAX_VCPUS
    }

    fn clock(&self, _: &mut [Box<dyn Vcpu>]) -> Arc<dyn Clock> {
        Arc::new(SystemClock::new())
    }

    #[cfg(target_arch = "x86_64")]
    fn supported_cpuid(&self) -> Result<Vec<crate::x86_64::CpuidEntry>> {
        Ok(self.cpuid.clone())
    }

    #[cfg(target_arch = "aarch64")]
    fn create_vm_of(&self, _: u8) -> Result<Arc<dyn Vm>> {
        self.create_vm()
    }

    #[cfg(target_arch = "aarch64")]
    fn host_features(&self) -> crate::aarch64::HostFeatures {
        aarch64::HOST
    }

    /// It runs scripts, and is asked to.
    fn cannot_run_linux(&self) -> Option<String> {
        None
    }
}

/// One simulated machine.
struct SimVm {
    programs: BTreeMap<u32, Program>,
    #[cfg(target_arch = "x86_64")]
    pins: Vec<OnceLock<Arc<SimMsi>>>,
    board: Arc<Board>,
}

/// What all CPUs of a machine share.
struct Board {
    slots: Slots,
    doorbells: Mutex<Vec<Attached>>,
    apics: Apics,
    /// How many sources of message-signalled interrupts there are.
    sources: AtomicUsize,
    clock: Arc<ManualClock>,
    /// CPUs never ask the monitor to start others.
    answers_cpu_calls: bool,
    /// They do.
    forwards_cpu_calls: AtomicBool,
}

/// A doorbell at its place.
struct Attached {
    space: AddressSpace,
    address: u64,
    doorbell: DoorbellAddress,
}

impl Attached {
    fn is(&self, space: AddressSpace, address: u64, doorbell: &DoorbellAddress) -> bool {
        self.space == space
            && self.address == address
            && self.doorbell.size == doorbell.size
            && self.doorbell.value == doorbell.value
    }
}

impl Board {
    /// Whether CPUs ask the monitor to start others.
    fn forwards_cpu_calls(&self) -> bool {
        self.forwards_cpu_calls.load(Ordering::Relaxed)
    }

    /// Rings the doorbell that a write of `data` rings; `false`: there is none, the write exits.
    fn ring(&self, space: AddressSpace, address: u64, data: &[u8]) -> bool {
        let mut value = [0; 8];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(value);
        let doorbells = lock(&self.doorbells);
        let rung = doorbells.iter().find(|attached| {
            attached.space == space
                && attached.address == address
                && attached.doorbell.size.is_none_or(|size| usize::from(size) == data.len())
                && attached.doorbell.value.is_none_or(|wanted| wanted == value)
        });
        if let Some(attached) = rung {
            attached.doorbell.doorbell.ring();
        }
        rung.is_some()
    }
}

impl MsiAllocator for SimVm {
    fn allocate(&self) -> io::Result<Arc<dyn MsiSource>> {
        Ok(Arc::new(SimMsi::new(Arc::clone(&self.board))))
    }
}

impl Vm for SimVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        let failed = |kind, reason: &str| Error::CreateVcpu { id, source: io::Error::new(kind, reason) };
        if id >= MAX_VCPUS {
            return Err(failed(io::ErrorKind::InvalidInput, "the id is beyond the most CPUs there may be"));
        }
        let lane = self
            .board
            .apics
            .add(id)
            .ok_or_else(|| failed(io::ErrorKind::AlreadyExists, "there is a CPU with this id"))?;
        Ok(Box::new(vcpu::SimVcpu::new(id, self.programs.get(&id).cloned(), Arc::clone(&self.board), lane)))
    }

    fn forward_cpu_calls(&self) -> Result<bool> {
        let forwards = !self.board.answers_cpu_calls;
        self.board.forwards_cpu_calls.store(forwards, Ordering::Relaxed);
        Ok(forwards)
    }

    unsafe fn map_memory(&self, slot: MemorySlot) -> Result<()> {
        // SAFETY: passed on from the caller.
        unsafe { self.board.slots.map(slot) }.map_err(|reason| Error::MapMemory {
            slot: slot.slot,
            guest_address: slot.guest_address,
            size: slot.size,
            source: io::Error::new(io::ErrorKind::InvalidInput, reason),
        })
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        if self.board.slots.unmap(slot) {
            return Ok(());
        }
        Err(Error::UnmapMemory { slot, source: io::ErrorKind::NotFound.into() })
    }

    fn attach_doorbell(&self, space: AddressSpace, base: u64, doorbell: &DoorbellAddress) -> Result<()> {
        let address = base.wrapping_add(doorbell.offset);
        let failed =
            |kind: io::ErrorKind| Error::Doorbell { verb: "attach", space, address, source: kind.into() };
        if doorbell.value.is_some() && doorbell.size.is_none() {
            return Err(failed(io::ErrorKind::InvalidInput));
        }
        let mut doorbells = lock(&self.board.doorbells);
        if doorbells.iter().any(|attached| attached.is(space, address, doorbell)) {
            return Err(failed(io::ErrorKind::AlreadyExists));
        }
        doorbells.push(Attached { space, address, doorbell: doorbell.clone() });
        Ok(())
    }

    fn detach_doorbell(&self, space: AddressSpace, base: u64, doorbell: &DoorbellAddress) -> Result<()> {
        let address = base.wrapping_add(doorbell.offset);
        let mut doorbells = lock(&self.board.doorbells);
        match doorbells.iter().position(|attached| attached.is(space, address, doorbell)) {
            Some(at) => {
                doorbells.remove(at);
                Ok(())
            }
            None => Err(Error::Doorbell {
                verb: "detach",
                space,
                address,
                source: io::ErrorKind::NotFound.into(),
            }),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn ioapic_pin(&self, pin: u32) -> Result<Arc<dyn MsiSource>> {
        let slot = usize::try_from(pin).ok().and_then(|at| self.pins.get(at));
        let slot = slot.ok_or(Error::NoSuchPin { pin, pins: PINS })?;
        let source = slot.get_or_init(|| Arc::new(SimMsi::new(Arc::clone(&self.board))));
        Ok(Arc::clone(source) as Arc<dyn MsiSource>)
    }

    #[cfg(target_arch = "aarch64")]
    fn create_gic(&self, config: &crate::aarch64::GicConfig) -> Result<Arc<dyn crate::aarch64::Gic>> {
        Ok(Arc::new(aarch64::SimGic::new(self, config)))
    }
}

/// The contents of a lock; a program that panicked leaves nothing half-changed.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
