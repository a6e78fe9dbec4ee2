//! Each kind of device that can come while a stock kernel runs: its driver finds it, works with it, and gets over its going, also
//! when it is torn out.

use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use vivarium_tests::ctl::{ctl, done};
use vivarium_tests::host::{Folder, Tap};
use vivarium_tests::{Feature, Form, Kernel, Monitor, MonitorBuilder, has};

/// A kind: its name, what is said of it, and how a shell in the guest finds that it works. `$d` is its folder in sysfs.
type Kind = (&'static str, String, &'static str);

fn kinds(folder: &Folder, tap: &Tap) -> Vec<Kind> {
    let here = |name: &str| folder.join(name).display().to_string();
    vec![
        ("rng", String::new(), "grep -q virtio_rng.1 /sys/class/misc/hw_random/rng_available"),
        (
            "console",
            format!("file={}", here("output")),
            "grep -qs org.example.0 $d/virtio*/virtio-ports/*/name && echo from the guest >/dev/hvc1",
        ),
        ("balloon", "size=32M".into(), "[ $(total) -le $((before-32000)) ]"),
        (
            "ivshmem",
            format!("path={},size=1M", here("shared")),
            "echo 1 >$d/enable; set -- $(sed -n 3p $d/resource); [ $(devmem $(printf 0x%x $(($1 + 64))) 32) = 0xC0DECAFE ]",
        ),
        ("watchdog", "id=virtio,model=virtio".into(), "[ -e $d/virtio* ]"),
        ("watchdog", String::new(), "grep -q i6300ESB /sys/class/watchdog/*/identity"),
        (
            "pvpanic",
            String::new(),
            if has(Feature::PvpanicDriver) { "readlink $d/driver | grep -q pvpanic-pci" } else { "true" },
        ),
        (
            "net",
            format!("tap={}", tap.name),
            "set -- $d/virtio*/net/*; n=${1##*/}; ip link set $n up; ip addr add 192.0.2.2/24 dev $n; ping -c 1 -W 1 192.0.2.1",
        ),
        (
            "vsock",
            format!("cid=3,socket={}", here("vsock")),
            r#"[ "$(vsock connect 2 1000 </dev/null)" = "from the host" ]"#,
        ),
        (
            "pmem",
            format!("file={}", here("pmem")),
            "set -- $d/virtio*/ndbus*/region*/namespace*/block/*; [ -e $1 ]; echo from the guest | dd of=/dev/${1##*/} conv=fsync",
        ),
        // No stock kernel has its driver yet; what carries it is bound.
        ("rtc", String::new(), "grep -q 1051 $d/device && [ -e $d/virtio* ]"),
    ]
}

/// Where the devices are, one for each kind: what is said of it, and its address in the guest.
type Places = fn(usize) -> (String, String);

