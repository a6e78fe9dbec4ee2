//! What confines a machine, seen from the host: the jail.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use vivarium_tests::ctl::{ctl, done};
use vivarium_tests::host::Folder;
use vivarium_tests::{Monitor, MonitorBuilder, events, required};

/// A user that no one is.
const USER: u32 = 61_234;

fn root() -> bool {
    // SAFETY: only reads the process's identity.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("@@SKIP only root can make a jail");
    }
    root
}

fn jail(id: &str, options: &[&str], folder: &Folder) -> Command {
    let mut command = Command::new(required("VIVARIUM_BIN"));
    let user = USER.to_string();
    command.args(["jail", "--id", id, "--uid", &user, "--gid", &user]).args(options).arg("--");
    command.arg("--kernel").arg(folder.join("kernel"));
    command.args(["--memory", "size=128M", "--serial", "tty", "--console", "off", "--disk"]);
    command.arg(format!("path={}", folder.join("disk").display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A folder with a kernel, and a disk that the user may write.
fn files() -> Folder {
    let folder = Folder::on_disk();
    std::fs::set_permissions(folder.join("."), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(required("VIVARIUM_BARE_GUEST"), folder.join("kernel")).unwrap();
    chown(folder.sparse("disk", 1 << 20), Some(USER), Some(USER)).unwrap();
    folder
}

/// A machine that does not outlive its test, nor its jail.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // SAFETY: the machine has not been waited for, so the number is its own. Killed, it could not clean up.
            unsafe { libc::kill(self.0.id().cast_signed(), libc::SIGTERM) };
        }
        let _ = self.0.wait();
    }
}

fn children(process: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    children.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

fn wait_for_greeting(machine: &mut Child) {
    let mut lines = BufReader::new(machine.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("hello")), "the guest never spoke");
}

#[test]
fn a_jailed_machine_has_its_files_and_nothing_else_of_the_host() {
    if !root() {
        return;
    }
    let folder = files();
    let id = format!("test-{}", std::process::id());
    // The guest says hello and stays.
    let options = ["--open-files", "512"];
    let mut machine = Machine(jail(&id, &options, &folder).args(["--cmdline", "hello"]).spawn().unwrap());
    wait_for_greeting(&mut machine.0);
    let [process] = children(machine.0.id())[..] else { panic!("the jail has one process") };

    // The guest may have said hello before the first thread has its filter.
    let status = std::iter::repeat_with(|| {
        std::thread::yield_now();
        std::fs::read_to_string(format!("/proc/{process}/status")).unwrap()
    })
    .find(|status| status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')))
    .unwrap();
    let field = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
        line.trim_start_matches(':').split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid"), vec![USER.to_string(); 4]);
    assert_eq!(field("Gid"), vec![USER.to_string(); 4]);
    assert!(field("Groups").is_empty());
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set)[0], 16).unwrap(), 0, "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    assert_eq!(field("NSpid").last().unwrap(), "1", "it is the first process of its namespace");
    for kind in ["mnt", "pid", "ipc", "uts", "net", "user", "cgroup"] {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
        assert_ne!(of(&process.to_string()), of("self"), "{kind}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(open_files.split_whitespace().nth(3), Some("512"));

    let inside = format!("/proc/{process}/root");
    let names: BTreeSet<_> = std::fs::read_dir(&inside)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let top = folder.join("disk").components().nth(1).unwrap().as_os_str().to_str().unwrap().to_owned();
    assert_eq!(names, BTreeSet::from(["dev".to_owned(), "proc".into(), "sys".into(), top]));
    let here: BTreeSet<_> = std::fs::read_dir(format!("{inside}{}", folder.join("").display()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(here, BTreeSet::from(["disk".to_owned(), "kernel".into()]));
    assert!(std::fs::write(format!("{inside}/new"), "").is_err(), "the root folder is closed");

    let mounts = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let looked_at: Vec<_> = mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words[4] == "/sys" || words[4].starts_with("/sys/"))
        .map(|words| words[5].split(',').collect::<BTreeSet<_>>())
        .collect();
    let wanted = BTreeSet::from(["ro", "nosuid", "nodev", "noexec"]);
    assert!(!looked_at.is_empty() && looked_at.iter().all(|mount| mount.is_superset(&wanted)), "{mounts}");

    // SAFETY: the machine has not been waited for, so the number is its own.
    unsafe { libc::kill(machine.0.id().cast_signed(), libc::SIGTERM) };
    assert!(machine.0.wait().unwrap().success());
    assert!(!std::path::Path::new("/run/vivarium/jail").join(id).exists(), "nothing is left behind");
}

#[test]
fn a_jail_that_cannot_be_had_says_why_and_leaves_nothing() {
    if !root() {
        return;
    }
    let folder = files();
    let id = format!("bad-{}", std::process::id());
    chown(folder.join("disk"), Some(0), Some(0)).unwrap();
    std::fs::set_permissions(folder.join("disk"), std::fs::Permissions::from_mode(0o600)).unwrap();
    for (options, expected) in [
        (&[][..], "disk: not permitted to open the image"),
        (&["--netns", "/nonexistent"], "jail --netns /nonexistent: No such file"),
        (&["--cgroup", "memory.max"], "jail --cgroup: "),
    ] {
        let output = jail(&id, options, &folder).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(expected), "{options:?}: {errors}");
        assert_eq!((output.status.code(), errors.lines().count()), (Some(1), 1), "{errors}");
        assert!(!std::path::Path::new("/run/vivarium/jail").join(&id).exists());
    }
}

#[test]
fn a_jailed_machine_ends_with_the_process_that_made_its_jail() {
    if !root() {
        return;
    }
    let folder = files();
    let id = format!("orphan-{}", std::process::id());
    let mut machine = Machine(jail(&id, &[], &folder).args(["--cmdline", "hello"]).spawn().unwrap());
    wait_for_greeting(&mut machine.0);
    machine.0.kill().unwrap();
    // The guest's console is closed when the machine's process has ended.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(machine.0.stdout.as_mut().unwrap(), &mut rest).unwrap();
    std::fs::remove_dir(std::path::Path::new("/run/vivarium/jail").join(id)).unwrap();
}

#[test]
fn a_jail_takes_over_what_a_killed_one_left_and_not_what_one_that_runs_has() {
    if !root() {
        return;
    }
    let folder = files();
    let id = format!("again-{}", std::process::id());
    let start = || {
        let mut machine = Machine(jail(&id, &[], &folder).args(["--cmdline", "hello"]).spawn().unwrap());
        wait_for_greeting(&mut machine.0);
        machine
    };
    let mut killed = start();
    let output = jail(&id, &[], &folder).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&format!("jail --id {id}: a jail of that name runs")), "{errors}");

    killed.0.kill().unwrap();
    // The guest's console is closed when the machine's process has ended.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(killed.0.stdout.as_mut().unwrap(), &mut rest).unwrap();
    let root = std::path::Path::new("/run/vivarium/jail").join(&id);
    assert!(root.exists(), "who is killed cannot clean up");
    drop(start());
    assert!(!root.exists(), "nothing is left behind");
}

