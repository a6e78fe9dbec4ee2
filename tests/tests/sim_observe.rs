//! Looking at a machine on the simulated backend: its live tree, its figures, its core dump, and a debugger on its socket.

use hypervisor::sim::{Sim, SimCpu};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::tiny_kernel;
use vmm::api::request::{Coredump, Inspect, SetAffinity};
use vmm::api::{Answer, Call, ErrorKind, Interest, Reply, Request};
use vmm::config::{ByteSize, ConsoleMode, CpuAffinity, DiskConfig, VmConfig};
use vmm::message::{Event, Inbox};
use vmm::monitor::Monitor;

/// A call that takes longer has been forgotten, or waits for itself.
const STUCK: Duration = Duration::from_secs(60);

/// A machine with two CPUs that do as `program` says, and a disk.
struct Machine {
    inbox: Inbox,
    thread: JoinHandle<()>,
}

impl Machine {
    fn start(folder: &Folder, program: impl Fn(&mut SimCpu<'_>) + Send + Sync + 'static) -> Self {
        let kernel = folder.join("kernel");
        std::fs::write(&kernel, tiny_kernel::bytes()).unwrap();
        let mut config = VmConfig::default();
        config.payload.kernel = Some(kernel);
        config.memory.size = ByteSize(64 << 20);
        config.cpus.boot_vcpus = 2;
        config.console.mode = ConsoleMode::Off;
        config.disks.push(DiskConfig {
            path: Some(folder.sparse("disk", 1 << 20)),
            id: Some("data".to_owned()),
            ..DiskConfig::default()
        });
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            let sim = Arc::new(Sim::new());
            sim.program(0, program);
            let mut monitor = Monitor::new(sim as _).unwrap();
            monitor.boot(config).unwrap();
            assert!(monitor.await_boot(None).unwrap().is_none());
            sender.send(monitor.inbox()).unwrap();
            monitor.run().unwrap();
        });
        Self { inbox: receiver.recv().unwrap(), thread }
    }

    fn begin(&self, request: Request) -> Receiver<Answer> {
        let (sender, receiver) = channel();
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        self.inbox.tell(Event::Call(Call {
            request,
            files: Vec::new(),
            respond,
            interest: Interest::default(),
        }));
        receiver
    }

    fn call(&self, request: Request) -> Answer {
        let name = format!("{request:?}");
        self.begin(request).recv_timeout(STUCK).unwrap_or_else(|_| panic!("{name} was never answered"))
    }

    fn tree(&self, request: Request) -> Value {
        match self.call(request) {
            Ok(Reply::Json(tree)) => tree,
            other => panic!("{other:?}"),
        }
    }

    fn end(self) {
        assert!(self.call(Request::VmmShutdown).is_ok());
        self.thread.join().unwrap();
    }
}

fn at(path: &str) -> Request {
    Request::Inspect(Inspect { path: path.to_owned() })
}

fn idle(cpu: &mut SimCpu<'_>) {
    loop {
        cpu.port_read8(0x80);
    }
}

#[test]
fn a_running_machine_shows_its_parts_and_the_same_figures_everywhere() {
    let folder = Folder::new();
    let machine = Machine::start(&folder, idle);
    // The guest's accesses go on, and are counted.
    let reads = || machine.tree(at("cpu/0/exits/port_read/count")).as_u64().unwrap();
    let first = reads();
    while reads() == first {}
    assert_eq!(machine.tree(at("memory/0/size")), "64 MiB");
    let functions = machine.tree(at("pci"));
    let (address, _) = functions.as_object().unwrap().iter().find(|(_, tree)| tree["id"] == "data").unwrap();
    let queue = machine.tree(at(&format!("pci/{}/queue/0", address.trim_start_matches("0000:"))));
    assert_eq!((&queue["enabled"], &queue["counters"]["used"]), (&false.into(), &0.into()));
    let error = machine.call(at("pci/00:1f.7")).unwrap_err();
    assert_eq!((error.kind, error.field.as_deref()), (ErrorKind::NotFound, Some("path")));

    assert!(machine.call(Request::Pause).is_ok());
    let counters = machine.tree(Request::Counters);
    assert_eq!(counters["data"]["read_bytes"], 0);
    assert_eq!(counters["_cpu0"]["port_reads"], reads());
    let Ok(Reply::Text(metrics)) = machine.call(Request::Metrics) else { panic!("no text") };
    let line = format!("vivarium_cpu_port_reads_total{{cpu=\"0\"}} {}", reads());
    assert!(metrics.lines().any(|present| present == line), "{metrics}");
    assert!(metrics.contains("vivarium_disk_read_latency_seconds_count{device=\"data\"} 0\n"), "{metrics}");
    let of_queue = "vivarium_queue_read_latency_seconds_count{device=\"data\",queue=\"0\"} 0\n";
    assert!(metrics.contains(of_queue), "{metrics}");
    machine.end();
}

