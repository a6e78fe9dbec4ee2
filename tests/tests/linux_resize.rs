//! CPUs and memory that come to a stock kernel and go again, as it tells of them itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use vivarium_tests::host::Folder;
use vivarium_tests::{Form, Kernel, Monitor, MonitorBuilder, movable_memory};

/// How long the host looks for what the guest was seen to do. Not a limit on how fast it must be.
const PATIENCE: Duration = Duration::from_secs(100);

/// Makes a call of the API, and returns the reply's status and body.
fn call(socket: &Path, method: &str, verb: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} /api/v1/{verb} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

fn resize(socket: &Path, body: &str) {
    let (status, answer) = call(socket, "PUT", "vm.resize", body);
    assert!((200..300).contains(&status), "{body}: {status} {answer}");
}

/// How many entries an object of the machine's tree has.
fn count(socket: &Path, path: &str) -> usize {
    let (status, answer) = call(socket, "GET", &format!("vm.inspect?path={path}"), "");
    assert_eq!(status, 200, "{answer}");
    let tree: serde_json::Value = serde_json::from_str(&answer).unwrap();
    tree.as_object().unwrap().len()
}

/// Waits until an object of the machine's tree has `wanted` entries: the guest has let go of others.
fn wait_for_count(socket: &Path, path: &str, wanted: usize) {
    let start = Instant::now();
    while count(socket, path) != wanted {
        assert!(start.elapsed() < PATIENCE, "{path}: {} of {wanted}", count(socket, path));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for the guest at `mark`, lets `change` happen, and lets the guest go on.
fn at(monitor: &mut Monitor, mark: &str, change: impl FnOnce()) {
    monitor.wait_for(&format!("@@{mark}"));
    change();
    monitor.type_in("\n");
}

/// Guest functions: `pause MARK` waits for a line, `until_is VALUE COMMAND` until a command says that, `total` is the
/// memory in MiB, `complaints` is what the kernel says of ACPI that is not well, `failures` how often it says that a CPU did not start.
const FUNCTIONS: &str = r#"
    pause() { echo "@@$1"; read -r go </dev/console; }
    until_is() { want=$1; shift; until [ "$("$@")" = "$want" ]; do sleep 0.1; done; }
    total() { awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; }
    grown() { [ $(total) -gt $1 ] && echo yes; }
    complaints() { dmesg | grep -iE 'acpi.*(error|warn|exception|fail)|firmware bug|AE_' || true; }
    failures() { dmesg | grep -icE 'fail.*cpu[0-9]|cpu[0-9]+: (fail|.*not)' || true; }
"#;

#[test]
fn cpus_come_go_and_come_again() {
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args([
            "--platform",
            "acpi=on",
            "--cpus",
            "boot=1,max=4",
            "--api-socket",
            &format!("path={}", socket.display()),
        ])
        .script(&format!(
            "set -e\n{FUNCTIONS}
            cpu=/sys/devices/system/cpu
            there() {{ cat $cpu/enabled; }}
            ls -d /sys/bus/*/drivers/vmgenid/VIVM0001*
            until_is 0 there
            pause ADD
            until_is 0-2 there
            for n in 1 2; do echo 1 >$cpu/cpu$n/online; done
            until_is 0-2 cat $cpu/online
            grep -c ^processor /proc/cpuinfo
            taskset -c 2 md5sum /init >/dev/null
            for n in 2 1; do echo 0 >$cpu/cpu$n/online; done
            until_is 0 cat $cpu/online
            for n in 1 2; do echo 1 >$cpu/cpu$n/online; done
            until_is 0-2 cat $cpu/online
            taskset -c 2 md5sum /init >/dev/null
            pause REMOVE
            until_is 0 there
            pause AGAIN
            until_is 0-3 there
            for n in 1 2 3; do echo 1 >$cpu/cpu$n/online; done
            until_is 0-3 cat $cpu/online
            echo online: $(cat $cpu/online) failures: $(failures)
            complaints"
        ))
        .start();
    at(&mut monitor, "ADD", || resize(&socket, r#"{"desired_vcpus":3}"#));
    at(&mut monitor, "REMOVE", || {
        resize(&socket, r#"{"desired_vcpus":1}"#);
        wait_for_count(&socket, "cpu", 1);
    });
    at(&mut monitor, "AGAIN", || resize(&socket, r#"{"desired_vcpus":4}"#));
    let output = monitor.succeed();
    assert!(output.contains("online: 0-3 failures: 0"), "{output}");
    let rest = output.split_once("online: 0-3").unwrap().1;
    assert!(!rest.to_lowercase().contains("acpi"), "{rest}");
}

#[test]
fn a_restart_has_the_cpus_that_came_and_no_others() {
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--platform", "acpi=on", "--cpus", "boot=2,max=4"])
        .args(["--api-socket", &format!("path={}", socket.display())])
        .script(&format!(
            "set -e\n{FUNCTIONS}
            cpu=/sys/devices/system/cpu
            if [ $(cat $cpu/online) = 0-1 ]; then
                pause ADD
                until_is 0-2 cat $cpu/enabled
                echo 1 >$cpu/cpu2/online
                until_is 0-2 cat $cpu/online
                echo before: $(cat $cpu/online) failures: $(failures)
                reboot -f
                read -r forever </dev/console
            fi
            for n in 1 2; do taskset -c $n md5sum /init >/dev/null; done
            echo after: $(cat $cpu/online) failures: $(failures)"
        ))
        .start();
    at(&mut monitor, "ADD", || resize(&socket, r#"{"desired_vcpus":3}"#));
    let output = monitor.succeed();
    assert!(output.contains("before: 0-2 failures: 0"), "{output}");
    assert!(output.contains("after: 0-2 failures: 0"), "{output}");
}

#[test]
fn memory_comes_holds_what_is_written_and_goes() {
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--platform", "acpi=on", "--memory", "size=384M,hotplug_size=1G"])
        .args(["--api-socket", &format!("path={}", socket.display())])
        // What is added is only for what can be moved, so that it can be taken away again.
        .cmdline("memhp_default_state=online_movable")
        .script(&format!(
            "set -e\n{FUNCTIONS}{}
            before=$(total)
            pause ADD
            until_is yes grown $((before + 240))
            echo grew by $(($(total) - before))
            mount -t tmpfs tmpfs /mnt; movable_holds 0 0; rm /mnt/x
            pause REMOVE
            until_is '' grown $((before + 8))
            echo shrank to $(($(total) - before))
            complaints",
            movable_memory::HOLDS
        ))
        .start();
    at(&mut monitor, "ADD", || resize(&socket, &format!(r#"{{"desired_ram":{}}}"#, (384u64 + 256) << 20)));
    at(&mut monitor, "REMOVE", || {
        resize(&socket, &format!(r#"{{"desired_ram":{}}}"#, 384u64 << 20));
        wait_for_count(&socket, "memory_modules", 0);
    });
    let output = monitor.succeed();
    assert!(output.contains("grew by"), "{output}");
    let rest = output.split_once("shrank to").unwrap().1;
    assert!(!rest.to_lowercase().contains("acpi"), "{rest}");
}