/// The guest does what is typed: `t ADDRESS TEST` waits until a device works, `g ADDRESS...` until they are gone.
const SCRIPT: &str = r#"stty -echo
for m in virtio_rng virtio_console virtio_balloon i6300esb pvpanic-pci virtio_net vmw_vsock_virtio_transport virtio_pmem nd_pmem; do modprobe $m 2>/dev/null; done
echo 20 >/proc/sys/kernel/hung_task_timeout_secs
P=/sys/bus/pci/devices
total() { sed -n 's/MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo; }
w() { n=0; until ( eval "$1" ) >/dev/null 2>&1; do sleep 0.1; n=$((n+1)); [ $n -lt 300 ] || { echo "waited: $d: $1"; dmesg | tail -n 60; exit 1; }; done; }
t() { d=$P/$1; w '[ -e $d/vendor ]'; w "$2"; }
g() { for d in $*; do w "[ ! -e $P/$d ]"; done; w '[ $(total) -ge $((before-1000)) ]'; }
before=$(total); dmesg -c >/dev/null; echo @@READY
while read -r line; do eval "$line"; done"#;

/// In each round a device of each kind comes, and goes: torn out in the rounds that say so, and otherwise when the guest lets go.
fn come_and_go(tap: &str, options: impl FnOnce(usize) -> Vec<String>, place: Places, rounds: &[bool]) {
    let (folder, tap) = (Folder::on_disk(), Tap::new(tap, 1, "192.0.2.1/24"));
    let socket = folder.join("api");
    let shared = std::fs::File::create_new(folder.join("shared")).unwrap();
    shared.write_all_at(&0xc0de_cafe_u32.to_le_bytes(), 64).unwrap();
    let listener = UnixListener::bind(folder.join("vsock_1000")).unwrap();
    std::thread::spawn(move || listener.incoming().try_for_each(|guest| guest?.write_all(b"from the host")));
    let kinds = kinds(&folder, &tap);
    let kernel = Kernel::with_more_drivers();
    let mut monitor = MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--platform", "acpi=on"])
        .args(options(kinds.len()))
        .arg("--api-socket")
        .arg(&socket)
        .script(SCRIPT)
        .start();
    monitor.wait_for("@@READY");
    let places: Vec<_> = (0..kinds.len()).map(|number| place(number).1).collect();
    for (round, &force) in (1..).zip(rounds) {
        folder.sparse("pmem", 64 << 20);
        let ids = add(&socket, &folder, &kinds, place);
        for (at, (.., works)) in places.iter().zip(&kinds) {
            monitor.type_in(&format!("t {at} '{works}'\n"));
        }
        monitor.type_in(&format!("echo @@THERE {round}\n"));
        monitor.wait_for(&format!("@@THERE {round}"));
        assert_eq!(std::fs::read_to_string(folder.join("output")).unwrap().trim(), "from the guest");
        assert!(
            starts_with(&folder.join("pmem"), b"from the guest"),
            "the guest wrote to its persistent memory"
        );
        assert_eq!(memory(&socket) + (32 << 20), size(&socket), "the balloon is full");
        monitor.type_in(&format!("g {}; echo @@GONE {round}\n", places.join(" ")));
        // All at once: a guest takes its time for each.
        std::thread::scope(|scope| {
            for id in &ids {
                let how = if force { &["--force"][..] } else { &["--timeout", "60000"] };
                let socket = &socket;
                scope.spawn(move || done(socket, &[&["remove-device", id], how].concat()));
            }
        });
        monitor.wait_for(&format!("@@GONE {round}"));
        assert_eq!(memory(&socket), size(&socket));
    }
    // All have gone, also where the kernel is done with a device later than its driver.
    monitor.type_in("dmesg | cat; exit 0\n");
    end(monitor, rounds.len());
}

/// Whether the first bytes of a file are these.
fn starts_with(path: &Path, expected: &[u8]) -> bool {
    let mut found = vec![0; expected.len()];
    std::fs::File::open(path).unwrap().read_exact(&mut found).unwrap();
    found == expected
}

/// What memory comes by: at first in its usual place, then in each round where that says, from which it is torn out where that is so.
fn memory_comes_and_goes(options: &[&str], rounds: &[(&str, bool)]) {
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--platform", "acpi=on", "--memory", "size=256M,hotplug_method=virtio-mem,hotplug_size=256M"])
        .args(options)
        .arg("--api-socket")
        .arg(&socket)
        .cmdline("memhp_default_state=online_movable")
        .script(
            &r#"modprobe virtio_mem 2>/dev/null
total() { sed -n 's/MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo; }
drivers() { ls -d /sys/bus/virtio/drivers/virtio_mem/virtio* 2>/dev/null | wc -l; }
w() { n=0; until ( eval "$1" ) 2>/dev/null; do sleep 0.1; n=$((n+1)); [ $n -lt 600 ] || { echo "waited: $1"; dmesg | tail -n 60; exit 1; }; done; echo "@@$2"; }
before=$(total); dmesg -c >/dev/null
w '[ $(drivers) = 1 ]' FIRST
w '[ $(drivers) = 0 ]' NONE
for r in $(seq ROUNDS); do
w '[ $(drivers) = 1 ]' "THERE $r"
w '[ $(total) -ge $((before+120000)) ]' "MORE $r"
w '[ $(total) -le $before ]' "LESS $r"
w '[ $(drivers) = 0 ]' "GONE $r"
done
dmesg | cat"#
                .replace("ROUNDS", &rounds.len().to_string()),
        )
        .start();
    let refused = |words: &[&str], why: &str| {
        let output = ctl(&socket, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{words:?}: {said}");
    };
    let patiently = ["remove-device", "__mem", "--timeout", "60000"];
    monitor.wait_for("@@FIRST");
    done(&socket, &patiently);
    monitor.wait_for("@@NONE");
    refused(&["resize", "--memory", "384M"], "add one (vivarium ctl add-mem)");
    for (round, &(place, torn_out)) in (1..).zip(rounds) {
        done(&socket, &["add-mem", place]);
        monitor.wait_for(&format!("@@THERE {round}"));
        done(&socket, &["resize", "--memory", "384M"]);
        monitor.wait_for(&format!("@@MORE {round}"));
        let force = ["remove-device", "__mem", "--force"];
        refused(&patiently, "resize the memory to 256M first");
        refused(&force, "resize the memory to 256M first");
        done(&socket, &["resize", "--memory", "256M"]);
        monitor.wait_for(&format!("@@LESS {round}"));
        while memory(&socket) > size(&socket) {
            std::thread::yield_now();
        }
        done(&socket, if torn_out { &force } else { &patiently });
        monitor.wait_for(&format!("@@GONE {round}"));
    }
    end(monitor, rounds.len());
}

/// Adds one of each kind, and returns their names.
fn add(socket: &Path, folder: &Folder, kinds: &[Kind], place: Places) -> Vec<String> {
    let channel: PathBuf = folder.join("channel");
    let channel = format!("name=org.example.0,socket={}", channel.display());
    (0..)
        .zip(kinds)
        .map(|(number, (kind, keys, _))| {
            let comma = if keys.is_empty() { "" } else { "," };
            let (verb, keys) = (format!("add-{kind}"), format!("{keys}{comma}{}", place(number).0));
            let mut words = vec!["--json", &verb, &keys];
            if *kind == "console" {
                words.extend(["--channel", &channel]);
            }
            let added: Value = serde_json::from_str(&done(socket, &words)).unwrap();
            assert_eq!(added["bdf"], place(number).1, "{kind}");
            added["id"].as_str().unwrap().to_owned()
        })
        .collect()
}

fn info(socket: &Path) -> Value {
    serde_json::from_str(&done(socket, &["--json", "info"])).unwrap()
}

fn memory(socket: &Path) -> u64 {
    info(socket)["memory_actual_size"].as_u64().unwrap()
}

fn size(socket: &Path) -> u64 {
    info(socket)["config"]["memory"]["size"].as_u64().unwrap()
}

fn end(monitor: Monitor, rounds: usize) {
    let output = monitor.succeed();
    let log = output.split_once(&format!("@@GONE {rounds}")).expect("the last round ended").1;
    for bad in ["blocked for more than", "BUG", "Call Trace", "WARNING"] {
        assert!(!log.contains(bad), "the log has \"{bad}\":\n{log}");
    }
}

#[test]
fn every_kind_comes_goes_and_is_torn_out_through_acpi() {
    let place = |number| {
        let device = number + 16;
        (format!("pci_device_id={device}"), format!("0000:00:{device:02x}.0"))
    };
    come_and_go("vivk0", |_| Vec::new(), place, &[false, true]);
}

#[test]
fn every_kind_comes_and_goes_in_slots_of_ports() {
    let ports = |kinds| {
        let ports = (0..kinds).map(|number| format!("id=rp{number}"));
        std::iter::once("--pci-port".to_owned()).chain(ports).collect()
    };
    let place = |number| (format!("bus=rp{number}"), format!("0000:{:02x}:00.0", number + 1));
    come_and_go("vivk1", ports, place, &[false]);
}

#[test]
fn what_memory_comes_by_comes_and_goes_through_acpi() {
    memory_comes_and_goes(&[], &[("pci_device_id=20", false), ("pci_device_id=21", true)]);
}

#[test]
fn what_memory_comes_by_comes_and_goes_in_a_slot() {
    memory_comes_and_goes(&["--pci-port", "id=rp0"], &[("bus=rp0", false)]);
}

#[test]
fn what_memory_comes_by_comes_in_a_slot_and_is_torn_out() {
    memory_comes_and_goes(&["--pci-port", "id=rp0"], &[("bus=rp0", true)]);
}
