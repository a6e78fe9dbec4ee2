//! Calls in any order against a model of the machine thread, on the simulated backend.
//!
//! A seed decides which calls are made, which of them are under way at the same time, and what the guest does. The model knows the
//! states; what is under way together may end in several ways, but each call is answered, and what the machine then says
//! of itself fits together.

mod calls;
mod control;

use calls::{Counts, Images, label, machine, may_refuse, part, shrink, standing};
use control::instructions::reset;
use control::{Control, Random, STUCK, config, disk, kind, release_all, remove};
use hypervisor::sim::{Resources, Sim};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;
use vivarium_tests::host::{Folder, HangingFile};
use vivarium_tests::native;
use vmm::api::request::VmState;
use vmm::api::{Answer, ErrorKind, Request};

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
            release_all(cpu, |_| {});
            if random.below(2_000) == 0 {
                reset(cpu);
            }
        }
    });
}

/// Has a machine give back all that came.
fn remove_all(control: &Control) {
    // By their names, those below ports before the ports.
    for id in control.info()["device_tree"].as_object().unwrap().keys() {
        if !standing(id) && !part(id) {
            control.done(remove(id, true, 60_000));
        }
    }
    shrink(control);
    // What stands in for them, and what the guest was asked for, goes with its restart.
    control.done(Request::Reboot);
    assert_eq!(control.state(), VmState::Running);
    assert!(control.disks().is_empty());
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
    zones: bool,
) -> Model {
    // What machines before left behind is completed.
    boot_as_soon_as_may_be(control).unwrap();
    control.done(Request::Shutdown);
    let id = format!("hangs{step}");
    let path = folder.sparse(&id, 1 << 20);
    let hangs = HangingFile::new(&path);
    control.done(disk(path, &id));
    let boot = loop {
        let boot = control.begin(Request::Boot);
        control.done(Request::Ping);
        // Refused while the host lets go of what was opened for the machine before.
        match boot.try_recv() {
            Err(_) => break boot,
            Ok(answer) => assert_eq!(kind(answer), ErrorKind::Conflict),
        }
        std::thread::yield_now();
    };
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
        let ended = call.recv_timeout(STUCK).expect("the end was forgotten");
        assert!(ended.is_ok(), "{ended:?}");
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
            control.done(Request::Create(machine(config(folder), zones)));
            boot_as_soon_as_may_be(control).unwrap();
            control.done(Request::Delete);
        }
        Some(_) => {
            boot_as_soon_as_may_be(control).unwrap();
            control.done(Request::Shutdown);
        }
        None => {}
    }
    then.unwrap_or_else(|| Model::of(control))
}

/// Boots a machine, once the host has let go of one that was given up.
fn boot_as_soon_as_may_be(control: &Control) -> Answer {
    let begun = Instant::now();
    loop {
        let answer = control.call(Request::Boot);
        if !answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Conflict) || begun.elapsed() > STUCK {
            return answer;
        }
        std::thread::yield_now();
    }
}

/// What a machine has taken that nothing was added to.
fn untouched(folder: &Folder, zones: bool) -> Resources {
    let sim = Arc::new(Sim::new());
    guest(&sim, 1);
    let control = Control::boot(&sim, machine(config(folder), zones));
    control.done(Request::Reboot);
    let resources = sim.resources();
    control.end();
    assert_eq!(sim.resources(), Resources::default(), "a machine that ended has nothing");
    resources
}

