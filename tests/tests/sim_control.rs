//! The control plane on the simulated backend: calls against machines in every state.

use hypervisor::sim::{Sim, SimCpu};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vivarium_tests::host::Folder;
use vivarium_tests::tiny_kernel;
use vmm::api::request::{RemoveDevice, Resize, ResizeDisk, ResizeZone, VmState};
use vmm::api::{Answer, Call, ErrorKind, Reply, Request};
use vmm::config::landlock::LandlockAccess;
use vmm::config::{
    BalloonConfig, ByteSize, ConsoleMode, DiskConfig, HotplugMethod, LandlockConfig, MemoryZoneConfig,
    VmConfig,
};
use vmm::machine::Ended;
use vmm::message::{Event, Inbox};
use vmm::monitor::Monitor;

/// A call that takes longer has been forgotten, or waits for itself.
const STUCK: Duration = Duration::from_secs(60);

/// A machine thread, and a way to call it.
struct Control {
    inbox: Inbox,
    events: Receiver<String>,
    thread: JoinHandle<Ended>,
}

impl Control {
    fn start(sim: &Arc<Sim>) -> Self {
        let (sender, receiver) = channel();
        let (told, events) = channel();
        let sim = Arc::clone(sim);
        let thread = std::thread::spawn(move || {
            let monitor = Monitor::new(sim as _).unwrap();
            monitor.events().listen(None, Box::new(move |event| told.send(event.event.to_owned()).is_ok()));
            sender.send(monitor.inbox()).unwrap();
            monitor.run().unwrap()
        });
        Self { inbox: receiver.recv().unwrap(), events, thread }
    }

    fn begin(&self, request: Request) -> Receiver<Answer> {
        let (sender, receiver) = channel();
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        self.inbox.tell(Event::Call(Call { request, files: Vec::new(), respond }));
        receiver
    }

    fn call(&self, request: Request) -> Answer {
        let name = format!("{request:?}");
        self.begin(request).recv_timeout(STUCK).unwrap_or_else(|_| panic!("{name} was never answered"))
    }

    fn done(&self, request: Request) {
        let name = format!("{request:?}");
        assert!(self.call(request).is_ok(), "{name}");
    }

