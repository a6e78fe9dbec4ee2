//! What a stock kernel and its tools say of the machine's devices and tables.

use vivarium_tests::host::{Folder, Tap, shell};
use vivarium_tests::{Feature, Form, Kernel, MonitorBuilder, has, kernel_log, lacks, native};

/// A machine with one of everything.
fn full(kernel: Kernel, platform: &str, folder: &Folder, tap: &Tap) -> MonitorBuilder {
    let disk = folder.sparse("disk", 32 << 20);
    let builder = MonitorBuilder::linux(kernel, Form::BzImage)
        .initramfs(kernel.tools().as_os_str())
        .args(["--cpus", "boot=2,topology=1:2:1:1"])
        .args(["--platform", &format!("num_pci_segments=2{platform}")])
        // A device without a driver is one that lspci finds fault with.
        .args(has(Feature::PvpanicDriver).then_some("--pvpanic"))
        .args(["--disk", &format!("path={},num_queues=2,pci_segment=1", disk.display())])
        .args(["--net", &format!("tap={}", tap.name)]);
    match kernel {
        Kernel::V6_1 => builder.replace("--console", "null"),
        Kernel::V6_12 | Kernel::V6_12Generic => builder.replace("--serial", "null"),
    }
}

/// `platform`: more of the option's keys.
fn has_no_complaint(kernel: Kernel, platform: &str) {
    let (folder, tap) = (Folder::new(), Tap::new("viv3", 1, "192.0.2.1/24"));
    let output = full(kernel, platform, &folder, &tap)
        .script(&format!(
            r#"modprobe pvpanic-pci 2>/dev/null; echo "== lspci"; /usr/bin/lspci -vvD >/tmp/lspci || exit 1; cat /tmp/lspci
            echo "== drivers"; for d in /sys/bus/pci/devices/*; do [ -e $d/driver ] && echo "$(basename $d) $(basename $(readlink $d/driver))"; done
            echo "== log"; {}"#,
            kernel_log::SHOW
        ))
        .start()
        .succeed();
    let part = |from: &str, to: &str| {
        let rest = output.split_once(from).unwrap_or_else(|| panic!("no \"{from}\" in:\n{output}")).1;
        rest.split_once(to).map_or(rest, |(part, _)| part)
    };
    let lspci = part("== lspci", "== drivers");
    for device in
        ["Virtio 1.0 block device", "Virtio 1.0 network device", "Virtio 1.0 RNG", "Virtio 1.0 console"]
    {
        assert!(lspci.contains(device), "{device} is not in:\n{lspci}");
    }
    if has(Feature::PvpanicDriver) {
        assert!(lspci.contains("Red Hat, Inc. Device 0011"), "the panic device is not in:\n{lspci}");
        assert!(part("== drivers", "== log").contains("pvpanic-pci"), "it has no driver: {output}");
    }
    for bad in [
        "<access denied>",
        "!!!",
        "Unknown header type",
        "[virtual]",
        "[disabled]",
        "FatalErr+",
        "<TAbort+",
        "<MAbort+",
    ] {
        assert!(!lspci.contains(bad), "lspci finds \"{bad}\":\n{lspci}");
    }
    assert!(lspci.lines().any(|line| line.starts_with("0001:")), "the second segment is there:\n{lspci}");
    assert_eq!(part("== drivers", "== log").matches("virtio-pci").count(), 4, "{output}");
    let complaints = kernel_log::complaints(&output);
    assert!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
}

#[test]
fn neither_6_1_nor_its_tools_find_fault() {
    if lacks(Feature::OlderKernel) {
        return;
    }
    has_no_complaint(Kernel::V6_1, "");
}

#[test]
fn neither_6_12_nor_its_tools_find_fault() {
    has_no_complaint(Kernel::V6_12, "");
}

#[test]
fn neither_6_12_nor_its_tools_find_fault_with_acpi_instead_of_a_device_tree() {
    if lacks(Feature::DeviceTree) {
        return;
    }
    has_no_complaint(Kernel::V6_12, ",acpi=on");
}

#[test]
fn iasl_takes_every_table_the_guest_sees() {
    let folder = Folder::on_disk();
    let disk = folder.sparse("tables", 16 << 20);
    MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args([
            "--disk",
            &format!("path={}", disk.display()),
            "--cpus",
            "boot=4,topology=2:2:1:1",
            "--platform",
            "acpi=on,num_pci_segments=3",
        ])
        .replace("--serial", "null")
        .args(["--memory", "size=0", "--memory-zone", "id=a,size=128M", "id=b,size=128M", "--pvpanic"])
        .args(["--numa", "guest_numa_id=0,cpus=[0,1],memory_zones=a,distances=[1@20]"])
        .args(["--numa", "guest_numa_id=1,cpus=[2,3],memory_zones=b,distances=[0@20]"])
        .script("cd /sys/firmware/acpi/tables && tar -cf /dev/vda $(find . -maxdepth 1 -type f)")
        .start()
        .succeed();
    let tables = folder.join("out");
    let (tables, disk) = (tables.display(), disk.display());
    let list = shell(&format!("mkdir {tables}; tar -xf {disk} -C {tables}; ls {tables}"));
    for table in native().acpi_tables() {
        assert!(list.lines().any(|line| line == *table), "{table} is not in {list}");
    }
    let report = shell(&format!(
        "cd {tables}; for t in [A-Z]*; do mv $t $t.aml; iasl -d $t.aml 2>&1; done; iasl -ve -tc DSDT.dsl 2>&1"
    ));
    for bad in ["Error", "Warning", "Invalid", "Could not"] {
        let lines: Vec<_> = report
            .lines()
            .filter(|line| line.contains(bad) && !line.contains("0 Errors, 0 Warnings"))
            .collect();
        assert!(lines.is_empty(), "{lines:#?}\n{report}");
    }
}

/// The clock's interrupt is there, and its alarm rings: what rtcwake and the like wait for.
#[test]
fn the_clock_wakes_who_waits_for_an_alarm() {
    let script = r#"dmesg | grep 'registered as rtc0'; grep INTERRUPT /proc/interrupts || exit 1
        cd /sys/class/rtc/rtc0 || exit 2
        rings() { awk '/INTERRUPT/ { for (i = 2; i < NF - 2; i++) sum += $i } END { print sum + 0 }' /proc/interrupts; }
        before=$(rings); echo +2 > wakealarm || exit 3
        until [ -z "$(cat wakealarm)" ]; do sleep 0.1; done
        echo "rings: $before, then $(rings)"; [ "$(rings)" -gt "$before" ] || exit 4"#
        .replace("INTERRUPT", native().clock_interrupt());
    for &kernel in Kernel::all() {
        MonitorBuilder::linux(kernel, Form::Elf).script(&script).start().succeed();
    }
}

#[test]
fn the_entropy_source_feeds_the_kernel() {
    for &kernel in Kernel::all() {
        let output = MonitorBuilder::linux(kernel, Form::Elf)
            .script(
                "set -e; cat /sys/class/misc/hw_random/rng_current; \
                 head -c 4096 /dev/hwrng >/tmp/a; head -c 4096 /dev/hwrng >/tmp/b; ! cmp -s /tmp/a /tmp/b; \
                 [ $(gzip -c /tmp/a | wc -c) -gt 4000 ]",
            )
            .start()
            .succeed();
        assert!(output.contains("virtio_rng.0"), "{output}");
    }
}

#[test]
fn a_virtio_device_can_be_taken_from_its_driver_and_given_back() {
    let folder = Folder::on_disk();
    let disk = folder.sparse("disk", 16 << 20);
    MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--disk", &format!("path={},num_queues=4", disk.display()), "--cpus", "boot=2"])
        .script(
            r#"set -e
            f=$(basename $(readlink -f /sys/block/vda/device/..))
            for round in 1 2 3 4 5; do
                dd if=/dev/urandom of=/dev/vda bs=64k count=32 2>/dev/null; sync
                sum=$(sha256sum </dev/vda)
                echo $f >/sys/bus/pci/drivers/virtio-pci/unbind
                [ ! -e /dev/vda ]
                echo $f >/sys/bus/pci/drivers/virtio-pci/bind
                [ "$(sha256sum </dev/vda)" = "$sum" ]
            done
            echo 1 >/sys/bus/pci/devices/$f/remove; [ ! -e /dev/vda ]
            echo 1 >/sys/bus/pci/rescan; [ "$(sha256sum </dev/vda)" = "$sum" ]
            echo 1 >/sys/bus/pci/devices/$f/remove; echo 1 >/sys/bus/pci/rescan; [ "$(sha256sum </dev/vda)" = "$sum" ]"#,
        )
        .start()
        .succeed();
}

#[test]
fn a_kernel_without_message_signalled_interrupts_uses_the_pins() {
    let (folder, tap) = (Folder::on_disk(), Tap::new("viv4", 1, "192.0.2.1/24"));
    let disk = folder.sparse("disk", 16 << 20);
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--disk", &format!("path={}", disk.display()), "--net", &format!("tap={}", tap.name)])
        .cmdline("pci=nomsi viv.net=192.0.2.2/24")
        .script("set -e; cat /proc/interrupts; dd if=/dev/vda of=/dev/null bs=1M count=8; ping -c 3 -W 20 192.0.2.1; ! grep -q MSI /proc/interrupts")
        .start()
        .succeed();
    assert!(
        output.contains(native().interrupt_controller()) && output.contains("0% packet loss"),
        "{output}"
    );
}

#[test]
fn a_disk_of_a_further_segment_is_found_there() {
    let folder = Folder::new();
    let disk = folder.sparse("disk", 8 << 20);
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--platform", "num_pci_segments=2", "--pci-segment", "pci_segment=1,mmio64_aperture_weight=3,buses=64"])
        .args(["--disk", &format!("path={},pci_segment=1", disk.display())])
        .script(
            "set -e; readlink -f /sys/block/vda; cat /sys/bus/pci/devices/0001:00:01.0/device
            dd if=/dev/vda of=/dev/null bs=64k; ls /proc/irq/*/*virtio*req*; dmesg | grep 'root bus resource .bus'",
        )
        .start()
        .succeed();
    assert!(output.contains("/pci0001:00/0001:00:01.0/virtio"), "{output}");
    assert!(output.contains("pci_bus 0000:00: root bus resource [bus 00-0f]"), "{output}");
    assert!(output.contains("pci_bus 0001:00: root bus resource [bus 00-3f]"), "{output}");
    assert!(output.contains("0x1042"), "{output}");
}

/// A disk with `perf` and what it needs of this machine's libraries.
fn performance_tools(folder: &Folder) -> std::path::PathBuf {
    let (tree, disk) = (folder.join("tree"), folder.join("tools"));
    shell(&format!(
        "mkdir -p {tree}/proc {tree}/sys; cd {tree}; perf=$(command -v perf)
        trace() {{ LD_TRACE_LOADED_OBJECTS=1 $1 | grep -o '/[^ ]*'; }}
        for file in $perf $(command -v sha256sum) $(trace $perf) $(trace $(command -v sha256sum)); do
            mkdir -p .$(dirname $file); cp -L $file .$file
        done
        mke2fs -q -t ext4 -d {tree} {disk} 128M",
        tree = tree.display(),
        disk = disk.display()
    ));
    disk
}

#[test]
fn the_performance_monitor_counts_cycles() {
    if lacks(Feature::PerformanceMonitor) {
        return;
    }
    let folder = Folder::on_disk();
    let tools = performance_tools(&folder);
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .initramfs(Kernel::V6_12.tools().as_os_str())
        .args(["--disk", &format!("path={},readonly=on", tools.display())])
        .cmdline("viv.mount=/dev/vda:/mnt")
        .script(
            "set -e; dmesg | grep -i pmu; mount --bind /proc /mnt/proc; mount --bind /sys /mnt/sys
            chroot /mnt perf stat -x, -e cycles sha256sum /usr/bin/perf 2>&1 | sed 's/^/@@PERF /'",
        )
        .start()
        .succeed();
    let line = output.lines().find(|line| line.starts_with("@@PERF ") && line.contains("cycles"));
    let count =
        line.and_then(|line| line.trim_start_matches("@@PERF ").split(',').next()?.parse::<u64>().ok());
    assert!(count.is_some_and(|count| count > 1_000_000), "{output}");
}

#[test]
fn a_performance_monitor_is_hidden_when_it_is_off() {
    if lacks(Feature::PerformanceMonitor) {
        return;
    }
    for (choice, found) in [("host", "yes"), ("off", "no")] {
        let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
            .args(["--cpus", &format!("pmu={choice}")])
            .script(
                "for of in /proc/device-tree/pmu /sys/bus/event_source/devices/armv8_*; do
                [ -e $of ] && echo @@PMU yes || echo @@PMU no; done",
            )
            .start()
            .succeed();
        let lines = output.lines().filter_map(|line| line.trim().strip_prefix("@@PMU "));
        assert_eq!(lines.collect::<Vec<_>>(), [found, found], "{choice}: {output}");
    }
}
