//! What the host refuses, or what is not what it should be: each is told in one line that names the option and its value,
//! with status 1, and nothing is left behind.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Architecture, MonitorBuilder, native, required};

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the monitor runs")
}

/// Checks that a monitor failed as it should, and said one line with all of `parts`.
fn failed(what: &str, output: &Output, parts: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{what}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{what}: \"{part}\" is not in: {errors}");
    }
}

/// A stock kernel, as a bzImage, if the tests that boot it have fetched it.
fn stock_kernel() -> Option<PathBuf> {
    let guests = std::env::var_os("VIVARIUM_GUESTS").map(PathBuf::from);
    let path = guests.map(|guests| guests.join("vmlinuz-6.12")).filter(|path| path.exists());
    let path = path.filter(|_| native() == Architecture::X86_64);
    if path.is_none() {
        println!("@@SKIP there is no stock kernel for x86_64 in VIVARIUM_GUESTS");
    }
    path
}

#[test]
fn a_refused_start_leaves_the_files_of_consoles_as_they_are() {
    let folder = Folder::new();
    let (log, kernel) = (folder.join("old.log"), folder.join("kernel"));
    std::fs::copy(required("VIVARIUM_BARE_GUEST"), &kernel).unwrap();
    std::fs::write(&log, "precious").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(required("VIVARIUM_BIN"));
        output(command.arg("--kernel").arg(&kernel).args(arguments))
    };
    let file = format!("file={}", log.display());
    for console in ["--serial", "--console"] {
        for refused in [["--disk", "path=/nowhere"], ["--pmem", "file=/nowhere"], ["--rng", "src=/nowhere"]] {
            failed(console, &run(&[&[console, &*file], &refused[..]].concat()), &[refused[0], "/nowhere"]);
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "precious", "{console} {refused:?}");
        }
    }
    let disk = format!("path={}", log.display());
    failed(
        "disk",
        &run(&["--disk", &disk, "--serial", &file]),
        &["--serial", &file, "is the file of --disk"],
    );
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "precious");
    let file = format!("file={}", kernel.display());
    failed("kernel", &run(&["--console", &file]), &["--console", &file, "is the file of --kernel"]);
    assert!(std::fs::metadata(&kernel).unwrap().len() > 0);
}

#[test]
fn a_machine_begins_the_files_of_its_consoles_anew() {
    let folder = Folder::new();
    let log = folder.join("old.log");
    std::fs::write(&log, "precious ".repeat(1000)).unwrap();
    let file = format!("file={}", log.display());
    let exit = MonitorBuilder::bare("hello;").replace("--serial", file).start().wait();
    assert_eq!(exit.status, Some(0));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("@@ hello") && !text.contains("precious"), "{text}");
}

#[test]
fn a_stock_kernel_that_was_cut_off_is_refused() {
    let Some(whole) = stock_kernel() else { return };
    let (folder, bytes) = (Folder::new(), std::fs::read(whole).unwrap());
    let path = folder.join("kernel");
    // In the middle of the setup header, of the setup code and of the kernel, and just before the end.
    for length in [600, 3000, 1 << 20, bytes.len() / 2] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let mut command = Command::new(required("VIVARIUM_BIN"));
        let option = format!("--kernel {}: ", path.display());
        failed(&length.to_string(), &output(command.arg("--kernel").arg(&path)), &[&option, "truncated"]);
    }
}

#[test]
fn a_stock_kernel_is_refused_where_it_would_hang() {
    let Some(kernel) = stock_kernel() else { return };
    if !Path::new("/sys/module/kvm_pvm").exists() {
        println!("@@SKIP this host's KVM is not known to be a software backend");
        return;
    }
    let mut command = Command::new(required("VIVARIUM_BIN"));
    let command = command.arg("--kernel").arg(&kernel).args(["--console", "off"]);
    let option = format!("--kernel {}: this host's KVM is a software backend", kernel.display());
    failed("stock", &output(command), &[&option, "use a host whose processor offers VMX or SVM"]);
}