    fn info(&self) -> serde_json::Value {
        match self.call(Request::Info) {
            Ok(Reply::Json(info)) => info,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> VmState {
        serde_json::from_value(self.info()["state"].clone()).unwrap()
    }

    fn disks(&self) -> BTreeSet<String> {
        let info = self.info();
        info["config"]["disks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|disk| disk["id"].as_str().unwrap().into())
            .collect()
    }

    fn wait_for(&self, event: &str) {
        while self.events.recv_timeout(STUCK).unwrap_or_else(|_| panic!("{event} never came")) != event {}
    }

    fn end(self) -> Ended {
        self.done(Request::VmmShutdown);
        self.thread.join().unwrap()
    }
}

fn kind(answer: Answer) -> ErrorKind {
    answer.unwrap_err().kind
}

fn config(folder: &Folder) -> Box<VmConfig> {
    let kernel = folder.join("kernel");
    // Once: a machine that restarts may be reading it.
    if !kernel.exists() {
        std::fs::write(&kernel, tiny_kernel::bytes()).unwrap();
    }
    let mut config = VmConfig::default();
    config.payload.kernel = Some(kernel);
    config.memory.size = ByteSize(64 << 20);
    config.console.mode = ConsoleMode::Off;
    Box::new(config)
}

fn disk(path: PathBuf, id: &str) -> Request {
    let id = Some(id.to_owned());
    Request::AddDisk(Box::new(DiskConfig { path: Some(path), id, ..DiskConfig::default() }))
}

fn remove(id: &str, force: bool, timeout_ms: u64) -> Request {
    Request::RemoveDevice(RemoveDevice { id: id.into(), force, timeout_ms: Some(timeout_ms) })
}

// The PCI hotplug controller's registers.

const DOWN: u16 = 0x628;
const EJECT: u16 = 0x62c;

/// Releases what it is asked for, for ever.
fn obey(cpu: &mut SimCpu<'_>) {
    loop {
        let down = cpu.port_read32(DOWN);
        if down != 0 {
            cpu.port_write32(EJECT, down);
        }
    }
}

fn ignore(cpu: &mut SimCpu<'_>) {
    loop {
        cpu.port_read8(0x80);
    }
}

#[test]
fn a_machine_goes_through_its_states_and_refuses_what_is_not_for_them() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start(&sim);
    for request in [Request::Info, Request::Boot, Request::Pause, Request::Delete, Request::PowerButton] {
        assert_eq!(kind(control.call(request)), ErrorKind::NotFound);
    }
    control.done(Request::Create(config(&folder)));
    assert_eq!(kind(control.call(Request::Create(config(&folder)))), ErrorKind::Conflict);
    assert_eq!(control.state(), VmState::Created);
    for request in [Request::Pause, Request::Resume, Request::Shutdown, Request::Reboot] {
        assert_eq!(kind(control.call(request)), ErrorKind::State);
    }
    for _ in 0..2 {
        control.done(Request::Boot);
        assert_eq!(control.state(), VmState::Running);
        assert_eq!(kind(control.call(Request::Boot)), ErrorKind::State);
        assert_eq!(kind(control.call(Request::Resume)), ErrorKind::State);
        control.done(Request::Pause);
        assert_eq!(kind(control.call(Request::Pause)), ErrorKind::State);
        assert_eq!(control.state(), VmState::Paused);
        control.done(Request::Resume);
        control.done(Request::Reboot);
        assert_eq!(control.state(), VmState::Running);
        control.done(Request::Shutdown);
        assert_eq!(control.state(), VmState::Created);
    }
    assert_eq!(kind(control.call(Request::Unsupported("vm.snapshot"))), ErrorKind::NotSupported);
    control.done(Request::Delete);
    assert_eq!(kind(control.call(Request::Info)), ErrorKind::NotFound);
    assert!(matches!(control.end(), Ended::Terminated));
}

#[test]
fn a_paused_cpu_does_nothing_until_it_goes_on() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let steps = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&steps);
    sim.program(0, move |cpu| {
        loop {
            cpu.port_read8(0x80);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let control = Control::start(&sim);
    control.done(Request::Create(config(&folder)));
    control.done(Request::Boot);
    control.done(Request::Pause);
    // The step it was in is told by the simulation after the CPU has parked, once.
    let before = steps.load(Ordering::SeqCst);
    for _ in 0..1000 {
        control.info();
    }
    assert!(steps.load(Ordering::SeqCst) <= before + 1);
    control.done(Request::Resume);
    let resumed = steps.load(Ordering::SeqCst);
    while steps.load(Ordering::SeqCst) < resumed + 2 {
        std::thread::yield_now();
    }
    control.end();
}

#[test]
fn a_disk_comes_and_goes_and_its_image_is_free_again() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let path = folder.sparse("disk", 1 << 20);
    sim.program(0, obey);
    let control = Control::start(&sim);
    control.done(Request::Create(config(&folder)));
    control.done(Request::Boot);
    for _ in 0..3 {
        let added = control.call(disk(path.clone(), "data")).unwrap();
        let Reply::Json(added) = added else { panic!("{added:?}") };
        assert_eq!(added["id"], "data");
        assert_eq!(control.info()["device_tree"]["data"]["pci_bdf"], added["bdf"]);
        assert_eq!(
            kind(control.call(disk(path.clone(), "again"))),
            ErrorKind::BadRequest,
            "it is used already"
        );
        assert_eq!(kind(control.call(disk(folder.join("none"), "none"))), ErrorKind::BadRequest);
        assert_eq!(control.disks(), BTreeSet::from(["data".to_owned()]), "what failed changed nothing");
        control.done(remove("data", false, 30_000));
        control.wait_for("device-removed");
        assert!(control.info()["device_tree"].get("data").is_none());
    }
    assert_eq!(kind(control.call(remove("data", false, 1))), ErrorKind::NotFound);
    assert_eq!(kind(control.call(remove("__rng", true, 1))), ErrorKind::BadRequest);
    control.end();
}

#[test]
fn what_the_guest_keeps_stays_until_it_is_forced_or_the_guest_restarts() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (first, second) = (folder.sparse("first", 1 << 20), folder.sparse("second", 1 << 20));
    sim.program(0, ignore);
    let control = Control::start(&sim);
    control.done(Request::Create(config(&folder)));
    control.done(Request::Boot);
    control.done(disk(first, "first"));
    control.done(disk(second, "second"));
    assert_eq!(kind(control.call(remove("first", false, 1))), ErrorKind::Timeout);
    assert_eq!(kind(control.call(remove("second", false, 1))), ErrorKind::Timeout);
    assert_eq!(control.disks().len(), 2);
    control.done(remove("first", true, 1));
    assert_eq!(control.disks(), BTreeSet::from(["second".to_owned()]));
    control.done(Request::Reboot);
    assert!(control.disks().is_empty(), "a guest that starts anew has let go");
    control.end();
}

#[test]
fn a_machine_with_landlock_reaches_the_files_it_named_and_no_others() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    std::fs::create_dir(folder.join("later")).unwrap();
    let (named, other) = (folder.sparse("named", 1 << 20), folder.sparse("other", 1 << 20));
    let allowed = folder.sparse("later/allowed", 1 << 20);
    sim.program(0, ignore);
    let control = Control::start(&sim);
    let mut config = config(&folder);
    config.landlock_enable = true;
    let rule = LandlockConfig { path: folder.join("later"), access: LandlockAccess::ReadWrite };
    config.landlock_rules = vec![rule];
    config.disks.push(DiskConfig { path: Some(named), ..DiskConfig::default() });
    control.done(Request::Create(config));
    control.done(Request::Boot);
    control.done(disk(allowed, "allowed"));
    let refusal = control.call(disk(other, "other")).unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::BadRequest);
    assert!(refusal.message.contains("--landlock-rules"), "{}", refusal.message);
    control.done(Request::Reboot);
    control.end();
}

