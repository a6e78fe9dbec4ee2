//! Disks, as stock kernels use them.

use std::path::Path;
use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, allocated, sha256, shell};
use vivarium_tests::{Form, Kernel, MonitorBuilder, rate};

fn guest(disk: &Path, keys: &str) -> MonitorBuilder {
    MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .initramfs(Kernel::V6_12.tools().as_os_str())
        .arg("--disk")
        .arg(format!("path={}{keys}", disk.display()))
}

/// Makes a file system, fills it, looks whether it is still so after mounting it again, and tells the checksum.
const FILL: &str = r#"set -e
[ $(ls /sys/block/vda/mq | wc -l) = QUEUES ]
mkfs.ext4 -q /dev/vda
mount -t ext4 /dev/vda /mnt
mkdir /mnt/deep
cp -r /lib/modules /mnt/deep
head -c 8000001 /dev/urandom >/mnt/random
ln -s random /mnt/link
sha256sum /mnt/random >/tmp/before
sync
umount /mnt
e2fsck -fn /dev/vda
mount -t ext4 /dev/vda /mnt
sha256sum -c /tmp/before
echo "sum $(cut -d' ' -f1 /tmp/before)"
umount /mnt
"#;

fn survives(queues: u32, keys: &str) {
    let folder = Folder::on_disk();
    let disk = folder.sparse("disk", 128 << 20);
    let output = guest(&disk, &format!(",num_queues={queues}{keys}"))
        .args(["--cpus", &format!("boot={queues}")])
        .script(&FILL.replace("QUEUES", &queues.to_string()))
        .start()
        .succeed();
    let sum = output.lines().find_map(|line| line.strip_prefix("sum ")).expect("the guest told").to_owned();
    // The host's own view of the file system.
    shell(&format!("e2fsck -fn {}", disk.display()));
    let random = folder.join("random");
    shell(&format!("debugfs -R 'dump /random {}' {} 2>&1", random.display(), disk.display()));
    assert_eq!(sha256(&random), sum);
}

#[test]
fn ext4_survives_on_a_cached_disk_of_one_queue() {
    survives(1, "");
}

#[test]
fn ext4_survives_on_a_cached_disk_of_four_queues() {
    survives(4, "");
}

#[test]
fn ext4_survives_on_a_direct_disk_of_one_queue() {
    survives(1, ",direct=on");
}

#[test]
fn ext4_survives_on_a_direct_disk_of_four_queues() {
    survives(4, ",direct=on");
}

#[test]
fn ext4_survives_with_the_thread_engine_and_split_rings() {
    survives(2, ",engine=threads,packed=off,queue_size=16");
}

#[test]
fn ext4_survives_in_write_through_mode() {
    survives(1, ",writeback=off");
}

/// Every CPU writes through its own queue, before and after a pause.
const SHARED: &str = r#"set -e
[ "$(cut -c39 /sys/block/vda/device/features)" = 1 ] # VIRTIO_F_NOTIFICATION_DATA
write() {
    for cpu in 0 1 2 3; do
        taskset -c $cpu dd if=/tmp/x of=/dev/vda bs=64k count=32 seek=$(( cpu * 32 )) oflag=direct 2>/dev/null &
    done
    wait
    [ "$(head -c 8388608 /dev/vda | md5sum)" = "$(cat /tmp/x /tmp/x /tmp/x /tmp/x | md5sum)" ]
}
head -c 2097152 /dev/urandom >/tmp/x
write; echo "@@WRITTEN"; read -r line
head -c 2097152 /dev/urandom >/tmp/x
write; echo "@@AGAIN $(md5sum </tmp/x)"
while [ -e /sys/block/vda ]; do sleep 0.1; done; read -r line
"#;

