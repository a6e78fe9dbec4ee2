//! Memory that a stock kernel gives back and gets again: what it says it has, and what the host sees.

use std::time::{Duration, Instant};
use vivarium_tests::{Form, Kernel, Monitor, MonitorBuilder};

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
fn memory_is_plugged_into_the_node_it_belongs_to() {
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--cpus", "boot=2", "--memory", "size=0,hotplug_method=virtio-mem"])
        .args(["--memory-zone", "id=a,size=192M", "id=b,size=192M,hotplug_size=1G,hotplugged_size=256M"])
        .args(["--numa", "guest_numa_id=0,cpus=[0],memory_zones=a"])
        .args(["--numa", "guest_numa_id=1,cpus=[1],memory_zones=b"])
        .cmdline("memhp_default_state=online")
        .script(&script(
            "node=/sys/devices/system/node/node
            before=$(total ${node}0/meminfo)
            wait_total -gt 340 ${node}1/meminfo
            [ $(total ${node}0/meminfo) = $before ]
            dmesg | grep -i virtio_mem
            mount -t tmpfs -o size=280M tmpfs /mnt
            dd if=/dev/urandom of=/mnt/x bs=1M count=260 2>/dev/null
            sum=$(md5sum </mnt/x); echo 3 >/proc/sys/vm/drop_caches; [ \"$(md5sum </mnt/x)\" = \"$sum\" ]
            grep virtio_mem /proc/iomem",
        ))
        .start()
        .succeed();
    assert!(output.contains("System RAM (virtio_mem)"), "{output}");
}
