//! A stock kernel's view of the firmware configuration device.

use vivarium_tests::host::{Folder, sha256};
use vivarium_tests::{Architecture, Form, Kernel, MonitorBuilder, native};

const SCRIPT: &str = "set -e; modprobe qemu_fw_cfg; cd /sys/firmware/qemu_fw_cfg
    echo \"@@REV $(cat rev)\"; cd by_name
    echo \"@@ROLE $(cat opt/org.example/role/raw)\"
    echo \"@@SUM $(sha256sum <opt/org.example/data/raw) $(cat opt/org.example/data/size)\"
    echo \"@@RSDP $(head -c 8 etc/acpi/rsdp/raw)\"
    echo \"@@LOADER $(($(cat etc/table-loader/size) % 128))\"
    grep -q ':QEMU0002:' /sys/bus/acpi/devices/QEMU0002:00/modalias";

/// The memory map, which firmware on a PC has from there.
const E820: &str = "
    echo \"@@E820 $(($(cat etc/e820/size) % 20)) $(hexdump -v -n 20 -e '1/4 \"%x \"' etc/e820/raw)\"";

#[test]
fn a_guest_finds_items_by_name() {
    let folder = Folder::on_disk();
    let file = folder.join("data");
    // Longer than a page and than what one string instruction moves, and not a multiple of either. Linux reads it page by page, each
    // from the beginning, a byte at a time: much longer would only take long.
    let data: Vec<u8> = (0..10_001_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&file, &data).unwrap();
    let items = format!(
        "items=[name=opt/org.example/role,string=worker:name=opt/org.example/data,file={}]",
        file.display()
    );
    let kernel = Kernel::V6_12;
    let on_a_pc = native() == Architecture::X86_64;
    let script = [SCRIPT, if on_a_pc { E820 } else { "" }].concat();
    let output = MonitorBuilder::linux(kernel, Form::BzImage)
        .initramfs(kernel.tools().as_os_str())
        .args(["--platform", "acpi=on", "--landlock", "--fw-cfg-config", &items])
        .script(&script)
        .start()
        .succeed();
    let told = |word: &str| {
        let rest = output.split(&format!("@@{word} ")).nth(1).unwrap_or_else(|| panic!("{word}: {output}"));
        rest.lines().next().unwrap_or_default().trim().to_owned()
    };
    assert_eq!(told("REV"), "3");
    assert_eq!(told("ROLE"), "worker");
    assert_eq!(told("SUM"), format!("{}  - 10001", sha256(&file)));
    if on_a_pc {
        let memory = told("E820");
        let words: Vec<_> = memory.split(' ').collect();
        assert!(matches!(words[..], ["0", "0", "0", _, "0", "1"]), "RAM from address 0 on: {memory}");
    }
    assert_eq!(told("RSDP"), "RSD PTR");
    assert_eq!(told("LOADER"), "0");
}
