//! Stock kernels: that they boot, what machine they see, and how they end.

use vivarium_tests::ctl::done;
use vivarium_tests::host::Folder;
use vivarium_tests::{Architecture, Feature, Form, Kernel, MonitorBuilder, lacks, native};

fn boots(kernel: Kernel, form: Form) {
    let output = MonitorBuilder::linux(kernel, form)
        .script("echo release $(uname -r); echo clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)")
        .start()
        .succeed();
    assert!(output.contains(&format!("release {}.", kernel.series())), "{output}");
    assert!(native().clocks().iter().any(|clock| output.contains(&format!("clock {clock}"))), "{output}");
}

#[test]
fn debians_6_1_boots_from_its_bzimage() {
    if lacks(Feature::OlderKernel) {
        return;
    }
    boots(Kernel::V6_1, Form::BzImage);
}

#[test]
fn debians_6_1_boots_through_pvh() {
    if lacks(Feature::OlderKernel) {
        return;
    }
    boots(Kernel::V6_1, Form::Elf);
}

#[test]
fn debians_6_12_boots_from_the_image_it_comes_in() {
    boots(Kernel::V6_12, Form::BzImage);
}

#[test]
fn debians_6_12_boots_through_pvh_or_on_arm_from_a_gzip_file() {
    let form = if native() == Architecture::Aarch64 { Form::Gzip } else { Form::Elf };
    boots(Kernel::V6_12, form);
}

fn boots_from_zboot(method: &'static str) {
    if !lacks(Feature::Zboot) {
        boots(Kernel::V6_12, Form::Zboot(method));
    }
}

#[test]
fn debians_6_12_boots_from_a_zboot_image_with_gzip() {
    boots_from_zboot("gzip");
}

#[test]
fn debians_6_12_boots_from_a_zboot_image_with_zstd() {
    boots_from_zboot("zstd");
}

#[test]
fn debians_6_12_boots_from_a_zboot_image_with_xz() {
    boots_from_zboot("xz");
}

/// Prints, for each CPU, what `/proc/cpuinfo` and `/sys` say of where it is.
const WHERE_CPUS_ARE: &str = r#"
cd /sys/devices/system/cpu
for cpu in cpu[0-9]*; do
    read -r package <$cpu/topology/physical_package_id
    read -r core <$cpu/topology/core_id
    threads=$(cat $cpu/topology/thread_siblings_list) cores=$(cat $cpu/topology/core_siblings_list)
    echo "place $cpu package=$package core=$core threads=$threads cores=$cores"
done
echo "online $(cat online) listed $(grep -c ^processor /proc/cpuinfo) packages $(cat cpu[0-9]*/topology/physical_package_id | sort -u | wc -l)"
if grep -q ^siblings /proc/cpuinfo; then
    echo "/proc/cpuinfo: siblings $(sed -n 's/^siblings.*: //p' /proc/cpuinfo | sort -u) cores $(sed -n 's/^cpu cores.*: //p' /proc/cpuinfo | sort -u)"
fi
"#;

/// `siblings` and `cores`: what `/proc/cpuinfo` counts in a package, where the kernel shows it there.
fn sees_cpus(keys: &str, siblings: u32, cores: u32, expected: &[&str]) {
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--cpus", keys])
        .script(WHERE_CPUS_ARE)
        .start()
        .succeed();
    for line in expected {
        assert!(output.contains(line), "{keys}: \"{line}\" is not in:\n{output}");
    }
    if let Some(line) = output.lines().find_map(|line| line.strip_prefix("/proc/cpuinfo: ")) {
        assert_eq!(line, format!("siblings {siblings} cores {cores}"), "{keys}");
    }
    assert!(native() != Architecture::X86_64 || output.contains("/proc/cpuinfo: "), "{output}");
}

#[test]
fn one_cpu_is_seen() {
    sees_cpus("boot=1", 1, 1, &["online 0 listed 1 packages 1"]);
}

#[test]
fn two_cpus_are_seen() {
    sees_cpus("boot=2", 2, 2, &["online 0-1 listed 2 packages 1"]);
}

#[test]
fn four_cpus_in_two_packages_of_two_threads_are_seen() {
    sees_cpus(
        "boot=4,topology=2:1:1:2",
        2,
        1,
        &[
            "online 0-3 listed 4 packages 2",
            "place cpu0 package=0 core=0 threads=0-1 cores=0-1",
            "place cpu1 package=0 core=0 threads=0-1 cores=0-1",
            "place cpu2 package=1 core=0 threads=2-3 cores=2-3",
            "place cpu3 package=1 core=0 threads=2-3 cores=2-3",
        ],
    );
}

#[test]
fn four_cores_of_one_package_are_seen() {
    sees_cpus(
        "boot=4,topology=1:4:1:1",
        4,
        4,
        &["online 0-3 listed 4 packages 1", "core=3 threads=3 cores=0-3"],
    );
}

