//! Interrupt delivery of a simulated machine: message-signalled sources and the CPUs' local APICs.

use super::lane::Lane;
use super::{Board, lock};
use crate::CpuAnswer;
use machine::interrupt::{MsiMessage, MsiSource};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The local APICs, by their id, which is the CPU's.
#[derive(Default)]
pub(super) struct Apics(Mutex<BTreeMap<u32, Arc<Lane>>>);

impl Apics {
    /// Adds the CPU `id`; `None` if there is one.
    pub(super) fn add(&self, id: u32) -> Option<Arc<Lane>> {
        let mut lanes = lock(&self.0);
        if lanes.contains_key(&id) {
            return None;
        }
        let lane = Arc::new(Lane::default());
        lane.change(|state| state.started = id == 0);
        lanes.insert(id, Arc::clone(&lane));
        Some(lane)
    }

    /// Removes the CPU `id`.
    pub(super) fn remove(&self, id: u32) {
        lock(&self.0).remove(&id);
    }

    /// Starts a CPU.
    pub(super) fn start(&self, id: u32) -> CpuAnswer {
        let Some(lane) = lock(&self.0).get(&id).cloned() else { return CpuAnswer::NoSuchCpu };
        match lane.change(|state| std::mem::replace(&mut state.started, true)) {
            true => CpuAnswer::AlreadyOn,
            false => CpuAnswer::Starts,
        }
    }

    /// Whether any of these CPUs is started.
    pub(super) fn any_started(&self, ids: Range<u32>) -> CpuAnswer {
        let lanes: Vec<_> = lock(&self.0).range(ids).map(|(_, lane)| Arc::clone(lane)).collect();
        match lanes.as_slice() {
            [] => CpuAnswer::NoSuchCpu,
            lanes if lanes.iter().any(|lane| lane.state().started) => CpuAnswer::On,
            _ => CpuAnswer::Off,
        }
    }

    /// Makes an interrupt pending on one CPU.
    pub(super) fn interrupt(&self, id: u32, vector: u8, level: bool) {
        if let Some(lane) = lock(&self.0).get(&id) {
            lane.change(|state| state.pending.insert(vector, level));
        }
    }

    /// Makes an interrupt pending no more, if it is.
    pub(super) fn withdraw(&self, id: u32, vector: u8) {
        if let Some(lane) = lock(&self.0).get(&id) {
            lane.change(|state| state.pending.remove(&vector));
        }
    }

    /// What is pending on one CPU.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn pending(&self, id: u32) -> Vec<u8> {
        let lane = lock(&self.0).get(&id).cloned();
        lane.map(|lane| lane.state().pending.keys().copied().collect()).unwrap_or_default()
    }

    /// Makes nothing pending on one CPU.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn forget_pending(&self, id: u32) {
        if let Some(lane) = lock(&self.0).get(&id) {
            lane.change(|state| state.pending.clear());
        }
    }

    /// Delivers a message: its data is the vector.
    #[cfg(target_arch = "aarch64")]
    fn deliver(&self, message: MsiMessage) {
        self.interrupt(0, message.data as u8, false);
    }

    /// Delivers a message (Intel SDM 3, 11.11): fixed and lowest-priority modes alike, physical and flat logical
    /// destinations.
    #[cfg(target_arch = "x86_64")]
    fn deliver(&self, message: MsiMessage) {
        const LOGICAL: u64 = 1 << 2;
        const LEVEL: u32 = 1 << 15;
        const BROADCAST: u32 = 0xff;
        let extended = message.address >> 5 & 0x7f | message.address >> 40 & 0xff_ffff;
        let destination = (message.address >> 12 & 0xff) as u32 | (extended as u32) << 8;
        let vector = message.data as u8;
        let level = message.data & LEVEL != 0;
        let ids: Vec<u32> = lock(&self.0)
            .keys()
            .copied()
            .filter(|&id| match message.address & LOGICAL {
                0 => id == destination || destination == BROADCAST,
                _ => id < 8 && destination >> id & 1 != 0,
            })
            .collect();
        for id in ids {
            self.interrupt(id, vector, level);
        }
    }
}

/// A source of interrupts.
pub(super) struct SimMsi {
    core: Arc<Core>,
    listener: OnceLock<Listener>,
}

/// What a source shares with the thread that listens on its event.
struct Core {
    board: Arc<Board>,
    route: Mutex<Option<MsiMessage>>,
}

impl Core {
    fn fire(&self) {
        let route = *lock(&self.route);
        if let Some(message) = route {
            self.board.apics.deliver(message);
        }
    }
}

impl SimMsi {
    /// A source without a route.
    pub(super) fn new(board: Arc<Board>) -> Self {
        board.sources.fetch_add(1, Ordering::SeqCst);
        Self { core: Arc::new(Core { board, route: Mutex::new(None) }), listener: OnceLock::new() }
    }
}

impl Drop for SimMsi {
    fn drop(&mut self) {
        self.core.board.sources.fetch_sub(1, Ordering::SeqCst);
    }
}

impl MsiSource for SimMsi {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *lock(&self.core.route) = message;
        Ok(())
    }

    fn fire(&self) {
        self.core.fire();
    }

    fn event(&self) -> io::Result<Arc<EventFd>> {
        if let Some(listener) = self.listener.get() {
            return Ok(Arc::clone(&listener.event));
        }
        let listener = Listener::new(Arc::clone(&self.core))?;
        Ok(Arc::clone(&self.listener.get_or_init(|| listener).event))
    }
}

/// A thread that fires a source when its event is written, as the kernel does for KVM.
struct Listener {
    event: Arc<EventFd>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn new(core: Arc<Core>) -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("sim-event".to_owned()).spawn({
            let (event, ended) = (Arc::clone(&event), Arc::clone(&ended));
            move || {
                while wait_readable(&event) && !ended.load(Ordering::Acquire) {
                    if event.read().is_ok() {
                        core.fire();
                    }
                }
            }
        })?;
        Ok(Self { event, ended, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Fails only when it is readable already.
        let _ = self.event.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for `event`; `false` if that is not possible.
fn wait_readable(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one structure, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
        if ready > 0 {
            return true;
        }
        if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}
