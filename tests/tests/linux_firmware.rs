//! Machines that start in EFI firmware.

use std::path::Path;
use std::process::Command;
use vivarium_tests::host::Folder;
use vivarium_tests::{Feature, Form, Kernel, Monitor, MonitorBuilder, guests, lacks, required};

/// A variable of this test's own.
const VARIABLE: &str = "/sys/firmware/efi/efivars/Vivarium-6b2b7d5e-0c1f-4d4e-9a3a-5f0e8c7b1d20";

/// A machine that boots from its first disk, whose guest then runs the script on its second one.
fn from_disk(folder: &Folder, variables: &Path, script: &str) -> Monitor {
    let second = folder.join("script");
    let mut bytes = script.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    std::fs::write(&second, bytes).expect("a file can be written");
    let mut command = Command::new(required("VIVARIUM_BIN"));
    command.arg("--firmware").arg(guests::firmware()).arg("--firmware-vars").arg(variables);
    command.args(["--serial", "tty", "--console", "off"]);
    command.arg("--disk").arg(format!("path={},readonly=on", guests::efi_disk().display()));
    command.arg(format!("path={}", second.display()));
    Monitor::start(command)
}

#[test]
fn a_boot_loader_boots_linux_and_variables_outlive_the_machine() {
    if lacks(Feature::Firmware) {
        return;
    }
    let folder = Folder::on_disk();
    let variables = folder.join("variables.fd");
    std::fs::copy(guests::firmware_variables(), &variables)
        .expect("there is room for the firmware's variables");
    let mount = "mount -t efivarfs efivarfs /sys/firmware/efi/efivars";
    // Attributes (kept, for boot loaders and for operating systems), then the value.
    let write =
        format!("{mount} && printf '\\007\\000\\000\\000kept' >{VARIABLE} && echo @@WRITTEN; read -r line");
    let mut first = from_disk(&folder, &variables, &write);
    first.wait_for("@@WRITTEN");
    // It is killed: what was written is in the file.
    drop(first);
    let read = format!("{mount} && echo \"@@FOUND $(tail -c +5 {VARIABLE})\"; uname -r");
    let output = from_disk(&folder, &variables, &read).succeed();
    assert!(output.contains("@@FOUND kept"), "{output}");
    assert!(output.contains(&format!("{}.", Kernel::V6_12.series())), "{output}");
}

#[test]
fn firmware_boots_the_kernel_that_it_is_given() {
    if lacks(Feature::Firmware) {
        return;
    }
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .arg("--firmware")
        .arg(guests::firmware())
        .script("[ -d /sys/firmware/efi/efivars ] && echo @@EFI $(dmesg | grep -c 'EFI v')")
        .start()
        .succeed();
    assert!(output.contains("@@EFI 1"), "{output}");
}
