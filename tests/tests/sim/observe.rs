//! Looking at a machine on the simulated backend: its live tree, its figures, its core dump, and a debugger on its socket.

use crate::control::{Control, idle, ignore};
use hypervisor::sim::{Sim, SimCpu};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Architecture, native, tiny_kernel};
use vmm::api::request::{Coredump, Inspect, SetAffinity};
use vmm::api::{Answer, Call, ErrorKind, Interest, Reply, Request};
use vmm::config::{ByteSize, CpuAffinity, DiskConfig, VmConfig};
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

/// The number of accesses of CPU 0 that [`idle`] makes.
fn accesses() -> Request {
    at(&format!("cpu/0/exits/{}/count", native().idle_exit()))
}

fn at(path: &str) -> Request {
    Request::Inspect(Inspect { path: path.to_owned() })
}

#[test]
fn a_running_machine_shows_its_parts_and_the_same_figures_everywhere() {
    let folder = Folder::new();
    let machine = Machine::start(&folder, ignore);
    // The guest's accesses go on, and are counted.
    let reads = || machine.tree(accesses()).as_u64().unwrap();
    let first = reads();
    while reads() == first {}
    assert_eq!(machine.tree(at("memory/0/size")), 64 << 20);
    let functions = machine.tree(at("pci"));
    let (address, _) = functions.as_object().unwrap().iter().find(|(_, tree)| tree["id"] == "data").unwrap();
    let queue = machine.tree(at(&format!("pci/{}/queue/0", address.trim_start_matches("0000:"))));
    assert_eq!((&queue["enabled"], &queue["counters"]["used"]), (&false.into(), &0.into()));
    let error = machine.call(at("pci/00:1f.7")).unwrap_err();
    assert_eq!((error.kind, error.field.as_deref()), (ErrorKind::NotFound, Some("path")));

    assert!(machine.call(Request::Pause).is_ok());
    let counters = machine.tree(Request::Counters);
    assert_eq!(counters["data"]["read_bytes"], 0);
    assert_eq!(counters["_cpu0"][format!("{}s", native().idle_exit())], reads());
    let Ok(Reply::Text(metrics)) = machine.call(Request::Metrics) else { panic!("no text") };
    let line = format!("vivarium_cpu_{}s_total{{cpu=\"0\"}} {}", native().idle_exit(), reads());
    assert!(metrics.lines().any(|present| present == line), "{metrics}");
    assert!(metrics.contains("vivarium_disk_read_latency_seconds_count{device=\"data\"} 0\n"), "{metrics}");
    let of_queue = "vivarium_queue_read_latency_seconds_count{device=\"data\",queue=\"0\"} 0\n";
    assert!(metrics.contains(of_queue), "{metrics}");
    let of_batches = "vivarium_queue_latency_seconds_count{device=";
    assert!(metrics.contains(&format!("{of_batches}\"__rng\",queue=\"0\"}} 0\n")), "{metrics}");
    assert!(!metrics.contains(&format!("{of_batches}\"data\"")), "a disk times its requests itself");
    for state in [
        "vivarium_vm_state{state=\"paused\"} 1\n",
        "\nvivarium_vm_cpus 2\n",
        "\nvivarium_vm_memory_bytes 67108864\n",
    ] {
        assert!(metrics.contains(state), "{metrics}");
    }
    let lines: Vec<_> = metrics.lines().collect();
    for pair in lines.windows(2) {
        let Some(metric) = pair[1].strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) else {
            continue;
        };
        assert!(pair[0].starts_with(&format!("# HELP {metric} ")), "nothing says what {metric} is");
    }
    machine.end();
}

#[test]
fn there_are_figures_without_a_machine() {
    let control = Control::start(&Arc::new(Sim::new()));
    let Ok(Reply::Text(metrics)) = control.call(Request::Metrics) else { panic!("no text") };
    assert!(metrics.contains("vivarium_vm_state{state=\"absent\"} 1\n"), "{metrics}");
    assert!(metrics.contains("\nvivarium_log_left_out_total 0\n"), "{metrics}");
    control.end();
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
            idle(cpu);
        }
    });
    match machine.call(Request::Nmi) {
        Ok(_) => heard.recv_timeout(STUCK).expect("an NMI is vector 2 here"),
        Err(refusal) => assert_ne!(native(), Architecture::X86_64, "a PC has NMIs: {refusal}"),
    }
    let affinity = |vcpu, host_cpu| {
        let cpus = vec![CpuAffinity { vcpu, host_cpus: vec![host_cpu] }];
        machine.call(Request::SetAffinity(SetAffinity { cpus, ..SetAffinity::default() }))
    };
    assert!(affinity(0, 0).is_ok());
    assert_eq!(affinity(9, 0).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(affinity(0, 1000).unwrap_err().kind, ErrorKind::BadRequest);
    machine.end();
}

