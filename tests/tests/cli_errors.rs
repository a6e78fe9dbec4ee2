//! Command lines that cannot be: each is refused in one line that names the option and its value and says what to do,
//! with status 2. These need nothing of the host; what only the host can refuse is in `native_errors.rs`.

use std::process::{Command, Output, Stdio};
use vivarium_tests::required;

fn run(arguments: &[&str]) -> Output {
    Command::new(required("VIVARIUM_BIN"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the monitor runs")
}

/// Checks that `line` is refused with `status`, and that the one line said begins so and has `remedy` in it.
fn refused(line: &str, status: i32, begins: &str, remedy: &str) {
    let output = run(&line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{line}: {errors}");
    assert_eq!(output.stdout, b"", "{line}");
    assert_eq!(errors.lines().count(), 1, "{line}: {errors}");
    assert!(errors.starts_with(&format!("vivarium: {begins}")), "{line}: {errors}");
    assert!(errors.contains(remedy), "{line}: \"{remedy}\" is not in: {errors}");
}

#[test]
fn options_that_cannot_be_are_refused() {
    for (line, begins, remedy) in [
        ("", "--kernel is missing", "--kernel PATH"),
        ("--kernel k --bogus", "--bogus", "--help"),
        ("--kernel k extra", "extra", "leave it out"),
        ("--kernel k --cpus", "--cpus", "needs a value"),
        ("--kernel k --cpus boot=1 --cpus boot=2", "--cpus", "give it once"),
        ("--kernel k --cpus boot=0", "--cpus boot=0", "at least one"),
        ("--kernel k --cpus boot=-1", "--cpus boot=-1", "out of range"),
        ("--kernel k --cpus boot=1x", "--cpus boot=1x", "whole number"),
        ("--kernel k --cpus bott=1", "--cpus bott=1", "did you mean \"boot\""),
        ("--kernel k --cpus boot=4,max=2", "--cpus max=2", "raise max"),
        ("--kernel k --cpus boot=4,topology=1:2:1:1", "--cpus topology=1:2:1:1", "the product must be max"),
        (
            "--kernel k --cpus boot=2,topology=1:2",
            "--cpus boot=2,topology=1:2",
            "threads_per_core:cores_per_die:dies_per_package:packages",
        ),
        ("--kernel k --memory size=0", "--memory size=0", "size=1G"),
        ("--kernel k --memory size=100000001", "--memory size=100000001", "multiple of 4K"),
        ("--kernel k --memory size=lots", "--memory size=lots", "K, M, G or T"),
        ("--kernel k --memory size=16M", "--memory size=16M", "64M"),
        ("--kernel k --memory size=64M,hugepages=on,hugepage_size=1G", "--memory size=64M", "multiple of 1G"),
        ("--kernel k --memory size=1G --memory-zone id=a,size=1G", "--memory size=1G", "--memory size=0"),
        ("--kernel k --disk path=a path=a", "--disk path=a", "twice"),
        ("--kernel k --disk readonly=on", "--disk", "path=<image>"),
        ("--kernel k --disk path=a,queue_size=100", "--disk path=a", "power of two"),
        ("--kernel k --disk path=a,num_queues=0", "--disk path=a,num_queues=0", "1 to 256"),
        ("--kernel k --disk path=a,serial=a-serial-number-that-is-long", "--disk path=a", "more than 20"),
        ("--kernel k --disk path=a,rate_limit_group=g", "--disk path=a", "--rate-limit-group id=g"),
        ("--kernel k --disk path=a,bw_size=1", "--disk path=a", "bw_refill_time"),
        ("--kernel k --net tap=a-name-beyond-limits", "--net tap=a-name-beyond-limits", "15"),
        ("--kernel k --net mac=12:34", "--net mac=12:34", "52:54:00:12:34:56"),
        ("--kernel k --net tap=t,num_queues=3", "--net tap=t", "pairs"),
        ("--kernel k --net tap=t,fd=3", "--net tap=t", "give one"),
        ("--kernel k --net fd=7 --net fd=7", "--net fd=7", "a descriptor of its own"),
        ("--kernel k --net fd=[7,8,7],num_queues=6", "--net fd=7", "a descriptor of its own"),
        ("--kernel k --serial loud", "--serial loud", "off, null, tty"),
        ("--kernel k --serial tty --console tty", "--console tty", "pty"),
        ("--kernel k --debug-console socket=/tmp/x", "--debug-console socket=/tmp/x", "file"),
        ("--kernel k --platform uuid=1", "--platform uuid=1", "8-4-4-4-12"),
        ("--kernel k --disk path=a,pci_segment=1", "--disk path=a", "num_pci_segments"),
        ("--kernel k --seccomp perhaps", "--seccomp perhaps", "true, log or false"),
        ("--help-option nothing", "--help-option nothing", "cpus"),
    ] {
        refused(line, 2, begins, remedy);
    }
}

#[test]
fn a_verb_that_cannot_be_understood_is_refused_before_the_monitor_is_asked() {
    for (line, begins, remedy) in [
        ("ping", "--api-socket is missing", "give the socket"),
        ("--api-socket fd=3 ping", "--api-socket fd=3", "--api-socket PATH"),
        ("--api-socket /nowhere add-disk pth=b", "add-disk pth=b", "did you mean \"path\""),
        ("--api-socket /nowhere set-affinity --cpus zz", "set-affinity --cpus zz", "[0@[1,2]"),
        ("--api-socket /nowhere set-rate-limit a bw=1", "set-rate-limit bw=1", "bw_size"),
        ("--api-socket /nowhere create -- --bogus", "create: --bogus", "--help"),
        ("--api-socket /nowhere create -- --cpus boot=1", "create: --kernel is missing", "--kernel PATH"),
        (
            "--api-socket /nowhere create -- --kernel k --seccomp false --log-file zz -vv --api-socket path=zz",
            "create: --seccomp, --log-file, -v, --api-socket: ",
            "leave it out",
        ),
    ] {
        let words: Vec<_> = std::iter::once("ctl").chain(line.split(' ')).collect();
        let output = run(&words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{line}: {errors}");
        assert!(errors.starts_with(&format!("vivarium ctl: {begins}")), "{line}: {errors}");
        assert!(errors.contains(remedy), "{line}: \"{remedy}\" is not in: {errors}");
        // With --json, an error has the form of the monitor's.
        let words: Vec<_> = ["ctl", "--json"].into_iter().chain(line.split(' ')).collect();
        let told: Vec<String> = serde_json::from_slice(&run(&words).stderr).unwrap();
        assert!(told.last().unwrap().starts_with(begins), "{line}: {told:?}");
    }
    // The socket is named as the monitor's option names it, before the verb or behind it.
    for line in ["ctl --api-socket path=/nowhere ping", "ctl ping --api-socket path=/nowhere"] {
        let output = run(&line.split(' ').collect::<Vec<_>>());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {errors}");
        assert!(errors.starts_with("vivarium ctl: /nowhere: no monitor answers there"), "{line}: {errors}");
    }
}

#[test]
fn arguments_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let output = Command::new(required("VIVARIUM_BIN"))
        .arg("--cmdline")
        .arg(std::ffi::OsStr::from_bytes(b"\xff\xfe"))
        .output()
        .expect("the monitor runs");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
}

#[test]
fn help_and_version_succeed() {
    for (arguments, wanted) in [
        (&["--help"][..], "Examples:"),
        (&["--help-option", "disk"], "queue_size"),
        (&["--version"], "vivarium v"),
        (&["-V"], "vivarium v"),
        (&["--help"], "jail "),
        (&["help"], "ctl "),
        (&["help", "jail"], "--netns"),
        (&["help", "ctl", "add-disk"], "--help-option disk"),
        (&["ctl", "help", "add-disk"], "--api-socket"),
        (&["ctl", "--version"], "vivarium ctl v"),
        (&["jail", "--version"], "vivarium jail v"),
    ] {
        let output = run(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(wanted), "{arguments:?}");
    }
}

#[test]
fn nobody_reading_the_help_is_no_failure_worth_a_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(required("VIVARIUM_BIN"))
        .arg("--help")
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
}

#[test]
fn under_the_name_of_cloud_hypervisor_it_has_a_version_that_its_users_take() {
    let folder = vivarium_tests::host::Folder::new();
    let link = folder.join("cloud-hypervisor");
    std::os::unix::fs::symlink(required("VIVARIUM_BIN"), &link).unwrap();
    let output = Command::new(link).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("cloud-hypervisor v"), "{output:?}");
}
