//! A disk in a slot of a root port, as a stock kernel's own PCI Express hotplug driver sees it come, go, and be torn out; and ports
//! and switches that come and go with what is below them.

use std::path::{Path, PathBuf};
use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Form, Kernel, Monitor, MonitorBuilder};

/// What a guest's script begins with. A disk is there when it can be opened, a little after its name is.
const FUNCTIONS: &str = r#"set -e
modprobe virtio_blk; echo 20 >/proc/sys/kernel/hung_task_timeout_secs
tell() { echo "waited for $1"; dmesg | tail -n 40; grep -i pcie /proc/interrupts; cat /sys/bus/pci/slots/*/power; ls /sys/bus/pci/devices; exit 1; }
there() { n=0; until ( : </dev/$1 ) 2>/dev/null; do sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell $1; done; }
gone() { n=0; while [ -e /sys/block/$1 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell $1; done; }
driven() { n=0; until [ -e /sys/bus/pci/devices/$1/driver ]; do sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell $1; done; }
absent() { n=0; while [ -e /sys/bus/pci/devices/$1 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell $1; done; }
copy() { dd if=/tmp/x of=/dev/$1 bs=1M conv=fsync 2>/dev/null; }
head -c 2097152 /dev/urandom >/tmp/x
dmesg -c >/dev/null; echo "@@READY"
"#;

const COMES_AND_GOES: &str = r#"
there vda; copy vda; echo "@@WRITTEN $(md5sum </tmp/x) $(basename $(readlink -f /sys/block/vda/device/..))"
gone vda; echo "@@LOG"; dmesg | cat; read -r line
"#;

/// The disk is taken away while it is written to, and the same image is there again at once.
const IS_TORN_OUT: &str = r#"
there vda
( while copy vda; do :; done; echo "@@FAILED" ) &
copy vda; echo "@@BUSY"
wait
# Its name depends on whether the guest has let go of the first by now.
n=0; until again=$(ls /sys/bus/pci/devices/0000:00:0b.0/virtio*/block 2>/dev/null) && ( : <"/dev/$again" ) 2>/dev/null; do
    sleep 0.1; n=$((n+1)); [ $n -lt 150 ] || tell 0b.0
done
copy $again; echo "@@AGAIN $(md5sum </tmp/x)"
gone vda; gone vdb; echo "@@LOG"; dmesg | cat; read -r line
"#;

/// A root port comes by ACPI, and the guest drives its slot; below it a disk.
const A_PORT_COMES: &str = r#"
driven 0000:00:05.0; echo "@@PORT"
there vda; copy vda; echo "@@WRITTEN $(md5sum </tmp/x) $(basename $(readlink -f /sys/block/vda/device/..))"
gone vda; echo "@@EMPTY"; absent 0000:00:05.0
echo "@@LOG"; dmesg | cat; read -r line
"#;

/// A root port comes by ACPI, and below it a switch.
const A_PORT_COMES_WITH_A_SWITCH: &str = r#"
driven 0000:00:05.0; echo "@@PORT"
driven 0000:02:00.0; driven 0000:03:00.0; driven 0000:03:01.0; echo "@@SWITCH"
absent 0000:02:00.0; echo "@@EMPTY"; absent 0000:00:05.0
echo "@@LOG"; dmesg | cat; read -r line
"#;

/// A switch comes below a port that was there from the start, and a disk below that.
const A_SWITCH_COMES: &str = r#"
driven 0000:01:00.0; driven 0000:02:00.0; driven 0000:02:01.0; echo "@@SWITCH"
there vda; copy vda; echo "@@WRITTEN $(md5sum </tmp/x) $(basename $(readlink -f /sys/block/vda/device/..))"
gone vda; echo "@@LOG"; dmesg | cat; read -r line
"#;

fn md5(path: &Path) -> String {
    shell(&format!("head -c 2097152 '{}' | md5sum", path.display()))[..32].to_owned()
}

/// A machine with a port, whose guest runs a script, and what is plugged into it.
struct Plugging {
    monitor: Monitor,
    image: PathBuf,
    socket: PathBuf,
    events: PathBuf,
    /// Held for its files.
    _folder: Folder,
}

impl Plugging {
    fn new(script: &str) -> Self {
        Self::with_port("id=rp0", script)
    }

    fn with_port(port: &str, script: &str) -> Self {
        let folder = Folder::on_disk();
        let image = folder.sparse("image", 8 << 20);
        let (socket, events) = (folder.join("api"), folder.join("events"));
        let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
            .args(["--platform", "acpi=on", "--pci-port", port, "--pci-place", "id=__rng,pci_device_id=20"])
            .arg("--api-socket")
            .arg(&socket)
            .arg("--event-monitor")
            .arg(format!("path={}", events.display()))
            .script(&[FUNCTIONS, script].concat())
            .start();
        monitor.wait_for("@@READY");
        Self { monitor, image, socket, events, _folder: folder }
    }

    fn add(&self, place: &str) {
        done(&self.socket, &["add-disk", &format!("path={},id=data,{place}", self.image.display())]);
    }

