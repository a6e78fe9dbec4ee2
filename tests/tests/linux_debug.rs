//! Stock Linux under GDB, and in a core dump.

use std::path::Path;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Architecture, Form, Kernel, Monitor, MonitorBuilder, native, required};

/// Prints where symbols of the guest's kernel are.
const PLACES: &str = r#"place() { echo "@@place $1 $(sed -n "s/ [TtDdRrBb] $1\$//p" /proc/kallsyms)"; }
    place init_uts_ns; place linux_banner
"#;

/// Where a symbol is, as the guest printed it.
fn place(monitor: &Monitor, name: &str) -> u64 {
    let marker = format!("@@place {name} ");
    let line = monitor.output().lines().find_map(|line| line.strip_prefix(&marker));
    let line = line.unwrap_or_else(|| panic!("{name}: {}", monitor.output()));
    u64::from_str_radix(line.trim(), 16).unwrap_or_else(|error| panic!("{name} at {line}: {error}"))
}

/// What GDB prints, given these commands.
fn gdb(commands: &[&str]) -> String {
    let commands = commands.iter().map(|command| format!("-ex '{command}'")).collect::<Vec<_>>().join(" ");
    shell(&format!(
        "gdb -nx -batch -ex 'set architecture {}' -ex 'set pagination off' {commands} 2>&1",
        native().gdb()
    ))
}

/// Whether this host is the nested one with SVM that QEMU emulates. That does not intercept the breakpoint instruction (it looks
/// at the intercept of software interrupts only), so that KVM never hears of a breakpoint in memory; nor does it stop at
/// data that a nested guest writes.
fn emulated() -> bool {
    native() == Architecture::X86_64 && std::env::var_os("VIVARIUM_NESTED_SHARE").is_some()
}

