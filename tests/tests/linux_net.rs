//! Networks over a tap, as stock kernels use them.

use vivarium_tests::ctl::done;
use vivarium_tests::host::{Folder, Tap};
use vivarium_tests::transfer::{PIECE, exchange, receive, send};
use vivarium_tests::{Form, Kernel, MonitorBuilder, native, rate};

fn pieces() -> u64 {
    (native().bulk_mib() << 20) / PIECE as u64
}

const GUEST: &str = "192.0.2.2";

/// What a driver does itself when offloads are off, and leaves to the host when they are on (UDP's segmentation, where it is
/// told to).
const OFFLOADS: [&str; 3] = ["tx-checksumming", "tcp-segmentation-offload", "tx-udp-segmentation"];

/// Ping, then 100 MiB (fewer in emulation) in, and the same out again at the same time: by as many connections as there are
/// pairs of queues, each from another CPU.
fn carries(pairs: u32, keys: &str, offloads: bool) {
    let (tap, folder) = (Tap::new("viv0", pairs, "192.0.2.1/24"), Folder::new());
    let socket = folder.join("api");
    let each = pieces() / u64::from(pairs);
    let connections: Vec<_> = (0..pairs)
        .map(|pair| exchange(format!("192.0.2.1:{}", 5001 + pair).parse().unwrap(), each))
        .collect();
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .initramfs(Kernel::V6_12.tools().as_os_str())
        .args(["--cpus", &format!("boot={pairs}"), "--memory", "size=384M"])
        .args([
            "--net",
            &format!("tap={},id=net,num_queues={},mac=02:00:00:00:00:07{keys}", tap.name, pairs * 2),
        ])
        .arg("--api-socket")
        .arg(&socket)
        .cmdline(&format!("viv.net={GUEST}/24"))
        .script(&format!(
            "set -e; ping -c 3 -i 0.2 -W 20 192.0.2.1; cat /sys/class/net/eth0/address; \
             /usr/bin/ethtool -l eth0 | sed -n '/^Current/,$ s/^Combined:[^0-9]*/channels /p'; \
             /usr/bin/ethtool -K eth0 tx-udp-segmentation on || true; /usr/bin/ethtool -k eth0; \
             for pair in $(seq 0 {}); do taskset -c $pair /usr/bin/echo-back 192.0.2.1:$(( 5001 + pair )) & done; wait; \
             dmesg | grep -i 'eth0.*\\(error\\|timed out\\)' && exit 1; echo @@DONE; read -r line",
            pairs - 1
        ))
        .start();
    monitor.wait_for("@@DONE");
    let counters: serde_json::Value = serde_json::from_str(&done(&socket, &["--json", "counters"])).unwrap();
    monitor.type_in("\n");
    let output = monitor.succeed();
    assert!(output.contains("3 packets received, 0% packet loss"), "{output}");
    assert!(output.contains("02:00:00:00:00:07"), "{output}");
    let channels: Vec<_> = output.lines().filter(|line| line.starts_with("channels ")).collect();
    assert_eq!(channels, [format!("channels {pairs}")], "{output}");
    for offload in OFFLOADS {
        let line = format!("{offload}: {}", if offloads { "on" } else { "off" });
        assert!(output.lines().any(|told| told.trim().starts_with(&line)), "\"{line}\" is not in:\n{output}");
    }
    let echoed = format!("echoed {}", each * PIECE as u64);
    assert_eq!(output.lines().filter(|line| line.trim() == echoed).count() as u32, pairs, "{output}");
    for connection in connections {
        connection.join().expect("what came back is what was sent");
    }
    for queue in 0..pairs * 2 {
        let frames = counters[format!("net.queue{queue}")]["frames"].as_u64();
        assert!(frames > Some(0), "queue {queue}: {counters:#}");
    }
}

const OFF: &str = ",offload_tso=off,offload_ufo=off,offload_csum=off";

#[test]
fn one_pair_with_offloads_carries_all() {
    carries(1, "", true);
}