/// The threads of process `pid` whose names begin so.
fn threads(pid: u32, prefix: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One may end meanwhile.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn four_queues_share_a_worker_before_and_after_a_pause() {
    let folder = Folder::on_disk();
    let (disk, socket) = (folder.sparse("disk", 16 << 20), folder.join("api"));
    let mut monitor = guest(&disk, ",num_queues=4,workers=1,id=shared,queue_affinity=[0@[0],3@[0]]")
        .args(["--cpus", "boot=4", "--platform", "acpi=on"])
        .arg("--api-socket")
        .arg(&socket)
        .script(SHARED)
        .start();
    monitor.wait_for("@@WRITTEN");
    assert_eq!(threads(monitor.pid(), "shared-"), ["shared-w0"]);
    done(&socket, &["pause"]);
    // A machine that is paused needs none; a thread is there until the kernel has done with it.
    while !threads(monitor.pid(), "shared-").is_empty() {
        std::thread::yield_now();
    }
    done(&socket, &["resume"]);
    monitor.type_in("\n");
    let line = monitor.wait_for("@@AGAIN ");
    assert_eq!(threads(monitor.pid(), "shared-"), ["shared-w0"]);
    let counters = done(&socket, &["--json", "counters"]);
    let counters: serde_json::Value = serde_json::from_str(&counters).unwrap();
    for queue in 0..4 {
        let requests = counters[format!("shared.queue{queue}")]["requests"].as_u64();
        assert!(requests > Some(0), "queue {queue}: {counters:#}");
    }
    let sum = shell(&format!("tail -c +{} {} | head -c 2M | md5sum", (6 << 20) + 1, disk.display()));
    assert!(line.contains(sum.split_whitespace().next().unwrap()), "{line} is not {sum}");
    // The kernel lets go of the device after its driver has.
    done(&socket, &["remove-device", "shared", "--timeout", "60000"]);
    monitor.type_in("\n");
    monitor.succeed();
}

#[test]
fn a_read_only_disk_cannot_be_written() {
    let folder = Folder::on_disk();
    let disk = folder.sparse("disk", 16 << 20);
    shell(&format!("mke2fs -q -F -t ext4 {}", disk.display()));
    let before = sha256(&disk);
    guest(&disk, ",readonly=on")
        .script(
            "set -e; [ $(cat /sys/block/vda/ro) = 1 ]; ! mount -t ext4 -o rw /dev/vda /mnt || ! touch /mnt/file; \
             umount /mnt || true; ! dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=sync; mount -t ext4 -o ro /dev/vda /mnt; ls /mnt/lost+found",
        )
        .start()
        .succeed();
    assert_eq!(sha256(&disk), before);
}

#[test]
fn discard_gives_the_hosts_space_back() {
    let folder = Folder::on_disk();
    let disk = folder.join("disk");
    shell(&format!("head -c {} /dev/zero | tr '\\0' x >{}", 64 << 20, disk.display()));
    assert!(allocated(&disk) >= 64 << 20);
    let output = guest(&disk, "")
        .script(
            "set -e; mkfs.ext4 -q -E nodiscard /dev/vda; mount -t ext4 /dev/vda /mnt; \
             head -c 20000000 /dev/urandom >/mnt/kept; head -c 20000000 /dev/urandom >/mnt/gone; sync; rm /mnt/gone; sync; \
             /usr/bin/fstrim -v /mnt; sha256sum /mnt/kept; umount /mnt; mount -t ext4 /dev/vda /mnt; sha256sum /mnt/kept",
        )
        .start()
        .succeed();
    let sums: Vec<_> = output.lines().filter(|line| line.ends_with("/mnt/kept")).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{output}");
    let left = allocated(&disk);
    assert!((19 << 20..40 << 20).contains(&left), "{left} bytes are left");
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), 64 << 20, "the image keeps its size");
    shell(&format!("e2fsck -fn {}", disk.display()));
}

/// A loop device on a file, gone with this.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        let file = file.display();
        Self(shell(&format!("losetup --find --show --sector-size 4096 {file}")).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        shell(&format!("losetup --detach {}", self.0));
    }
}