#[test]
fn a_disk_grows_while_the_guest_runs_and_never_shrinks() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let path = folder.sparse("disk", 1 << 20);
    sim.program(0, ignore);
    let control = Control::start(&sim);
    control.done(Request::Create(config(&folder)));
    control.done(Request::Boot);
    control.done(disk(path.clone(), "data"));
    let resize = |size| Request::ResizeDisk(ResizeDisk { id: "data".into(), desired_size: ByteSize(size) });
    control.done(resize(3 << 20));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
    for bad in [1 << 20, (4 << 20) + 1] {
        assert_eq!(kind(control.call(resize(bad))), ErrorKind::BadRequest);
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
    control.end();
}

#[test]
fn a_removal_that_waits_is_answered_when_the_machine_ends() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let path = folder.sparse("disk", 1 << 20);
    sim.program(0, ignore);
    let control = Control::start(&sim);
    control.done(Request::Create(config(&folder)));
    control.done(Request::Boot);
    control.done(disk(path, "data"));
    let removal = control.begin(remove("data", false, 600_000));
    assert_eq!(kind(control.call(remove("data", false, 1))), ErrorKind::Conflict);
    control.done(Request::Shutdown);
    assert_eq!(kind(removal.recv_timeout(STUCK).unwrap()), ErrorKind::Conflict);
    control.done(Request::Boot);
    assert_eq!(control.disks().len(), 1, "it was not removed");
    control.end();
}

#[test]
fn the_guests_own_power_off_ends_the_process() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let go = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&go);
    sim.program(0, move |cpu| {
        while !gone.load(Ordering::SeqCst) {
            cpu.port_read8(0x80);
        }
        cpu.port_write8(0x601, 5 << 2 | 1 << 5);
    });
    let control = Control::start(&sim);
    control.done(Request::Create(config(&folder)));
    control.done(Request::Boot);
    go.store(true, Ordering::SeqCst);
    control.wait_for("shutdown");
    assert!(matches!(control.thread.join().unwrap(), Ended::PoweredOff));
}

/// Random numbers that a seed decides.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

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

fn resize(ram: Option<u64>, balloon: Option<u64>) -> Request {
    Request::Resize(Resize {
        desired_ram: ram.map(|mib| ByteSize(mib << 20)),
        desired_balloon: balloon.map(|mib| ByteSize(mib << 20)),
        ..Resize::default()
    })
}

fn resize_zone(id: &str, mib: u64) -> Request {
    Request::ResizeZone(ResizeZone { id: id.into(), desired_ram: ByteSize(mib << 20) })
}

/// What a refused call says is at fault.
fn field(answer: Answer) -> String {
    answer.unwrap_err().field.unwrap_or_default()
}

