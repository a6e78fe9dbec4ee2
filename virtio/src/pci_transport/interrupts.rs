//! How a device interrupts its driver: by MSI-X vectors or, while those are disabled, by its pin and the ISR status
//! (virtio 1.2, 4.1.4.5 and 4.1.5.4).

use crate::queue::QueueEvents;
use pci::intx::Intx;
use pci::msix::{MsixHandle, NO_VECTOR};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

/// ISR status: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration changed, or the device needs a reset.
const ISR_CONFIG: u8 = 2;

/// What the register methods and the data path share of one device. Nothing here locks.
pub(super) struct Interrupts {
    msix: MsixHandle,
    intx: Option<Intx>,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    generation: AtomicU8,
    /// The driver is ready to be interrupted.
    live: AtomicBool,
    needs_reset: AtomicBool,
    pub(super) resets_needed: AtomicU64,
    pub(super) config_changes: AtomicU64,
}

impl Interrupts {
    pub(super) fn new(msix: MsixHandle, intx: Option<Intx>, queues: u16) -> Self {
        Self {
            msix,
            intx,
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            generation: AtomicU8::new(0),
            live: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            resets_needed: AtomicU64::new(0),
            config_changes: AtomicU64::new(0),
        }
    }

    /// Interrupts by `vector`, or by the pin with this ISR bit.
    #[inline]
    fn raise(&self, vector: &AtomicU16, isr: u8) {
        if self.msix.enabled() {
            self.msix.signal(vector.load(Ordering::Relaxed));
        } else if let Some(intx) = &self.intx {
            self.isr.fetch_or(isr, Ordering::SeqCst);
            intx.set(true);
        }
    }

    /// The driver reads the ISR status, which clears it and releases the pin.
    pub(super) fn take_isr(&self) -> u8 {
        let isr = self.isr.swap(0, Ordering::SeqCst);
        if let Some(intx) = &self.intx {
            intx.set(false);
            // An interrupt raised in between has set its bit before the pin.
            if self.isr.load(Ordering::SeqCst) != 0 {
                intx.set(true);
            }
        }
        isr
    }

    /// The ISR status, left as it is.
    pub(super) fn isr(&self) -> u8 {
        self.isr.load(Ordering::SeqCst)
    }

    /// Restores the ISR status, and with it the pin.
    pub(super) fn set_isr(&self, isr: u8) {
        self.isr.store(isr, Ordering::SeqCst);
        if let Some(intx) = &self.intx {
            intx.set(isr != 0);
        }
    }

    /// The configuration space changed.
    pub(super) fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.config_changes.fetch_add(1, Ordering::Relaxed);
        if self.live.load(Ordering::SeqCst) {
            self.raise(&self.config_vector, ISR_CONFIG);
        }
    }

    /// The driver must reset the device before it works again.
    pub(super) fn need_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.resets_needed.fetch_add(1, Ordering::Relaxed);
            if self.live.load(Ordering::SeqCst) {
                self.raise(&self.config_vector, ISR_CONFIG);
            }
        }
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn restore_needs_reset(&self, needs_reset: bool) {
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
    }

    pub(super) fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn set_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::SeqCst);
    }

    fn vector(&self, queue: Option<u16>) -> Option<&AtomicU16> {
        match queue {
            None => Some(&self.config_vector),
            Some(queue) => self.queue_vectors.get(usize::from(queue)),
        }
    }

    /// The vector of a queue, or of configuration changes.
    pub(super) fn vector_of(&self, queue: Option<u16>) -> u16 {
        self.vector(queue).map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    /// Assigns a vector; one that does not exist becomes none, which the driver finds by reading it back.
    pub(super) fn set_vector(&self, queue: Option<u16>, vector: u16) {
        if let Some(place) = self.vector(queue) {
            place.store(if vector < self.msix.count() { vector } else { NO_VECTOR }, Ordering::Relaxed);
        }
    }

    /// As at power-on. The generation goes on, so that no driver takes an old configuration for a new one.
    pub(super) fn reset(&self) {
        self.set_live(false);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.set_isr(0);
    }
}

/// What one queue tells.
pub(super) struct QueueInterrupt {
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) queue: u16,
}

impl QueueEvents for QueueInterrupt {
    #[inline]
    fn used(&self) {
        if let Some(vector) = self.interrupts.vector(Some(self.queue)) {
            self.interrupts.raise(vector, ISR_QUEUE);
        }
    }

    fn broken(&self) {
        self.interrupts.need_reset();
    }
}