/// The device's own blocks, discards that reach the file behind it, and its growth.
#[test]
fn a_block_device_is_a_disk() {
    let folder = Folder::on_disk();
    let (file, socket) = (folder.join("file"), folder.join("api"));
    shell(&format!("head -c {} /dev/zero | tr '\\0' x >{}", 64 << 20, file.display()));
    let device = Loop::new(&file);
    let mut monitor = guest(Path::new(&device.0), ",direct=on,id=device")
        .arg("--api-socket")
        .arg(&socket)
        .script(
            "set -e; q=/sys/block/vda/queue; echo blocks $(cat $q/logical_block_size $q/physical_block_size); \
             dd if=/dev/urandom of=/tmp/x bs=1M count=2 2>/dev/null; dd if=/tmp/x of=/dev/vda bs=1M seek=60 oflag=direct 2>/dev/null; \
             blkdiscard -l 48M /dev/vda; sync; echo \"@@SUM $(md5sum </tmp/x)\"; \
             until [ $(cat /sys/block/vda/size) = 196608 ]; do sleep 0.1; done; dd if=/tmp/x of=/dev/vda bs=1M seek=90 oflag=direct 2>/dev/null; \
             dd if=/dev/vda bs=1M skip=90 count=2 2>/dev/null | cmp - /tmp/x && echo grown",
        )
        .start();
    let line = monitor.wait_for("@@SUM ");
    let sum = shell(&format!("tail -c +{} {} | head -c 2M | md5sum", (60 << 20) + 1, file.display()));
    assert!(line.contains(sum.split_whitespace().next().unwrap()), "{line} is not {sum}");
    let left = allocated(&file);
    assert!((16 << 20..20 << 20).contains(&left), "{left} bytes are left");
    shell(&format!("truncate -s 96M {}; losetup --set-capacity {}", file.display(), device.0));
    done(&socket, &["resize-disk", "--disk", "device", "--size", "96M"]);
    let output = monitor.succeed();
    assert!(output.contains("blocks 4096 4096") && output.contains("grown"), "{output}");
}

#[test]
fn several_disks_keep_their_order_and_serial_numbers() {
    let folder = Folder::on_disk();
    let mut builder = MonitorBuilder::linux(Kernel::V6_12, Form::Elf).arg("--disk");
    for (number, size) in [16u64, 24, 32].into_iter().enumerate() {
        let disk = folder.sparse(&format!("disk{number}"), size << 20);
        builder = builder.arg(format!("path={},serial=serial-{number}", disk.display()));
    }
    let output = builder
        .script("cd /sys/block; for d in vda vdb vdc; do echo $d $(cat $d/size) $(cat $d/serial); done")
        .start()
        .succeed();
    for line in ["vda 32768 serial-0", "vdb 49152 serial-1", "vdc 65536 serial-2"] {
        assert!(output.contains(line), "\"{line}\" is not in:\n{output}");
    }
}

/// Reads `count` blocks of `size` KiB from a disk with these keys, and returns how many a second.
fn blocks_a_second(keys: &str, size: u32, count: u32, burst: u32) -> f64 {
    let folder = Folder::on_disk();
    let path = folder.sparse("disk", 64 << 20);
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--disk", &format!("path={},{keys}", path.display())])
        .script(&format!(
            r#"clock() {{ read -r up _ </proc/uptime; echo ${{up%.*}}${{up#*.}}; }}
            start=$(clock); dd if=/dev/vda of=/dev/null bs={size}k count={count} iflag=direct 2>/dev/null
            echo "took $(( $(clock) - start ))""#
        ))
        .start()
        .succeed();
    let line = output.lines().find_map(|line| line.strip_prefix("took ")).expect("the guest told");
    f64::from(count - burst) / (line.parse::<f64>().unwrap() / 100.0)
}

#[test]
fn a_limit_of_bytes_holds() {
    rate::holds("4 MiB", 16.0, 0.1, || blocks_a_second("bw_size=4194304,bw_refill_time=1000", 256, 64, 16));
}

/// One request at a time: an emulated host may not do many more.
#[test]
fn a_limit_of_requests_holds() {
    rate::holds("50 requests", 50.0, 0.1, || blocks_a_second("ops_size=50,ops_refill_time=1000", 4, 200, 50));
}
