//! Each kind of device that comes and goes, on the simulated backend.

use crate::control::instructions::write32;
use crate::control::{Control, STUCK, add, config, eject, ignore, kind, obey, release, remove};
use hypervisor::sim::{Sim, SimCpu};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use vivarium_tests::host::Folder;
use vivarium_tests::shared_memory::{event, send};
use vivarium_tests::{Feature, lacks};
use vmm::api::request::{Resize, VmState};
use vmm::api::{ErrorKind, Request};
use vmm::config::{
    BalloonConfig, ByteSize, ChannelConfig, ConsoleConfig, ConsoleMode, CrashAction, CrashConfig,
    DeviceConfig, DiskConfig, HotplugMethod, IvshmemConfig, MemConfig, PciPlaceConfig, PvpanicConfig,
    RngConfig, RtcConfig, WatchdogAction, WatchdogConfig, WatchdogModel,
};

/// One of each kind that comes and goes, and the name of the first that has none.
fn kinds(folder: &Folder) -> Vec<(&'static str, DeviceConfig)> {
    vec![
        ("_disk0", DiskConfig { path: Some(folder.sparse("disk", 1 << 20)), ..DiskConfig::default() }.into()),
        (
            "__console",
            ConsoleConfig {
                mode: ConsoleMode::File,
                file: Some(folder.join("output")),
                channels: vec![ChannelConfig {
                    name: "org.example.0".into(),
                    socket: Some(folder.join("channel")),
                }],
                ..ConsoleConfig::default()
            }
            .into(),
        ),
        (
            "__ivshmem",
            IvshmemConfig {
                path: folder.sparse("shared", 1 << 20),
                size: ByteSize(1 << 20),
                ..Default::default()
            }
            .into(),
        ),
        ("_rng0", RngConfig::default().into()),
        ("__balloon", BalloonConfig { size: ByteSize(8 << 20), ..BalloonConfig::default() }.into()),
        ("__mem", MemConfig::default().into()),
        ("__watchdog", WatchdogConfig::default().into()),
        (
            "__watchdog_virtio",
            WatchdogConfig { model: WatchdogModel::Virtio, ..WatchdogConfig::default() }.into(),
        ),
        ("__pvpanic", PvpanicConfig::default().into()),
        ("_rtc0", RtcConfig::default().into()),
    ]
}

#[test]
fn every_kind_comes_and_goes_and_leaves_nothing_behind() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let mut machine = config(&folder);
    machine.memory.hotplug_method = HotplugMethod::VirtioMem;
    machine.memory.hotplug_size = Some(ByteSize(128 << 20));
    machine.mem = Vec::new().into();
    let control = Control::boot(&sim, machine);
    let tree = |control: &Control| control.info()["device_tree"].clone();
    let ids = |control: &Control| tree(control).as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    control.done(Request::Reboot);
    let (before, untouched) = (ids(&control), sim.resources());
    for (id, device) in kinds(&folder) {
        // Released by the guest twice, and torn out; the same name again at once.
        for force in [false, false, true, false] {
            control.done(add(device.clone()));
            assert!(tree(&control)[id]["pci_bdf"].is_string(), "{id}: {}", tree(&control));
            control.done(remove(id, force, 30_000));
            control.wait_for("device-removed");
            assert_eq!(ids(&control), before, "{id}");
        }
        // What came is there after a restart, in place or not.
        control.done(add(device.clone()));
        control.done(Request::Reboot);
        assert!(tree(&control)[id]["pci_bdf"].is_string(), "{id}");
        control.done(Request::Shutdown);
        control.done(Request::Boot);
        assert!(tree(&control)[id]["pci_bdf"].is_string(), "{id}");
        control.done(remove(id, true, 30_000));
        control.done(Request::Reboot);
        assert_eq!((ids(&control), sim.resources()), (before.clone(), untouched), "{id}");
    }
    control.end();
}