/// Calls that are under way at the same time, and the state they lead to.
fn together(
    control: &Control,
    images: &Images,
    random: &mut Random,
    model: Model,
    counts: &mut Counts,
    told: &dyn Fn(&str) -> String,
) -> Model {
    let running = model == Running;
    let mut requests: Vec<_> = (0..=random.below(4)).map(|_| images.any(random, running)).collect();
    if random.below(4) == 0 {
        requests.extend([Request::Pause, images.any(random, false), Request::Resume]);
    }
    // An end or a restart beside what waits for the guest or the host.
    let end = match random.below(16) {
        0 => Some(Request::Shutdown),
        1 => Some(Request::Delete),
        2 | 3 => Some(Request::Reboot),
        _ => None,
    };
    let ends = matches!(end, Some(Request::Shutdown | Request::Delete));
    if let Some(end) = end {
        requests.insert(random.below(requests.len() as u64 + 1) as usize, end);
    }
    if model == Created {
        // What is done to a configuration is done at once.
        requests.retain(|request| !matches!(request, Request::Delete));
    }
    let calls: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let description = format!("{request:?}");
            let refusable: Vec<_> =
                KINDS.iter().copied().filter(|kind| may_refuse(&request, *kind, ends)).collect();
            (label(&request), description, refusable, control.begin(request))
        })
        .collect();
    control.done(Request::Ping);
    for (label, description, refusable, call) in calls {
        let answer = call
            .recv_timeout(STUCK)
            .unwrap_or_else(|_| panic!("{}", told(&format!("{description}: forgotten"))));
        counts.note(label, &answer);
        if let Err(error) = &answer {
            let allowed = model == Absent && error.kind == ErrorKind::NotFound
                || model != Absent && refusable.contains(&error.kind);
            assert!(allowed, "{}", told(&format!("{description}: {error:?}")));
        } else {
            assert!(model != Absent, "{}", told(&format!("{description}: {answer:?}")));
        }
    }
    match control.call(Request::Info) {
        Err(error) if error.kind == ErrorKind::NotFound => Absent,
        _ => Model::of(control),
    }
}

const KINDS: &[ErrorKind] = &[
    ErrorKind::BadRequest,
    ErrorKind::NotFound,
    ErrorKind::State,
    ErrorKind::Conflict,
    ErrorKind::Timeout,
    ErrorKind::Internal,
    ErrorKind::NotSupported,
];

#[test]
fn any_order_of_calls_is_answered_as_the_states_say_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let images = Images::new(&folder);
    let threads = count("/proc/self/task");
    folder.sparse("plugged", 1 << 20);
    let untouched = [untouched(&folder, false), untouched(&folder, true)];
    let mut counts = Counts::default();
    becomes(|| count("/proc/self/task"), &threads, "threads of a machine that ended");
    let before = (count("/proc/self/fd"), count("/proc/self/task"));
    for seed in 1..=native().seeds() {
        let zones = seed % 2 == 0;
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
                model = boot_that_hangs(&sim, &control, &folder, &images, &mut random, step, zones);
                continue;
            }
            let (request, allowed, then) = match random.below(11) {
                0 => (Request::Create(machine(config(&folder), zones)), model == Absent, Created),
                1 | 2 => (Request::Boot, model == Created, Running),
                3 => (Request::Pause, model == Running, Paused),
                4 => (Request::Resume, model == Paused, Running),
                5 => (Request::Reboot, matches!(model, Running | Paused), Running),
                6 if random.below(4) == 0 => (Request::Delete, model != Absent, Absent),
                6 => (Request::Shutdown, matches!(model, Running | Paused), Created),
                7 if model != Absent => {
                    if let Some(request) = images.certain(&mut random, &control) {
                        let (label, answer) = (label(&request), control.call(request));
                        counts.note(label, &answer);
                        at(&answer, true);
                    }
                    continue;
                }
                _ => {
                    let told = |what: &str| format!("seed {seed}, step {step}, {model:?}: {what}");
                    model = together(&control, &images, &mut random, model, &mut counts, &told);
                    continue;
                }
            };
            let label = label(&request);
            let answer = match request {
                // What a machine that ended left behind, such as a core dump, is completed before.
                Request::Boot if allowed => boot_as_soon_as_may_be(&control),
                request => control.call(request),
            };
            counts.note(label, &answer);
            at(&answer, allowed);
            model = if allowed { then } else { model };
            if model != Absent {
                assert_eq!(Model::of(&control), model, "seed {seed}, step {step}");
            }
        }
        if model == Absent {
            control.done(Request::Create(machine(config(&folder), zones)));
            model = Created;
        }
        if model == Created {
            boot_as_soon_as_may_be(&control).unwrap();
        }
        remove_all(&control);
        // Machines that were given up are taken apart when the host lets them.
        becomes(
            || sim.resources(),
            &untouched[usize::from(zones)],
            &format!("seed {seed}: memory slots, doorbells, interrupts"),
        );
        control.end();
        becomes(|| sim.resources(), &Resources::default(), &format!("seed {seed}"));
        // A thread is counted until the kernel has done with it.
        let left = || (count("/proc/self/fd"), count("/proc/self/task"));
        becomes(left, &before, &format!("seed {seed}: descriptors and threads"));
    }
    counts.assert_each_was_done();
}