#[test]
fn a_jailed_machine_has_no_descriptor_that_its_options_do_not_name() {
    if !root() {
        return;
    }
    let folder = files();
    let id = format!("descriptors-{}", std::process::id());
    let (secret, told) = (folder.join("secret"), folder.join("told"));
    // SAFETY: duplicates open descriptors, without the flag that closes them when a program is started.
    let pass =
        |path: &std::path::Path| unsafe { libc::dup(std::fs::File::create(path).unwrap().as_raw_fd()) };
    let (unnamed, named) = (pass(&secret), pass(&told));
    let events = format!("fd={named}");
    let mut command = jail(&id, &[], &folder);
    command.args(["--cmdline", "hello", "--event-monitor", &events]);
    let mut machine = Machine(command.spawn().unwrap());
    for fd in [unnamed, named] {
        // SAFETY: they are this test's own.
        unsafe { libc::close(fd) };
    }
    wait_for_greeting(&mut machine.0);
    let [process] = children(machine.0.id())[..] else { panic!("the jail has one process") };
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(!open.contains(&secret), "{open:?}");
    // The one that is named works. The guest may have said hello before that was told.
    while !std::fs::read_to_string(&told).unwrap().contains("booted") {
        std::thread::yield_now();
    }
}

#[test]
fn a_disk_larger_than_the_largest_file_costs_the_guest_its_writes_and_not_its_life() {
    if !root() {
        return;
    }
    let folder = files();
    for engine in ["io_uring", "threads"] {
        let id = format!("limit-{}-{}", engine.len(), std::process::id());
        let large = folder.sparse("large", 16 << 20);
        chown(&large, Some(USER), Some(USER)).unwrap();
        let mut command = jail(&id, &["--file-size", "1048576"], &folder);
        command.arg(format!("path={},engine={engine}", large.display()));
        command.args(["--cmdline", "blk-verify dev=1 size=4M; hello end=s5:0x600:0x3400"]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("@@ hello"), "{engine}: {:?} {said}{errors}", output.status);
        assert_eq!(output.status.code(), Some(0), "{engine}: {said}");
        assert!(said.contains("@@ done rc=1"), "{engine}: the guest is told: {said}");
    }
}

