//! Devices that come and go, on the simulated backend.

use crate::control::{Control, STUCK, add, config, disk, ignore, kind, obey, release, remove};
use hypervisor::sim::Sim;
use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use vivarium_tests::host::{Folder, HangingFile};
use vmm::api::request::{
    AddDevice, DeviceQueueAffinity, Opening, ResizeDisk, SetAffinity, SetLink, SetRateLimit,
};
use vmm::api::{ErrorKind, Reply, Request};
use vmm::config::{
    BalloonConfig, ByteSize, CpuAffinity, DiskConfig, NetConfig, PciPlaceConfig, PciPortConfig, PmemConfig,
    RateLimitGroupConfig, RateLimiterConfig, RtcConfig, TokenBucketConfig, WatchdogConfig,
};

#[test]
fn a_disk_comes_and_goes_and_its_image_is_free_again() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let path = folder.sparse("disk", 1 << 20);
    sim.program(0, obey);
    let control = Control::boot(&sim, config(&folder));
    for _ in 0..3 {
        let added = control.call(disk(path.clone(), "data")).unwrap();
        let Reply::Json(added) = added else { panic!("{added:?}") };
        assert_eq!(added["id"], "data");
        assert_eq!(control.info()["device_tree"]["data"]["pci_bdf"], added["bdf"]);
        assert_eq!(control.wait_for("device-added"), added);
        assert_eq!(
            kind(control.call(disk(path.clone(), "again"))),
            ErrorKind::BadRequest,
            "it is used already"
        );
        assert_eq!(kind(control.call(disk(folder.join("none"), "none"))), ErrorKind::BadRequest);
        assert_eq!(control.disks(), BTreeSet::from(["data".to_owned()]), "what failed changed nothing");
        control.done(remove("data", false, 30_000));
        assert_eq!(control.wait_for("device-removing")["id"], "data");
        assert_eq!(control.wait_for("device-removed")["id"], "data");
        assert!(control.info()["device_tree"].get("data").is_none());
    }
    assert_eq!(kind(control.call(remove("data", false, 1))), ErrorKind::NotFound);
    control.end();
}

#[test]
fn the_clock_comes_and_goes_and_there_is_one_at_most() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let control = Control::boot(&sim, config(&folder));
    for _ in 0..2 {
        control.done(add(RtcConfig::default()));
        assert!(control.info()["device_tree"]["_rtc0"]["pci_bdf"].is_string());
        assert_eq!(kind(control.call(add(RtcConfig::default()))), ErrorKind::BadRequest);
        control.done(remove("_rtc0", false, 30_000));
        control.wait_for("device-removed");
    }
    control.end();
}

#[test]
fn what_the_guest_keeps_stays_until_it_is_forced_or_the_guest_restarts() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (first, second) = (folder.sparse("first", 1 << 20), folder.sparse("second", 1 << 20));
    sim.program(0, ignore);
    let control = Control::boot(&sim, config(&folder));
    control.done(disk(first, "first"));
    control.done(disk(second, "second"));
    assert_eq!(kind(control.call(remove("first", false, 1))), ErrorKind::Timeout);
    assert_eq!(control.wait_for("device-removal-overdue")["id"], "first");
    assert_eq!(kind(control.call(remove("second", false, 1))), ErrorKind::Timeout);
    assert_eq!(control.wait_for("device-removal-overdue")["id"], "second");
    assert_eq!(control.disks().len(), 2);
    control.done(remove("first", true, 1));
    assert_eq!(control.disks(), BTreeSet::from(["second".to_owned()]));
    control.done(Request::Reboot);
    assert!(control.disks().is_empty(), "a guest that starts anew has let go");
    control.end();
}

