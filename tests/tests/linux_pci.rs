//! PCI Express topology, as a stock kernel finds it.

use vivarium_tests::host::Folder;
use vivarium_tests::{Form, Kernel, MonitorBuilder};

/// Root ports, one of them with a second function beside it, and a switch below the other.
const PORTS: [&str; 6] = [
    "id=rp0,pref_reserve=4G",
    "id=rp1,pci_device_id=5",
    "id=rp2,pci_device_id=5,pci_function=1,hotplug=off",
    "id=up0,kind=upstream,bus=rp1",
    "id=dp0,kind=downstream,bus=up0",
    "id=dp1,kind=downstream,bus=up0,hotplug=off",
];

/// Writes a disk, and reads it back past the guest's cache.
const USE_DISKS: &str = r#"
for disk in a b c d; do
    head -c 1000000 /dev/urandom >/tmp/$disk
    dd if=/tmp/$disk of=/dev/disk-$disk bs=1M oflag=direct conv=fsync 2>/dev/null || dd if=/tmp/$disk of=/dev/disk-$disk conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    head -c 1000000 /dev/disk-$disk | cmp - /tmp/$disk && echo "disk $disk works"
done
"#;

#[test]
fn disks_work_behind_ports_switches_and_beside_each_other() {
    let folder = Folder::new();
    let disk = |name: &str, place: &str| {
        format!("path={},serial={name},{place}", folder.sparse(name, 8 << 20).display())
    };
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .initramfs(Kernel::V6_12.tools().as_os_str())
        .arg("--pci-port")
        .args(PORTS)
        .arg("--disk")
        .args([
            disk("a", "bus=rp0"),
            disk("b", "bus=dp0"),
            disk("c", "bus=dp1"),
            disk("d", "bus=rp2"),
        ])
        .script(&format!(
            r#"echo "== tree"; /usr/bin/lspci -tv | cat; echo "== lspci"; /usr/bin/lspci -vv | cat; echo "== slots"; ls /sys/bus/pci/slots
            for link in /sys/block/vd*; do
                name=$(basename $link); serial=$(cat $link/serial)
                ln -s /dev/$name /dev/disk-$serial
                echo "place $serial $(basename $(readlink -f $link/device/..))"
            done
            {USE_DISKS}
            echo "== interrupts"; cat /proc/interrupts
            echo "== dmesg"; dmesg | cat"#
        ))
        .start()
        .succeed();
    for line in [
        "disk a works",
        "disk b works",
        "disk c works",
        "disk d works",
        // The buses are numbered down each branch.
        "place a 0000:01:00.0",
        "place b 0000:04:00.0",
        "place c 0000:05:00.0",
        "place d 0000:06:00.0",
    ] {
        assert!(output.lines().any(|found| found.trim() == line), "\"{line}\" is not in:\n{output}");
    }
    let lspci =
        output.split_once("== lspci").expect("lspci ran").1.split_once("== slots").expect("it ended").0;
    assert_eq!(lspci.matches("Kernel driver in use: pcieport").count(), 6, "{lspci}");
    for expected in [
        "Bus: primary=00, secondary=01, subordinate=01",
        "Bus: primary=00, secondary=02, subordinate=05",
        "Root Port (Slot+)",
        "Root Port (Slot-)",
        "Upstream Port",
        "Downstream Port (Slot+)",
        "AttnBtn+ PwrCtrl+ MRL- AttnInd+ PwrInd+ HotPlug+ Surprise+",
        "Advanced Error Reporting",
        "Access Control Services",
    ] {
        assert!(lspci.contains(expected), "\"{expected}\" is not in:\n{lspci}");
    }
    for bad in ["!!!", "<access denied>", "[virtual]", "Unknown header type"] {
        assert!(!lspci.contains(bad), "lspci finds \"{bad}\":\n{lspci}");
    }
    let log = output.split_once("== dmesg").expect("the log was shown").1.to_lowercase();
    assert!(log.contains("pciehp"), "{log}");
    // Names of what CPUs can do are no complaints.
    let log: Vec<_> = log.lines().filter(|line| !line.contains("cpu features: ")).collect();
    for bad in [
        "failed to assign",
        "can't assign",
        "can't claim",
        "no compatible bridge window",
        "bridge configuration invalid",
        "bogus",
        "timeout",
        "no space",
        "nobody cared",
        "aer: ",
        "conflict",
    ] {
        let lines: Vec<_> =
            log.iter().filter(|line| line.contains(bad) && !line.contains("enabled")).collect();
        assert!(lines.is_empty(), "the log has {lines:#?}");
    }
}