#[test]
fn one_pair_without_offloads_carries_all() {
    carries(1, OFF, false);
}

#[test]
fn four_pairs_with_offloads_carry_all() {
    carries(4, "", true);
}

#[test]
fn four_pairs_without_offloads_carry_all_over_split_rings() {
    carries(4, &format!("{OFF},packed=off"), false);
}

#[test]
fn four_pairs_share_a_worker_and_carry_all() {
    carries(4, ",workers=1", true);
}

#[test]
fn mtu_and_mac_can_be_chosen_and_changed() {
    let tap = Tap::new("viv1", 1, "192.0.2.1/24");
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--net", &format!("tap={},mtu=1400,mac=02:00:00:00:00:09", tap.name)])
        .cmdline(&format!("viv.net={GUEST}/24"))
        .script(
            "set -e; echo mtu $(cat /sys/class/net/eth0/mtu) mac $(cat /sys/class/net/eth0/address) carrier $(cat /sys/class/net/eth0/carrier); \
             ping -c 1 -s 1372 -W 20 192.0.2.1; ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:0a; ip link set eth0 up; \
             ping -c 1 -W 20 192.0.2.1; cat /sys/class/net/eth0/address",
        )
        .start()
        .succeed();
    assert!(output.contains("mtu 1400 mac 02:00:00:00:00:09 carrier 1"), "{output}");
    assert!(output.contains("02:00:00:00:00:0a"), "{output}");
}

/// Sends 12 MiB into the guest and back over a tap limited to 3 MiB a second each way, and returns how many bytes a second
/// went each way, headers included, after the first 3 MiB, which a full bucket lets pass at once.
fn bytes_a_second() -> [f64; 2] {
    const BUCKET: u64 = 3 << 20;
    let tap = Tap::new("viv2", 1, "192.0.2.1/24");
    // The tap sends what the guest receives.
    let carried = |way: &str| {
        let path = format!("/sys/class/net/{}/statistics/{way}_bytes", tap.name);
        std::fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap()
    };
    let pieces = (12 << 20) / PIECE as u64;
    let sender = send("192.0.2.1:5003".parse().unwrap(), pieces);
    let receiver = receive("192.0.2.1:5004".parse().unwrap(), pieces);
    let mut monitor = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--net", &format!("tap={},bw_size={BUCKET},bw_refill_time=1000", tap.name)])
        .cmdline(&format!("viv.net={GUEST}/24"))
        .script(
            r#"set -e
            clock() { read -r up _ </proc/uptime; echo ${up%.*}${up#*.}; }
            start=$(clock); nc 192.0.2.1 5003 </dev/null >/tmp/data; echo "@@IN $(( $(clock) - start ))"; read -r line
            start=$(clock); nc 192.0.2.1 5004 </tmp/data; echo "@@OUT $(( $(clock) - start ))""#,
        )
        .start();
    let time = |line: &str| {
        let time = line.split_whitespace().last().and_then(|time| time.parse::<f64>().ok());
        time.expect("the guest tells the time") / 100.0
    };
    let into_took = time(&monitor.wait_for("@@IN "));
    let (into, before) = (carried("tx"), carried("rx"));
    monitor.type_in("\n");
    let out_took = time(&monitor.wait_for("@@OUT "));
    let out = carried("rx") - before;
    monitor.succeed();
    sender.join().expect("all was sent");
    receiver.join().expect("what came back is what was sent");
    [(into, into_took), (out, out_took)].map(|(bytes, took)| (bytes - BUCKET) as f64 / took)
}

#[test]
fn a_limit_of_bytes_holds_each_way() {
    const LIMIT: f64 = 3_145_728.0;
    rate::holds("a direction", LIMIT, 0.1, || {
        let [into, out] = bytes_a_second();
        assert!(into <= LIMIT * 1.1, "into the guest: {into} bytes a second exceed {LIMIT}");
        assert!(out <= LIMIT * 1.1, "out of the guest: {out} bytes a second exceed {LIMIT}");
        into.min(out)
    });
}