/// The monitor with a good kernel, so that the rest is at fault.
fn with(words: &str) -> Command {
    let mut command = Command::new(required("VIVARIUM_BIN"));
    command.arg("--kernel").arg(required("VIVARIUM_BARE_GUEST")).args(["--console", "off"]);
    command.args(words.split_whitespace());
    command
}

#[test]
fn kernels_that_are_none_are_refused() {
    let folder = Folder::new();
    let guest = std::fs::read(required("VIVARIUM_BARE_GUEST")).unwrap();
    for (name, bytes, why) in [
        ("empty", &b""[..], "is empty"),
        ("text", b"hello, world\n", "not a kernel"),
        ("truncated", &guest[..3000], "truncated"),
        ("zeroes", &[0; 100_000], "not a kernel"),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        let path = path.display().to_string();
        let mut command = Command::new(required("VIVARIUM_BIN"));
        failed(name, &output(command.args(["--kernel", &path])), &[&format!("--kernel {path}: "), why]);
    }
    for (path, why) in [("/nowhere/at/all", "No such file"), ("/tmp", "is a directory")] {
        let mut command = Command::new(required("VIVARIUM_BIN"));
        failed(path, &output(command.args(["--kernel", path])), &[&format!("--kernel {path}: "), why]);
    }
}

/// A kernel that is entered by PVH and is Linux, as far as can be told from outside.
#[test]
fn a_command_line_that_linux_would_cut_off_is_refused() {
    let folder = Folder::new();
    let mut kernel = std::fs::read(required("VIVARIUM_BARE_GUEST")).unwrap();
    kernel.resize(2 << 20, 0);
    kernel.extend(b"Linux version 6.1");
    let path = folder.join("kernel");
    std::fs::write(&path, kernel).unwrap();
    let mut command = Command::new(required("VIVARIUM_BIN"));
    command.arg("--kernel").arg(&path).args(["--console", "off", "--cmdline", &"x".repeat(2048)]);
    failed(
        "cmdline",
        &output(&mut command),
        &["--cmdline: has 2048 bytes, and this kernel takes 2047: shorten it"],
    );
}

#[test]
fn an_initramfs_too_large_for_memory_is_refused() {
    let folder = Folder::new();
    let path = folder.sparse("initramfs", 1 << 30);
    let words = format!("--memory size=128M --initramfs {}", path.display());
    failed(
        &words,
        &output(&mut with(&words)),
        &[&format!("--initramfs {}: ", path.display()), "more memory"],
    );
    failed(
        "missing",
        &output(&mut with("--initramfs /nowhere")),
        &["--initramfs /nowhere: ", "No such file"],
    );
}

#[test]
fn disks_that_cannot_be_are_refused() {
    let folder = Folder::new();
    let empty = folder.sparse("empty", 0);
    let (missing, empty, directory) =
        (folder.join("missing").display().to_string(), empty.display().to_string(), "/tmp");
    for (path, why) in
        [(missing.as_str(), "truncate"), (&empty, "at least one sector"), (directory, "directory")]
    {
        let words = format!("--disk path={path}");
        failed(&words, &output(&mut with(&words)), &[&format!("--disk path={path}: "), why]);
    }
}

#[test]
fn a_locked_disk_names_who_has_it() {
    let folder = Folder::new();
    let path = folder.sparse("disk", 1 << 20);
    let words = format!("--disk path={}", path.display());
    let mut holder =
        MonitorBuilder::bare("blk-verify size=64K; hello end=halt").args(words.split(' ')).start();
    holder.wait_for("@@ done rc=0");
    let refused = output(&mut with(&words));
    failed(
        &words,
        &refused,
        &[&format!("path={}: ", path.display()), "another process", &format!("{}", holder.pid())],
    );
    // Readers do not mind each other, but a writer.
    failed("reader", &output(&mut with(&format!("{words},readonly=on"))), &["open for writing"]);
    drop(holder);
    // What a killed holder had is free.
    MonitorBuilder::bare("hello").args(words.split(' ')).start().complete();
}