#[test]
fn shared_memory_that_goes_leaves_its_server_and_the_peers() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let socket = folder.join("server");
    let listener = UnixListener::bind(&socket).unwrap();
    let memory =
        std::fs::File::options().write(true).read(true).open(folder.sparse("memory", 1 << 20)).unwrap();
    let (joined, joins) = channel();
    let server = std::thread::spawn(move || {
        for connection in listener.incoming().take(3) {
            let mut connection = connection.unwrap();
            let event = event();
            for (number, descriptor) in
                [(0, None), (5, None), (-1, Some(&memory)), (9, Some(&event)), (5, Some(&event))]
            {
                send(&connection, number, descriptor.map(|file: &std::fs::File| file.as_raw_fd()));
            }
            joined.send(()).unwrap();
            // It may leave before it has read of the last peers.
            match connection.read(&mut [0]) {
                Ok(count) => assert_eq!(count, 0, "it has left"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
            }
        }
    });
    let mut machine = config(&folder);
    let shared = IvshmemConfig { socket: Some(socket), vectors: 2, ..IvshmemConfig::default() };
    machine.ivshmem = vec![shared.clone()].into();
    let control = Control::boot(&sim, machine);
    joins.recv_timeout(STUCK).unwrap();
    control.done(remove("__ivshmem", false, 30_000));
    let before = sim.resources();
    for force in [true, false] {
        control.done(add(shared.clone()));
        joins.recv_timeout(STUCK).unwrap();
        let address = control.info()["device_tree"]["__ivshmem"]["pci_bdf"].clone();
        let device = control.inspect(&format!("pci/{}", address.as_str().unwrap()));
        assert_eq!(device["number"], 5, "{device}");
        control.done(remove("__ivshmem", force, 30_000));
    }
    server.join().unwrap();
    control.done(Request::Reboot);
    assert_eq!(sim.resources(), before);
    control.end();
}

#[test]
fn consoles_come_with_their_channels_and_where_they_are_is_told() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let mut machine = config(&folder);
    let console = |mode, id: &str| ConsoleConfig { mode, id: Some(id.into()), ..ConsoleConfig::default() };
    machine.console = vec![console(ConsoleMode::Pty, "first")].into();
    let control = Control::boot(&sim, machine);
    let consoles = |control: &Control| match &control.info()["config"] {
        config if config["consoles"].is_array() => config["consoles"].as_array().unwrap().clone(),
        config => vec![config["console"].clone()],
    };
    let terminal = |console: &Value| {
        let path = console["file"].as_str().unwrap_or_else(|| panic!("{console}")).to_owned();
        assert!(path.starts_with("/dev/pts/"), "{path}");
        path
    };
    let socket = folder.join("channel");
    let channel = ChannelConfig { name: "org.example.0".into(), socket: Some(socket.clone()) };
    let with_channel =
        |mode, id: &str| ConsoleConfig { channels: vec![channel.clone()], ..console(mode, id) };
    for force in [false, true] {
        control.done(add(with_channel(ConsoleMode::Pty, "second")));
        let [first, second] = <[Value; 2]>::try_from(consoles(&control)).unwrap();
        assert_ne!(terminal(&first), terminal(&second));
        drop(UnixStream::connect(&socket).unwrap());
        let refusal = control.call(add(with_channel(ConsoleMode::Off, "third"))).unwrap_err();
        assert!(
            refusal.message.contains("--channel name=org.example.0: is given to two channels"),
            "{refusal}"
        );
        control.done(remove("second", force, 30_000));
        // A busy host may take longer to close it than the answer waits.
        while socket.exists() {
            std::thread::yield_now();
        }
        assert_eq!(consoles(&control).len(), 1);
    }
    // A channel alone, and what is no console.
    control.done(add(with_channel(ConsoleMode::Off, "third")));
    assert!(socket.exists());
    let refusal = control.call(add(ConsoleConfig::default())).unwrap_err();
    assert!(refusal.message.starts_with("--console: is off; say where it ends"), "{refusal}");
    let missing = ConsoleConfig { mode: ConsoleMode::File, ..ConsoleConfig::default() };
    assert_eq!(kind(control.call(add(missing))), ErrorKind::BadRequest);
    control.done(remove("first", false, 30_000));
    control.done(remove("third", false, 30_000));
    let none = control.info()["config"]["console"].clone();
    assert_eq!((none["mode"].as_str(), none["channels"].as_array().map(Vec::len)), (Some("Off"), Some(0)));
    control.end();
}

