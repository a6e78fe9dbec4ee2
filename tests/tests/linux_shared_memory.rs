//! Memory that a stock kernel's guest shares with the host, and a real-time clock beside it.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use vivarium_tests::ctl::done;
use vivarium_tests::host::Folder;
use vivarium_tests::shared_memory::{event, send};
use vivarium_tests::{Form, Kernel, MonitorBuilder};

const SIZE: u64 = 1 << 20;
const FROM_HOST: u64 = 0x1000;
/// In the last page. The tool in the guest maps another one for what is nearer to its end.
const FROM_GUEST: u64 = SIZE - 64;

/// Reads what the host wrote, writes for the host, moves the memory elsewhere and back, and reads again.
const SCRIPT: &str = r#"set -e
    for d in /sys/bus/pci/devices/*; do
        case $(cat $d/vendor)$(cat $d/device) in 0x1af40x1110) shared=$d;; 0x1af40x1051) clock=$d;; esac
    done
    [ -n "$clock" ]
    echo 1 >$shared/enable
    set -- $(sed -n 3p $shared/resource)
    echo "@@SIZE $(($2 - $1 + 1))"
    at() { printf '0x%x' $(($1 + $2)); }
    echo "@@HOST $(devmem $(at $1 0x1000) 32)"
    devmem $(at $1 0xfffc0) 32 0x600df00d
    # Without memory decoding it is not there.
    decoding() { printf "$1" | dd of=$shared/config bs=1 seek=4 conv=notrunc 2>/dev/null; }
    decoding '\000'
    echo "@@GONE $(devmem $(at $1 0x1000) 32)"
    decoding '\002'
    echo "@@BACK $(devmem $(at $1 0xfffc0) 32)"
    echo "@@READY"; read -r answer </dev/console; [ "$answer" = on ]
    echo "@@AGAIN $(devmem $(at $1 0x1000) 32)""#;

#[test]
fn guest_and_host_read_what_the_other_writes() {
    let folder = Folder::on_disk();
    let path = folder.join("shared");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&0xc0de_cafe_u32.to_le_bytes(), FROM_HOST).unwrap();
    let kernel = Kernel::V6_12;
    let mut monitor = MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--landlock", "--rtc", "--ivshmem", &format!("path={},size=1M", path.display())])
        .script(SCRIPT)
        .start();
    monitor.wait_for("@@READY");
    let mut word = [0; 4];
    file.read_exact_at(&mut word, FROM_GUEST).unwrap();
    assert_eq!(u32::from_le_bytes(word), 0x600d_f00d);
    file.write_all_at(&0x0bad_beef_u32.to_le_bytes(), FROM_HOST).unwrap();
    monitor.type_in("on\n");
    let output = monitor.succeed();
    for told in [
        "@@SIZE 1048576",
        "@@HOST 0xC0DECAFE",
        "@@GONE 0xFFFFFFFF",
        "@@BACK 0x600DF00D",
        "@@AGAIN 0x0BADBEEF",
    ] {
        assert!(output.contains(told), "{told}: {output}");
    }
}

/// Waits for an event, which the other side may have made not to block.
fn wait(mut event: &File) -> u64 {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure is passed.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1, "the event is raised");
    let mut count = [0; 8];
    event.read_exact(&mut count).unwrap();
    u64::from_ne_bytes(count)
}

/// Prints its number, and rings the first vector of peer 9 and its own.
const RING: &str = r#"set -e
    for d in /sys/bus/pci/devices/*; do
        case $(cat $d/vendor)$(cat $d/device) in 0x1af40x1110) shared=$d;; esac
    done
    echo 1 >$shared/enable
    set -- $(sed -n 1p $shared/resource)
    at() { printf '0x%x' $(($1 + $2)); }
    echo "@@NUMBER $(devmem $(at $1 8) 32)"
    set -- $1 $(sed -n 3p $shared/resource)
    echo "@@HOST $(devmem $(at $2 0x1000) 32)"
    devmem $(at $1 12) 32 0x90000
    devmem $(at $1 12) 32 0x50000
    echo "@@RUNG"; read -r answer </dev/console; [ "$answer" = on ]"#;

#[test]
fn a_guest_rings_another_machine_that_a_server_told_it_of() {
    let folder = Folder::on_disk();
    let (path, socket, api) = (folder.join("memory"), folder.join("server"), folder.join("api"));
    let memory = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    memory.set_len(1 << 20).unwrap();
    memory.write_all_at(&0xc0de_cafe_u32.to_le_bytes(), FROM_HOST).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let (peer, own) = (event(), event());
    let descriptors = (memory.as_raw_fd(), peer.as_raw_fd(), own.as_raw_fd());
    let server = std::thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        send(&connection, 0, None);
        send(&connection, 5, None);
        send(&connection, -1, Some(descriptors.0));
        send(&connection, 9, Some(descriptors.1));
        send(&connection, 5, Some(descriptors.2));
        connection
    });
    let kernel = Kernel::V6_12;
    let mut monitor = MonitorBuilder::linux(kernel, Form::Elf)
        .initramfs(kernel.tools().as_os_str())
        .args(["--landlock", "--ivshmem", &format!("socket={},id=shared", socket.display()), "--api-socket"])
        .arg(&api)
        .script(RING)
        .start();
    monitor.wait_for("@@RUNG");
    assert_eq!(wait(&peer), 1);
    // The link of this machine takes its own event.
    let tree: serde_json::Value = serde_json::from_str(&done(&api, &["--json", "inspect", "pci"])).unwrap();
    let tree = tree.as_object().unwrap().values().find(|tree| tree["id"] == "shared").unwrap().clone();
    assert_eq!((&tree["number"], &tree["peers"]["rung"]), (&5.into(), &2.into()), "{tree}");
    assert_eq!(
        (&tree["peers"]["peers"]["9"], &tree["peers"]["peers"]["5"]),
        (&1.into(), &1.into()),
        "{tree}"
    );
    drop(server.join().unwrap());
    monitor.type_in("on\n");
    let output = monitor.succeed();
    for told in ["@@NUMBER 0x00000005", "@@HOST 0xC0DECAFE"] {
        assert!(output.contains(told), "{told}: {output}");
    }
}
