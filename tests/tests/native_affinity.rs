//! Where threads of a machine run, seen from the host: on the host CPUs that were asked for, and on cores of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use vivarium_tests::core_scheduling::CoreScheduling;
use vivarium_tests::ctl::{ctl, done};
use vivarium_tests::host::Folder;
use vivarium_tests::{Monitor, MonitorBuilder, required};

/// Threads of a process: their ids, by name.
fn threads(process: u32) -> BTreeMap<String, u32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // A thread may end meanwhile.
    let named = tasks.filter_map(|task| {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        Some((name.trim().to_owned(), task.file_name()?.to_str()?.parse().ok()?))
    });
    named.collect()
}

fn allowed(process: u32, name: &str) -> Option<String> {
    let thread = *threads(process).get(name)?;
    let status = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(list.trim().to_owned())
}

/// Waits until a thread runs where it is to: workers are told, and move when they look.
fn wait_allowed(monitor: &Monitor, name: &str, wanted: &str) {
    let mut found = None;
    for _ in 0..100_000 {
        found = allowed(monitor.pid(), name);
        if found.as_deref() == Some(wanted) {
            return;
        }
        std::thread::yield_now();
    }
    panic!("{name} may run on {found:?}, not on {wanted}");
}

/// Two host CPUs that this process may run on.
fn two_host_cpus() -> Option<(usize, usize)> {
    let runs = |cpu: &usize| Command::new("taskset").args(["-c", &cpu.to_string(), "true"]).output();
    let mut found = (0..64).filter(|cpu| runs(cpu).is_ok_and(|output| output.status.success()));
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => Some((first, second)),
        _ => {
            println!("@@SKIP this host has one CPU");
            None
        }
    }
}

fn machine(folder: &Folder, cpus: &str, queue_affinity: &str) -> MonitorBuilder {
    let disk = folder.sparse("disk", 16 << 20).display().to_string();
    MonitorBuilder::bare("hello; blk-randread qd=4 secs=600 queues=2 end=reset")
        .args(["--cpus", cpus, "--disk", &format!("path={disk},id=_disk0,num_queues=2{queue_affinity}")])
        .arg("--api-socket")
        .arg(folder.join("api"))
}

fn start(folder: &Folder, cpus: &str, queue_affinity: &str) -> Monitor {
    let mut monitor = machine(folder, cpus, queue_affinity).start();
    monitor.wait_for("@@ hello");
    monitor
}

fn words<'a>(cpus: &'a str, queues: &'a str) -> Vec<&'a str> {
    let mut words = vec!["set-affinity", "--cpus", cpus];
    if !queues.is_empty() {
        words.extend(["--device", "_disk0", "--queues", queues]);
    }
    words
}

fn setting(socket: &Path) -> serde_json::Value {
    let info: serde_json::Value = serde_json::from_str(&done(socket, &["--json", "info"])).unwrap();
    info["config"].clone()
}