#[test]
fn a_paused_guest_is_not_waited_for() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let mut machine = config(&folder);
    machine.pci_ports = vec![PciPortConfig { id: "rp0".into(), ..PciPortConfig::default() }];
    let control = Control::boot(&sim, machine);
    control.done(disk(folder.sparse("first", 1 << 20), "first"));
    control.done(disk(folder.sparse("second", 1 << 20), "second"));
    let path = Some(folder.sparse("third", 1 << 20));
    control.done(add(DiskConfig {
        path,
        id: Some("third".into()),
        bus: Some("rp0".into()),
        ..DiskConfig::default()
    }));
    control.done(Request::Pause);
    // Its slot has no power: the guest does not use it.
    control.done(remove("third", false, 600_000));
    let refused = control.call(remove("first", false, 600_000)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.message.starts_with("device first: the machine is paused"), "{refused}");
    assert_eq!(control.disks().len(), 2);
    control.done(remove("first", true, 30_000));
    control.done(Request::Resume);
    control.done(remove("second", false, 30_000));
    assert!(control.disks().is_empty());
    control.end();
}

#[test]
fn a_disk_grows_while_the_guest_runs_and_never_shrinks() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let path = folder.sparse("disk", 1 << 20);
    sim.program(0, ignore);
    let control = Control::boot(&sim, config(&folder));
    control.done(disk(path.clone(), "data"));
    let resize = |size| Request::ResizeDisk(ResizeDisk { id: "data".into(), desired_size: ByteSize(size) });
    control.done(resize(3 << 20));
    let told = control.wait_for("disk-resized");
    assert_eq!((&told["id"], &told["size"]), (&"data".into(), &(3 << 20).into()));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
    for bad in [1 << 20, (4 << 20) + 1] {
        assert_eq!(kind(control.call(resize(bad))), ErrorKind::BadRequest);
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
    control.end();
}

#[test]
fn a_limit_that_would_let_nothing_pass_is_refused_and_changes_nothing() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let control = Control::boot(&sim, config(&folder));
    control.done(disk(folder.sparse("disk", 1 << 20), "data"));
    let before = control.info();
    let bucket = |size, refill_time| Some(TokenBucketConfig { size, refill_time, ..Default::default() });
    let set = |bandwidth| {
        let limits = RateLimiterConfig { bandwidth, ops: None };
        let request = SetRateLimit { id: "data".into(), rate_limiter_config: Some(limits) };
        control.call(Request::SetRateLimit(Box::new(request)))
    };
    for bad in [bucket(1 << 20, 0), bucket(0, 100), bucket(0, 0)] {
        assert_eq!(kind(set(bad)), ErrorKind::BadRequest);
        assert_eq!(control.info(), before);
    }
    set(bucket(1 << 20, 100)).unwrap();
    assert_ne!(control.info(), before);
    control.done(disk(folder.sparse("other", 1 << 20), "other"));
    control.end();
}

fn limits(size: u64) -> RateLimiterConfig {
    let bucket = TokenBucketConfig { size, refill_time: 1000, ..Default::default() };
    RateLimiterConfig { bandwidth: Some(bucket), ops: None }
}

fn limit(id: &str, limits: Option<RateLimiterConfig>) -> Request {
    Request::SetRateLimit(Box::new(SetRateLimit { id: id.into(), rate_limiter_config: limits }))
}

#[test]
fn a_group_of_disks_is_limited_anew_and_none_of_them_alone() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let mut config = config(&folder);
    config.rate_limit_groups =
        vec![RateLimitGroupConfig { id: "g".into(), rate_limiter_config: limits(1 << 20) }];
    for id in ["a", "b", "g"] {
        let (path, group) = (Some(folder.sparse(id, 1 << 20)), Some("g".into()));
        config.disks.push(DiskConfig {
            path,
            id: Some(id.into()),
            rate_limit_group: group,
            ..Default::default()
        });
    }
    let control = Control::boot(&sim, config);
    let of = |control: &Control| {
        control.info()["config"]["rate_limit_groups"][0]["rate_limiter_config"]["bandwidth"]["size"].clone()
    };
    let alone = control.call(limit("a", Some(limits(2 << 20)))).unwrap_err();
    assert_eq!(alone.kind, ErrorKind::BadRequest);
    for nothing in [None, Some(RateLimiterConfig::default()), Some(limits(0))] {
        assert_eq!(kind(control.call(limit("g", nothing))), ErrorKind::BadRequest);
    }
    assert_eq!(of(&control), 1 << 20);
    control.done(limit("g", Some(limits(2 << 20))));
    assert_eq!(of(&control), 2 << 20);
    let functions = control.inspect("pci");
    let disks = functions
        .as_object()
        .unwrap()
        .values()
        .filter(|function| !function["device"]["rate_limit"].is_null());
    let limited: Vec<_> = disks.map(|disk| disk["device"]["rate_limit"]["bytes"]["size"].clone()).collect();
    assert_eq!(limited, [2 << 20; 3]);
    assert_eq!(kind(control.call(limit("none", None))), ErrorKind::NotFound);
    control.end();
}

