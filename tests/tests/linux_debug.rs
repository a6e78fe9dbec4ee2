//! Stock Linux under GDB.

use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Feature, Form, Kernel, MonitorBuilder, lacks};

#[test]
#[ignore = "has not been seen to end in the emulated host"]
fn gdb_stops_the_kernel_at_breakpoints_of_both_kinds_and_at_a_watchpoint() {
    if lacks(Feature::Debugger) {
        return;
    }
    let folder = Folder::new();
    let socket = folder.join("gdb");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .args(["--cpus", "boot=2", "--gdb", &format!("path={},wait=off", socket.display())])
        .cmdline("nokaslr")
        .script(
            r#"place() { echo "@@place $1 $(sed -n "s/ [TtDd] $1\$//p" /proc/kallsyms)"; }
            place __x64_sys_sethostname; place __x64_sys_newuname; place init_uts_ns
            ( while :; do hostname first; hostname second; uname -a > /dev/null; done ) & busy=$!
            echo "@@busy"; read line; kill $busy; echo "@@survived $line""#,
        )
        .start();
    monitor.wait_for("@@busy");
    let place = |name: &str| {
        let marker = format!("@@place {name} ");
        let line = monitor.output().lines().find_map(|line| line.strip_prefix(&marker)).unwrap().to_owned();
        u64::from_str_radix(line.trim(), 16).unwrap_or_else(|error| panic!("{name} at {line}: {error}"))
    };
    let (set_name, get_name) = (place("__x64_sys_sethostname"), place("__x64_sys_newuname"));
    // The name of the node, after that of the system: 65 bytes each.
    let node = (place("init_uts_ns") + 65).next_multiple_of(8);
    let output = shell(&format!(
        "gdb -nx -batch -ex 'set architecture i386:x86-64' -ex 'set pagination off' -ex 'target remote {}' \
         -ex 'info threads' -ex 'break *{set_name:#x}' -ex 'continue' -ex 'printf \"software %lx\\n\", $rip' \
         -ex 'x/2i $rip' -ex 'stepi' -ex 'printf \"stepped %lx\\n\", $rip' -ex 'delete' \
         -ex 'hbreak *{get_name:#x}' -ex 'continue' -ex 'printf \"hardware %lx\\n\", $rip' -ex 'delete' \
         -ex 'watch *(long*){node:#x}' -ex 'continue' -ex 'printf \"watched %lx\\n\", $rip' -ex 'delete' \
         -ex 'monitor registers' -ex 'detach' 2>&1",
        socket.display()
    ));
    for expected in [
        &format!("software {set_name:x}\n"),
        &format!("hardware {get_name:x}\n"),
        "stepped ffffffff8",
        "Hardware watchpoint 3",
        "Old value",
        "Thread 1.2",
        "detached",
    ] {
        assert!(output.contains(expected), "{expected} is not in:\n{output}");
    }
    assert!(!output.contains(&format!("stepped {set_name:x}\n")), "{output}");
    monitor.type_in("well\n");
    assert!(monitor.succeed().contains("@@survived well"), "{output}");
}