    /// Waits for a line of the guest that tells what it has written, and takes the disk away as the guest agrees. It holds that.
    fn remove(&mut self, mark: &str) -> String {
        let line = self.monitor.wait_for(mark);
        done(&self.socket, &["remove-device", "data", "--timeout", "60000"]);
        assert!(line.contains(&md5(&self.image)), "what was written is on the disk");
        line
    }

    fn ctl(&self, words: &str) {
        done(&self.socket, &words.split(' ').collect::<Vec<_>>());
    }

    /// Waits for the end, and sees that the guest's log has what is expected and nothing bad, and that events tell of as many devices
    /// that were added, and of all of them but `left` that went, some of which were asked for.
    fn finish(mut self, expected: &[&str], devices: usize, left: usize, asked: usize) {
        // The slot goes off after the kernel has forgotten the disk, and the guest does not end before.
        self.monitor.type_in("\n");
        let output = self.monitor.succeed();
        let log = output.split_once("@@LOG").expect("the log was shown").1;
        for expected in expected {
            assert!(log.contains(expected), "\"{expected}\" is not in:\n{log}");
        }
        for bad in ["blocked for more than", "BUG", "Call Trace"] {
            assert!(!log.contains(bad), "the log has \"{bad}\":\n{log}");
        }
        let events = std::fs::read_to_string(&self.events).unwrap();
        assert_eq!(events.matches("\"device-added\"").count(), devices, "{events}");
        assert_eq!(events.matches("\"device-removing\"").count(), asked, "{events}");
        assert_eq!(events.matches("\"device-removed\"").count(), devices - left, "{events}");
    }
}

#[test]
fn a_disk_in_a_slot_comes_and_goes() {
    let mut plugging = Plugging::new(COMES_AND_GOES);
    plugging.add("bus=rp0");
    let line = plugging.remove("@@WRITTEN ");
    assert!(line.ends_with("0000:01:00.0"), "{line}");
    plugging.finish(
        &["pciehp: Slot(", "Button press: will power on", "Card present", "will power off"],
        1,
        0,
        1,
    );
}

/// The guest gets over the loss of a disk at `place`, whose name and image are free though the guest has not let go.
fn is_torn_out(place: &str, expected: &[&str]) {
    let mut plugging = Plugging::new(IS_TORN_OUT);
    plugging.add(place);
    plugging.monitor.wait_for("@@BUSY");
    done(&plugging.socket, &["remove-device", "data", "--force"]);
    plugging.add("pci_device_id=11");
    plugging.monitor.wait_for("@@FAILED");
    plugging.remove("@@AGAIN ");
    // The one that is torn out is not asked for.
    plugging.finish(expected, 2, 0, 1);
}

#[test]
fn a_disk_is_torn_out_of_a_slot_and_the_guest_gets_over_it() {
    is_torn_out("bus=rp0", &["pciehp: Slot("]);
}

#[test]
fn a_disk_is_torn_off_a_root_bus_and_the_guest_gets_over_it() {
    is_torn_out("pci_device_id=9", &[]);
}

#[test]
fn a_root_port_comes_and_goes_and_a_disk_below_it() {
    let mut plugging = Plugging::new(A_PORT_COMES);
    plugging.ctl("add-port id=rp1,pci_device_id=5");
    plugging.monitor.wait_for("@@PORT");
    plugging.add("bus=rp1");
    let line = plugging.remove("@@WRITTEN ");
    assert!(line.ends_with("0000:02:00.0"), "{line}");
    plugging.monitor.wait_for("@@EMPTY");
    plugging.ctl("remove-device rp1 --timeout 60000");
    plugging.finish(&["pciehp: Slot("], 2, 0, 2);
}

#[test]
fn a_root_port_comes_and_goes_and_a_switch_below_it() {
    let mut plugging = Plugging::new(A_PORT_COMES_WITH_A_SWITCH);
    plugging.ctl("add-port id=rp1,pci_device_id=5,bus_reserve=3");
    plugging.monitor.wait_for("@@PORT");
    plugging.ctl("add-port id=up0,kind=upstream,bus=rp1 --port id=dp0 --port id=dp1");
    plugging.monitor.wait_for("@@SWITCH");
    plugging.ctl("remove-device up0 --timeout 60000");
    plugging.monitor.wait_for("@@EMPTY");
    plugging.ctl("remove-device rp1 --timeout 60000");
    plugging.finish(&["pciehp: Slot("], 4, 0, 2);
}

#[test]
fn a_switch_comes_below_a_port_that_keeps_bus_numbers_and_a_disk_below_it() {
    let mut plugging = Plugging::with_port("id=rp0,bus_reserve=3", A_SWITCH_COMES);
    plugging.ctl("add-port id=up0,kind=upstream,bus=rp0 --port id=dp0 --port id=dp1");
    plugging.monitor.wait_for("@@SWITCH");
    plugging.add("bus=dp1");
    let line = plugging.remove("@@WRITTEN ");
    assert!(line.ends_with("0000:04:00.0"), "{line}");
    // The switch stays.
    plugging.finish(&["pciehp: Slot("], 4, 3, 1);
}
