//! Calls in any order against a model of the machine thread, on the simulated backend.

mod control;

use control::{Control, DOWN, EJECT, Random, STUCK, config, disk, remove};
use hypervisor::sim::Sim;
use std::sync::Arc;
use vivarium_tests::host::Folder;
use vmm::api::request::VmState;
use vmm::api::{Answer, Request};

/// What the machine thread should be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Absent,
    Created,
    Running,
    Paused,
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Calls in random order, several at once, against what the states allow. The guest obeys, and restarts the machine now and then.
#[test]
fn any_order_of_calls_is_answered_as_the_states_say_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let images: Vec<_> = (0..4).map(|n| folder.sparse(&format!("disk{n}"), 1 << 20)).collect();
    let mut before = None;
    for seed in 1..=12u64 {
        let sim = Arc::new(Sim::new());
        sim.program(0, move |cpu| {
            let mut random = Random(seed);
            loop {
                let down = cpu.port_read32(DOWN);
                if down != 0 {
                    cpu.port_write32(EJECT, down);
                }
                if random.below(2_000) == 0 {
                    cpu.port_write8(0x602, 1);
                }
            }
        });
        let control = Control::start(&sim);
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut model = Model::Absent;
        for step in 0..150 {
            use Model::{Absent, Created, Paused, Running};
            let at = |answer: &Answer, good: bool| {
                assert_eq!(answer.is_ok(), good, "seed {seed}, step {step}, {model:?}: {answer:?}");
            };
            let number = random.below(4) as usize;
            let id = format!("disk{number}");
            match random.below(10) {
                0 => {
                    let answer = control.call(Request::Create(config(&folder)));
                    at(&answer, model == Absent);
                    model = if answer.is_ok() { Created } else { model };
                }
                1 | 2 => {
                    let answer = control.call(Request::Boot);
                    at(&answer, model == Created);
                    model = if answer.is_ok() { Running } else { model };
                }
                3 => {
                    let answer = control.call(Request::Pause);
                    at(&answer, model == Running);
                    model = if answer.is_ok() { Paused } else { model };
                }
                4 => {
                    let answer = control.call(Request::Resume);
                    at(&answer, model == Paused);
                    model = if answer.is_ok() { Running } else { model };
                }
                5 => {
                    let answer = control.call(Request::Reboot);
                    at(&answer, matches!(model, Running | Paused));
                    model = if answer.is_ok() { Running } else { model };
                }
                6 => {
                    let request = if random.below(4) == 0 { Request::Delete } else { Request::Shutdown };
                    let deleting = matches!(request, Request::Delete);
                    let answer = control.call(request);
                    at(&answer, matches!(model, Running | Paused) || deleting && model == Created);
                    model = match (answer.is_ok(), deleting) {
                        (true, true) => Absent,
                        (true, false) => Created,
                        (false, _) => model,
                    };
                }
                7 | 8 => {
                    let there = model != Absent && control.disks().contains(&id);
                    let answer = control.call(disk(images[number].clone(), &id));
                    if model == Absent || !there {
                        at(&answer, model != Absent);
                    }
                }
                _ => {
                    let force = random.below(2) == 0;
                    let waiting =
                        control.begin(remove(&id, force, if model == Running { 60_000 } else { 1 }));
                    // Queries are answered meanwhile.
                    control.done(Request::Ping);
                    let answer = waiting.recv_timeout(STUCK).expect("the removal is answered");
                    if model == Absent {
                        at(&answer, false);
                    } else if answer.is_ok() {
                        assert!(!control.disks().contains(&id));
                    }
                }
            }
            if model != Absent {
                let state = control.state();
                let expected = match model {
                    Running => VmState::Running,
                    Paused => VmState::Paused,
                    _ => VmState::Created,
                };
                assert_eq!(state, expected, "seed {seed}, step {step}");
            }
        }
        control.end();
        let after = (count("/proc/self/fd"), count("/proc/self/task"));
        let first = *before.get_or_insert(after);
        assert_eq!(after, first, "seed {seed}: descriptors and threads");
    }
}