#[test]
fn a_machine_that_is_created_is_limited_linked_and_placed_before_it_runs() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let mut config = config(&folder);
    config.cpus.max_vcpus = Some(2);
    config.net = vec![NetConfig { id: Some("n".into()), ..Default::default() }];
    let control = Control::start(&sim);
    control.done(Request::Create(config));
    control.done(disk(folder.sparse("disk", 1 << 20), "d"));
    // SAFETY: only tells where this thread runs.
    let here = usize::try_from(unsafe { libc::sched_getcpu() }).unwrap();
    let cpus = |vcpu| vec![CpuAffinity { vcpu, host_cpus: vec![here] }];
    let queues = |id: &str, queue_index| {
        vec![DeviceQueueAffinity { id: id.into(), queue_index, host_cpus: vec![here] }]
    };
    let place = |cpus, queues| Request::SetAffinity(SetAffinity { cpus, queues });
    let link = |id: &str| Request::SetLink(SetLink { id: id.into(), up: false });
    control.done(limit("d", Some(limits(1 << 20))));
    control.done(limit("n", Some(limits(2 << 20))));
    control.done(link("n"));
    control.done(place(cpus(1), [queues("d", 0), queues("n", 2)].concat()));
    let before = control.info();
    for refused in [
        limit("x", None),
        link("d"),
        place(cpus(2), Vec::new()),
        place(cpus(0), queues("d", 1)),
        place(cpus(0), queues("n", 3)),
        place(cpus(0), queues("x", 0)),
    ] {
        let name = format!("{refused:?}");
        assert_eq!(kind(control.call(refused)), ErrorKind::NotFound, "{name}");
    }
    assert_eq!(control.info(), before, "what is refused changes nothing");
    let config = &before["config"];
    assert_eq!(config["disks"][0]["rate_limiter_config"]["bandwidth"]["size"], 1 << 20);
    assert_eq!(config["net"][0]["rate_limiter_config"]["bandwidth"]["size"], 2 << 20);
    assert_eq!(config["net"][0]["link"], false);
    assert_eq!(config["cpus"]["affinity"][0]["vcpu"], 1);
    assert_eq!(config["disks"][0]["queue_affinity"][0]["host_cpus"][0], here);
    assert_eq!(config["net"][0]["queue_affinity"][0]["queue_index"], 2);
    control.end();
}