#[test]
fn memory_and_balloon_get_the_sizes_they_can_have() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start(&sim);
    let mut config = config(&folder);
    config.memory.hotplug_method = HotplugMethod::VirtioMem;
    config.memory.hotplug_size = Some(ByteSize(256 << 20));
    config.balloon = Some(BalloonConfig::default());
    control.done(Request::Create(config));
    control.done(resize(Some(128), Some(32)));
    control.done(Request::Boot);
    let sizes = || {
        let config = &control.info()["config"];
        let mib = |value: &serde_json::Value| value.as_u64().unwrap_or(0) >> 20;
        let memory = &config["memory"];
        (mib(&memory["size"]), mib(&memory["hotplugged_size"]), mib(&config["balloon"]["size"]))
    };
    assert_eq!(sizes(), (128, 0, 32));
    control.done(resize(Some(384), None));
    control.done(resize(Some(192), Some(100)));
    assert_eq!(sizes(), (128, 64, 100));
    for (request, at_fault) in [
        (resize(Some(127), None), "desired_ram"),
        (resize(Some(385), None), "desired_ram"),
        (resize(Some(386), Some(0)), "desired_ram"),
        (resize(Some(193), None), "desired_ram"),
        (resize(Some(130), Some(385)), "desired_balloon"),
        (resize_zone("a", 128), "id"),
    ] {
        assert_eq!(field(control.call(request)), at_fault);
    }
    assert_eq!(sizes(), (128, 64, 100), "what is refused changes nothing");
    // No guest follows, so that none of it is in use.
    assert_eq!(control.info()["memory_actual_size"], 128 << 20);
    control.done(Request::Reboot);
    control.done(Request::Shutdown);
    control.done(Request::Boot);
    assert_eq!(sizes(), (128, 64, 100), "sizes outlive the machine");
    control.end();
}

#[test]
fn zones_grow_one_by_one() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::start(&sim);
    let mut config = config(&folder);
    let zone = |id: &str, most: Option<u64>| MemoryZoneConfig {
        id: id.into(),
        size: ByteSize(64 << 20),
        hotplug_size: most.map(|mib| ByteSize(mib << 20)),
        ..MemoryZoneConfig::default()
    };
    config.memory.size = ByteSize(0);
    config.memory.hotplug_method = HotplugMethod::VirtioMem;
    config.memory.zones = Some(vec![zone("a", Some(64)), zone("b", None), zone("c", Some(1024))]);
    control.done(Request::Create(config));
    control.done(Request::Boot);
    control.done(resize_zone("c", 1064));
    control.done(resize_zone("a", 128));
    let zones = &control.info()["config"]["memory"]["zones"];
    let sizes: Vec<_> = (0..3).map(|n| zones[n]["hotplugged_size"].as_u64().unwrap_or(0) >> 20).collect();
    assert_eq!(sizes, [64, 0, 1000]);
    assert_eq!(field(control.call(resize_zone("a", 130))), "desired_ram");
    assert_eq!(field(control.call(resize_zone("b", 128))), "id");
    assert_eq!(kind(control.call(resize_zone("d", 128))), ErrorKind::NotFound);
    assert_eq!(field(control.call(resize(Some(256), None))), "desired_ram");
    assert_eq!(field(control.call(resize(None, Some(0)))), "desired_balloon");
    control.end();
}

fn resize_to(cpus: Option<u32>, ram_mib: Option<u64>) -> Request {
    let desired_ram = ram_mib.map(|mib| ByteSize(mib << 20));
    Request::Resize(Resize { desired_vcpus: cpus, desired_ram, desired_balloon: None })
}

/// Registers of the controllers of CPUs and of memory, relative to the first.
const CPU_HOTPLUG: u16 = 0x640;
const MEMORY_HOTPLUG: u16 = 0x660;
const STATUS: u16 = 4;
const NEXT: u16 = 8;
const ADDRESS: u16 = 20;
const SIZE: u16 = 28;
const CAME: u32 = 2;
const GOING: u32 = 4;
const LET_GO: u32 = 8;

/// Hears what a controller has to tell: the number and the status of one slot.
fn hear(cpu: &mut SimCpu<'_>, controller: u16) -> Option<(u32, u32)> {
    let number = cpu.port_read32(controller + NEXT);
    if number == u32::MAX {
        return None;
    }
    cpu.port_write32(controller, number);
    let status = cpu.port_read32(controller + STATUS);
    cpu.port_write32(controller + STATUS, status & (CAME | GOING));
    Some((number, status))
}

#[test]
fn cpus_come_and_go_and_come_again() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (sender, started) = channel();
    sim.program(0, |cpu| {
        loop {
            match hear(cpu, CPU_HOTPLUG) {
                Some((number, status)) if status & CAME != 0 => cpu.start_cpu(number),
                Some((_, status)) if status & GOING != 0 => cpu.port_write32(CPU_HOTPLUG + STATUS, LET_GO),
                _ => {}
            }
        }
    });
    for number in 1..4 {
        let sender = std::sync::Mutex::new(sender.clone());
        sim.program(number, move |cpu| {
            sender.lock().unwrap().send(cpu.id()).unwrap();
            // It is let go of in the midst of its accesses.
            ignore(cpu);
        });
    }
    let control = Control::start(&sim);
    let mut machine = config(&folder);
    machine.cpus.max_vcpus = Some(4);
    control.done(Request::Create(machine));
    control.done(Request::Boot);
    let next = || started.recv_timeout(STUCK).unwrap();
    for _ in 0..20 {
        control.done(resize_to(Some(3), None));
        assert_eq!(BTreeSet::from([next(), next()]), BTreeSet::from([1, 2]));
        assert_eq!(control.info()["config"]["cpus"]["boot_vcpus"], 3);
        control.done(resize_to(Some(1), None));
        control.wait_for("cpu-removed");
        control.wait_for("cpu-removed");
        assert_eq!(control.info()["config"]["cpus"]["boot_vcpus"], 1);
    }
    for count in [0, 5] {
        assert_eq!(kind(control.call(resize_to(Some(count), None))), ErrorKind::BadRequest);
    }
    control.end();
}

