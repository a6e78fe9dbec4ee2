//! Guest memory that the host does not have, on the simulated backend. It is the process that is told of that: no other machine of these
//! tests may be in it.

mod control;

use hypervisor::sim::Sim;
use std::fs::File;
use std::sync::Arc;
use vivarium_tests::host::Folder;
use vivarium_tests::native;
use vmm::config::crash::CrashAction;
use vmm::config::{ByteSize, CrashConfig, MemoryZoneConfig};
use vmm::machine::Ended;
use vmm::message::Failure;
use vmm::monitor::Monitor;

const RAM: u64 = native().ram_start();

#[test]
fn memory_that_the_host_cannot_give_ends_the_machine_and_not_the_process() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let path = folder.sparse("memory", 64 << 20);
    let mut machine = control::config(&folder);
    // No machine goes on with a page that was lost, whatever is to be done about crashes.
    machine.on_crash = Some(CrashConfig { action: CrashAction::Reset, ..CrashConfig::default() });
    machine.memory.size = ByteSize(0);
    let zone = MemoryZoneConfig { id: "a".into(), size: ByteSize(64 << 20), ..MemoryZoneConfig::default() };
    machine.memory.zones = Some(vec![MemoryZoneConfig { file: Some(path.clone()), shared: true, ..zone }]);
    sim.program(0, move |cpu| {
        File::options().write(true).open(&path).unwrap().set_len(32 << 20).unwrap();
        cpu.write8(RAM + (48 << 20) + 5, 1);
        control::ignore(cpu);
    });
    let mut monitor = Monitor::new(sim as _).unwrap();
    monitor.boot(*machine).unwrap();
    let ended = monitor.run().unwrap();
    let address = RAM + (48 << 20);
    assert!(
        matches!(&ended, Ended::Failed(Failure::Memory { address: lost }) if *lost == address),
        "{ended:?}"
    );
}