#[test]
fn a_removal_that_waits_is_answered_when_the_machine_ends() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let path = folder.sparse("disk", 1 << 20);
    sim.program(0, ignore);
    let control = Control::boot(&sim, config(&folder));
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
fn an_image_that_cannot_be_opened_in_time_keeps_nothing_else_waiting() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let image = |name: &str| (folder.sparse(name, 1 << 20), HangingFile::new(&folder.join(name)));
    let ((slow, slow_hangs), (stuck, stuck_hangs), (last, last_hangs)) =
        (image("slow"), image("stuck"), image("last"));
    let disk_of = |path: &std::path::Path, id: &str, timeout_ms| {
        let (path, id) = (Some(path.to_owned()), Some(id.to_owned()));
        let device = DiskConfig { path, id, ..DiskConfig::default() }.into();
        Request::Add(AddDevice { device, opening: Opening { timeout_ms: Some(timeout_ms) } })
    };
    sim.program(0, obey);
    let control = Control::boot(&sim, config(&folder));
    let first = control.begin(disk_of(&slow, "slow", 600_000));
    // Queries and changes are done meanwhile, but not by the same name.
    assert_eq!(kind(control.call(disk_of(&stuck, "slow", 600_000))), ErrorKind::BadRequest);
    control.done(disk(folder.sparse("other", 1 << 20), "other"));
    control.done(Request::Pause);
    control.done(Request::Resume);
    control.done(Request::Reboot);
    assert_eq!(control.disks(), BTreeSet::from(["other".to_owned()]));
    let late = control.call(disk_of(&stuck, "stuck", 1)).unwrap_err();
    assert_eq!(late.kind, ErrorKind::Timeout);
    assert!(
        late.message.starts_with(&format!("--disk path={}: the host did not", stuck.display())),
        "{late}"
    );
    // What was given up is forgotten: the name is free, and the image, when it comes, is dropped.
    control.done(disk(folder.sparse("another", 1 << 20), "stuck"));
    drop(stuck_hangs);
    drop(slow_hangs);
    assert!(first.recv_timeout(STUCK).unwrap().is_ok());
    assert_eq!(control.disks(), BTreeSet::from(["other", "slow", "stuck"].map(str::to_owned)));
    let waiting = control.begin(disk_of(&last, "last", 600_000));
    control.done(Request::Shutdown);
    assert_eq!(kind(waiting.recv_timeout(STUCK).unwrap()), ErrorKind::Conflict);
    drop(last_hangs);
    control.end();
}

#[test]
fn persistent_memory_comes_is_written_goes_and_comes_again() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let files = [folder.sparse("a", 4 << 20), folder.sparse("b", 2 << 20)];
    let (sender, addresses) = channel::<u64>();
    let addresses = Mutex::new(addresses);
    let (written, heard) = channel();
    let written = Mutex::new(written);
    sim.program(0, move |cpu| {
        loop {
            if let Ok(address) = addresses.lock().unwrap().try_recv() {
                let before = cpu.read64(address);
                cpu.write64(address, address | 1);
                written.lock().unwrap().send(before).unwrap();
            }
            release(cpu);
        }
    });
    let mut machine = config(&folder);
    let pmem = |index: usize, id: &str| PmemConfig {
        file: Some(files[index].clone()),
        id: Some(id.into()),
        ..PmemConfig::default()
    };
    machine.pmem = vec![pmem(0, "boot")];
    machine.disks = vec![DiskConfig { path: Some(folder.sparse("disk", 1 << 20)), ..DiskConfig::default() }];
    let control = Control::boot(&sim, machine);
    let place = |id: &str| {
        let tree = control.inspect("pci");
        let device =
            tree.as_object().unwrap().values().find(|function| function["id"] == id).unwrap().clone();
        let start = device["device"]["start"].as_str().unwrap().to_owned();
        u64::from_str_radix(start.trim_start_matches("0x"), 16).unwrap()
    };
    let use_it = |id: &str| {
        let address = place(id);
        sender.send(address).unwrap();
        (address, heard.recv_timeout(STUCK).unwrap())
    };
    let content =
        |index: usize| u64::from_le_bytes(std::fs::read(&files[index]).unwrap()[..8].try_into().unwrap());
    let (first, before) = use_it("boot");
    assert_eq!((before, content(0)), (0, first | 1));
    for _ in 0..3 {
        control.done(add(pmem(1, "later")));
        let (second, _) = use_it("later");
        assert_eq!(content(1), second | 1);
        assert_eq!(kind(control.call(add(pmem(1, "again")))), ErrorKind::BadRequest, "it is locked");
        control.done(remove("later", false, 30_000));
    }
    // What was there from the start goes too, and its file and place can be had again.
    control.done(remove("boot", false, 30_000));
    control.done(add(pmem(0, "boot")));
    assert_eq!(use_it("boot"), (first, first | 1));
    let huge = PmemConfig { size: Some(ByteSize(1 << 40)), ..pmem(1, "huge") };
    assert_eq!(kind(control.call(add(huge))), ErrorKind::BadRequest);
    control.done(Request::Reboot);
    control.done(add(pmem(1, "later")));
    control.end();
}