#[test]
fn a_restart_completes_what_the_guest_did_not_do() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    for number in 0..3 {
        sim.program(number, ignore);
    }
    let control = Control::start(&sim);
    let mut machine = config(&folder);
    machine.cpus.max_vcpus = Some(3);
    machine.memory.hotplug_size = Some(ByteSize(512 << 20));
    machine.memory.hotplugged_size = Some(ByteSize(128 << 20));
    control.done(Request::Create(machine));
    control.done(Request::Boot);
    let count = |name: &str| match control.call(Request::Inspect(Default::default())) {
        Ok(Reply::Json(tree)) => tree[name].as_object().unwrap().len(),
        other => panic!("{other:?}"),
    };
    control.done(resize_to(Some(3), Some(64 + 128 + 256)));
    assert_eq!((count("cpu"), count("memory_modules")), (3, 2));
    control.done(resize_to(Some(2), Some(64 + 128)));
    assert_eq!((count("cpu"), count("memory_modules")), (3, 2), "the guest has not let go");
    control.done(Request::Reboot);
    control.wait_for("rebooted");
    assert_eq!((count("cpu"), count("memory_modules")), (2, 1));
    assert_eq!(control.info()["memory_actual_size"], (64 + 128) << 20);
    control.done(resize_to(Some(3), None));
    assert_eq!(count("cpu"), 3);
    control.end();
}

#[test]
fn memory_modules_come_hold_what_is_written_and_go() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (sender, found) = channel();
    let sender = std::sync::Mutex::new(sender);
    sim.program(0, move |cpu| {
        loop {
            match hear(cpu, MEMORY_HOTPLUG) {
                Some((_, status)) if status & CAME != 0 => {
                    let mut wide = |register: u16| {
                        let mut word = |at| u64::from(cpu.port_read32(MEMORY_HOTPLUG + at));
                        word(register) | word(register + 4) << 32
                    };
                    let (address, size) = (wide(ADDRESS), wide(SIZE));
                    let last = address + size - 8;
                    // What was given back to the host has nothing of before.
                    assert_eq!((cpu.read64(address), cpu.read64(last)), (0, 0));
                    cpu.write64(address, 0x1111);
                    cpu.write64(last, 0x2222);
                    assert_eq!((cpu.read64(address), cpu.read64(last)), (0x1111, 0x2222));
                    sender.lock().unwrap().send(size >> 20).unwrap();
                }
                Some((_, status)) if status & GOING != 0 => {
                    cpu.port_write32(MEMORY_HOTPLUG + STATUS, LET_GO);
                }
                _ => {}
            }
        }
    });
    let control = Control::start(&sim);
    let mut machine = config(&folder);
    machine.memory.hotplug_size = Some(ByteSize(512 << 20));
    control.done(Request::Create(machine));
    control.done(Request::Boot);
    let memory = || control.info()["memory_actual_size"].as_u64().unwrap() >> 20;
    for _ in 0..5 {
        control.done(resize_to(None, Some(64 + 256)));
        assert_eq!(found.recv_timeout(STUCK).unwrap(), 256);
        control.done(resize_to(None, Some(64 + 256 + 128)));
        assert_eq!(found.recv_timeout(STUCK).unwrap(), 128);
        assert_eq!(memory(), 64 + 256 + 128);
        control.done(resize_to(None, Some(64 + 256)));
        control.wait_for("memory-removed");
        assert_eq!(memory(), 64 + 256);
        // Only 128M or all of it, from the 256M that are there; not more than there is room for; not below what is
        // there from the start.
        for size in [64 + 128, 64 + 250, 64 + 640, 32] {
            assert_eq!(kind(control.call(resize_to(None, Some(size)))), ErrorKind::BadRequest, "{size}");
        }
        control.done(resize_to(None, Some(64)));
        control.wait_for("memory-removed");
        assert_eq!(memory(), 64);
    }
    control.end();
}
