//! The API as managers that know cloud-hypervisor use it: what Kata Containers' runtime and libvirt's driver send, in their
//! order, and what they read in the answers.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use vivarium_tests::host::{Folder, shell};
use vivarium_tests::{Monitor, required};

/// A monitor under the name by which managers start it, and its socket.
fn cloud_hypervisor(folder: &Folder) -> (Monitor, PathBuf) {
    let (name, socket) = (folder.join("cloud-hypervisor"), folder.join("api.sock"));
    std::os::unix::fs::symlink(required("VIVARIUM_BIN"), &name).unwrap();
    let mut command = Command::new(&name);
    command.arg("--api-socket").arg(&socket);
    let monitor = Monitor::start(command);
    while UnixStream::connect(&socket).is_err() {
        assert!(monitor.elapsed().as_secs() < 60, "the socket did not come");
        std::thread::yield_now();
    }
    (monitor, socket)
}

/// Sends a request as Go's client does. Returns the status and what the answer's body has.
fn ask(socket: &Path, method: &str, verb: &str, body: Option<Value>) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let body = body.map(|body| body.to_string());
    let about = body.as_ref().map_or(String::new(), |body| {
        format!("Content-Length: {}\r\nContent-Type: application/json\r\n", body.len())
    });
    let head = format!(
        "{method} /api/v1/{verb} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: OpenAPI-Generator/1.0.0/go\r\n\
         Accept: application/json\r\nAccept-Encoding: gzip\r\n{about}\r\n{}",
        body.unwrap_or_default()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{verb}: closed after {head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    // As ch-remote reads it: nothing but the number is between the version and the end of the line.
    let line = head.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    (line.unwrap().trim().parse().unwrap(), body)
}

/// Checks that a verb without a body is done, and that there is nothing to say.
fn put(socket: &Path, verb: &str) {
    assert_eq!(ask(socket, "PUT", verb, None), (204, Value::Null), "{verb}");
}

/// Checks what is where in an answer: each kind is how a typed client reads the field.
fn has(answer: &Value, fields: &[(&str, &str)]) {
    for (path, kind) in fields {
        let value = answer.pointer(path).unwrap_or(&Value::Null);
        let right = match *kind {
            "i32" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            "i64" => value.is_i64(),
            "text" => value.is_string(),
            "list" => value.is_array(),
            "object" => value.is_object(),
            "bool" => value.is_boolean(),
            word => value == word,
        };
        assert!(right, "{path} is {value}, and should be {kind}: {answer}");
    }
}

/// What a typed client needs in every `vm.info`: without these fields, or with other types, it cannot read the answer.
const INFO: &[(&str, &str)] = &[
    ("/config/cpus/boot_vcpus", "i32"),
    ("/config/cpus/max_vcpus", "i32"),
    ("/config/memory/size", "i64"),
    ("/config/memory/shared", "bool"),
    ("/config/memory/hotplug_method", "Acpi"),
    ("/config/payload/kernel", "text"),
    ("/config/rng/src", "text"),
    ("/config/serial/mode", "text"),
    ("/config/console/mode", "text"),
    ("/memory_actual_size", "i64"),
    ("/device_tree", "object"),
];

fn threads(monitor: &Monitor) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", monitor.pid())).unwrap();
    let name =
        |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("comm"));
    tasks.filter_map(|task| name(task).ok()).map(|name| name.trim_end().to_owned()).collect()
}

