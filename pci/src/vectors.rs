//! What MSI and MSI-X share: a set of vectors, each masked or open, with its pending bit and its source.
//!
//! Each vector is one atomic word, so that a worker that signals and a CPU that masks meet in a single atomic
//! operation: an interrupt is delivered, or it becomes pending, and is never lost between the two.

use machine::interrupt::{MsiAllocator, MsiMessage, MsiSource};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The vector number that stands for "none" (virtio 1.2, 4.1.4.3): signalling it does nothing.
pub const NO_VECTOR: u16 = 0xffff;

const PENDING: u8 = 1;
const MASKED: u8 = 2;
const DISABLED: u8 = 4;

struct Vector {
    state: AtomicU8,
    source: OnceLock<Arc<dyn MsiSource>>,
}

struct Shared {
    vectors: Box<[Vector]>,
    allocator: Arc<dyn MsiAllocator>,
    enabled: AtomicBool,
    out_of_range: AtomicU64,
    failures: AtomicU64,
}

/// Signals a function's vectors, from any thread and without a lock. Clones signal the same function.
#[derive(Clone)]
pub struct VectorHandle(Arc<Shared>);

impl VectorHandle {
    pub(crate) fn new(vectors: u16, allocator: Arc<dyn MsiAllocator>) -> Self {
        let vector = || Vector { state: AtomicU8::new(DISABLED), source: OnceLock::new() };
        Self(Arc::new(Shared {
            vectors: std::iter::repeat_with(vector).take(vectors.into()).collect(),
            allocator,
            enabled: AtomicBool::new(false),
            out_of_range: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// Raises the interrupt of `vector`, or makes it pending while it is masked. Nothing happens for
    /// [`NO_VECTOR`], while the capability is disabled, or for a vector that does not exist (which is counted).
    pub fn signal(&self, vector: u16) {
        let Some(entry) = self.0.vectors.get(usize::from(vector)) else {
            if vector != NO_VECTOR {
                self.0.out_of_range.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        let held = entry.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
            state if state & DISABLED != 0 => Some(state),
            state if state & MASKED != 0 => Some(state | PENDING),
            _ => None,
        });
        if held.is_err()
            && let Some(source) = entry.source.get()
        {
            source.fire();
        }
    }

    /// Whether the driver enabled the capability; if not, the function is to use its INTx pin.
    pub fn enabled(&self) -> bool {
        self.0.enabled.load(Ordering::Acquire)
    }

    /// How many vectors there are.
    pub fn count(&self) -> u16 {
        u16::try_from(self.0.vectors.len()).unwrap_or(u16::MAX)
    }

    /// How often a vector that does not exist was signalled.
    pub fn out_of_range(&self) -> u64 {
        self.0.out_of_range.load(Ordering::Relaxed)
    }

    /// How often the hypervisor refused a source or a route.
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    /// Whether the vector's interrupt waits to be unmasked.
    pub fn pending(&self, vector: u16) -> bool {
        self.0
            .vectors
            .get(usize::from(vector))
            .is_some_and(|v| v.state.load(Ordering::Acquire) & PENDING != 0)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.0.enabled.store(enabled, Ordering::Release);
    }

    /// The capability is off: signals are lost, and so is a pending one.
    pub(crate) fn disable(&self, vector: u16) {
        if let Some(entry) = self.0.vectors.get(usize::from(vector)) {
            entry.state.store(DISABLED, Ordering::Release);
        }
    }

    /// From now on signals become pending.
    pub(crate) fn mask(&self, vector: u16) {
        if let Some(entry) = self.0.vectors.get(usize::from(vector)) {
            let _ = entry
                .state
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| Some((state & PENDING) | MASKED));
        }
    }

    /// Makes a masked vector pending, as when restoring.
    pub(crate) fn set_pending(&self, vector: u16) {
        if let Some(entry) = self.0.vectors.get(usize::from(vector)) {
            entry.state.store(MASKED | PENDING, Ordering::Release);
        }
    }

    /// From now on signals deliver `message`, beginning with a pending one. `routed` is what the source delivers
    /// already, and is kept up to date. If the hypervisor refuses, the vector stays masked.
    pub(crate) fn open(&self, vector: u16, message: MsiMessage, routed: &mut Option<MsiMessage>) {
        let Some(entry) = self.0.vectors.get(usize::from(vector)) else { return };
        let Some(source) = self.source(entry) else {
            self.refused(vector);
            return;
        };
        if *routed != Some(message) {
            if source.route(Some(message)).is_err() {
                *routed = None;
                self.refused(vector);
                return;
            }
            *routed = Some(message);
        }
        if entry.state.swap(0, Ordering::AcqRel) & PENDING != 0 {
            source.fire();
        }
    }

    /// Disconnects a disabled vector's source, so that nothing can fire it.
    pub(crate) fn disconnect(&self, vector: u16, routed: &mut Option<MsiMessage>) {
        if routed.take().is_some()
            && let Some(source) = self.0.vectors.get(usize::from(vector)).and_then(|v| v.source.get())
            && source.route(None).is_err()
        {
            self.0.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn refused(&self, vector: u16) {
        self.0.failures.fetch_add(1, Ordering::Relaxed);
        self.mask(vector);
    }

    /// The vector's source, allocated when first needed. Only the thread that holds the register lock asks.
    fn source<'a>(&self, entry: &'a Vector) -> Option<&'a Arc<dyn MsiSource>> {
        if entry.source.get().is_none() {
            let source = self.0.allocator.allocate().ok()?;
            return Some(entry.source.get_or_init(|| source));
        }
        entry.source.get()
    }
}

impl std::fmt::Debug for VectorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorHandle")
            .field("count", &self.count())
            .field("enabled", &self.enabled())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::interrupt::recording::Sources;
    use std::thread;

    /// Every signal is either delivered by its caller, or left pending and delivered by whoever opens the vector;
    /// what must not happen is that one made after the last delivery is neither.
    #[test]
    fn no_signal_is_lost_between_masking_and_opening() {
        const SIGNALS: u64 = 20_000;
        let sources = Arc::new(Sources::default());
        let handle = VectorHandle::new(1, sources.clone());
        let mut routed = None;
        handle.set_enabled(true);
        handle.open(0, MsiMessage::default(), &mut routed);
        let seen = Arc::new(AtomicU64::new(0));
        let worker = {
            let (handle, sources, seen) = (handle.clone(), sources.clone(), seen.clone());
            thread::spawn(move || {
                for _ in 0..SIGNALS {
                    let before = sources.fired();
                    handle.signal(0);
                    // Whoever delivers, it comes: wait as a device waits for its driver to answer.
                    let looks = (0..10_000_000).take_while(|_| sources.fired() == before);
                    assert!(looks.inspect(|_| thread::yield_now()).count() < 10_000_000, "a signal was lost");
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        while !worker.is_finished() {
            handle.mask(0);
            handle.open(0, MsiMessage::default(), &mut routed);
        }
        worker.join().unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), SIGNALS);
        assert_eq!(sources.fired(), SIGNALS, "each was delivered once");
    }

    #[test]
    fn what_the_hypervisor_refuses_stays_pending_and_is_tried_again() {
        struct Refusing(AtomicBool, Sources);
        impl MsiAllocator for Refusing {
            fn allocate(&self) -> std::io::Result<Arc<dyn MsiSource>> {
                if self.0.load(Ordering::Relaxed) {
                    return Err(std::io::ErrorKind::OutOfMemory.into());
                }
                self.1.allocate()
            }
        }
        let allocator = Arc::new(Refusing(AtomicBool::new(true), Sources::default()));
        let handle = VectorHandle::new(1, allocator.clone());
        let mut routed = None;
        handle.open(0, MsiMessage::default(), &mut routed);
        handle.signal(0);
        assert_eq!((handle.failures(), handle.pending(0)), (1, true));
        allocator.0.store(false, Ordering::Relaxed);
        handle.open(0, MsiMessage::default(), &mut routed);
        assert_eq!((allocator.1.fired(), handle.pending(0)), (1, false));
    }
}
