//! A pipe through a vsock connection, for test guests: `vsock connect CID PORT` or `vsock listen PORT`.
//!
//! Standard input goes to the other side, which is told of its end; what the other side sends goes to standard output.
//! With `listen`, the line `listening` on standard error says that a connection may come.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const SHUT_WR: i32 = 1;
const CID_ANY: u32 = u32::MAX;

/// `struct sockaddr_vm`.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn connect(fd: i32, address: *const Address, length: u32) -> i32;
    fn bind(fd: i32, address: *const Address, length: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut Address, length: *mut u32) -> i32;
    fn shutdown(fd: i32, how: i32) -> i32;
}

fn check(what: &str, result: i32) -> i32 {
    if result < 0 {
        eprintln!("vsock: {what}: {}", io::Error::last_os_error());
        std::process::exit(1);
    }
    result
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let number = |at: usize| words[at].parse::<u32>().expect("a number");
    let address = |cid, port| Address { family: AF_VSOCK as u16, reserved: 0, port, cid, zero: [0; 4] };
    let length = size_of::<Address>() as u32;
    // SAFETY: takes no pointers.
    let own = check("socket", unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) });
    let fd = if words[1] == "connect" {
        // SAFETY: the address lives during the call and has this length.
        check("connect", unsafe { connect(own, &address(number(2), number(3)), length) });
        own
    } else {
        // SAFETY: as above.
        check("bind", unsafe { bind(own, &address(CID_ANY, number(2)), length) });
        // SAFETY: takes no pointers.
        check("listen", unsafe { listen(own, 1) });
        eprintln!("listening");
        // SAFETY: the peer's address is not asked for.
        check("accept", unsafe { accept(own, std::ptr::null_mut(), std::ptr::null_mut()) })
    };
    // SAFETY: the descriptor is new and nobody else's.
    let mut from = unsafe { File::from_raw_fd(fd) };
    let mut to = from.try_clone().expect("a descriptor");
    let sender = std::thread::spawn(move || {
        let sent = io::copy(&mut io::stdin().lock(), &mut to);
        // SAFETY: takes no pointers.
        unsafe { shutdown(to.as_raw_fd(), SHUT_WR) };
        sent
    });
    let received = io::copy(&mut from, &mut io::stdout().lock());
    let sent = sender.join().expect("the sender ends");
    if let Some(error) = received.err().or(sent.err()) {
        eprintln!("vsock: {error}");
        std::process::exit(1);
    }
}
