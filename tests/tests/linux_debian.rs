//! Debian with systemd, from its disk to its login and to its end.

use vivarium_tests::guests::debian_root;
use vivarium_tests::host::Folder;
use vivarium_tests::terminal::Terminal;
use vivarium_tests::{Feature, Form, Kernel, MonitorBuilder, lacks};

#[test]
fn debian_boots_to_a_login_and_obeys_the_power_button() {
    if lacks(Feature::DebianRoot) {
        return;
    }
    let folder = Folder::on_disk();
    let root = debian_root(&folder);
    let mut terminal = Terminal::new();
    let mut command = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .args(["--memory", "size=512M", "--cpus", "boot=2", "--disk", &format!("path={}", root.display())])
        .cmdline("viv.root=/dev/vda viv.modules=autofs4,evdev")
        .command();
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.wait_for("login:");
    terminal.type_in("root\r");
    terminal.wait_for("# ");
    terminal.type_in("systemctl is-system-running --wait; echo failed: $(systemctl --failed --plain --no-legend | wc -l)\r");
    terminal.wait_for("\nfailed: 0");
    // SAFETY: the child was not waited for, so its id is still its own.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGUSR1) };
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