#[test]
fn gdb_stops_a_kernel_steps_it_and_lets_it_go() {
    let folder = Folder::new();
    let socket = folder.join("gdb");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .args(["--cpus", "boot=2", "--gdb", &format!("path={},wait=off", socket.display())])
        .cmdline("nokaslr")
        .script(&format!(
            "{PLACES} place {}newuname
            ( while :; do hostname the-first-name; hostname the-second-one; uname -a > /dev/null; done ) & busy=$!
            echo @@busy; read line; kill $busy; echo @@survived $line",
            native().system_call()
        ))
        .start();
    monitor.wait_for("@@busy");
    let get_name = place(&monitor, &format!("{}newuname", native().system_call()));
    let banner = place(&monitor, "linux_banner");
    // The name of the node, after that of the system: 65 bytes each. What is watched is the middle of it, which changes each time.
    let node = (place(&monitor, "init_uts_ns") + 65).next_multiple_of(8);
    let (remote, show) = (format!("target remote {}", socket.display()), format!("x/s {banner:#x}"));
    let (stop, watch) = (format!("hbreak *{get_name:#x}"), format!("watch *(long*){node:#x}"));
    let soft = format!("break *{get_name:#x}");
    let mut commands = vec![
        &*remote,
        "info threads",
        &show,
        "info registers pc",
        &stop,
        "continue",
        r#"printf "hardware %lx\n", $pc"#,
        "stepi",
        r#"printf "stepped %lx\n", $pc"#,
        "delete",
    ];
    if !emulated() {
        commands.extend([&*watch, "continue", r#"printf "watched %lx\n", $pc"#, "delete"]);
        commands.extend([&*soft, "continue", r#"printf "software %lx\n", $pc"#, "delete"]);
    }
    commands.extend(["thread 2", r#"printf "second %lx\n", $pc"#, "monitor registers", "detach"]);
    let output = gdb(&commands);
    let value = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not in:\n{output}"));
        u64::from_str_radix(line, 16).unwrap_or_else(|error| panic!("{name}{line}: {error}"))
    };
    for expected in ["Thread 1.1", "Thread 1.2", "Linux version 6.12", "CPU 1\n", "detached"] {
        assert!(output.contains(expected), "{expected} is not in:\n{output}");
    }
    for expected in ["Hardware watchpoint 2", "Old value"] {
        assert!(emulated() || output.contains(expected), "{expected} is not in:\n{output}");
    }
    assert_eq!(value("hardware "), get_name, "{output}");
    let step = value("stepped ").wrapping_sub(get_name);
    assert!((1..16).contains(&step), "one instruction on: {output}");
    assert!(value("second ") != 0, "{output}");
    assert!(emulated() || (value("watched ") >> 63 == 1 && value("software ") == get_name), "{output}");
    monitor.type_in("well\n");
    assert!(monitor.succeed().contains("@@survived well"), "{output}");
}

/// What `readelf` and GDB find in the core dump of a kernel that had two CPUs, of which at least `in_kernel` did not run a program.
fn check_dump(core: &Path, release: &str, banner: u64, in_kernel: usize) {
    let notes = shell(&format!(
        "readelf -n {core}; strings -n 6 {core} | grep -m1 -A40 ^OSRELEASE=[0-9]",
        core = core.display()
    ));
    assert_eq!(notes.matches("NT_PRSTATUS").count(), 2, "{notes}");
    let kernel = native().kernel_addresses();
    for expected in [
        "VMCOREINFO",
        &format!("OSRELEASE={release}\n"),
        &format!("SYMBOL(init_uts_ns)={kernel}"),
        "PAGESIZE=4096",
    ] {
        assert!(notes.contains(expected), "{expected} is not in:\n{notes}");
    }
    let output = gdb(&[
        &format!("core-file {}", core.display()),
        "info threads",
        &format!("x/s {banner:#x}"),
        r#"thread apply all printf "at %lx on %lx\n", $pc, $sp"#,
    ]);
    assert!(output.contains(&format!("Linux version {release}")), "{output}");
    let at: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("at ")).collect();
    // Each with a stack of its own.
    assert!(at.len() == 2 && at[0] != at[1], "{output}");
    assert!(at.iter().filter(|line| line.starts_with(kernel)).count() >= in_kernel, "{output}");
}

#[test]
fn a_guest_that_crashes_leaves_a_core_dump() {
    let folder = Folder::on_disk();
    let (core, socket, events) = (folder.join("core"), folder.join("api"), folder.join("events"));
    // On a PC the kernel panics upon an NMI. On Arm, where there is none, and the stock kernel has no driver, a program says what
    // the kernel would.
    let (words, prepare) = match native() {
        Architecture::X86_64 => ("nokaslr unknown_nmi_panic", "modprobe pvpanic-mmio"),
        Architecture::Aarch64 => ("nokaslr", "set -- /proc/device-tree/pvpanic@*"),
    };
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .args(["--cpus", "boot=2", "--memory", "size=256M", "--on-crash"])
        .arg(format!("coredump={},action=poweroff", core.display()))
        .arg("--api-socket")
        .arg(&socket)
        .arg("--event-monitor")
        .arg(&events)
        .cmdline(words)
        .script(&format!(
            "{prepare}; {PLACES} echo @@release $(uname -r); echo @@ready; read line; busybox devmem 0x${{1##*@}} 8 1; read line"
        ))
        .start();
    monitor.wait_for("@@ready");
    let release =
        monitor.output().lines().find_map(|line| line.strip_prefix("@@release ")).unwrap().to_owned();
    let banner = place(&monitor, "linux_banner");
    let ctl = format!("{} ctl --api-socket {}", required("VIVARIUM_BIN").display(), socket.display());
    let mut expected = vec!["panic", "pausing", "paused", "coredumping", "coredumped", "shutdown"];
    match native() {
        Architecture::X86_64 => {
            shell(&format!("{ctl} nmi"));
            expected.push("nmi");
        }
        Architecture::Aarch64 => {
            let refused = shell(&format!("{ctl} nmi 2>&1 || :"));
            assert!(refused.contains("no non-maskable interrupt"), "{refused}");
            monitor.type_in("\n");
        }
    }
    let exit = monitor.wait();
    let events = std::fs::read_to_string(events).unwrap();
    assert_eq!(exit.status, Some(0), "{}{}{events}", exit.output, exit.errors);
    for event in expected {
        assert!(events.contains(&format!("\"event\":\"{event}\"")), "{event}: {events}");
    }
    let in_kernel = match native() {
        Architecture::X86_64 => 2,
        // The program that said it may still run.
        Architecture::Aarch64 => 1,
    };
    check_dump(&core, release.trim(), banner, in_kernel);
}

/// Loads the driver, and prints what the kernel then tells of its note: both formats, the size and the two halves of the address.
const TELL: &str = "modprobe qemu_fw_cfg; cd /sys/firmware/qemu_fw_cfg/by_name/etc/vmcoreinfo
    echo @@told $(hexdump -v -n 16 -e '1/2 \"%d \" 1/2 \"%d \" 3/4 \"%d \"' raw)
    echo @@release $(uname -r); echo @@ready; read line";

#[test]
fn a_kernel_tells_where_its_note_is_and_a_core_dump_has_it() {
    let folder = Folder::on_disk();
    let (core, socket) = (folder.join("core"), folder.join("api"));
    let kernel = Kernel::V6_12;
    let mut monitor = MonitorBuilder::linux(kernel, Form::BzImage)
        .initramfs(kernel.tools().as_os_str())
        .args(["--memory", "size=256M", "--fw-cfg-config", "kernel=off,initramfs=off", "--api-socket"])
        .arg(&socket)
        .script(TELL)
        .start();
    monitor.wait_for("@@ready");
    let line = |name: &str| {
        let output = monitor.output();
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} is not in:\n{output}")).trim().to_owned()
    };
    let told = line("@@told ");
    let words: Vec<i64> = told.split(' ').map(|word| word.parse().unwrap()).collect();
    assert!(matches!(words[..], [_, 1, size, address, 0] if size >= 24 && address > 0), "{told}");
    let release = line("@@release ");
    let ctl = format!("{} ctl --api-socket {}", required("VIVARIUM_BIN").display(), socket.display());
    shell(&format!("{ctl} pause; {ctl} coredump file://{}; {ctl} resume", core.display()));
    monitor.type_in("well\n");
    monitor.succeed();
    let notes = shell(&format!("readelf -n {}", core.display()));
    assert_eq!(notes.matches("VMCOREINFO").count(), 1, "{notes}");
    let note = shell(&format!("strings -n 6 {} | grep -m1 -A400 ^OSRELEASE=[0-9]", core.display()));
    assert!(note.contains(&format!("OSRELEASE={release}\n")), "{note}");
    assert!(note.contains("KERNELOFFSET="), "{note}");
}