#[test]
fn a_file_that_cannot_be_written_wants_readonly() {
    let folder = Folder::new();
    let path = folder.sparse("disk", 1 << 20);
    std::fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let base = path.parent().unwrap();
    std::fs::set_permissions(base, Permissions::from_mode(0o755)).unwrap();
    // Root may write whatever the mode says, so the test gives up that right, and keeps all others.
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-dac_override", "--inh-caps", "-dac_override", "--"])
        .arg(required("VIVARIUM_BIN"));
    command.arg("--kernel").arg(required("VIVARIUM_BARE_GUEST"));
    command.args(["--console", "off", "--disk", &format!("path={}", path.display())]);
    failed("read-only file", &output(&mut command), &[&format!("path={}: ", path.display()), "readonly=on"]);
}

#[test]
fn memory_and_processors_beyond_the_host_are_refused() {
    for (words, parts) in [
        ("--memory size=100000T", &["--memory", "less memory"][..]),
        ("--cpus boot=100000", &["--cpus boot=100000", "at most"]),
        ("--memory size=1T,hugepages=on", &["--memory size=1T,hugepages=on", "nr_hugepages"]),
        (
            "--memory size=128M,hugepages=on,hugepage_size=16M",
            &["--memory size=128M,hugepage_size=16M", "no huge pages of that size"],
        ),
    ] {
        let refused = output(&mut with(words));
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert!(matches!(refused.status.code(), Some(1 | 2)), "{words}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{words}: {errors}");
        for part in parts {
            assert!(errors.contains(part), "{words}: \"{part}\" is not in: {errors}");
        }
    }
}

#[test]
fn networks_that_cannot_be_are_refused() {
    for (words, parts) in [
        ("--net tap=lo", &["--net tap=lo: ", "not a tap", "another name"][..]),
        ("--net fd=77", &["fd=77", "not an open file descriptor"]),
    ] {
        failed(words, &output(&mut with(words)), parts);
    }
    // Without the right to make one.
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"])
        .arg(required("VIVARIUM_BIN"));
    command.arg("--kernel").arg(required("VIVARIUM_BARE_GUEST")).args([
        "--console",
        "off",
        "--net",
        "tap=vivt8",
    ]);
    failed("no right", &output(&mut command), &["--net tap=vivt8: ", "ip tuntap add"]);
}

#[test]
fn values_that_the_host_or_another_device_rules_out_are_told_with_the_remedy() {
    for (words, parts) in [
        ("--net mtu=65535", &["--net: tap vmtap", "the host refuses mtu=65535", "68 to 65521"][..]),
        ("--memory size=9T", &["--memory size=9T: KVM takes less than 8T in one piece", "--memory-zone"]),
    ] {
        failed(words, &output(&mut with(words)), parts);
    }
    if native() == Architecture::X86_64 {
        for (options, port) in
            [("", 0xcf8), ("", 0xcff), ("", 0x80), ("--fw-cfg-config items=[name=opt/x,string=y]", 0x510)]
        {
            let words = format!("{options} --debug-console null,iobase={port:#x}");
            let expected =
                format!("--debug-console iobase={port:#x}: another device has this port; give another");
            failed(&words, &output(&mut with(&words)), &[&expected]);
        }
    }
}

#[test]
fn sources_and_places_that_are_not_there_are_refused() {
    for (words, part) in [
        ("--rng src=/nowhere", "--rng src=/nowhere: "),
        ("--serial file=/nowhere/log", "--serial: "),
        ("--serial socket=/nowhere/socket", "--serial: "),
        ("--log-file /nowhere/log", "--log-file /nowhere/log: "),
        ("--api-socket path=/nowhere/api", "--api-socket path=/nowhere/api: "),
        ("--event-monitor path=/nowhere/events", "--event-monitor path=/nowhere/events: "),
        ("--gdb path=/nowhere/gdb", "--gdb path=/nowhere/gdb: "),
        ("--vsock cid=3,socket=/nowhere/vsock", "--vsock socket=/nowhere/vsock: "),
        ("--pmem file=/nowhere", "--pmem file=/nowhere: "),
        ("--ivshmem path=/nowhere/memory,size=4M", "--ivshmem path=/nowhere/memory: "),
        (
            "--memory size=0 --memory-zone id=a,size=64M,file=/nowhere",
            "--memory-zone id=a,size=64M,file=/nowhere: ",
        ),
        ("--fw-cfg-config items=[name=opt/x,file=/nowhere]", "--fw-cfg-config items=[name=opt/x]: "),
    ] {
        failed(words, &output(&mut with(words)), &[part, "/nowhere", "; correct the path, or"]);
    }
}

