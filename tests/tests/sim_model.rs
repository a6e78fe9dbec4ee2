//! Calls in any order against a model of the machine thread, on the simulated backend.
//!
//! A seed decides which calls are made, which of them are under way at the same time, and what the guest does. The model knows the
//! states; what is under way together may end in several ways, but each call is answered, and what the machine then says
//! of itself fits together.

mod control;

use control::{Control, DOWN, EJECT, Random, STUCK, add, config, disk, remove};
use hypervisor::sim::{Resources, Sim};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use vivarium_tests::host::{Folder, HangingFile};
use vmm::api::request::{SetThrottle, VmState};
use vmm::api::{Answer, ErrorKind, Request};
use vmm::config::PmemConfig;

/// What the machine thread should be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Absent,
    Created,
    Running,
    Paused,
}
use Model::{Absent, Created, Paused, Running};

impl Model {
    fn of(control: &Control) -> Self {
        match control.state() {
            VmState::Created => Created,
            VmState::Running => Running,
            VmState::Paused => Paused,
            VmState::Shutdown => panic!("it is neither running nor created"),
        }
    }
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Waits until there is no more than there should be.
fn becomes<T: PartialEq + Debug>(now: impl Fn() -> T, expected: &T, what: &str) {
    let begun = Instant::now();
    while now() != *expected {
        assert!(begun.elapsed() < STUCK, "{what}: {:?}, not {expected:?}", now());
        std::thread::yield_now();
    }
}

/// A guest that lets go of what it is asked for, and restarts the machine now and then.
fn guest(sim: &Sim, seed: u64) {
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
}

/// The images of the devices that come and go.
struct Images {
    disks: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Images {
    fn new(folder: &Folder) -> Self {
        let images = |name: &str, size| (0..3).map(|n| folder.sparse(&format!("{name}{n}"), size)).collect();
        Self { disks: images("disk", 1 << 20), files: images("pmem", 2 << 20) }
    }

    /// A call that adds or removes a device, holds CPUs, or asks something.
    fn any(&self, random: &mut Random, running: bool) -> Request {
        let number = random.below(3) as usize;
        let (disk_id, file_id) = (format!("disk{number}"), format!("pmem{number}"));
        // A guest that does not run lets go of nothing.
        let patience = if running { 60_000 } else { 1 };
        match random.below(8) {
            0 | 1 => disk(self.disks[number].clone(), &disk_id),
            2 | 3 => {
                let file = Some(self.files[number].clone());
                add(PmemConfig { file, id: Some(file_id), ..PmemConfig::default() })
            }
            4 => remove(&disk_id, random.below(2) == 0, patience),
            5 => remove(&file_id, random.below(2) == 0, patience),
            6 => Request::SetThrottle(SetThrottle { percent: random.below(100) as u8 }),
            _ => Request::Info,
        }
    }

    /// Has a machine give back all that came.
    fn remove_all(&self, control: &Control) {
        for id in control.info()["device_tree"].as_object().unwrap().keys().filter(|id| !id.starts_with("__"))
        {
            control.done(remove(id, true, 60_000));
        }
        // What stands in for them goes with the guest's restart.
        control.done(Request::Reboot);
        assert_eq!(control.state(), VmState::Running);
        assert!(control.disks().is_empty());
    }
}

/// Boots a machine one of whose images the host does not open for a while, and asks other things meanwhile. The model's next
/// state.
fn boot_that_hangs(
    sim: &Sim,
    control: &Control,
    folder: &Folder,
    images: &Images,
    random: &mut Random,
    step: u32,
) -> Model {
    let id = format!("hangs{step}");
    let path = folder.sparse(&id, 1 << 20);
    let hangs = HangingFile::new(&path);
    control.done(disk(path, &id));
    let boot = control.begin(Request::Boot);
    let mut calls: Vec<_> = (0..random.below(3)).map(|_| control.begin(images.any(random, false))).collect();
    if random.below(2) == 0 {
        calls.push(control.begin(Request::Pause));
        calls.push(control.begin(Request::Resume));
    }
    control.done(Request::Ping);
    assert_eq!(Model::of(control), Created);
    let given_up = match random.below(4) {
        0 => Some((Request::Shutdown, Created)),
        1 => Some((Request::Delete, Absent)),
        _ => None,
    };
    let given_up = given_up.map(|(request, then)| (control.begin(request), then));
    // Of those that are given up, the host completes some in time; for the others nobody waits.
    let mut hangs = Some(hangs);
    if given_up.is_none() || random.below(6) != 0 {
        hangs = None;
    }
    let booted = boot.recv_timeout(STUCK).expect("the boot was forgotten");
    assert_eq!(booted.is_ok(), given_up.is_none(), "{booted:?}");
    let then = given_up.map(|(call, then)| {
        assert!(call.recv_timeout(STUCK).expect("the end was forgotten").is_ok());
        then
    });
    for call in calls {
        let _ = call.recv_timeout(STUCK).expect("a call was forgotten");
    }
    drop(hangs);
    if then.is_some() {
        // One that nobody waited for has its images until it is taken apart.
        becomes(|| sim.resources(), &Resources::default(), "a machine that was given up");
    }
    match then {
        Some(Absent) => {
            control.done(Request::Create(config(folder)));
            boot_as_soon_as_may_be(control);
            control.done(Request::Delete);
        }
        Some(_) => {
            boot_as_soon_as_may_be(control);
            control.done(Request::Shutdown);
        }
        None => {}
    }
    then.unwrap_or_else(|| Model::of(control))
}

/// Boots a machine, once the host has let go of one that was given up.
fn boot_as_soon_as_may_be(control: &Control) {
    let begun = Instant::now();
    while let Err(error) = control.call(Request::Boot) {
        assert!(error.kind == ErrorKind::Conflict && begun.elapsed() < STUCK, "{error:?}");
        std::thread::yield_now();
    }
}

/// What a machine has taken that nothing was added to.
fn untouched(folder: &Folder) -> Resources {
    let sim = Arc::new(Sim::new());
    guest(&sim, 1);
    let control = Control::boot(&sim, config(folder));
    control.done(Request::Reboot);
    let resources = sim.resources();
    control.end();
    assert_eq!(sim.resources(), Resources::default(), "a machine that ended has nothing");
    resources
}

#[test]
fn any_order_of_calls_is_answered_as_the_states_say_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let images = Images::new(&folder);
    let threads = count("/proc/self/task");
    let untouched = untouched(&folder);
    becomes(|| count("/proc/self/task"), &threads, "threads of a machine that ended");
    let before = (count("/proc/self/fd"), count("/proc/self/task"));
    for seed in 1..=12u64 {
        let sim = Arc::new(Sim::new());
        guest(&sim, seed);
        let control = Control::start(&sim);
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut model = Absent;
        for step in 0..150 {
            let at = |answer: &Answer, good: bool| {
                assert_eq!(answer.is_ok(), good, "seed {seed}, step {step}, {model:?}: {answer:?}");
            };
            if model == Created && random.below(6) == 0 {
                model = boot_that_hangs(&sim, &control, &folder, &images, &mut random, step);
                continue;
            }
            let (request, allowed, then) = match random.below(10) {
                0 => (Request::Create(config(&folder)), model == Absent, Created),
                1 | 2 => (Request::Boot, model == Created, Running),
                3 => (Request::Pause, model == Running, Paused),
                4 => (Request::Resume, model == Paused, Running),
                5 => (Request::Reboot, matches!(model, Running | Paused), Running),
                6 if random.below(4) == 0 => (Request::Delete, model != Absent, Absent),
                6 => (Request::Shutdown, matches!(model, Running | Paused), Created),
                _ => {
                    // Several at once, in the midst of a pause perhaps.
                    let mut calls = Vec::new();
                    for _ in 0..=random.below(4) {
                        calls.push(control.begin(images.any(&mut random, model == Running)));
                    }
                    if random.below(4) == 0 {
                        calls.push(control.begin(Request::Pause));
                        calls.push(control.begin(images.any(&mut random, false)));
                        calls.push(control.begin(Request::Resume));
                    }
                    control.done(Request::Ping);
                    for (index, call) in calls.into_iter().enumerate() {
                        let answer = call.recv_timeout(STUCK);
                        let answer = answer.unwrap_or_else(|_| {
                            panic!("seed {seed}, step {step}: call {index} was forgotten")
                        });
                        if model == Absent {
                            at(&answer, false);
                        }
                    }
                    if model != Absent {
                        model = Model::of(&control);
                    }
                    continue;
                }
            };
            let answer = control.call(request);
            at(&answer, allowed);
            model = if allowed { then } else { model };
            if model != Absent {
                assert_eq!(Model::of(&control), model, "seed {seed}, step {step}");
            }
        }
        if model == Absent {
            control.done(Request::Create(config(&folder)));
            model = Created;
        }
        if model == Created {
            control.done(Request::Boot);
        }
        images.remove_all(&control);
        // Machines that were given up are taken apart when the host lets them.
        becomes(|| sim.resources(), &untouched, &format!("seed {seed}: memory slots, doorbells, interrupts"));
        control.end();
        becomes(|| sim.resources(), &Resources::default(), &format!("seed {seed}"));
        // A thread is counted until the kernel has done with it.
        let left = || (count("/proc/self/fd"), count("/proc/self/task"));
        becomes(left, &before, &format!("seed {seed}: descriptors and threads"));
    }
}