#[test]
fn there_is_one_balloon_at_most_and_sizes_are_refused_without() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let control = Control::boot(&sim, config(&folder));
    let resize = |size| {
        let desired_balloon = Some(ByteSize(size));
        Request::Resize(Resize { desired_balloon, ..Resize::default() })
    };
    let balloon = |size| BalloonConfig { size: ByteSize(size), ..BalloonConfig::default() };
    for force in [false, true] {
        let refusal = control.call(resize(4 << 20)).unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.field.as_deref()),
            (ErrorKind::BadRequest, Some("desired_balloon"))
        );
        assert_eq!(kind(control.call(add(balloon(1 << 40)))), ErrorKind::BadRequest, "more than the memory");
        control.done(add(balloon(4 << 20)));
        let refusal = control.call(add(balloon(0))).unwrap_err();
        assert!(refusal.message.contains("there is only one"), "{refusal}");
        control.done(resize(8 << 20));
        assert_eq!(control.info()["config"]["balloon"]["size"], 8 << 20);
        assert_eq!(control.inspect("memory_devices/balloon")["size"], 8 << 20, "{force}");
        control.done(remove("__balloon", force, 30_000));
        let info = control.info();
        assert_eq!(
            (&info["config"]["balloon"], &info["memory_actual_size"]),
            (&Value::Null, &(64 << 20).into())
        );
        assert!(control.inspect("memory_devices")["balloon"].is_null());
    }
    control.end();
}

/// The guest arms two watchdogs. One of them would end the machine.
#[test]
fn an_armed_watchdog_that_goes_is_heard_no_more_and_another_is() {
    if lacks(Feature::Ports) {
        return;
    }
    for force in [false, true] {
        let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
        let hurry = Arc::new(AtomicBool::new(false));
        let hurries = Arc::clone(&hurry);
        sim.program(0, move |cpu| {
            // By configuration mechanism 1: the lock register enables the timer, of two stages of 1030 seconds, or of one second
            // with the clock register's bit for it.
            let write = |cpu: &mut SimCpu<'_>, register: u32, value| {
                for device in [7_u32, 8] {
                    cpu.port_write32(0xcf8, 0x8000_0000 | device << 11 | register);
                    cpu.port_write8(0xcfc, value);
                }
            };
            write(cpu, 0x68, 2);
            loop {
                release(cpu);
                if hurries.swap(false, Ordering::SeqCst) {
                    for (register, value) in [(0x68, 0), (0x60, 4), (0x68, 2)] {
                        write(cpu, register, value);
                    }
                }
            }
        });
        let watchdog = |id: &str, device, action| WatchdogConfig {
            action,
            model: WatchdogModel::I6300esb,
            id: Some(id.into()),
            pci_device_id: Some(device),
            ..WatchdogConfig::default()
        };
        let ends = watchdog("ends", 7, WatchdogAction::Poweroff);
        let mut machine = config(&folder);
        machine.watchdog = vec![ends.clone(), watchdog("tells", 8, WatchdogAction::None)].into();
        let control = Control::boot(&sim, machine);
        let armed = |device| !control.inspect(&format!("pci/0000:00:0{device}.0"))["deadline_ns"].is_null();
        while !armed(7) || !armed(8) {}
        control.done(remove("ends", force, 30_000));
        hurry.store(true, Ordering::SeqCst);
        control.wait_for("watchdog");
        assert_eq!(control.state(), VmState::Running);
        if !force {
            control.done(add(ends));
            assert!(!armed(7), "one of that name begins anew");
        }
        control.end();
    }
}

