//! What is changed of a device while a stock kernel uses it: a network's cable, a disk's limits.

use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, Tap};
use vivarium_tests::{Form, Kernel, MonitorBuilder, events};

/// A network comes, and its cable is pulled out and plugged in again.
const CABLE: &str = r#"set -e
modprobe virtio_net
echo "@@READY"
until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up
until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
ping -c 1 -W 20 192.0.2.1; echo "@@UP 1"
until [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]; do sleep 0.1; done
! ping -c 1 -W 1 192.0.2.1 >/dev/null; echo "@@DOWN"
until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
ping -c 1 -W 20 192.0.2.1; echo "@@UP 2"
"#;

#[test]
fn the_guest_sees_a_network_come_and_its_cable_out_and_in() {
    let folder = Folder::new();
    let (tap, socket, told) =
        (Tap::new("viv4", 1, "192.0.2.1/24"), folder.join("api"), folder.join("events"));
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .args(["--platform", "acpi=on"])
        .arg("--api-socket")
        .arg(&socket)
        .arg("--event-monitor")
        .arg(&told)
        .script(CABLE)
        .start();
    monitor.wait_for("@@READY");
    done(&socket, &["add-net", &format!("tap={},id=net", tap.name)]);
    monitor.wait_for("@@UP 1");
    done(&socket, &["set-link", "net", "down"]);
    monitor.wait_for("@@DOWN");
    done(&socket, &["set-link", "net", "up"]);
    monitor.wait_for("@@UP 2");
    monitor.succeed();
    let cable: Vec<_> = events(&told).into_iter().filter(|event| event.0.starts_with("link-")).collect();
    let of_net = |name: &str| (name.to_owned(), serde_json::json!({ "id": "net" }));
    assert_eq!(cable, ["link-down", "link-up"].map(of_net));
}

/// The whole disk is read again and again, past the guest's cache.
const READ: &str = r#"set -e
while [ ! -e /tmp/stop ]; do
    dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null
    [ -e /tmp/first ] || { touch /tmp/first; echo "@@READS"; }
    [ "$(cat /sys/block/vda/size)" = 4096 ] || touch /tmp/stop
done
echo "@@DONE"
"#;

/// Of a full bucket this passes at once, and the rest of the test is no more than that: nobody waits for it to be filled again.
const PASSES: u64 = 256 << 10;

#[test]
fn a_limit_that_is_set_while_a_disk_is_read_holds_until_it_is_lifted() {
    let folder = Folder::on_disk();
    let (disk, socket) = (folder.sparse("disk", 2 << 20), folder.join("api"));
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .arg("--api-socket")
        .arg(&socket)
        .arg("--disk")
        .arg(format!("path={},id=disk", disk.display()))
        .script(READ)
        .start();
    monitor.wait_for("@@READS");
    let count = |name: &str| {
        let counters: serde_json::Value =
            serde_json::from_str(&done(&socket, &["--json", "counters"])).unwrap();
        counters["disk"][name].as_u64().unwrap_or_else(|| panic!("{name}: {counters}"))
    };
    let met = count("throttled");
    // An hour until there is more.
    let limit = format!("bw_size={}K,bw_refill_time=3600000", PASSES >> 10);
    done(&socket, &["set-rate-limit", "disk", &limit]);
    let before = count("read_bytes");
    while count("throttled") == met {
        assert!(monitor.elapsed().as_secs() < 600, "the limit is not met");
    }
    for _ in 0..20 {
        // What the guest asks for at a time may be more than the bucket has left.
        let held = count("read_bytes");
        assert!(held <= before + PASSES + (1 << 20), "{held} bytes, {before} before");
    }
    done(&socket, &["resize-disk", "--disk", "disk", "--size", "4M"]);
    done(&socket, &["set-rate-limit", "disk"]);
    monitor.wait_for("@@DONE");
    monitor.succeed();
}
