//! Interrupt sources a device may hold: wired lines and message-signalled ones.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::eventfd::EventFd;

/// A message-signalled interrupt: the write a device makes to raise it (PCI 3.0, 6.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Where the message is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
    /// Requester id of the function (its bus, device and function numbers), for controllers that
    /// translate by it, such as the GIC's ITS.
    pub requester: u16,
}

/// One source of message-signalled interrupts, delivered by the hypervisor.
///
/// Firing does not allocate, lock or block, and may be done from any thread.
pub trait MsiSource: Send + Sync {
    /// Sets what firing delivers, from now on; `None` disconnects it (firing is then lost).
    ///
    /// # Errors
    /// When the hypervisor refuses the route.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Delivers the interrupt.
    fn fire(&self);

    /// An eventfd whose writes fire this source, for those who fire from outside the process (vhost,
    /// VFIO). Created when first asked for.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    fn event(&self) -> io::Result<Arc<EventFd>>;
}

/// Makes message-signalled interrupt sources: the capability a PCI function gets.
pub trait MsiAllocator: Send + Sync {
    /// A new source without a route. Freed when dropped.
    ///
    /// # Errors
    /// When the hypervisor has no interrupt numbers left.
    fn allocate(&self) -> io::Result<Arc<dyn MsiSource>>;
}

/// What wired lines end at: an interrupt controller's input pins.
pub trait InterruptController: Send + Sync {
    /// One more (`true`) or one less (`false`) source holds the pin of `gsi` active. The pin is
    /// active while any source holds it.
    fn set_level(&self, gsi: u32, active: bool);

    /// An edge on the pin of `gsi`.
    fn pulse(&self, gsi: u32);
}

/// A wired interrupt line from one device to one pin. Several devices may share a pin, each with a
/// line of its own.
pub struct InterruptLine {
    controller: Arc<dyn InterruptController>,
    gsi: u32,
    active: AtomicBool,
}

impl InterruptLine {
    /// A line, inactive, to the pin of `gsi` (global system interrupt number).
    pub fn new(controller: Arc<dyn InterruptController>, gsi: u32) -> Self {
        Self { controller, gsi, active: AtomicBool::new(false) }
    }

    /// The pin's global system interrupt number.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Sets the level; telling it again what it is does nothing.
    pub fn set(&self, active: bool) {
        if self.active.swap(active, Ordering::AcqRel) != active {
            self.controller.set_level(self.gsi, active);
        }
    }

    /// Makes an edge.
    pub fn pulse(&self) {
        self.controller.pulse(self.gsi);
    }
}

impl Drop for InterruptLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl std::fmt::Debug for InterruptLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InterruptLine").field("gsi", &self.gsi).field("active", &self.active).finish()
    }
}

/// Interrupt ends that count what they are told, for tests and fuzzing without a hypervisor.
pub mod recording {
    use super::{Arc, EventFd, InterruptController, MsiAllocator, MsiMessage, MsiSource, io};
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// A controller that remembers each pin's level and number of rising edges.
    #[derive(Debug, Default)]
    pub struct Pins {
        pins: Mutex<BTreeMap<u32, (i32, u64)>>,
    }

    impl Pins {
        fn with<R>(&self, f: impl FnOnce(&mut BTreeMap<u32, (i32, u64)>) -> R) -> R {
            f(&mut self.pins.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
        }

        /// Whether any source holds the pin active.
        pub fn level(&self, gsi: u32) -> bool {
            self.with(|pins| pins.get(&gsi).is_some_and(|pin| pin.0 > 0))
        }

        /// How often the pin became active, edges included.
        pub fn edges(&self, gsi: u32) -> u64 {
            self.with(|pins| pins.get(&gsi).map_or(0, |pin| pin.1))
        }
    }

    impl InterruptController for Pins {
        fn set_level(&self, gsi: u32, active: bool) {
            self.with(|pins| {
                let pin = pins.entry(gsi).or_default();
                if active && pin.0 == 0 {
                    pin.1 = pin.1.saturating_add(1);
                }
                pin.0 = pin.0.saturating_add(if active { 1 } else { -1 });
            });
        }

        fn pulse(&self, gsi: u32) {
            self.with(|pins| {
                let pin = pins.entry(gsi).or_default();
                pin.1 = pin.1.saturating_add(1);
            });
        }
    }

    /// A source that counts how often it fired, in all and since its route was set.
    #[derive(Debug, Default)]
    pub struct Source {
        route: Mutex<Option<MsiMessage>>,
        fired: AtomicU64,
    }

    impl Source {
        /// The route in force.
        pub fn message(&self) -> Option<MsiMessage> {
            *self.route.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        /// How often it fired while routed.
        pub fn fired(&self) -> u64 {
            self.fired.load(Ordering::Acquire)
        }
    }

    impl MsiSource for Source {
        fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
            *self.route.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = message;
            Ok(())
        }

        fn fire(&self) {
            if self.message().is_some() {
                self.fired.fetch_add(1, Ordering::AcqRel);
            }
        }

        fn event(&self) -> io::Result<Arc<EventFd>> {
            Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?))
        }
    }

    /// Hands out [`Source`]s and keeps them to be looked at.
    #[derive(Debug, Default)]
    pub struct Sources {
        sources: Mutex<Vec<Arc<Source>>>,
    }

    impl Sources {
        /// The `n`th source handed out.
        pub fn get(&self, n: usize) -> Option<Arc<Source>> {
            self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(n).cloned()
        }

        /// How often the sources fired, all together.
        pub fn fired(&self) -> u64 {
            let sources = self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            sources.iter().fold(0, |sum, source| sum.saturating_add(source.fired()))
        }
    }

    impl MsiAllocator for Sources {
        fn allocate(&self) -> io::Result<Arc<dyn MsiSource>> {
            let source = Arc::new(Source::default());
            self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Arc::clone(&source));
            Ok(source)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::recording::{Pins, Sources};
    use super::*;

    #[test]
    fn a_shared_pin_is_active_while_any_line_is() {
        let pins = Arc::new(Pins::default());
        let a = InterruptLine::new(pins.clone(), 5);
        let b = InterruptLine::new(pins.clone(), 5);
        a.set(true);
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(pins.level(5));
        assert_eq!(pins.edges(5), 1);
        drop(b);
        assert!(!pins.level(5), "a line that is gone no longer holds its pin");
    }

    #[test]
    fn an_unrouted_source_delivers_nothing() {
        let sources = Sources::default();
        let source = sources.allocate().unwrap();
        source.fire();
        source.route(Some(MsiMessage::default())).unwrap();
        source.fire();
        assert_eq!(sources.fired(), 1);
    }
}
