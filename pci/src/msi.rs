//! MSI (PCIe 6.0, 6.1.4.1 and 7.7.1): up to 32 vectors whose messages differ in the low bits of the data.

use crate::vectors::VectorHandle;
use machine::interrupt::{MsiAllocator, MsiMessage};
use std::sync::Arc;

/// Signals a function's MSI vectors; see [`VectorHandle::signal`]. A vector the driver did not grant is lost.
pub type MsiHandle = VectorHandle;

/// A function's MSI vectors. The registers are in the configuration space, which tells this what they say.
pub struct Msi {
    routed: Vec<Option<MsiMessage>>,
    handle: MsiHandle,
    per_vector_masking: bool,
}

/// What the registers of the capability say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MsiRegisters {
    pub(crate) enabled: bool,
    /// Multiple message enable: the base-2 logarithm of how many vectors the driver granted.
    pub(crate) granted_log2: u8,
    pub(crate) message: MsiMessage,
    pub(crate) mask: u32,
}

impl Msi {
    /// MSI with `vectors` (rounded up to a power of two up to 32), disabled.
    pub fn new(vectors: u16, per_vector_masking: bool, allocator: Arc<dyn MsiAllocator>) -> Self {
        let vectors = vectors.clamp(1, 32).next_power_of_two();
        Self {
            routed: vec![None; vectors.into()],
            handle: MsiHandle::new(vectors, allocator),
            per_vector_masking,
        }
    }

    /// What signals the vectors.
    pub fn handle(&self) -> MsiHandle {
        self.handle.clone()
    }

    /// How many vectors there are: a power of two up to 32.
    pub fn vectors(&self) -> u16 {
        self.handle.count()
    }

    /// Whether each vector has a mask bit.
    pub fn per_vector_masking(&self) -> bool {
        self.per_vector_masking
    }

    /// The pending bits register.
    pub(crate) fn pending(&self) -> u32 {
        (0..self.vectors())
            .filter(|&vector| self.handle.pending(vector))
            .fold(0, |bits, vector| bits | bit(vector))
    }

    /// Makes vectors pending that are masked, as when restoring; before [`Self::apply`].
    pub(crate) fn set_pending(&self, pending: u32) {
        for vector in (0..self.vectors()).filter(|&vector| pending & bit(vector) != 0) {
            self.handle.set_pending(vector);
        }
    }

    /// Brings all vectors into the state that the registers ask for.
    pub(crate) fn apply(&mut self, registers: MsiRegisters) {
        self.handle.set_enabled(registers.enabled);
        let granted = 1u16.checked_shl(registers.granted_log2.into()).unwrap_or(0).min(self.vectors());
        for (routed, vector) in self.routed.iter_mut().zip(0..) {
            if !registers.enabled || vector >= granted {
                self.handle.disable(vector);
            } else if self.per_vector_masking && registers.mask & bit(vector) != 0 {
                self.handle.mask(vector);
            } else {
                let low_bits = u32::from(granted.wrapping_sub(1));
                let data = (registers.message.data & !low_bits) | u32::from(vector);
                self.handle.open(vector, MsiMessage { data, ..registers.message }, routed);
            }
        }
    }

    /// Back to power-on.
    pub(crate) fn reset(&mut self) {
        self.apply(MsiRegisters::default());
        for (routed, vector) in self.routed.iter_mut().zip(0..) {
            self.handle.disconnect(vector, routed);
        }
    }
}

fn bit(vector: u16) -> u32 {
    1u32.checked_shl(vector.into()).unwrap_or(0)
}
