//! What confines a machine, seen from the host: the jail.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Stdio};
use vivarium_tests::host::Folder;
use vivarium_tests::required;

/// A user that no one is.
const USER: u32 = 61_234;

fn root() -> bool {
    // SAFETY: only reads the process's identity.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: only root can make a jail");
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

/// A machine that does not outlive its test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
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

    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
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
    for kind in ["mnt", "pid", "ipc", "uts", "net", "user"] {
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
