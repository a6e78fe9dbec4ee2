//! What picks the order in which a machine thread is told things.

pub mod scheduler;
pub mod threads;

use super::calls::Counts;

/// What is done at least once, or nothing was tested of it.
const DONE: &[&str] = &[
    "add at a port",
    "add disk",
    "add pmem",
    "add rng",
    "remove with force",
    "resize memory",
    "vm.boot",
    "vm.create",
    "vm.delete",
    "vm.pause",
    "vm.reboot",
    "vm.remove-device",
    "vm.resize",
    "vm.resize-disk",
    "vm.resume",
    "vm.shutdown",
];

pub fn assert_each_was_done(counts: &Counts) {
    for label in DONE {
        assert!(counts.of(label) > 0, "{label} was never done");
    }
}