#[test]
fn orders_reach_cpus_that_run() {
    let folder = Folder::new();
    let (told, heard) = channel();
    let told = std::sync::Mutex::new(told);
    let machine = Machine::start(&folder, move |cpu| {
        loop {
            if cpu.interrupt() == Some(2) {
                let _ = told.lock().unwrap().send(());
            }
            cpu.port_read8(0x80);
        }
    });
    assert!(machine.call(Request::Nmi).is_ok());
    heard.recv_timeout(STUCK).expect("an NMI is vector 2 here");
    let affinity = |vcpu, host_cpu| {
        let cpus = vec![CpuAffinity { vcpu, host_cpus: vec![host_cpu] }];
        machine.call(Request::SetAffinity(SetAffinity { cpus, ..SetAffinity::default() }))
    };
    assert!(affinity(0, 0).is_ok());
    assert_eq!(affinity(9, 0).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(affinity(0, 1000).unwrap_err().kind, ErrorKind::BadRequest);
    machine.end();
}

fn coredump(path: &Path) -> Request {
    Request::Coredump(Coredump { destination_url: format!("file://{}", path.display()) })
}

#[test]
fn a_core_dump_is_what_readelf_and_gdb_read() {
    let folder = Folder::new();
    let machine = Machine::start(&folder, |cpu| {
        // A kernel's note, on a page of its own, and something to find.
        let mut note = [11, 24, 0].map(u32::to_le_bytes).concat();
        note.extend(b"VMCOREINFO\0\0OSRELEASE=6.1.0-test\nEND=");
        cpu.write(0x200_0000, &note);
        cpu.write64(0x180_0008, 0x1122_3344_5566_7788);
        cpu.port_read8(0x80);
        idle(cpu);
    });
    while machine.tree(at("cpu/0/exits/port_read/count")).as_u64() == Some(0) {}
    let path = folder.join("core");
    assert_eq!(machine.call(coredump(&path)).unwrap_err().kind, ErrorKind::State);
    assert!(machine.call(Request::Pause).is_ok());
    assert!(machine.call(coredump(&path)).is_ok());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the guest's secrets are in it");
    assert_eq!(machine.call(coredump(&path)).unwrap_err().kind, ErrorKind::Conflict);
    let elsewhere = Coredump { destination_url: "core".to_owned() };
    let error = machine.call(Request::Coredump(elsewhere)).unwrap_err();
    assert_eq!((error.kind, error.field.as_deref()), (ErrorKind::BadRequest, Some("destination_url")));
    assert!(machine.call(Request::Resume).is_ok());
    machine.end();

    let core = path.display();
    let elf = shell(&format!("readelf -lnW {core} 2>&1"));
    assert!(!elf.contains("Warning") && !elf.contains("Error"), "{elf}");
    assert_eq!(elf.matches("NT_PRSTATUS").count(), 2, "{elf}");
    assert_eq!(elf.matches("QEMU").count(), 2, "{elf}");
    assert!(elf.contains("VMCOREINFO") && elf.contains("LOAD"), "{elf}");
    let gdb = shell(&format!(
        "gdb -nx -batch -ex 'info threads' -ex 'info registers rip' -ex 'x/3xb 0x100000' -ex 'x/xg 0x1800008' -c {core} 2>&1"
    ));
    for expected in
        ["0x100000:\t0xf4\t0xeb\t0xfd", "0x1800008:\t0x1122334455667788", "rip            0x100000", "LWP 2"]
    {
        assert!(gdb.contains(expected), "{expected} is not in:\n{gdb}");
    }
    assert!(vivarium_tests::host::allocated(&path) < 2 << 20, "what is zero takes no room");
}

#[test]
fn gdb_sees_registers_and_memory_of_a_running_machine_and_lets_it_go() {
    let folder = Folder::new();
    let machine = Machine::start(&folder, idle);
    let socket = folder.join("gdb");
    vmm::gdb::serve(&socket, machine.inbox.clone()).unwrap();
    let gdb = |commands: &[&str]| {
        let commands =
            commands.iter().map(|command| format!("-ex '{command}'")).collect::<Vec<_>>().join(" ");
        let socket = socket.display();
        shell(&format!(
            "gdb -nx -batch -ex 'set architecture i386:x86-64' -ex 'target remote {socket}' {commands} 2>&1"
        ))
    };
    let output = gdb(&[
        "info threads",
        "info registers rip",
        "x/3xb 0x100000",
        "set {long}0x1800000 = 0x55",
        "set $rbx = 0x77",
        "monitor registers",
        "x/xg 0x1800000",
        "detach",
    ]);
    for expected in [
        "Thread 1.2",
        "rip            0x100000",
        "0x100000:\t0xf4\t0xeb\t0xfd",
        "0x1800000:\t0x0000000000000055",
        "simulated CPU 1",
        "detached",
    ] {
        assert!(output.contains(expected), "{expected} is not in:\n{output}");
    }
    // It goes on.
    let reads = || machine.tree(at("cpu/0/exits/port_read/count")).as_u64().unwrap();
    let first = reads();
    while reads() == first {}
    // What was changed stayed, and the next debugger is served.
    let output = gdb(&["x/xg 0x1800000", "info registers rbx"]);
    assert!(output.contains("0x0000000000000055") && output.contains("rbx            0x77"), "{output}");
    machine.end();
}