#[test]
fn so_it_is_without_a_jail_under_a_limit_of_whoever_started_it() {
    let folder = Folder::on_disk();
    for engine in ["io_uring", "threads"] {
        let disk = format!("path={},engine={engine}", folder.sparse("disk", 16 << 20).display());
        let told = folder.join("events");
        let builder = MonitorBuilder::bare("blk-verify size=4M; hello").args(["--disk", &disk]);
        let mut command = builder.arg("--event-monitor").arg(&told).command();
        // SAFETY: only makes a call that is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        let exit = Monitor::start(command).wait();
        assert_eq!((exit.status, exit.signal), (Some(0), None), "{engine}: {}", exit.errors);
        assert!(exit.output.contains("@@ hello") && exit.output.contains("@@ done rc=1"), "{}", exit.output);
        let errors: Vec<_> = events(&told).into_iter().filter(|(name, _)| name == "disk-error").collect();
        let (_, first) = errors.first().unwrap_or_else(|| panic!("{engine}: nothing tells of the error"));
        assert_eq!((&first["id"], &first["operation"]), (&"_disk0".into(), &"write".into()), "{first}");
        assert!(first["errors"].as_u64() >= Some(1) && first["reason"].is_string(), "{first}");
    }
}

/// Has the program see, at its usual place, a `/dev/kvm` that is for root and the group `$1`; and runs it as the user `$2`, who is in
/// that group and nothing more.
const IN_GROUP: &str = r#"
group=$1 user=$2; shift 2
mount -t tmpfs -o mode=755 none "$0"
cp -a /dev/kvm "$0/kvm"; chown 0:"$group" "$0/kvm"; chmod 660 "$0/kvm"
mount --bind "$0/kvm" /dev/kvm
exec setpriv --reuid="$user" --regid="$user" --groups="$group" -- "$@"
"#;