#[test]
fn descriptors_and_sockets_that_cannot_be_are_refused_with_the_remedy() {
    let long = format!("--serial socket={}", "x".repeat(200));
    for (words, remedy) in [
        ("--serial file=/tmp", "; give a file"),
        (&long, "; give a path of at most 107 bytes"),
        ("--api-socket fd=99", "; start this process with that descriptor open"),
        ("--event-monitor fd=99", "; start this process with that descriptor open"),
        ("--net fd=99", "; start this process with that descriptor open"),
    ] {
        failed(words, &output(&mut with(words)), &[remedy]);
    }
}

#[test]
fn a_host_without_kvm_is_told_what_to_do() {
    let run = |before: &str| {
        let script = format!(
            "{before}; exec {} --kernel {}",
            required("VIVARIUM_BIN").display(),
            required("VIVARIUM_BARE_GUEST").display()
        );
        output(Command::new("unshare").args(["--mount", "sh", "-ec", &script]))
    };
    failed("missing", &run("mount -t tmpfs tmpfs /dev"), &["/dev/kvm: not found", "modprobe"]);
    failed("another device", &run("mount --bind /dev/null /dev/kvm"), &["/dev/kvm: "]);
    // The binary may lie where only root can read.
    let folder = Folder::new();
    let copy = folder.join("vivarium");
    std::fs::copy(required("VIVARIUM_BIN"), &copy).unwrap();
    std::fs::set_permissions(copy.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&copy)
        .args(["--kernel", "k"]);
    if std::fs::metadata("/dev/kvm").unwrap().permissions().mode() & 0o006 == 0 {
        failed("not permitted", &output(&mut command), &["/dev/kvm: permission denied", "group kvm"]);
    }
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = Folder::new();
    let (socket, file, gdb) = (folder.join("socket"), folder.join("file"), folder.join("gdb"));
    let words = format!(
        "--net tap=vivt9 --serial socket={} --debug-console file={} --gdb path={} --disk path=/nowhere",
        socket.display(),
        file.display(),
        gdb.display()
    );
    failed(&words, &output(&mut with(&words)), &["--disk path=/nowhere: "]);
    assert!(!Path::new("/sys/class/net/vivt9").exists(), "the tap is left");
    assert!(!socket.exists(), "the socket is left");
    assert!(!file.exists(), "the file is left");
    assert!(!gdb.exists(), "the debugger's socket is left");
    // The other way about: what comes last fails.
    let words = format!("--rng src=/nowhere --net tap=vivt9 --serial socket={}", socket.display());
    failed(&words, &output(&mut with(&words)), &["--rng src=/nowhere: "]);
    assert!(!Path::new("/sys/class/net/vivt9").exists(), "the tap is left");
    assert!(!socket.exists(), "the socket is left");
}

#[test]
fn a_guest_that_ends_leaves_nothing_behind() {
    let folder = Folder::new();
    let socket = folder.join("socket");
    let disk = folder.sparse("disk", 1 << 20);
    MonitorBuilder::bare("hello; blk-verify size=64K; net-tx n=10")
        .args(["--net", "tap=vivt7"])
        .replace("--console", format!("socket={}", socket.display()))
        .args(["--disk", &format!("path={}", disk.display())])
        .start()
        .complete();
    assert!(!Path::new("/sys/class/net/vivt7").exists(), "the tap is left");
    assert!(!socket.exists(), "the socket is left");
    assert_eq!(shell(&format!("ls -A {}", disk.parent().unwrap().display())), "disk\n");
}