/// RAM that nothing else is in.
const NOTE: u64 = native().ram_start() + 0x200_0000;
const DATA: u64 = native().ram_start() + 0x180_0000;

/// What GDB says of the kernel's first bytes.
fn shown_code() -> String {
    let [first, second, third] = tiny_kernel::code();
    format!("{:#x}:\t{first:#04x}\t{second:#04x}\t{third:#04x}", tiny_kernel::entry())
}

/// What GDB says of a register that holds `value`.
fn shown_register(name: &str, value: u64) -> String {
    format!("{name:<15}{value:#x}")
}

/// Whether the host's GDB knows the architecture, which that of another one does not. If not it says so, in the form that
/// `scripts/test` counts as a skipped test.
fn gdb_is_of_another_architecture() -> bool {
    let said = shell(&format!("gdb -nx -batch -ex 'set architecture {}' 2>&1 || :", native().gdb()));
    let unknown = said.contains("Undefined item");
    if unknown {
        println!("@@SKIP this machine's gdb does not know the architecture {}", native().gdb());
    }
    unknown
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
        cpu.write(NOTE, &note);
        cpu.write64(DATA + 8, 0x1122_3344_5566_7788);
        idle(cpu);
        ignore(cpu);
    });
    while machine.tree(accesses()).as_u64() == Some(0) {}
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
    // What a PC's CPU has beyond its general registers.
    let more = if native() == Architecture::X86_64 { 2 } else { 0 };
    assert_eq!(elf.matches("QEMU").count(), more, "{elf}");
    assert!(elf.contains("VMCOREINFO") && elf.contains("LOAD"), "{elf}");
    assert!(vivarium_tests::host::allocated(&path) < 2 << 20, "what is zero takes no room");
    if gdb_is_of_another_architecture() {
        return;
    }
    let [at, _] = native().gdb_registers();
    let (entry, data) = (tiny_kernel::entry(), DATA + 8);
    let gdb = shell(&format!(
        "gdb -nx -batch -ex 'info threads' -ex 'info registers {at}' -ex 'x/3xb {entry:#x}' -ex 'x/xg {data:#x}' -c {core} 2>&1"
    ));
    let (code, data) = (shown_code(), format!("{data:#x}:\t0x1122334455667788"));
    for expected in [&code, &data, &shown_register(at, entry), "LWP 2"] {
        assert!(gdb.contains(expected), "{expected} is not in:\n{gdb}");
    }
}

#[test]
fn gdb_sees_registers_and_memory_of_a_running_machine_and_lets_it_go() {
    if gdb_is_of_another_architecture() {
        return;
    }
    let folder = Folder::new();
    let machine = Machine::start(&folder, ignore);
    let socket = folder.join("gdb");
    let _socket = vmm::gdb::serve(&socket, machine.inbox.clone()).unwrap();
    let gdb = |commands: &[&str]| {
        let commands =
            commands.iter().map(|command| format!("-ex '{command}'")).collect::<Vec<_>>().join(" ");
        let socket = socket.display();
        shell(&format!(
            "gdb -nx -batch -ex 'set architecture {}' -ex 'target remote {socket}' {commands} 2>&1",
            native().gdb()
        ))
    };
    let ([at, free], entry) = (native().gdb_registers(), tiny_kernel::entry());
    let look = format!("x/xg {DATA:#x}");
    let output = gdb(&[
        "info threads",
        &format!("info registers {at}"),
        &format!("x/3xb {entry:#x}"),
        &format!("set {{long}}{DATA:#x} = 0x55"),
        &format!("set ${free} = 0x77"),
        "monitor registers",
        &look,
        "detach",
    ]);
    for expected in [
        "Thread 1.2",
        &shown_register(at, entry),
        &shown_code(),
        &format!("{DATA:#x}:\t0x0000000000000055"),
        "simulated CPU 1",
        "detached",
    ] {
        assert!(output.contains(expected), "{expected} is not in:\n{output}");
    }
    // It goes on.
    let reads = || machine.tree(accesses()).as_u64().unwrap();
    let first = reads();
    while reads() == first {}
    // What was changed stayed, and the next debugger is served.
    let output = gdb(&[&look, &format!("info registers {free}")]);
    assert!(
        output.contains("0x0000000000000055") && output.contains(&shown_register(free, 0x77)),
        "{output}"
    );
    machine.end();
}
