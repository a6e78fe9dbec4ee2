//! A disk in a slot of a root port, as a stock kernel's own PCI Express hotplug driver sees it come, go, and be torn out.

use std::path::Path;
use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Form, Kernel, MonitorBuilder};

/// In each round but the first, a disk is taken away while it is written to, and the same image is there again at once.
const SCRIPT: &str = r#"set -e
modprobe virtio_blk; echo 20 >/proc/sys/kernel/hung_task_timeout_secs
tell() { echo "waited for $1"; dmesg | tail -n 40; grep -i pcie /proc/interrupts; cat /sys/bus/pci/slots/*/power; ls /sys/bus/pci/devices; exit 1; }
there() { n=0; until [ -b /dev/$1 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell $1; done; }
gone() { n=0; while [ -e /sys/block/$1 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell $1; done; }
copy() { dd if=/tmp/x of=/dev/$1 bs=1M conv=fsync 2>/dev/null; }
head -c 2097152 /dev/urandom >/tmp/x
dmesg -c >/dev/null; echo "@@READY"
there vda; copy vda; echo "@@WRITTEN $(md5sum </tmp/x) $(basename $(readlink -f /sys/block/vda/device/..))"
gone vda; echo "@@GONE"
for round in 1 2; do
    there vda
    ( while copy vda; do :; done; echo "@@FAILED $round" ) &
    copy vda; echo "@@BUSY $round"
    wait
    # Its name depends on whether the guest has let go of the first by now.
    n=0; until again=$(ls /sys/bus/pci/devices/0000:00:0b.0/virtio*/block 2>/dev/null) && [ -b "/dev/$again" ]; do
        sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell 0b.0
    done
    copy $again; echo "@@AGAIN $round $(md5sum </tmp/x)"
    gone vda; gone vdb; echo "@@LET-GO $round"
done
dmesg
"#;

fn md5(path: &Path) -> String {
    shell(&format!("head -c 2097152 '{}' | md5sum", path.display()))[..32].to_owned()
}

#[test]
fn a_disk_in_a_slot_comes_goes_and_is_torn_out_and_the_guest_gets_over_it() {
    let folder = Folder::on_disk();
    let image = folder.sparse("image", 8 << 20);
    let (socket, events) = (folder.join("api"), folder.join("events"));
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--platform", "acpi=on", "--pci-port", "id=rp0", "--pci-place", "id=__rng,pci_device_id=20"])
        .arg("--api-socket")
        .arg(&socket)
        .arg("--event-monitor")
        .arg(format!("path={}", events.display()))
        .script(SCRIPT)
        .start();
    monitor.wait_for("@@READY");
    let add =
        |place: &str| done(&socket, &["add-disk", &format!("path={},id=data,{place}", image.display())]);
    add("bus=rp0");
    let line = monitor.wait_for("@@WRITTEN ");
    assert!(line.ends_with("0000:01:00.0"), "{line}");
    done(&socket, &["remove-device", "data", "--timeout", "60000"]);
    assert!(line.contains(&md5(&image)), "what was written is on the disk");
    monitor.wait_for("@@GONE");
    for (round, place) in [(1, "bus=rp0"), (2, "pci_device_id=9")] {
        add(place);
        monitor.wait_for(&format!("@@BUSY {round}"));
        done(&socket, &["remove-device", "data", "--force"]);
        // The name and the image are free, though the guest has not let go.
        add("pci_device_id=11");
        monitor.wait_for(&format!("@@FAILED {round}"));
        let line = monitor.wait_for(&format!("@@AGAIN {round}"));
        done(&socket, &["remove-device", "data", "--timeout", "60000"]);
        assert!(line.contains(&md5(&image)), "what was written is on the disk");
        monitor.wait_for(&format!("@@LET-GO {round}"));
    }
    let output = monitor.succeed();
    let log = output.split_once("@@LET-GO 2").expect("the second round ended").1;
    for expected in
        ["pciehp: Slot(", "Button press: will power on", "Card present", "will power off", "I/O error"]
    {
        assert!(log.contains(expected), "\"{expected}\" is not in:\n{log}");
    }
    for bad in ["blocked for more than", "BUG", "Call Trace"] {
        assert!(!log.contains(bad), "the log has \"{bad}\":\n{log}");
    }
    let events = std::fs::read_to_string(events).unwrap();
    assert_eq!(events.matches("\"device-added\"").count(), 5, "{events}");
    assert_eq!(events.matches("\"device-removing\"").count(), 3, "{events}");
    assert_eq!(events.matches("\"device-removed\"").count(), 5, "{events}");
}