#[test]
fn kata_containers_starts_changes_and_ends_a_machine() {
    let folder = Folder::new();
    let (monitor, socket) = cloud_hypervisor(&folder);
    let (status, ping) = ask(&socket, "GET", "vmm.ping", None);
    assert_eq!(status, 200);
    has(&ping, &[("/version", "text"), ("/build_version", "text"), ("/pid", "i64"), ("/features", "list")]);
    assert_eq!(ask(&socket, "GET", "vm.info", None).0, 404);

    let image = folder.sparse("rootfs.img", 4 << 20);
    let create = json!({
        "payload": {"kernel": required("VIVARIUM_BARE_GUEST"), "cmdline": "end=spin panic=1 no_timer_check quiet"},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 3,
            "topology": {"threads_per_core": 1, "cores_per_die": 3, "dies_per_package": 1, "packages": 1}},
        // What the host has, which is no round number.
        "memory": {"size": 134_217_728, "shared": true, "hugepages": false, "hotplug_size": 2_143_289_344_u64,
            "hotplug_method": "Acpi", "mergeable": false, "prefault": false, "thp": true},
        "rng": {"src": "/dev/urandom", "iommu": false},
        "pmem": [{"file": image, "iommu": false, "discard_writes": true}],
        "serial": {"mode": "Off", "iommu": false},
        "console": {"mode": "Off", "iommu": false},
        "vsock": {"cid": 3, "socket": folder.join("clh.sock"), "iommu": false},
        "iommu": false, "watchdog": false, "pvpanic": false,
    });
    assert_eq!(ask(&socket, "PUT", "vm.create", Some(create)), (204, Value::Null));
    let (status, info) = ask(&socket, "GET", "vm.info", None);
    assert_eq!((status, &info["state"]), (200, &"Created".into()));
    has(&info, INFO);
    has(&info, &[("/config/memory/hotplug_size", "i64"), ("/config/vsock/cid", "i64")]);

    let with_net = cold_plug_tap(&socket);
    put(&socket, "vm.boot");
    let (_, info) = ask(&socket, "GET", "vm.info", None);
    assert_eq!((&info["state"], &info["memory_actual_size"]), (&"Running".into(), &134_217_728.into()));
    has(&info, INFO);
    assert!(threads(&monitor).contains("vcpu0"), "{:?}", threads(&monitor));
    if with_net {
        has(&info, &[("/config/net/0/mac", "02:00:ca:fe:00:04"), ("/device_tree/_net0/pci_bdf", "text")]);
        // Ended and booted again, it still has its tap.
        put(&socket, "vm.shutdown");
        put(&socket, "vm.boot");
    }

    let data = folder.sparse("data.img", 1 << 20);
    let disk = json!({"path": data, "readonly": false, "direct": false, "iommu": false, "num_queues": 1,
        "queue_size": 1024, "vhost_user": false, "poll_queue": true, "pci_segment": 0});
    let (status, added) = ask(&socket, "PUT", "vm.add-disk", Some(disk));
    assert_eq!(status, 200, "{added}");
    let bdf = added["bdf"].as_str().unwrap();
    assert!(bdf.starts_with("0000:00:") && bdf.ends_with(".0") && bdf.len() == 12, "{added}");
    has(&added, &[("/id", "_disk0")]);
    let (_, counters) = ask(&socket, "GET", "vm.counters", None);
    let counters = counters.as_object().unwrap();
    assert!(counters["_disk0"]["read_bytes"].is_i64(), "{counters:?}");
    for (device, numbers) in counters {
        assert!(numbers.as_object().unwrap().values().all(Value::is_i64), "{device}: {numbers}");
    }

    let (status, error) = ask(&socket, "PUT", "vm.resize", Some(json!({"desired_vcpus": 4})));
    let error: Vec<String> = serde_json::from_value(error).unwrap();
    assert!(status == 400 && error.last().unwrap().contains("desired_vcpus"), "{status} {error:?}");
    assert_eq!(ask(&socket, "PUT", "vm.remove-device", Some(json!({"id": "nothing"}))).0, 404);
    for (verb, body) in [
        ("vm.add-device", json!({"path": "/sys/bus/pci/devices/0000:01:00.0", "iommu": false})),
        ("vm.add-fs", json!({"tag": "t", "socket": "/s", "num_queues": 1, "queue_size": 1024})),
        ("vm.add-vdpa", json!({"path": "/dev/vhost-vdpa-0", "num_queues": 1})),
        ("vm.add-user-device", json!({"socket": "/s"})),
    ] {
        let (status, answer) = ask(&socket, "PUT", verb, Some(body));
        // Whatever has come to be supported refuses what is not there.
        assert!([400, 404, 501].contains(&status), "{verb}: {status} {answer}");
        assert!(
            answer.as_array().is_some_and(|words| words.iter().all(Value::is_string)),
            "{verb}: {answer}"
        );
    }
    put(&socket, "vmm.shutdown");
    assert_eq!(monitor.wait().status, Some(0));
}

/// Hands over a tap before the machine boots: one message has the whole request, and the descriptors beside it.
fn cold_plug_tap(socket: &Path) -> bool {
    if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        println!("/dev/net/tun cannot be opened: without a network interface");
        return false;
    }
    let body =
        json!({"ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "02:00:ca:fe:00:04", "iommu": false,
        "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_mode": "Client", "tap": ""})
        .to_string();
    let script = format!(
        "import array, fcntl, os, socket, struct\n\
         tap = os.open('/dev/net/tun', os.O_RDWR)\n\
         fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'vivkata%d', 0x5002))\n\
         client = socket.socket(socket.AF_UNIX)\n\
         client.connect('{}')\n\
         body = b'''{body}'''\n\
         head = b'PUT /api/v1/vm.add-net HTTP/1.1\\r\\nHost: localhost\\r\\nAccept: application/json\\r\\n'\n\
         head += b'Content-Length: %d\\r\\nContent-Type: application/json\\r\\n\\r\\n' % len(body)\n\
         client.sendmsg([head + body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [tap]))])\n\
         print(client.recv(4096).decode())\n",
        socket.display()
    );
    let answer = Command::new("python3").args(["-c", &script]).output().unwrap();
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.starts_with("HTTP/1.1 204 ") || answer.starts_with("HTTP/1.1 200 "), "{answer}");
    true
}

