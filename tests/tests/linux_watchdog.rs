//! A stock kernel's watchdog driver, and a guest that falls silent.

use vivarium_tests::{Feature, Form, Kernel, MonitorBuilder, lacks};

/// Starts the watchdog and never reloads it, unless it is the watchdog that restarted the machine (WDIOF_CARDRESET).
const SCRIPT: &str = r#"set -e
    grep . /sys/class/watchdog/watchdog0/identity
    if [ $(cat /sys/class/watchdog/watchdog0/bootstatus) = 32 ]; then echo "@@RESTARTED"; exit 0; fi
    rmmod i6300esb
    modprobe i6300esb heartbeat=1
    echo "@@STARTS"
    exec 3>/dev/watchdog
    sleep 600"#;

fn guest(option: &[&str]) -> MonitorBuilder {
    let kernel = Kernel::with_more_drivers();
    MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--watchdog"])
        .args(option)
        .script(SCRIPT)
}

#[test]
fn a_silent_guest_is_restarted_and_learns_why() {
    let output = guest(&[]).start().succeed();
    assert!(output.contains("i6300ESB"), "{output}");
    let restarted = output.find("@@RESTARTED").expect("the guest was restarted");
    assert!(output.find("@@STARTS").is_some_and(|started| started < restarted), "{output}");
}

#[test]
fn a_silent_guest_is_powered_off_where_that_is_wanted() {
    let exit = guest(&["action=poweroff"]).start().wait();
    assert_eq!(exit.status, Some(0), "{}{}", exit.output, exit.errors);
    assert!(exit.output.contains("@@STARTS") && !exit.output.contains("@@RC"), "{}", exit.output);
}

#[test]
fn a_silent_guest_is_interrupted_where_that_is_wanted() {
    if lacks(Feature::UnmaskedInterrupt) {
        return;
    }
    let script = r#"set -e; rmmod i6300esb; modprobe i6300esb heartbeat=1
        nmis() { grep NMI: /proc/interrupts | tr -dc '0-9 ' | awk '{ n = 0; for (i = 1; i <= NF; i++) n += $i; print n }'; }
        before=$(nmis); exec 3>/dev/watchdog
        while [ $(nmis) = $before ]; do :; done
        echo "@@INTERRUPTED""#;
    let kernel = Kernel::with_more_drivers();
    let output = MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--watchdog", "action=inject-nmi,model=i6300esb"])
        .script(script)
        .start()
        .succeed();
    assert!(output.contains("@@INTERRUPTED"), "{output}");
}