#[test]
fn every_device_is_where_it_was_told_to_be() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let place = |id: &str, bus: Option<&str>, device| PciPlaceConfig {
        id: id.into(),
        bus: bus.map(str::to_owned),
        pci_device_id: device,
        ..PciPlaceConfig::default()
    };
    let mut machine = config(&folder);
    let port = |id: &str| PciPortConfig { id: id.into(), ..PciPortConfig::default() };
    machine.pci_ports = vec![port("rp0"), port("rp1")];
    machine.balloon = Some(BalloonConfig::default());
    machine.watchdog = vec![WatchdogConfig::default()].into();
    machine.pci_places = vec![
        place("__rng", None, Some(20)),
        place("__balloon", Some("rp0"), None),
        place("__watchdog", None, Some(7)),
    ];
    let pmem = PmemConfig {
        file: Some(folder.sparse("pmem", 2 << 20)),
        id: Some("pmem".into()),
        ..PmemConfig::default()
    };
    machine.pmem = vec![PmemConfig { bus: Some("rp1".into()), ..pmem }];
    let control = Control::boot(&sim, machine.clone());
    let tree = control.info()["device_tree"].clone();
    for (id, bdf) in [
        ("__rng", "0000:00:14.0"),
        ("__balloon", "0000:01:00.0"),
        ("__watchdog", "0000:00:07.0"),
        ("pmem", "0000:02:00.0"),
    ] {
        assert_eq!(tree[id]["pci_bdf"], bdf, "{id}");
    }
    assert_eq!(kind(control.call(remove("rp0", true, 1))), ErrorKind::BadRequest);
    control.done(Request::Delete);
    machine.pci_places.push(place("__console", None, None));
    control.done(Request::Create(machine));
    let refusal = control.call(Request::Boot).unwrap_err();
    assert!(
        refusal.message.contains("--pci-place id=__console: the machine has no device of that name"),
        "{refusal}"
    );
    control.end();
}

#[test]
fn while_the_guest_runs_function_0_comes_last() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, ignore);
    let mut machine = config(&folder);
    machine.pci_ports = vec![PciPortConfig { id: "rp0".into(), ..PciPortConfig::default() }];
    let disk = |name: &str, bus: Option<&str>, function| DiskConfig {
        path: Some(folder.sparse(name, 1 << 20)),
        id: Some(name.into()),
        pci_device_id: bus.is_none().then_some(9),
        bus: bus.map(str::to_owned),
        pci_function: function,
        ..DiskConfig::default()
    };
    let control = Control::boot(&sim, machine.clone());
    for bus in [None, Some("rp0")] {
        let name = |function| format!("{}{function}", bus.unwrap_or("root"));
        control.done(add(disk(&name(2), bus, 2)));
        control.done(add(disk(&name(0), bus, 0)));
    }
    // The guest knows of several functions, and looks for more when it is told of a change on the root bus.
    control.done(add(disk("root1", None, 1)));
    let late = control.call(add(disk("late", Some("rp0"), 1))).unwrap_err().message;
    assert!(
        late.contains("bus=rp0: the guest has been told") && late.contains("add function 0 last"),
        "{late}"
    );
    control.done(add(DiskConfig { pci_device_id: Some(10), ..disk("single", None, 0) }));
    let late = DiskConfig { pci_device_id: Some(10), ..disk("late", None, 1) };
    let late = control.call(add(late)).unwrap_err().message;
    assert!(
        late.contains("pci_device_id=10: the guest took") && late.contains("add function 0 last"),
        "{late}"
    );
    control.done(Request::Delete);
    // A machine that is not started is to have function 0 first.
    control.done(Request::Create(machine));
    let stray = control.call(add(disk("stray", None, 1))).unwrap_err().message;
    assert!(stray.contains("there is no function 0 at pci_device_id=9"), "{stray}");
    control.done(add(disk("first", None, 0)));
    control.done(add(disk("second", None, 1)));
    control.end();
}
