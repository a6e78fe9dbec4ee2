//! Devices that come and go while a stock kernel runs, by `vivarium ctl`.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use vivarium_tests::ctl::done;
use vivarium_tests::host::Folder;
use vivarium_tests::{Form, Kernel, MonitorBuilder};

fn md5(path: &Path, bytes: u64) -> String {
    let mut data = Vec::new();
    std::fs::File::open(path).unwrap().take(bytes).read_to_end(&mut data).unwrap();
    let copy = path.with_extension("head");
    std::fs::write(&copy, data).unwrap();
    let output = Command::new("md5sum").arg(copy).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// One disk is written to all the time while another comes, is written to, and goes, twice.
const SCRIPT: &str = r#"set -e
( while [ ! -e /tmp/stop ]; do dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null; done; echo writer-ended ) &
dmesg -c >/dev/null; echo "@@READY"
for round in 1 2; do
    until [ -b /dev/vdb ]; do sleep 0.1; done
    dd if=/dev/urandom of=/tmp/x bs=1M count=2 2>/dev/null
    dd if=/tmp/x of=/dev/vdb bs=1M conv=fsync 2>/dev/null
    echo "@@WRITTEN $round $(md5sum </tmp/x)"
    while [ -e /sys/block/vdb ]; do sleep 0.1; done
    echo "@@GONE $round"
done
until [ "$(cat /sys/block/vda/size)" = 32768 ]; do sleep 0.1; done
touch /tmp/stop; wait
dmesg | grep -iE 'I/O error|acpi.*error|BUG|warning:' | sed 's/^/error: /' || true
"#;

#[test]
fn a_disk_comes_and_goes_while_another_is_written_to() {
    let folder = Folder::on_disk();
    let (first, second) = (folder.sparse("first", 8 << 20), folder.sparse("second", 8 << 20));
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
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
    done(&socket, &["resize-disk", "--disk", "first", "--size", "16M"]);
    let output = monitor.succeed();
    assert!(output.contains("writer-ended") && !output.contains("error: "), "{output}");
}
