//! The API of a running monitor, as `vivarium ctl` and clients of cloud-hypervisor use it.

use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use vivarium_tests::host::Folder;
use vivarium_tests::{Monitor, MonitorBuilder, required};

/// The bare-metal guest, which says hello and stands still, served on a socket.
fn standing(folder: &Folder) -> (Monitor, PathBuf) {
    let socket = folder.join("api.sock");
    let mut monitor = MonitorBuilder::bare("hello; end=spin").arg("--api-socket").arg(&socket).start();
    monitor.wait_for("@@ hello");
    (monitor, socket)
}

fn run(socket: &Path, words: &str) -> Output {
    let mut command = Command::new(required("VIVARIUM_BIN"));
    command.arg("ctl").arg("--api-socket").arg(socket).args(words.split_whitespace());
    command.output().unwrap()
}

/// What a verb prints.
fn ctl(socket: &Path, words: &str) -> String {
    let output = run(socket, words);
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How a verb is refused.
fn refused(socket: &Path, words: &str) -> String {
    let output = run(socket, words);
    assert_eq!(output.status.code(), Some(1), "{words}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn who_looks_on_when_the_monitor_ends_has_not_failed() {
    let folder = Folder::new();
    let (monitor, socket) = standing(&folder);
    let look = |words: &str| {
        let mut command = Command::new(required("VIVARIUM_BIN"));
        command.arg("ctl").arg("--api-socket").arg(&socket).args(words.split(' '));
        let mut look = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(look.stdout.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        (look, lines, serde_json::from_str::<Value>(&first).unwrap())
    };
    let (mut top, _top_lines, rates) = look("--json top --interval 100");
    assert_eq!((&rates["state"], &rates["cpus"]), (&"Running".into(), &1.into()));
    let (mut events, _event_lines, event) = look("--json events --after 0");
    assert_eq!(event["id"], 1);
    ctl(&socket, "shutdown-vmm");
    assert!(monitor.wait().status == Some(0));
    assert!(top.wait().unwrap().success() && events.wait().unwrap().success());
}

#[test]
fn a_confined_machine_takes_its_socket_away() {
    let folder = Folder::new();
    let socket = folder.join("api.sock");
    let mut monitor =
        MonitorBuilder::bare("hello; end=spin").arg("--landlock").arg("--api-socket").arg(&socket).start();
    monitor.wait_for("@@ hello");
    assert!(socket.exists());
    ctl(&socket, "shutdown-vmm");
    let exit = monitor.wait();
    assert_eq!((exit.status, exit.errors.as_str()), (Some(0), ""));
    assert!(!socket.exists());
}

#[test]
fn a_machine_is_created_driven_and_deleted_over_the_api() {
    let folder = Folder::new();
    let (socket, events) = (folder.join("api.sock"), folder.join("events"));
    let mut command = Command::new(required("VIVARIUM_BIN"));
    command.arg("--api-socket").arg(&socket).arg("--event-monitor").arg(&events);
    let monitor = Monitor::start(command);
    while UnixStream::connect(&socket).is_err() {
        assert!(monitor.elapsed().as_secs() < 60, "the socket did not come");
        std::thread::yield_now();
    }
    assert!(ctl(&socket, "ping").contains("version"));
    assert!(refused(&socket, "info").contains("there is no machine"));
    let guest = required("VIVARIUM_BARE_GUEST");
    let create =
        format!("create -- --kernel {} --memory size=128M --serial null --console off", guest.display());
    ctl(&socket, &format!("{create} --cmdline end=spin"));
    assert!(refused(&socket, &create).contains("there is a machine already"));
    assert!(ctl(&socket, "info").contains("Created"));
    ctl(&socket, "boot");
    assert!(refused(&socket, "boot").contains("running already"));
    ctl(&socket, "pause");
    assert!(ctl(&socket, "info").contains("Paused"));
    ctl(&socket, "resume");
    assert!(ctl(&socket, "top --interval 100 --count 1").contains("Running"));
    ctl(&socket, "shutdown");
    ctl(&socket, "boot");
    ctl(&socket, "delete");
    assert!(refused(&socket, "pause").contains("there is no machine"));
    assert!(refused(&socket, "snapshot file:///tmp/x").contains("not supported"));
    ctl(&socket, "shutdown-vmm");
    let exit = monitor.wait();
    assert_eq!((exit.status, exit.errors.as_str()), (Some(0), ""));
    assert!(!socket.exists());
    let names: Vec<_> = vivarium_tests::events(&events).into_iter().map(|(name, _)| name).collect();
    for name in ["created", "booted", "paused", "resumed", "deleted", "shutdown"] {
        assert!(names.iter().any(|told| told == name), "{name}: {names:?}");
    }
}

#[test]
fn devices_come_and_go_and_everything_can_be_looked_at() {
    let folder = Folder::new();
    let (monitor, socket) = standing(&folder);
    let image = folder.sparse("data.img", 1 << 20);
    let added = ctl(&socket, &format!("add-disk path={},id=data,readonly=on", image.display()));
    assert!(added.starts_with("data at 0000:00:"), "{added}");
    assert!(ctl(&socket, "info").contains("data.img"));
    assert!(ctl(&socket, "events --after 0 --count 1").contains(" vmm "));
    let tree: Value = serde_json::from_str(&ctl(&socket, "--json inspect")).unwrap();
    assert!(tree["cpu"]["0"].is_object(), "{tree}");
    assert!(ctl(&socket, "counters").contains("_cpu0"));
    assert!(ctl(&socket, "metrics").contains("# TYPE vivarium_"));
    assert!(refused(&socket, "inspect pci/none").contains("none"));
    assert!(refused(&socket, "add-disk path=/does/not/exist").contains("/does/not/exist"));
    ctl(&socket, "remove-device data --force");
    assert!(!ctl(&socket, "info").contains("data.img"));
    ctl(&socket, "shutdown-vmm");
    assert_eq!(monitor.wait().status, Some(0));
}

/// Under system call filters and Landlock, each kind of device is had of the host, and given back.
#[test]
fn every_kind_comes_and_goes_in_the_sandbox() {
    let folder = Folder::new();
    let socket = folder.join("api.sock");
    folder.sparse("disk.img", 1 << 20);
    folder.sparse("pmem.img", 2 << 20);
    folder.sparse("shared", 1 << 20);
    let mut monitor = MonitorBuilder::bare("hello; end=spin")
        .replace("--memory", "size=128M,hotplug_method=virtio-mem,hotplug_size=128M")
        .args(["--landlock", "--landlock-rules", &format!("path={},access=rw", folder.join("").display())])
        .arg("--api-socket")
        .arg(&socket)
        .start();
    monitor.wait_for("@@ hello");
    let here = |name: &str| folder.join(name).display().to_string();
    let held = || {
        let process = PathBuf::from(format!("/proc/{}", monitor.pid()));
        ["fd", "task"].map(|kind| std::fs::read_dir(process.join(kind)).unwrap().count())
    };
    let channel = format!("--channel name=org.example.0,socket={}", here("channel"));
    ctl(&socket, "remove-device __mem --force");
    ctl(&socket, "reboot");
    let before = held();
    for words in [
        format!("disk path={},id=new", here("disk.img")),
        format!("pmem file={},id=new", here("pmem.img")),
        format!("vsock socket={},id=new", here("vsock")),
        "rng id=new".to_owned(),
        "rtc id=new".to_owned(),
        "balloon id=new,size=4M".to_owned(),
        "mem id=new".to_owned(),
        "watchdog id=new".to_owned(),
        "pvpanic id=new".to_owned(),
        "watchdog id=new,model=virtio,action=none".to_owned(),
        format!("ivshmem id=new,path={},size=1M", here("shared")),
        "console null,id=new".to_owned(),
        format!("console pty,id=new {channel}"),
        format!("console socket={},id=new {channel}", here("console")),
        format!("console file={},id=new", here("output")),
    ] {
        let added = ctl(&socket, &format!("add-{words}"));
        assert!(added.starts_with("new at 0000:00:"), "{words}: {added}");
        let info: Value = serde_json::from_str(&ctl(&socket, "--json info")).unwrap();
        assert!(info["device_tree"]["new"].is_object(), "{words}: {info}");
        ctl(&socket, "remove-device new --force");
        // This guest lets go of nothing before.
        ctl(&socket, "reboot");
        // A thread that opened something, and the connection of a call, are counted until they have ended.
        while held().iter().zip(&before).any(|(now, before)| now > before) {
            assert!(monitor.elapsed().as_secs() < 60, "{words}: {:?}, not {before:?}", held());
            std::thread::yield_now();
        }
    }
    let outside = refused(&socket, "add-rng src=/etc/hostname");
    assert!(outside.contains("--rng src=/etc/hostname") && outside.contains("--landlock-rules"), "{outside}");
    assert!(refused(&socket, "add-console off").contains("say where it ends"));
    ctl(&socket, "shutdown-vmm");
    let exit = monitor.wait();
    assert_eq!((exit.status, exit.errors.matches("vivarium: --console is at").count()), (Some(0), 1));
}

#[test]
fn a_tap_comes_as_a_descriptor() {
    if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        println!("@@SKIP /dev/net/tun cannot be opened");
        return;
    }
    let folder = Folder::new();
    let (monitor, socket) = standing(&folder);
    // Python makes a tap and hands it on as descriptor 5, as a manager would.
    let script = format!(
        "import fcntl, os, struct, sys\n\
         tap = os.open('/dev/net/tun', os.O_RDWR)\n\
         fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'vivapi%d', 0x5002))\n\
         os.dup2(tap, 5)\n\
         os.execv('{}', ['vivarium', 'ctl', '--api-socket', '{}', 'add-net', 'fd=[5],id=passed'])\n",
        required("VIVARIUM_BIN").display(),
        socket.display()
    );
    let output = Command::new("python3").arg("-c").arg(script).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.starts_with("passed at 0000:00:"), "{out}{errors}");
    ctl(&socket, "set-link passed down");
    let is_open = || {
        let info: Value = serde_json::from_str(&ctl(&socket, "--json info")).unwrap();
        let net = &info["config"]["net"][0];
        assert_eq!((&net["id"], &net["link"]), (&"passed".into(), &false.into()), "{info}");
        let fd = format!("/proc/{}/fd/{}", monitor.pid(), net["fds"][0]);
        std::fs::read_link(&fd).is_ok_and(|file| file.ends_with("net/tun"))
    };
    assert!(is_open(), "its descriptor is one of the monitor's");
    // It outlives the machine, and so does what was said of its cable.
    ctl(&socket, "shutdown");
    assert!(is_open());
    ctl(&socket, "boot");
    assert!(is_open());
    ctl(&socket, "remove-device passed --force");
    ctl(&socket, "shutdown-vmm");
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn under_the_name_of_cloud_hypervisors_client_answers_are_its_own() {
    let folder = Folder::new();
    let (monitor, socket) = standing(&folder);
    let remote = folder.join("ch-remote");
    std::os::unix::fs::symlink(required("VIVARIUM_BIN"), &remote).unwrap();
    let ask = |words: &str| {
        let output = Command::new(&remote).arg("--api-socket").arg(&socket).args(words.split(' ')).output();
        output.unwrap()
    };
    let info: Value = serde_json::from_slice(&ask("info").stdout).unwrap();
    assert_eq!(info["state"], "Running");
    let output = ask("remove-device nothing");
    let error: Vec<String> = serde_json::from_slice(&output.stderr).unwrap();
    assert!(!output.status.success() && error.last().unwrap().contains("nothing"), "{error:?}");
    ask("shutdown-vmm");
    assert_eq!(monitor.wait().status, Some(0));
}

/// As cloud-hypervisor's own client does it: by looking for its headers in the text, without reading on.
#[test]
fn a_client_that_knows_little_of_http_is_served() {
    let folder = Folder::new();
    let (monitor, socket) = standing(&folder);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n").unwrap();
    let mut text = String::new();
    while !text.contains("\r\n\r\n") {
        let mut bytes = [0; 256];
        let count = stream.read(&mut bytes).unwrap();
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("Content-Length: "), "{text}");
    drop(stream);
    ctl(&socket, "shutdown-vmm");
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn events_go_to_a_descriptor_that_is_handed_over() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = MonitorBuilder::bare("hello").args(["--event-monitor", "fd=7"]).command();
    hand_over(&mut command, &writer, 7);
    let monitor = Monitor::start(command);
    drop(writer);
    // To its end: the monitor keeps no copy beyond its own.
    let lines =
        BufReader::new(reader).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let names: Vec<_> = lines.map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert!(names.iter().any(|name| name == "booted"), "{names:?}");
    assert_eq!(names.last().map(String::as_str), Some("shutdown"));
    assert_eq!(monitor.wait().status, Some(0));
}

/// Has the process of `command` have `file` open as the descriptor of that number.
fn hand_over(command: &mut Command, file: &impl AsRawFd, number: RawFd) {
    let file = file.as_raw_fd();
    // SAFETY: duplicates a descriptor between fork and exec, which is allowed there.
    unsafe {
        command.pre_exec(move || match libc::dup2(file, number) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

#[test]
fn a_socket_can_be_handed_over() {
    let folder = Folder::new();
    let socket = folder.join("api.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut command = Command::new(required("VIVARIUM_BIN"));
    command.args(["--api-socket", "fd=7"]);
    hand_over(&mut command, &listener, 7);
    let monitor = Monitor::start(command);
    drop(listener);
    assert!(ctl(&socket, "ping").contains("version"));
    ctl(&socket, "shutdown-vmm");
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn a_guest_that_does_not_stop_by_itself_is_held_for_its_share_and_paused_all_the_same() {
    let folder = Folder::new();
    let (monitor, socket) = standing(&folder);
    let holds = || {
        let counters: Value = serde_json::from_str(&ctl(&socket, "--json counters")).unwrap();
        counters["_throttle"]["holds"].as_u64().unwrap()
    };
    assert_eq!(holds(), 0);
    for percent in [10, 99] {
        ctl(&socket, &format!("set-throttle {percent}"));
        let before = holds();
        while holds() < before + 3 {
            assert!(monitor.elapsed().as_secs() < 120, "it is not held");
        }
        ctl(&socket, "pause");
        ctl(&socket, "resume");
    }
    let info: Value = serde_json::from_str(&ctl(&socket, "--json info")).unwrap();
    assert_eq!(info["throttle_percent"], 99);
    ctl(&socket, "reboot");
    ctl(&socket, "set-throttle 0");
    ctl(&socket, "shutdown-vmm");
    assert_eq!(monitor.wait().status, Some(0));
}

#[test]
fn disks_that_wait_for_their_groups_limit_go_on_when_it_is_raised() {
    let (folder, hour) = (Folder::on_disk(), "ops_size=1,ops_refill_time=3600000");
    let socket = folder.join("api.sock");
    let disk = |name| format!("path={},rate_limit_group=g", folder.sparse(name, 1 << 20).display());
    let mut monitor =
        MonitorBuilder::bare("hello; blk-randread dev=0 n=64 qd=4; blk-randread dev=1 n=64 qd=4")
            .args(["--rate-limit-group", &format!("id=g,{hour}")])
            .args(["--disk", &disk("first"), "--disk", &disk("second")])
            .arg("--api-socket")
            .arg(&socket)
            .start();
    monitor.wait_for("@@ hello");
    let held = || {
        let counters: Value = serde_json::from_str(&ctl(&socket, "--json counters")).unwrap();
        counters["_disk0"]["throttled"].as_u64().unwrap() > 0
    };
    while !held() {
        assert!(monitor.elapsed().as_secs() < 60, "it does not wait");
    }
    ctl(&socket, "set-rate-limit g ops_size=1000000,ops_refill_time=1000");
    let report = monitor.complete();
    assert_eq!(report.of("blk-randread").count(), 2, "{report:?}");
}
