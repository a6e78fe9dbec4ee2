//! Machines that start in EFI firmware.

use std::path::{Path, PathBuf};
use std::process::Command;
use vivarium_tests::host::Folder;
use vivarium_tests::{Feature, Form, Kernel, Monitor, MonitorBuilder, guests, kernel_log, lacks, required};

/// Takes a guest's shell to the variables.
const ENTER: &str = "mount -t efivarfs efivarfs /sys/firmware/efi/efivars && cd /sys/firmware/efi/efivars";

/// Writes a variable of these tests' own: attributes (kept, for boot loaders and for operating systems), then the value.
const WRITE: &str = "printf '\\007\\000\\000\\000kept' >Vivarium-6b2b7d5e-0c1f-4d4e-9a3a-5f0e8c7b1d20";

/// Shows its value. Fails where it is not.
const READ: &str =
    "v=Vivarium-6b2b7d5e-0c1f-4d4e-9a3a-5f0e8c7b1d20; [ -e $v ] && echo \"@@FOUND $(tail -c +5 $v)\"";

/// Shows for how many seconds the firmware waits for a key before it boots, which is a variable of the UEFI specification's (3.3).
const SHOW_WAIT: &str =
    "echo \"@@WAITS $(tail -c 2 Timeout-8be4df61-93ca-11d2-aa0d-00e098032b8c | hexdump -e '1/2 \"%u\"')\"";

/// The firmware's variables as they are at first, in a file.
fn variables(folder: &Folder) -> PathBuf {
    let variables = folder.join("variables.fd");
    std::fs::copy(guests::firmware_variables(), &variables)
        .expect("there is room for the firmware's variables");
    variables
}

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
fn a_boot_loader_boots_linux_and_has_variables_to_write() {
    if lacks(Feature::Firmware) {
        return;
    }
    let folder = Folder::on_disk();
    let variables = variables(&folder);
    let output =
        from_disk(&folder, &variables, &format!("uname -r; {ENTER} && {SHOW_WAIT} && {WRITE} && {READ}"))
            .succeed();
    assert!(output.contains("@@FOUND kept"), "{output}");
    assert!(output.contains("@@WAITS 0"), "{output}");
    assert!(output.contains(&format!("{}.", Kernel::V6_12.series())), "{output}");
}

#[test]
fn variables_outlive_a_machine_that_is_killed() {
    if lacks(Feature::Firmware) {
        return;
    }
    let folder = Folder::on_disk();
    let variables = variables(&folder);
    let machine = |script: &str| with_kernel().arg("--firmware-vars").arg(&variables).script(script).start();
    let mut first = machine(&format!("{ENTER} && {WRITE} && echo @@WRITTEN; read -r line"));
    first.wait_for("@@WRITTEN");
    // It is killed: what was written is in the file.
    drop(first);
    let output = machine(&format!("{ENTER}; {READ}")).succeed();
    assert!(output.contains("@@FOUND kept"), "{output}");
}

/// A machine whose firmware boots the kernel that it is given.
fn with_kernel() -> MonitorBuilder {
    MonitorBuilder::linux(Kernel::V6_12, Form::BzImage).arg("--firmware").arg(guests::firmware())
}

/// The variables are in no file: the machine has them for as long as it lives.
#[test]
fn a_machine_that_restarts_in_firmware_keeps_its_variables() {
    if lacks(Feature::Firmware) {
        return;
    }
    let output = with_kernel()
        .script(&format!("{ENTER} || exit 1; {READ} || {{ {WRITE} && echo @@WRITTEN && reboot -f; }}"))
        .start()
        .succeed();
    assert_eq!(output.matches("@@WRITTEN").count(), 1, "{output}");
    assert!(output.contains("@@FOUND kept"), "{output}");
}

#[test]
fn firmware_passes_acpi_tables_on_in_which_the_kernel_finds_no_fault() {
    if lacks(Feature::Firmware) {
        return;
    }
    let output = with_kernel()
        .args(["--cpus", "boot=2"])
        .script(&format!(
            "set -e; ls -1 /sys/firmware/acpi/tables; [ ! -e /proc/device-tree/cpus ]
            echo @@CPUS $(cat /sys/devices/system/cpu/online); {}",
            kernel_log::SHOW
        ))
        .start()
        .succeed();
    assert!(output.contains("@@CPUS 0-1"), "{output}");
    for table in ["APIC", "DSDT", "FACP", "GTDT", "IORT", "MCFG", "PPTT"] {
        assert!(output.lines().any(|line| line.trim() == table), "{table} is not in:\n{output}");
    }
    let complaints = kernel_log::complaints(&output);
    assert!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
}

#[test]
fn firmware_boots_the_kernel_that_it_is_given_with_a_device_tree_if_that_is_wanted() {
    if lacks(Feature::Firmware) {
        return;
    }
    let output = with_kernel()
        .args(["--platform", "acpi=off"])
        .script(
            "[ -d /sys/firmware/efi/efivars ] && [ -e /proc/device-tree/cpus ] && echo @@EFI $(dmesg | grep -c 'EFI v')",
        )
        .start()
        .succeed();
    assert!(output.contains("@@EFI 1"), "{output}");
}