/// The guest reports panics at the port of the mainboard, which is there from a start of the guest.
#[test]
fn panics_are_heard_while_there_is_a_device_for_them() {
    if lacks(Feature::Ports) {
        return;
    }
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    let (panics, reported) = (Arc::new(AtomicBool::new(false)), channel());
    let panicking = Arc::clone(&panics);
    let sender = std::sync::Mutex::new(reported.0);
    sim.program(0, move |cpu| {
        loop {
            release(cpu);
            if panicking.swap(false, Ordering::SeqCst) {
                cpu.port_write8(0x505, 1);
                // It has been heard, or not, when the guest goes on.
                sender.lock().unwrap().send(()).unwrap();
            }
        }
    });
    let mut machine = config(&folder);
    machine.on_crash = Some(CrashConfig { action: CrashAction::Pause, ..CrashConfig::default() });
    let control = Control::boot(&sim, machine);
    let on_board = || !control.inspect("platform")["pvpanic"].is_null();
    let shown = || control.info()["config"]["pvpanic"].clone();
    for again in [Request::Reboot, Request::Shutdown] {
        assert_eq!((on_board(), shown()), (true, true.into()));
        let refusal = control.call(add(PvpanicConfig::default())).unwrap_err();
        assert!(refusal.message.contains("--pvpanic: the machine has one already"), "{refusal}");
        control.done(remove("__pvpanic", false, 30_000));
        panics.store(true, Ordering::SeqCst);
        reported.1.recv_timeout(STUCK).unwrap();
        assert_eq!((on_board(), shown(), control.state()), (true, false.into(), VmState::Running));
        let ends = matches!(again, Request::Shutdown);
        control.done(again);
        if ends {
            control.done(Request::Boot);
        }
        assert_eq!((on_board(), shown()), (false, false.into()));
        control.done(add(PvpanicConfig { pci_device_id: Some(9), ..PvpanicConfig::default() }));
        assert_eq!(control.info()["config"]["pvpanic_device"]["pci_device_id"], 9);
        assert_eq!((on_board(), shown()), (false, true.into()));
        control.done(Request::Reboot);
    }
    panics.store(true, Ordering::SeqCst);
    control.wait_for("panic");
    while control.state() != VmState::Paused {}
    control.end();
}

#[test]
fn a_guest_that_nobody_asked_does_without_its_disk_and_not_without_what_watches_it() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, |cpu| {
        write32(cpu, eject(), !0);
        ignore(cpu);
    });
    let mut machine = config(&folder);
    let path = Some(folder.sparse("disk", 1 << 20));
    machine.disks = vec![DiskConfig { path, id: Some("data".into()), ..DiskConfig::default() }];
    machine.watchdog = vec![WatchdogConfig::default()].into();
    machine.pvpanic = Some(PvpanicConfig::default());
    let control = Control::boot(&sim, machine);
    control.wait_for("device-removed");
    let tree = control.info()["device_tree"].clone();
    let ids: Vec<_> = tree.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(ids, ["__pvpanic", "__rng", "__watchdog", "__watchdog_virtio"]);
    control.end();
}

#[test]
fn what_the_machine_began_with_goes_too_and_stays_away() {
    let (sim, folder) = (Arc::new(Sim::new()), Folder::new());
    sim.program(0, obey);
    let mut machine = config(&folder);
    let place = PciPlaceConfig { id: "__rng".into(), pci_device_id: Some(9), ..PciPlaceConfig::default() };
    machine.pci_places = vec![place];
    let control = Control::boot(&sim, machine);
    control.done(remove("__rng", false, 30_000));
    for again in [Request::Reboot, Request::Shutdown] {
        control.done(again);
        let config = &control.info()["config"];
        assert_eq!((&config["rng"], &config["rngs"]), (&Value::Null, &serde_json::json!([])));
    }
    control.done(Request::Boot);
    assert!(control.info()["device_tree"].get("__rng").is_none());
    // Its name is free, and so is its place.
    control.done(add(RngConfig::default()));
    assert_ne!(control.info()["device_tree"]["__rng"]["pci_bdf"], "0000:00:09.0");
    let rng = RngConfig { pci_device_id: Some(9), ..RngConfig::default() };
    control.done(add(rng));
    assert_eq!(control.info()["device_tree"]["_rng0"]["pci_bdf"], "0000:00:09.0");
    control.end();
}
