//! Devices at the edges of what the transport takes.

use super::*;
use pci::function::Function;

/// A device of which everything can be chosen.
struct Odd {
    queues: Vec<u16>,
    memory: Vec<(u8, u64)>,
}

impl VirtioDevice for Odd {
    fn device_type(&self) -> u16 {
        26
    }
    fn features(&self) -> u64 {
        u64::MAX
    }
    fn queue_sizes(&self) -> Vec<u16> {
        self.queues.clone()
    }
    fn config_read(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, _: Activation) -> Result<Vec<QueueTask>, ActivateError> {
        Err(ActivateError::Unsupported("nothing works"))
    }
    fn reset(&mut self) {}
    fn shared_memory(&self) -> Vec<(u8, u64)> {
        self.memory.clone()
    }
}

impl Inspect for Odd {
    fn inspect(&self) -> Value {
        json!({})
    }
}

impl Saved for Odd {
    fn save(&self) -> Result<SavedState, StateError> {
        Ok(SavedState { kind: "odd".into(), version: 1, fields: json!({}) })
    }
    fn restore(&mut self, _: &SavedState) -> Result<(), StateError> {
        Ok(())
    }
}

fn odd(queues: Vec<u16>, memory: Vec<(u8, u64)>) -> Result<VirtioPci, VirtioPciError> {
    let capabilities = Capabilities {
        memory: crate::testing::memory(1 << 20),
        msi: Arc::new(machine::interrupt::recording::Sources::default()),
        intx: None,
        clock: Arc::new(machine::clock::ManualClock::default()),
    };
    VirtioPci::new(Box::new(Odd { queues, memory }), Options::default(), capabilities)
}

#[test]
fn devices_that_do_not_fit_are_refused() {
    assert!(matches!(odd(vec![16; 1025], vec![]), Err(VirtioPciError::Queues(1025))));
    assert!(matches!(odd(vec![16, 24], vec![]), Err(VirtioPciError::QueueSize { queue: 1, size: 24 })));
    assert!(matches!(odd(vec![0], vec![]), Err(VirtioPciError::QueueSize { .. })));
    assert!(matches!(odd(vec![16], vec![(0, u64::MAX)]), Err(VirtioPciError::SharedMemory)));
    let largest = odd(vec![1; 1024], vec![]).unwrap();
    assert_eq!(largest.config().msix().unwrap().vectors(), 1025);
    assert_eq!(largest.doorbells(0).last().unwrap().offset, 0x3ffc);
    let none = odd(vec![], vec![]).unwrap();
    assert!(none.doorbells(0).is_empty());
    assert_eq!(
        none.offered_features() & Features::RESERVED & Features::IN_ORDER.bits(),
        0,
        "not the device's to offer"
    );
}

#[test]
fn shared_memory_has_a_bar_of_its_own() {
    let function = odd(vec![16], vec![(5, 8 << 30)]).unwrap();
    assert_eq!(function.shared_memory(5), Some((0, 8 << 30)));
    assert_eq!(function.shared_memory(4), None);
    let bar = function.config().bars().find(|bar| bar.number == SHARED_MEMORY_BAR).unwrap();
    assert_eq!((bar.kind, bar.size), (BarKind::Memory64 { prefetchable: true }, 8 << 30));
    let mut driver = attached();
    driver.function = function;
    let found = structures(&mut driver);
    let region = found.iter().find(|found| found.0 == structure::SHARED_MEMORY).unwrap();
    assert_eq!((region.1, region.2, region.3, region.4), (5, SHARED_MEMORY_BAR, 0, 8 << 30));
}

#[test]
fn a_device_that_refuses_needs_a_reset() {
    let mut driver = attached();
    driver.function = odd(vec![16], vec![]).unwrap();
    driver.negotiate(Layout::SPLIT, u64::MAX);
    driver.set_status(status::DRIVER_OK);
    assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
    driver.reset();
    assert_eq!(driver.status(), 0);
}