/// Prints the RAM that the firmware told of, in bytes, and the last range of it.
const WHERE_MEMORY_IS: &str = r#"
total=0
for range in $(sed -n 's/^\([0-9a-f]*\)-\([0-9a-f]*\) : System RAM/\1:\2/p' /proc/iomem); do
    total=$((total + 0x${range#*:} - 0x${range%:*} + 1))
    last=$range
done
echo "ram $total last $last"
"#;

fn sees_memory(size: &str, bytes: u64) {
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--memory", &format!("size={size}")])
        .script(WHERE_MEMORY_IS)
        .start()
        .succeed();
    let line = output.lines().find(|line| line.starts_with("ram ")).expect("the guest told");
    let total: u64 = line.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(total <= bytes && bytes - total < 1 << 20, "{size}: {line}");
    let last = native().end_of_ram(bytes) - 1;
    assert!(
        line.ends_with(&format!(":{last:x}")) || line.ends_with(&format!(":{last:08x}")),
        "{size}: {line}"
    );
}

#[test]
fn a_guest_of_128_mib_sees_its_memory() {
    sees_memory("128M", 128 << 20);
}

#[test]
fn a_guest_of_3_5_gib_sees_its_memory_on_both_sides_of_the_hole() {
    sees_memory("3584M", 3584 << 20);
}

#[test]
fn a_guest_of_6_gib_sees_its_memory_above_the_hole() {
    sees_memory("6G", 6 << 30);
}

#[test]
fn two_numa_nodes_have_their_cpus_memory_and_distances() {
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--cpus", "boot=4", "--memory", "size=0"])
        .args(["--memory-zone", "id=near,size=256M", "id=far,size=128M"])
        .args(["--numa", "guest_numa_id=0,cpus=[0,2],memory_zones=near,distances=[1@25]"])
        .args(["--numa", "guest_numa_id=1,cpus=[1,3],memory_zones=far,distances=[0@30]"])
        .script(
            r#"cd /sys/devices/system/node
            for node in node[0-9]*; do
                echo "$node cpus=$(cat $node/cpulist) distance=$(cat $node/distance)"
                sed -n 's/^Node \([0-9]\) MemTotal: *\([0-9]*\) kB/node\1 kib=\2/p' $node/meminfo
            done"#,
        )
        .start()
        .succeed();
    assert!(output.contains("node0 cpus=0,2 distance=10 25"), "{output}");
    assert!(output.contains("node1 cpus=1,3 distance=30 10"), "{output}");
    let kib = |node: &str| -> u64 {
        let line = output
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{node} kib=")))
            .expect("the guest told");
        line.parse().unwrap()
    };
    // The kernel keeps some of a node for itself.
    assert!((128 << 10..=256 << 10).contains(&kib("node0")), "{output}");
    assert!((100 << 10..=128 << 10).contains(&kib("node1")), "{output}");
}

#[test]
fn pci_segments_are_in_their_numa_nodes() {
    let platforms = match native() {
        Architecture::X86_64 => &["num_pci_segments=2"][..],
        Architecture::Aarch64 => &["num_pci_segments=2", "num_pci_segments=2,acpi=on"],
    };
    for platform in platforms {
        let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
            .args(["--cpus", "boot=2", "--memory", "size=0", "--platform", platform])
            .args(["--memory-zone", "id=near,size=128M", "id=far,size=128M"])
            .args(["--numa", "guest_numa_id=0,cpus=[0],memory_zones=near,pci_segments=[1]"])
            .args(["--numa", "guest_numa_id=1,cpus=[1],memory_zones=far,pci_segments=[0]"])
            .script("cd /sys/bus/pci/devices; for function in *; do echo $function $(cat $function/numa_node); done")
            .start()
            .succeed();
        assert!(
            output.contains("0000:00:00.0 1") && output.contains("0001:00:00.0 0"),
            "{platform}: {output}"
        );
    }
}

/// The kernel restarts the machine in its usual way, unless `words` of its command line say another.
fn restarts_again_and_again(kernel: Kernel, cpus: u32, words: &str) {
    let mut monitor = MonitorBuilder::linux(kernel, Form::Elf)
        .args(["--memory", "size=128M", "--cpus", &format!("boot={cpus}")])
        .cmdline(&format!("viv.then=reboot {words}"))
        .script("echo @@CPUS $(nproc)")
        .start();
    for _ in 0..=native().kernel_restarts() {
        monitor.wait_for(&format!("@@CPUS {cpus}"));
        monitor.wait_for("@@RC 0");
    }
    monitor.signal(libc::SIGINT);
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn the_machine_restarts_in_place_again_and_again() {
    restarts_again_and_again(Kernel::V6_12, 1, "");
}

#[test]
fn the_machine_restarts_in_place_with_6_1() {
    if !lacks(Feature::OlderKernel) {
        restarts_again_and_again(Kernel::V6_1, 1, "");
    }
}

#[test]
fn the_machine_restarts_in_place_with_all_its_cpus() {
    restarts_again_and_again(Kernel::V6_12, 2, "");
}

#[test]
fn the_machine_restarts_in_place_by_the_keyboard_controller() {
    if !lacks(Feature::Ports) {
        restarts_again_and_again(Kernel::V6_12, 1, "reboot=kbd");
    }
}

#[test]
fn a_panic_is_reported_and_the_guest_restarts_when_it_wants() {
    if lacks(Feature::PvpanicDriver) {
        return;
    }
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .arg("--pvpanic")
        .cmdline("viv.then=panic panic=1")
        .script("modprobe pvpanic-mmio; modprobe pvpanic-pci; true")
        .start();
    for _ in 0..2 {
        monitor.wait_for("@@RC 0");
        monitor.wait_for("Kernel panic");
    }
    // It tells of the panic after it has printed it.
    monitor.wait_for("@@RC 0");
    monitor.signal(libc::SIGKILL);
    let exit = monitor.wait();
    // Each restart once, though the guest has two devices to report it to.
    assert_eq!(exit.errors.matches("the guest reports a panic").count(), 2, "{}", exit.errors);
}

#[test]
fn a_signal_presses_the_power_button() {
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--platform", "acpi=on"])
        .script(
            // The button's interrupt, before and after.
            "grep -q 'ACPI:Ged' /proc/interrupts || exit 1; before=$(grep 'ACPI:Ged' /proc/interrupts); echo waiting; \
             until [ \"$(grep 'ACPI:Ged' /proc/interrupts)\" != \"$before\" ]; do sleep 0.1; done; echo pressed",
        )
        .start();
    monitor.wait_for("waiting");
    monitor.signal(libc::SIGUSR1);
    monitor.wait_for("pressed");
    monitor.succeed();
}

/// Without ACPI a guest knows the button as a key at a GPIO controller. The first event is that it is down, as `linux/input.h` lays
/// it out: time, type 1, code 116, value 1.
#[test]
fn a_call_presses_the_power_button_that_a_device_tree_tells_of() {
    if lacks(Feature::DeviceTree) {
        return;
    }
    let folder = Folder::new();
    let socket = folder.join("api");
    let kernel = Kernel::with_more_drivers();
    let mut monitor = MonitorBuilder::linux(kernel, Form::BzImage)
        .arg("--api-socket")
        .arg(&socket)
        .script(
            "set -e; [ ! -e /sys/firmware/acpi ]; modprobe -a gpio_keys evdev
            grep -x 'N: Name=\"gpio-keys\"' /proc/bus/input/devices
            exec 3</dev/input/event0; echo @@waiting
            dd bs=24 count=1 <&3 >/tmp/event 2>/dev/null
            hexdump -s 16 -e '\"@@event \" 1/2 \"%u \" 1/2 \"%u \" 1/4 \"%u\" \"\\n\"' /tmp/event",
        )
        .start();
    monitor.wait_for("@@waiting");
    done(&socket, &["power-button"]);
    let output = monitor.succeed();
    assert!(output.contains("@@event 1 116 1"), "{output}");
}

#[test]
fn smbios_shows_who_the_machine_says_it_is() {
    if lacks(Feature::Smbios) {
        return;
    }
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--platform", "uuid=12345678-1234-5678-9abc-def012345678,serial_number=sn-1,manufacturer=Someone,product=Thing"])
        .script("cd /sys/class/dmi/id; for f in product_uuid product_serial sys_vendor product_name; do echo $f=$(cat $f); done")
        .start()
        .succeed();
    for line in [
        "product_uuid=12345678-1234-5678-9abc-def012345678",
        "product_serial=sn-1",
        "sys_vendor=Someone",
        "product_name=Thing",
    ] {
        assert!(output.contains(line), "\"{line}\" is not in:\n{output}");
    }
}

#[test]
fn what_a_kernel_is_given_can_be_large() {
    // A command line of 2000 characters, and an initial RAM file system with 64 MiB of ballast.
    let folder = Folder::new();
    let initramfs = folder.join("initramfs");
    let mut bytes = std::fs::read(Kernel::V6_12.initramfs()).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512) + (64 << 20), 0);
    std::fs::write(&initramfs, bytes).unwrap();
    let ballast = "x".repeat(1500);
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .initramfs(initramfs.as_os_str())
        .cmdline(&format!("ballast={ballast} after=it"))
        .script("grep -c 'after=it' /proc/cmdline")
        .start()
        .succeed();
    assert!(output.lines().any(|line| line == "1"), "{output}");
}
