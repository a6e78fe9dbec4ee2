//! A file as a stock kernel's persistent memory, with a file system that has its files' pages straight in it (DAX).

use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, sha256, shell};
use vivarium_tests::{Form, Kernel, MonitorBuilder};

fn guest(option: &str, script: &str) -> String {
    let kernel = Kernel::V6_12;
    MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--pmem", option])
        .script(&format!("set -e; modprobe nd_pmem; [ -b /dev/pmem0 ]; {script}"))
        .start()
        .succeed()
}

#[test]
fn what_is_written_with_dax_is_in_the_file_and_can_be_had_without_keeping_more() {
    let folder = Folder::on_disk();
    let file = folder.sparse("pmem", 64 << 20);
    let option = format!("file={}", file.display());
    let output = guest(
        &option,
        "mkfs.ext4 -q -b 4096 /dev/pmem0; mount -o dax=always /dev/pmem0 /mnt; grep pmem0 /proc/mounts
        head -c 8388608 /dev/urandom >/mnt/data; sync; umount /mnt; mount -o dax=always /dev/pmem0 /mnt
        echo \"@@SUM $(sha256sum </mnt/data)\"; umount /mnt",
    );
    assert!(output.contains("dax=always"), "{output}");
    let sum = output.split("@@SUM ").nth(1).and_then(|rest| rest.get(..64)).expect("the guest told a sum");
    let there = shell(&format!("debugfs -R 'cat data' '{}' 2>/dev/null | sha256sum", file.display()));
    assert_eq!(there.get(..64), Some(sum), "the host reads what the guest wrote");
    shell(&format!("e2fsck -fn '{}'", file.display()));

    let before = sha256(&file);
    let output = guest(
        &format!("{option},discard_writes=on"),
        "mount -o dax=always /dev/pmem0 /mnt; echo \"@@SUM $(sha256sum </mnt/data)\"
        dd if=/dev/zero of=/mnt/data bs=1M count=8 conv=notrunc,fsync 2>/dev/null; rm /mnt/data; umount /mnt",
    );
    assert!(output.contains(&format!("@@SUM {sum}")), "{output}");
    assert_eq!(sha256(&file), before, "nothing of the second guest is kept");
}

#[test]
fn a_file_comes_while_the_guest_runs_and_goes_with_what_was_written() {
    let folder = Folder::on_disk();
    let (file, socket) = (folder.sparse("pmem", 64 << 20), folder.join("api"));
    let kernel = Kernel::V6_12;
    let mut monitor = MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--platform", "acpi=on"])
        .arg("--api-socket")
        .arg(&socket)
        .script(
            "set -e; modprobe virtio_pmem; modprobe nd_pmem; echo @@READY
            until ( : </dev/pmem0 ) 2>/dev/null; do sleep 0.1; done
            mkfs.ext4 -q -b 4096 /dev/pmem0; mount -o dax=always /dev/pmem0 /mnt; grep pmem0 /proc/mounts
            head -c 8388608 /dev/urandom >/mnt/data; sync; echo \"@@SUM $(sha256sum </mnt/data)\"; umount /mnt; echo @@WRITTEN
            while [ -e /dev/pmem0 ]; do sleep 0.1; done; read -r answer </dev/console",
        )
        .start();
    monitor.wait_for("@@READY");
    let add = format!("file={},id=data", file.display());
    done(&socket, &["add-pmem", &add]);
    let line = monitor.wait_for("@@SUM ");
    monitor.wait_for("@@WRITTEN");
    done(&socket, &["remove-device", "data", "--timeout", "60000"]);
    // Nobody has it any more.
    shell(&format!("e2fsck -fn '{}'", file.display()));
    let there = shell(&format!("debugfs -R 'cat data' '{}' 2>/dev/null | sha256sum", file.display()));
    assert!(line.contains(&there[..64]), "the host reads what the guest wrote");
    monitor.type_in("on\n");
    assert!(monitor.succeed().contains("dax=always"));
}
