//! Devices that come and go while a stock kernel runs, by `vivarium ctl`.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Form, Kernel, MonitorBuilder};

fn md5(path: &Path, bytes: u64) -> String {
    let mut data = Vec::new();
    std::fs::File::open(path).unwrap().take(bytes).read_to_end(&mut data).unwrap();
    let copy = path.with_extension("head");
    std::fs::write(&copy, data).unwrap();
    let output = Command::new("md5sum").arg(copy).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Files of one disk are written to all the time while another disk comes, is written to, and goes, twice. What was written is
/// there when its file system is mounted anew.
const SCRIPT: &str = r#"set -e
mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; echo 0 >/tmp/count
write() {
    count=0
    while [ ! -e /tmp/stop ]; do
        count=$((count + 1)); name=$((count % 8))
        head -c 262144 /dev/urandom >/tmp/data
        md5sum </tmp/data >/tmp/sum.$name
        dd if=/tmp/data of=/mnt/$name bs=64k conv=fsync 2>/dev/null
        echo $count >/tmp/count.new; mv /tmp/count.new /tmp/count
    done
    echo writer-ended
}
write &
more() { before=$(cat /tmp/count); until [ $(cat /tmp/count) -gt $((before + 1)) ]; do sleep 0.1; done; }
more; dmesg -c >/dev/null; echo "@@READY"
for round in 1 2; do
    until ( : </dev/vdb ) 2>/dev/null; do sleep 0.1; done
    dd if=/dev/urandom of=/tmp/x bs=1M count=2 2>/dev/null
    dd if=/tmp/x of=/dev/vdb bs=1M conv=fsync 2>/dev/null
    echo "@@WRITTEN $round $(md5sum </tmp/x)"
    while [ -e /sys/block/vdb ]; do sleep 0.1; done
    more; echo "@@GONE $round"
done
until [ "$(cat /sys/block/vda/size)" = 65536 ]; do sleep 0.1; done
more; touch /tmp/stop; wait
umount /mnt; mount /dev/vda /mnt
for name in 0 1 2 3 4 5 6 7; do
    [ ! -e /tmp/sum.$name ] || [ "$(md5sum </mnt/$name)" = "$(cat /tmp/sum.$name)" ]
done
umount /mnt; echo "@@WHOLE"
dmesg | grep -iE 'I/O error|acpi.*error|BUG|warning:' | sed 's/^/error: /' || true
"#;

#[test]
fn a_disk_comes_and_goes_while_another_is_mounted_and_written_to() {
    let folder = Folder::on_disk();
    let (first, second) = (folder.sparse("first", 16 << 20), folder.sparse("second", 8 << 20));
    let socket = folder.join("api");
    let kernel = Kernel::V6_12;
    let mut monitor = MonitorBuilder::linux(kernel, Form::BzImage)
        .initramfs(kernel.tools().as_os_str())
        .args(["--platform", "acpi=on"])
        .arg("--api-socket")
        .arg(&socket)
        .arg("--disk")
        .arg(format!("path={},id=first", first.display()))
        .script(SCRIPT)
        .start();
    monitor.wait_for("@@READY");
    let add = format!("path={},id=second", second.display());
    for round in 1..=2 {
        done(&socket, &["add-disk", &add]);
        let line = monitor.wait_for(&format!("@@WRITTEN {round} "));
        done(&socket, &["remove-device", "second"]);
        let info = done(&socket, &["--json", "info"]);
        assert!(!info.contains("\"second\""), "{info}");
        assert!(line.contains(&md5(&second, 2 << 20)), "what was written is on the disk");
        monitor.wait_for(&format!("@@GONE {round}"));
    }
    done(&socket, &["resize-disk", "--disk", "first", "--size", "32M"]);
    let output = monitor.succeed();
    assert!(output.contains("writer-ended") && output.contains("@@WHOLE"), "{output}");
    assert!(!output.contains("error: "), "{output}");
    shell(&format!("e2fsck -fn '{}' 2>&1", first.display()));
}

/// Bytes of each write.
const BLOCK: usize = 4096;

/// Numbered writes to a disk, each made stable before the next, until the first that fails. The disk is there when it can be opened,
/// a little after its name is.
const NUMBERED: &str = r#"set -e
modprobe virtio_blk
echo "@@READY"
for round in 1 2; do
    until ( : </dev/vda ) 2>/dev/null; do sleep 0.1; done
    exec 3>/dev/vda
    last=0
    while printf '%4096d' $((last + 1)) | dd bs=4096 count=1 iflag=fullblock conv=fsync >&3 2>/dev/null; do
        last=$((last + 1))
        [ $last != 20 ] || echo "@@GOING $round"
    done
    exec 3>&-
    echo "@@LAST $round $last."
    while [ -e /sys/block/vda ]; do sleep 0.1; done
    echo "@@GONE $round"
done
"#;

/// The guest lets go of the disk in the first round; in the second it is torn out.
#[test]
fn what_was_stable_is_on_a_disk_that_goes_while_it_is_written_to() {
    let folder = Folder::on_disk();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .args(["--platform", "acpi=on"])
        .arg("--api-socket")
        .arg(&socket)
        .script(NUMBERED)
        .start();
    monitor.wait_for("@@READY");
    for (round, remove) in [
        (1, &["remove-device", "disk", "--timeout", "60000"][..]),
        (2, &["remove-device", "disk", "--force"]),
    ] {
        let image = folder.sparse(&format!("image{round}"), 256 << 20);
        done(&socket, &["add-disk", &format!("path={},id=disk", image.display())]);
        monitor.wait_for(&format!("@@GOING {round}"));
        done(&socket, remove);
        // From here on the monitor does not have it.
        let written = std::fs::read(&image).unwrap();
        let line = monitor.wait_for(&format!("@@LAST {round} "));
        let last: usize = line.trim().trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap();
        assert!(last >= 20, "{line}");
        for (number, block) in (1..=last).zip(written.chunks(BLOCK)) {
            let text = std::str::from_utf8(block).unwrap().trim();
            assert_eq!(text, number.to_string(), "round {round}: write {number} of {last} was stable");
        }
        monitor.wait_for(&format!("@@GONE {round}"));
    }
    monitor.succeed();
}