/// With few descriptors and thousands of clients, most of which say nothing, each that asks is answered.
#[test]
fn thousands_of_connections_delay_nobody() {
    let folder = Folder::new();
    let socket = folder.join("api.sock");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(
        "ulimit -n 60; exec {} --api-socket {}",
        required("VIVARIUM_BIN").display(),
        socket.display()
    ));
    let monitor = Monitor::start(command);
    while UnixStream::connect(&socket).is_err() {
        assert!(monitor.elapsed().as_secs() < 60, "the socket did not come");
        std::thread::yield_now();
    }
    let mut silent = std::collections::VecDeque::new();
    for number in 0..3000 {
        silent.push_back(UnixStream::connect(&socket).unwrap());
        if silent.len() > 200 {
            silent.pop_front();
        }
        if number % 100 == 0 {
            assert_eq!(ask(&socket, "GET", "vmm.ping", None).0, 200, "after {number}");
        }
    }
    drop(silent);
    put(&socket, "vmm.shutdown");
    let exit = monitor.wait();
    assert_eq!(exit.status, Some(0), "{}", exit.errors);
    assert!(exit.errors.lines().count() < 100, "the log is not flooded: {}", exit.errors);
}

/// Verbs without a body are uploads of nothing for libvirt: chunks whose end is not known before.
#[test]
fn libvirt_starts_pauses_and_ends_a_machine() {
    let folder = Folder::new();
    let name = folder.join("cloud-hypervisor");
    std::os::unix::fs::symlink(required("VIVARIUM_BIN"), &name).unwrap();
    let version = shell(&format!("{} --version", name.display()));
    let number = version.strip_prefix("cloud-hypervisor v").unwrap_or_else(|| panic!("{version}"));
    assert!(number.trim().split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
    std::fs::remove_file(&name).unwrap();

    let (monitor, socket) = cloud_hypervisor(&folder);
    let curl = |arguments: &str, verb: &str| {
        let url = format!("http://localhost/api/v1/{verb}");
        let socket = socket.display();
        shell(&format!("curl -sS -w '%{{http_code}}' --unix-socket {socket} {arguments} {url} < /dev/null"))
    };
    let image = folder.sparse("disk.img", 1 << 20);
    let create = json!({
        "console": {"mode": "Pty"},
        "serial": {"mode": "Pty"},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
        "memory": {"size": 134_217_728},
        "payload": {"kernel": required("VIVARIUM_BARE_GUEST"), "cmdline": "end=spin"},
        "disks": [{"path": image, "readonly": true}],
    });
    let body = folder.join("create.json");
    std::fs::write(&body, create.to_string()).unwrap();
    let json = "-H 'Accept: application/json' -H 'Content-Type: application/json'";
    assert_eq!(curl(&format!("-X PUT {json} -d @{}", body.display()), "vm.create"), "204");
    assert_eq!(curl("-T -", "vm.boot"), "204");
    let (_, info) = ask(&socket, "GET", "vm.info", None);
    has(&info, INFO);
    for device in ["console", "serial"] {
        let path = info["config"][device]["file"].as_str().unwrap_or_else(|| panic!("{device}: {info}"));
        assert!(path.starts_with("/dev/pts/"), "{device}: {path}");
    }
    for (verb, state) in [("vm.pause", "Paused"), ("vm.resume", "Running"), ("vm.reboot", "Running")] {
        assert_eq!(curl("-T -", verb), "204", "{verb}");
        assert_eq!(ask(&socket, "GET", "vm.info", None).1["state"], state, "{verb}");
    }
    let told = curl(&format!("-T - {json}"), "vm.resume");
    assert!(told.ends_with("405"), "{told}");
    assert_eq!(curl("-T -", "vm.shutdown"), "204");
    assert_eq!(ask(&socket, "GET", "vm.info", None).1["state"], "Created");
    assert_eq!(curl("-T -", "vmm.shutdown"), "204");
    assert_eq!(monitor.wait().status, Some(0));
}
