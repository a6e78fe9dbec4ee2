//! Memory that a stock kernel's guest shares with the host, and a real-time clock beside it.

use std::os::unix::fs::FileExt;
use vivarium_tests::host::Folder;
use vivarium_tests::{Form, Kernel, MonitorBuilder};

const SIZE: u64 = 1 << 20;
const FROM_HOST: u64 = 0x1000;
/// In the last page. The tool in the guest maps another one for what is nearer to its end.
const FROM_GUEST: u64 = SIZE - 64;

/// Reads what the host wrote, writes for the host, moves the memory elsewhere and back, and reads again.
const SCRIPT: &str = r#"set -e
    for d in /sys/bus/pci/devices/*; do
        case $(cat $d/vendor)$(cat $d/device) in 0x1af40x1110) shared=$d;; 0x1af40x1051) clock=$d;; esac
    done
    [ -n "$clock" ]
    echo 1 >$shared/enable
    set -- $(sed -n 3p $shared/resource)
    echo "@@SIZE $(($2 - $1 + 1))"
    at() { printf '0x%x' $(($1 + $2)); }
    echo "@@HOST $(devmem $(at $1 0x1000) 32)"
    devmem $(at $1 0xfffc0) 32 0x600df00d
    # Without memory decoding it is not there.
    decoding() { printf "$1" | dd of=$shared/config bs=1 seek=4 conv=notrunc 2>/dev/null; }
    decoding '\000'
    echo "@@GONE $(devmem $(at $1 0x1000) 32)"
    decoding '\002'
    echo "@@BACK $(devmem $(at $1 0xfffc0) 32)"
    echo "@@READY"; read -r answer </dev/console; [ "$answer" = on ]
    echo "@@AGAIN $(devmem $(at $1 0x1000) 32)""#;

#[test]
fn guest_and_host_read_what_the_other_writes() {
    let folder = Folder::on_disk();
    let path = folder.join("shared");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&0xc0de_cafe_u32.to_le_bytes(), FROM_HOST).unwrap();
    let kernel = Kernel::V6_12;
    let mut monitor = MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--landlock", "--rtc", "--ivshmem", &format!("path={},size=1M", path.display())])
        .script(SCRIPT)
        .start();
    monitor.wait_for("@@READY");
    let mut word = [0; 4];
    file.read_exact_at(&mut word, FROM_GUEST).unwrap();
    assert_eq!(u32::from_le_bytes(word), 0x600d_f00d);
    file.write_all_at(&0x0bad_beef_u32.to_le_bytes(), FROM_HOST).unwrap();
    monitor.type_in("on\n");
    let output = monitor.succeed();
    for told in [
        "@@SIZE 1048576",
        "@@HOST 0xC0DECAFE",
        "@@GONE 0xFFFFFFFF",
        "@@BACK 0x600DF00D",
        "@@AGAIN 0x0BADBEEF",
    ] {
        assert!(output.contains(told), "{told}: {output}");
    }
}