#[test]
fn cpus_and_workers_run_where_they_are_told_to() {
    let Some((one, two)) = two_host_cpus() else { return };
    let folder = Folder::new();
    let cpus = format!("boot=2,affinity=[0@[{one}],1@[{one},{two}]]");
    let monitor = start(&folder, &cpus, &format!(",queue_affinity=[0@[{two}],1@[{one}]]"));
    let both = if two == one + 1 { format!("{one}-{two}") } else { format!("{one},{two}") };
    let (one, two) = (one.to_string(), two.to_string());
    for (thread, wanted) in [("vcpu0", &one), ("vcpu1", &both), ("_disk0-q0", &two), ("_disk0-q1", &one)] {
        wait_allowed(&monitor, thread, wanted);
    }
    let socket = folder.join("api");
    // What cannot be is refused whole: nobody moves.
    for (cpus, queues, wanted) in [
        (format!("[0@[{two}],1@[900]]"), String::new(), "--cpus: host CPU 900"),
        (
            format!("[0@[{two}]]"),
            format!("[0@[{one}],2@[{one}]]"),
            "--queues: device _disk0: there is no queue 2",
        ),
        (format!("[0@[{two}]]"), "[0@[900]]".to_owned(), "--queues: host CPU 900"),
        (format!("[0@[{two}],9@[{two}]]"), String::new(), "--cpus: there is no CPU 9"),
    ] {
        let output = ctl(&socket, &words(&cpus, &queues));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains(wanted), "{cpus} {queues}: {errors}");
        wait_allowed(&monitor, "vcpu0", &one);
        wait_allowed(&monitor, "_disk0-q0", &two);
    }
    let (cpus, queues) = (format!("[0@[{two}]]"), format!("[0@[{one}]]"));
    done(&socket, &words(&cpus, &queues));
    wait_allowed(&monitor, "vcpu0", &two);
    wait_allowed(&monitor, "_disk0-q0", &one);
    let setting = setting(&socket);
    let number = |text: &str| text.parse::<u64>().unwrap();
    let last = |list: &serde_json::Value| list.as_array().unwrap().last().unwrap()["host_cpus"][0].as_u64();
    assert_eq!(last(&setting["cpus"]["affinity"]), Some(number(&two)));
    assert_eq!(last(&setting["disks"][0]["queue_affinity"]), Some(number(&one)));
    // The disk's workers are new ones after a pause, and run where the old ones were moved to.
    done(&socket, &["pause"]);
    done(&socket, &["resume"]);
    wait_allowed(&monitor, "_disk0-q0", &one);
    wait_allowed(&monitor, "_disk0-q1", &one);
}

#[test]
fn host_cpus_that_are_not_there_are_refused_before_the_guest_runs() {
    let folder = Folder::new();
    let disk = folder.sparse("disk", 1 << 20).display().to_string();
    for (option, value, wanted) in [
        (
            "--cpus",
            "affinity=[0@[900]]".to_owned(),
            "--cpus affinity=0@[900]: host CPU 900 is not there".to_owned(),
        ),
        (
            "--disk",
            format!("path={disk},queue_affinity=[0@[900]]"),
            format!("--disk path={disk}: queue_affinity=0@[900]: host CPU 900 is not there"),
        ),
    ] {
        let output = Command::new(required("VIVARIUM_BIN"))
            .arg("--kernel")
            .arg(required("VIVARIUM_BARE_GUEST"))
            .args(["--console", "off", option, &value])
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), errors.lines().count()), (Some(1), 1), "{errors}");
        assert!(errors.contains(&wanted), "{errors}");
    }
}

#[test]
fn machines_and_cpus_have_cores_of_their_own() {
    if let Some(reason) = CoreScheduling::cannot_be_seen() {
        println!("@@SKIP {reason}");
        return;
    }
    for mode in ["vm", "vcpu", "off"] {
        let folder = Folder::new();
        let mut command = machine(&folder, &format!("boot=2,max=3,core_scheduling={mode}"), "").command();
        let scheduling = CoreScheduling::of(&mut command);
        let mut monitor = Monitor::start(command);
        monitor.wait_for("@@ hello");
        done(&folder.join("api"), &["resize", "--cpus", "3"]);
        let cookies: BTreeMap<_, _> = threads(monitor.pid())
            .into_iter()
            .filter_map(|(name, thread)| Some((name, scheduling.cookie(thread)?)))
            .collect();
        let (cpus, others): (Vec<_>, Vec<_>) = cookies.iter().partition(|(name, _)| name.starts_with("vcpu"));
        let of_cpus: BTreeSet<u64> = cpus.iter().map(|(_, cookie)| **cookie).collect();
        let of_others: BTreeSet<u64> = others.iter().map(|(_, cookie)| **cookie).collect();
        assert!(cpus.len() == 3 && others.len() > 2, "{cookies:?}");
        match mode {
            "vm" => {
                assert!(of_cpus == of_others && of_cpus.len() == 1 && !of_cpus.contains(&0), "{cookies:?}")
            }
            "vcpu" => {
                let own = of_cpus.len() == 3 && !of_cpus.contains(&0);
                assert!(own && of_others == BTreeSet::from([0]), "{cookies:?}");
            }
            _ => assert!(of_cpus == BTreeSet::from([0]) && of_others == of_cpus, "{cookies:?}"),
        }
    }
}