#[test]
fn a_user_in_the_group_of_kvm_runs_and_drives_a_machine_without_a_jail() {
    if !root() {
        return;
    }
    let (folder, user) = (files(), USER.to_string());
    let group = (USER + 1).to_string();
    // The binary may lie where only root can read.
    let binary = folder.join("vivarium");
    std::fs::copy(required("VIVARIUM_BIN"), &binary).unwrap();
    chown(folder.join("."), Some(USER), Some(USER)).unwrap();
    let here = |name: &str| folder.join(name).display().to_string();
    std::fs::create_dir(folder.join("devices")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", IN_GROUP, &here("devices"), &group, &user]).arg(&binary);
    command.args(["--kernel", &here("kernel"), "--memory", "size=128M", "--serial", "tty"]);
    command.args(["--console", &format!("socket={}", here("console")), "--balloon", "size=4M", "--rtc"]);
    command.args([
        "--disk",
        &format!("path={},id=disk", here("disk")),
        "--vsock",
        &format!("socket={}", here("vsock")),
    ]);
    command.args([
        "--landlock",
        "--landlock-rules",
        &format!("path={},access=rw", here("")),
        "--api-socket",
        &here("api"),
        "--event-monitor",
        &here("events"),
    ]);
    command.args(["--cmdline", "blk-verify size=1M; rng; hello; end=spin"]);
    let mut monitor = Monitor::start(command);
    monitor.wait_for("@@ hello");
    assert!(!monitor.output().contains(" error="), "{}", monitor.output());
    let status = std::fs::read_to_string(format!("/proc/{}/status", monitor.pid())).unwrap();
    for (name, expected) in [("Uid:", &user), ("Groups:", &group), ("CapEff:", &"0".repeat(16))] {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let mut words = line.split_whitespace().skip(1);
        assert!(words.all(|word| word == expected), "{line}");
    }
    let drive = |words: &[&str]| {
        let mut command = Command::new(&binary);
        let output =
            command.uid(USER).gid(USER).args(["ctl", "--api-socket", &here("api")]).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    drive(&["pause"]);
    drive(&["coredump", &format!("file://{}", here("core"))]);
    drive(&["resume"]);
    drive(&["remove-device", "disk", "--force"]);
    drive(&["add-disk", &format!("path={},id=again", here("disk"))]);
    drive(&["shutdown-vmm"]);
    let exit = monitor.wait();
    assert_eq!(exit.status, Some(0), "{}", exit.errors);
    assert_eq!(events(&folder.join("events")).last().unwrap().0, "shutdown");
}

#[test]
fn a_machine_takes_as_many_descriptors_as_it_may_have() {
    let mut command = MonitorBuilder::bare("hello; end=spin").command();
    // SAFETY: only makes a call that is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 256, rlim_max: 2000 };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
    let mut monitor = Monitor::start(command);
    monitor.wait_for("@@ hello");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", monitor.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(
        files.split_whitespace().collect::<Vec<_>>(),
        ["Max", "open", "files", "2000", "2000", "files"]
    );
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn a_jailed_machine_is_given_nothing_from_outside_over_its_api() {
    if !root() {
        return;
    }
    let (folder, sockets, outside) = (files(), Folder::on_disk(), Folder::on_disk());
    for folder in [&sockets, &outside] {
        std::fs::set_permissions(folder.join("."), std::fs::Permissions::from_mode(0o755)).unwrap();
        chown(folder.join("."), Some(USER), Some(USER)).unwrap();
    }
    let disk = outside.sparse("disk", 1 << 20);
    chown(&disk, Some(USER), Some(USER)).unwrap();
    let id = format!("api-{}", std::process::id());
    let socket = sockets.join("api");
    let mut command = jail(&id, &[], &folder);
    command.args(["--cmdline", "hello"]).arg("--api-socket").arg(&socket);
    let mut machine = Machine(command.spawn().unwrap());
    wait_for_greeting(&mut machine.0);
    let refused = |words: &[&str], reason: &str| {
        let output = ctl(&socket, words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(reason), "{words:?}: {errors}");
    };
    refused(&["add-disk", &format!("path={}", disk.display())], "no such file");
    done(&socket, &["pause"]);
    let core = outside.join("core");
    refused(&["coredump", &format!("file://{}", core.display())], "No such file");
    assert!(!core.exists());
    done(&socket, &["resume"]);
    done(&socket, &["shutdown-vmm"]);
    assert!(machine.0.wait().unwrap().success());
}
