//! Memory that a stock kernel gives back and gets again: what it says it has, and what the host sees.

use hypervisor::kvm::{DEFAULT_PATH, Kvm};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use vivarium_tests::ctl::done;
use vivarium_tests::host::Folder;
use vivarium_tests::{Form, Kernel, Monitor, MonitorBuilder, movable_memory};
use vmm::api::request::Resize;
use vmm::api::{Call, Interest, Reply, Request};
use vmm::cli::{self, Command};
use vmm::config::ByteSize;
use vmm::message::{Event, Inbox};

const MIB: u64 = 1 << 20;

/// How long the host looks for what the guest was seen to do. Not a limit on how fast it must be.
const PATIENCE: Duration = Duration::from_secs(100);

/// The monitor's resident memory, in bytes.
fn resident(monitor: &Monitor) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", monitor.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

/// Waits until the monitor has at most `most` bytes of resident memory.
fn wait_until_resident(monitor: &Monitor, most: u64) {
    let start = Instant::now();
    while resident(monitor) > most {
        assert!(start.elapsed() < PATIENCE, "the monitor keeps {} of {most} bytes", resident(monitor));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Guest functions: `total [FILE]` is the memory in MiB, `wait_total TEST` waits for one, `pause MARK` for a line.
const FUNCTIONS: &str = r#"
    total() { awk '/MemTotal/ { print int($(NF-1) / 1024) }' "${1:-/proc/meminfo}"; }
    wait_total() { until [ "$(total $3)" "$1" "$2" ]; do sleep 0.1; done; echo "total $(total $3)"; }
    pause() { echo "@@$1"; read -r go </dev/console; }
"#;

fn script(body: &str) -> String {
    format!("set -e\n{FUNCTIONS}\n{body}")
}

#[test]
fn a_balloon_and_free_page_reports_give_memory_back_to_the_host() {
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--memory", "size=384M", "--balloon", "size=128M,free_page_reporting=on"])
        .script(&script(
            "wait_total -lt 250
            dd if=/dev/urandom of=/dev/shm/x bs=1M count=100 2>/dev/null; sum=$(md5sum </dev/shm/x)
            pause FULL
            [ \"$(md5sum </dev/shm/x)\" = \"$sum\" ]; rm /dev/shm/x
            pause FREED",
        ))
        .start();
    monitor.wait_for("@@FULL");
    let full = resident(&monitor);
    assert!(full > 100 * MIB, "the guest uses {full} bytes");
    // What is in the balloon takes no memory of the host.
    assert!(full < 270 * MIB, "{full} bytes are resident, though the guest gave 128 MiB back");
    monitor.type_in("\n");
    monitor.wait_for("@@FREED");
    // Not all of it: what is left between other pages is not reported.
    wait_until_resident(&monitor, full - 50 * MIB);
    monitor.type_in("\n");
    monitor.succeed();
}

#[test]
fn a_guest_that_runs_out_of_memory_takes_it_back_from_the_balloon() {
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--memory", "size=256M", "--balloon", "size=0,deflate_on_oom=on"])
        .arg("--api-socket")
        .arg(&socket)
        .script(&script(
            "free() { awk '/MemFree/ { print int($2 / 1024) }' /proc/meminfo; }
            mount -t tmpfs -o size=90% tmpfs /mnt; before=$(free)
            pause READY
            echo \"free: $(free) of $before\"; [ $(free) -lt $((before - 100)) ]
            dd if=/dev/urandom of=/mnt/x bs=1M count=4 2>/dev/null
            for n in $(seq $(((before - 60) / 4))); do cp /mnt/x /mnt/$n; done
            [ $(crc32 /mnt/* | cut -c1-8 | sort -u | wc -l) = 1 ]
            dmesg | grep -i 'out of memory' && exit 1
            pause FILLED",
        ))
        .start();
    let actual = || {
        let info: serde_json::Value = serde_json::from_str(&done(&socket, &["--json", "info"])).unwrap();
        info["memory_actual_size"].as_u64().unwrap()
    };
    monitor.wait_for("@@READY");
    done(&socket, &["resize", "--balloon", "128M"]);
    while actual() != 128 * MIB {
        assert!(monitor.elapsed() < PATIENCE, "the machine has {} bytes", actual());
    }
    monitor.type_in("\n");
    monitor.wait_for("@@FILLED");
    // The rest of the balloon stays with the host.
    assert!((160 * MIB..256 * MIB).contains(&actual()), "{}", actual());
    monitor.type_in("\n");
    monitor.succeed();
}

#[test]
fn memory_is_plugged_into_the_node_it_belongs_to_and_comes_and_goes_there() {
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        // The device names the node by ACPI's number of it (virtio 1.2, 5.15.3).
        .args(["--platform", "acpi=on"])
        .args(["--cpus", "boot=2", "--memory", "size=0,hotplug_method=virtio-mem"])
        .args(["--memory-zone", "id=a,size=192M,hotplug_size=1G"])
        .arg("id=b,size=192M,hotplug_size=1G,hotplugged_size=256M")
        .args(["--numa", "guest_numa_id=0,cpus=[0],memory_zones=a"])
        .args(["--numa", "guest_numa_id=1,cpus=[1],memory_zones=b"])
        .arg("--api-socket")
        .arg(&socket)
        .cmdline("memhp_default_state=online_movable")
        .script(&script(&[
            movable_memory::HOLDS,
            "node=/sys/devices/system/node/node
            before=$(total ${node}0/meminfo)
            wait_total -gt 340 ${node}1/meminfo
            [ $(total ${node}0/meminfo) = $before ]
            dmesg | grep -i virtio_mem
            mount -t tmpfs tmpfs /mnt; movable_holds 1 1
            grep virtio_mem /proc/iomem; rm /mnt/x
            other=$(total ${node}1/meminfo)
            pause PLUGGED
            wait_total -ge $((before + 256)) ${node}0/meminfo; [ $(total ${node}1/meminfo) = $other ]
            pause GREW
            wait_total -le $((before + 128)) ${node}0/meminfo; [ $(total ${node}1/meminfo) = $other ]
            pause SHRANK
            wait_total -le $((other - 256)) ${node}1/meminfo; [ $(total ${node}0/meminfo) -le $((before + 128)) ]
            pause BACK",
        ].concat()))
        .start();
    for (mark, zone, size) in [("PLUGGED", "a", "448M"), ("GREW", "a", "320M"), ("SHRANK", "b", "192M")] {
        monitor.wait_for(&format!("@@{mark}"));
        done(&socket, &["resize-zone", "--id", zone, "--size", size]);
        monitor.type_in("\n");
    }
    monitor.wait_for("@@BACK");
    monitor.type_in("\n");
    assert!(monitor.succeed().contains("System RAM (virtio_mem)"));
}

/// A machine in this process, so that the test can ask its machine thread for things.
struct Machine {
    inbox: Inbox,
    console: BufReader<UnixStream>,
    seen: String,
}

impl Machine {
    fn start(builder: MonitorBuilder, folder: &Folder) -> Self {
        let socket = folder.join("console");
        let command = builder.replace("--console", format!("socket={}", socket.display())).command();
        let words = std::iter::once(command.get_program()).chain(command.get_args()).map(Into::into);
        let Ok(Command::Run(run)) = cli::parse(words) else { panic!("{command:?} runs nothing") };
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let kvm = Kvm::open(DEFAULT_PATH.as_ref()).unwrap();
            let mut monitor = vmm::monitor::Monitor::new(Arc::new(kvm)).unwrap();
            monitor.boot(run.config.unwrap()).unwrap();
            assert!(monitor.await_boot(None).unwrap().is_none());
            sender.send(monitor.inbox()).unwrap();
            monitor.run().unwrap();
        });
        let inbox = receiver.recv().expect("the machine is built");
        let console = UnixStream::connect(socket).unwrap();
        console.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { inbox, console: BufReader::new(console), seen: String::new() }
    }

    fn call(&self, request: Request) -> serde_json::Value {
        let (sender, receiver) = channel();
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        self.inbox.tell(Event::Call(Call {
            request,
            files: Vec::new(),
            respond,
            interest: Interest::default(),
        }));
        match receiver.recv().expect("the machine thread answers").unwrap() {
            Reply::Json(value) => value,
            _ => serde_json::Value::Null,
        }
    }

    fn resize(&self, memory: u64, balloon: u64) {
        self.call(Request::Resize(Resize {
            desired_ram: Some(ByteSize(memory * MIB)),
            desired_balloon: Some(ByteSize(balloon * MIB)),
            ..Resize::default()
        }));
    }

    fn wait_for(&mut self, mark: &str) {
        loop {
            let mut line = Vec::new();
            let read = self.console.read_until(b'\n', &mut line);
            assert!(read.is_ok_and(|read| read > 0), "no {mark} in:\n{}", self.seen);
            let line = String::from_utf8_lossy(&line);
            self.seen.push_str(&line);
            if line.contains(mark) {
                return;
            }
        }
    }

    /// Waits until the machine says of itself what holds, and returns it.
    fn wait_until(&self, request: fn() -> Request, holds: impl Fn(&serde_json::Value) -> bool) {
        let start = Instant::now();
        loop {
            let value = self.call(request());
            if holds(&value) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the machine says {value:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_guest_follows_when_its_memory_and_balloon_are_resized() {
    let folder = Folder::new();
    let builder = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--memory", "size=256M,hotplug_method=virtio-mem,hotplug_size=1G"])
        .args(["--balloon", "size=0,deflate_on_oom=off,statistics_interval=1"])
        .cmdline("memhp_default_state=online_movable")
        .script(&script(
            "start=$(total); echo @@READY
            wait_total -ge $((start + 512)); echo @@PLUGGED
            wait_total -le $((start + 128)); echo @@UNPLUGGED
            wait_total -le $start
            wait_total -le $((start - 64)); echo @@INFLATED
            wait_total -ge $start; echo @@DEFLATED",
        ));
    let mut machine = Machine::start(builder, &folder);
    let actual =
        |mib: u64| move |info: &serde_json::Value| info["memory_actual_size"] == serde_json::json!(mib * MIB);
    machine.wait_for("@@READY");
    machine.resize(768, 0);
    machine.wait_for("@@PLUGGED");
    machine.wait_until(|| Request::Info, actual(768));
    machine.resize(384, 0);
    machine.wait_for("@@UNPLUGGED");
    machine.wait_until(|| Request::Info, actual(384));
    machine.resize(256, 64);
    machine.wait_for("@@INFLATED");
    machine.wait_until(|| Request::Info, actual(192));
    // The guest tells of its memory as it sees it.
    machine.wait_until(
        || Request::Counters,
        |counters| {
            let total = counters["__balloon"]["total_memory"].as_u64().unwrap_or(0);
            counters["__balloon"]["actual_bytes"] == 64 * MIB && (64 * MIB..200 * MIB).contains(&total)
        },
    );
    machine.resize(256, 0);
    machine.wait_for("@@DEFLATED");
    machine.wait_until(|| Request::Info, actual(256));
    machine.wait_for("@@RC 0");
}
