//! Stream sockets between a stock kernel and programs on the host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use vivarium_tests::host::Folder;
use vivarium_tests::{Feature, Form, Kernel, MonitorBuilder, lacks, native};

const PIECE: usize = 4 << 20;

/// The guest's script, which tells how far it is since an emulated host is slow: first it connects to the host and sends what it gets back, then the host connects to it.
const SCRIPT: &str = r#"set -e
    head -c 4194304 /dev/urandom >/tmp/piece
    stream() { for i in $(seq PIECES); do cat /tmp/piece; echo "@@$1 $i" >/dev/console; done; }
    sum=$(stream summed | md5sum)
    back=$(stream sent | vsock connect 2 1000 | md5sum)
    [ "$sum" = "$back" ]
    ! vsock connect 2 1001 </dev/null
    vsock listen 77 </tmp/piece 2>/dev/console >/tmp/heard
    sha256sum </tmp/heard | cut -c1-64 | sed 's/^/@@HEARD /'
    sha256sum </tmp/piece | cut -c1-64 | sed 's/^/@@PIECE /'"#;

/// Sends back what comes, to the end, and tells how much that was.
fn echo(listener: &UnixListener) -> usize {
    let (mut from, _) = listener.accept().expect("the guest connects");
    let mut to = from.try_clone().expect("a descriptor");
    // What is on its way back must not keep what comes from being taken.
    let (sender, pieces) = std::sync::mpsc::channel::<Vec<u8>>();
    let writer = std::thread::spawn(move || {
        for piece in pieces {
            to.write_all(&piece).expect("the guest takes what it sent");
        }
        to.shutdown(Shutdown::Write).expect("the guest is there");
    });
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let count = from.read(&mut buffer).expect("the guest sends");
        if count == 0 {
            break;
        }
        total += count;
        sender.send(buffer[..count].to_vec()).expect("the writer lives");
    }
    drop(sender);
    writer.join().expect("all was sent back");
    total
}

fn connect(path: &Path, port: u32) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(path).expect("the device listens");
    writeln!(stream, "CONNECT {port}").expect("the device reads");
    BufReader::new(stream)
}

fn much_goes_both_ways_and_each_side_can_connect(kernel: Kernel) {
    let pieces = native().bulk_mib() as usize / (PIECE >> 20);
    let folder = Folder::new();
    let path = folder.join("vsock");
    let listener = UnixListener::bind(folder.join("vsock_1000")).expect("a socket can be made");
    let mut monitor = MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--vsock", &format!("cid=3,socket={}", path.display())])
        .script(&SCRIPT.replace("PIECES", &pieces.to_string()))
        .start();
    let guest = std::thread::spawn(move || {
        let started = std::time::Instant::now();
        (echo(&listener), started.elapsed())
    });
    monitor.wait_for("listening");
    let (echoed, spent) = guest.join().expect("all came back");
    assert_eq!(echoed, pieces * PIECE);
    println!("{kernel:?}: {echoed} bytes there and back by {spent:?}");

    let mut line = String::new();
    connect(&path, 78).read_line(&mut line).expect("it ends");
    assert_eq!(line, "", "nobody listens there");
    let mut stream = connect(&path, 77);
    stream.read_line(&mut line).expect("the guest accepts");
    assert!(line.starts_with("OK "), "{line}");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the guest sends all and says so");
    assert_eq!(answer.len(), PIECE);
    let file = folder.join("answer");
    std::fs::write(&file, &answer).expect("there is room");
    stream.get_mut().write_all(&answer).expect("the guest takes it");
    drop(stream);
    let output = monitor.succeed();
    let sum = vivarium_tests::host::sha256(&file);
    for what in ["HEARD", "PIECE"] {
        assert!(output.contains(&format!("@@{what} {sum}")), "{sum}: {output}");
    }
    assert!(!path.exists(), "the socket goes with the monitor");
}

#[test]
fn many_mebibytes_go_both_ways_and_each_side_can_connect() {
    much_goes_both_ways_and_each_side_can_connect(Kernel::V6_12);
}

#[test]
fn many_mebibytes_go_both_ways_and_each_side_can_connect_with_6_1() {
    if !lacks(Feature::OlderKernel) {
        much_goes_both_ways_and_each_side_can_connect(Kernel::V6_1);
    }
}
