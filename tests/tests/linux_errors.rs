//! What is wrong with a machine of this architecture, told before any guest runs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vivarium_tests::host::Folder;
use vivarium_tests::{Architecture, Form, Kernel, MonitorBuilder, native};

/// What the monitor says of a machine that cannot be.
fn refusal(builder: MonitorBuilder) -> String {
    refusal_with(1, builder)
}

/// The same of one that ends with this status.
fn refusal_with(status: i32, builder: MonitorBuilder) -> String {
    let exit = builder.start().wait();
    assert_eq!(exit.status, Some(status), "{exit:?}");
    assert_eq!(exit.errors.trim().lines().count(), 1, "one line: {}", exit.errors);
    exit.errors
}

/// A file that has of a kernel only what it is known by: the magic number of its header.
fn kernel(folder: &Folder, at: usize, magic: &[u8]) -> std::ffi::OsString {
    let mut file = vec![0; 8192];
    file[..2].copy_from_slice(b"MZ");
    file[at..at + magic.len()].copy_from_slice(magic);
    let path = folder.join("other");
    std::fs::write(&path, file).expect("a file can be made");
    path.into()
}

#[test]
fn a_kernel_of_the_other_architecture_is_called_what_it_is() {
    let folder = Folder::new();
    let (path, name) = match native() {
        Architecture::X86_64 => (kernel(&folder, 0x38, b"ARMd"), "aarch64 kernel Image"),
        Architecture::Aarch64 => (kernel(&folder, 0x202, b"HdrS"), "x86 bzImage"),
    };
    let said = refusal(MonitorBuilder::linux(Kernel::V6_12, Form::BzImage).replace("--kernel", path));
    assert!(said.contains("--kernel") && said.contains(name), "{said}");
}

#[test]
fn more_cpus_than_there_can_be_are_refused() {
    // No KVM runs more than 4096 on x86_64, and none more than 512 on Arm.
    for count in ["5000", "100000"] {
        let said = refusal(
            MonitorBuilder::linux(Kernel::V6_12, Form::BzImage).args(["--cpus", &format!("boot={count}")]),
        );
        assert!(said.contains("--cpus") && said.contains(count), "{said}");
    }
}

#[test]
fn more_memory_than_there_are_addresses_is_refused() {
    let said = refusal(MonitorBuilder::linux(Kernel::V6_12, Form::BzImage).args([
        "--cpus",
        "max_phys_bits=36",
        "--memory",
        "size=96G",
    ]));
    assert!(said.contains("--memory") && said.contains("36"), "{said}");
}

#[test]
fn cpu_features_that_there_are_not_are_refused() {
    let of_host = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    for (key, name) in [("sve", "sve"), ("pauth", "paca")] {
        if of_host.split_whitespace().any(|feature| feature == name) {
            println!("@@SKIP {key}=on: this host's CPUs have it");
            continue;
        }
        let option = format!("{key}=on");
        // No PC has such a choice, which is an error of usage; on Arm it is the host that lacks something.
        let status = if native() == Architecture::X86_64 { 2 } else { 1 };
        let builder = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage).args(["--cpus", &option]);
        let said = refusal_with(status, builder);
        assert!(said.contains("--cpus") && said.contains(&option) && said.contains("leave it out"), "{said}");
    }
}

#[test]
fn an_arm_machine_refuses_an_nmi_and_lives() {
    if native() != Architecture::Aarch64 {
        return;
    }
    let folder = Folder::new();
    let socket = folder.join("api");
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::BzImage)
        .arg("--api-socket")
        .arg(&socket)
        .script("echo @@ready; read line; echo @@lives")
        .start();
    monitor.wait_for("@@ready");
    let mut stream = UnixStream::connect(&socket).unwrap();
    write!(
        stream,
        "PUT /api/v1/vm.nmi HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    .unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 501 "), "{said}");
    assert!(said.contains("no non-maskable interrupt") && said.contains("vm.coredump"), "{said}");
    monitor.type_in("\n");
    monitor.wait_for("@@lives");
    assert_eq!(monitor.wait().status, Some(0));
    let said = refusal(
        MonitorBuilder::linux(Kernel::V6_12, Form::BzImage).args(["--watchdog", "action=inject-nmi"]),
    );
    assert!(said.contains("--watchdog action=inject-nmi") && said.contains("action=reset"), "{said}");
}
