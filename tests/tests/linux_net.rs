//! Networks over a tap, as stock kernels use them.

use vivarium_tests::host::Tap;
use vivarium_tests::transfer::{PIECE, exchange, receive, send};
use vivarium_tests::{Form, Kernel, MonitorBuilder, native, rate};

fn pieces() -> u64 {
    (native().bulk_mib() << 20) / PIECE as u64
}

const GUEST: &str = "192.0.2.2";

/// Ping, then 100 MiB (fewer in emulation) in, and the same out again at the same time.
fn carries(pairs: u32, keys: &str, features: &str) {
    let tap = Tap::new("viv0", pairs, "192.0.2.1/24");
    let exchange = exchange("192.0.2.1:5001".parse().unwrap(), pieces());
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .initramfs(Kernel::V6_12.tools().as_os_str())
        .args(["--cpus", &format!("boot={}", pairs.min(2)), "--memory", "size=384M"])
        .args(["--net", &format!("tap={},num_queues={},mac=02:00:00:00:00:07{keys}", tap.name, pairs * 2)])
        .cmdline(&format!("viv.net={GUEST}/24"))
        .script(&format!(
            "set -e; ping -c 3 -i 0.2 -W 20 192.0.2.1; cat /sys/class/net/eth0/address; \
             /usr/bin/ethtool -l eth0 | sed -n 's/^Combined:[^0-9]*/channels /p'; \
             /usr/bin/ethtool -k eth0 | grep -E '^(tx-checksumming|tcp-segmentation-offload|rx-checksumming):'; \
             /usr/bin/echo-back 192.0.2.1:5001; \
             {features}; dmesg | grep -i 'eth0.*\\(error\\|timed out\\)' && exit 1; true"
        ))
        .start()
        .succeed();
    assert!(output.contains("3 packets received, 0% packet loss"), "{output}");
    assert!(output.contains("02:00:00:00:00:07"), "{output}");
    assert!(output.contains(&format!("channels {pairs}")), "{output}");
    assert!(output.contains(&format!("echoed {}", pieces() * PIECE as u64)), "{output}");
    exchange.join().expect("what came back is what was sent");
}

#[test]
fn one_pair_with_offloads_carries_all() {
    carries(1, "", "/usr/bin/ethtool -k eth0 | grep -q 'tcp-segmentation-offload: on'");
}

#[test]
fn one_pair_without_offloads_carries_all() {
    carries(
        1,
        ",offload_tso=off,offload_ufo=off,offload_csum=off",
        "/usr/bin/ethtool -k eth0 | grep -q 'tcp-segmentation-offload: off'",
    );
}

#[test]
fn four_pairs_with_offloads_carry_all() {
    carries(4, "", "/usr/bin/ethtool -k eth0 | grep -q 'tcp-segmentation-offload: on'");
}

#[test]
fn four_pairs_without_offloads_carry_all_over_split_rings() {
    carries(4, ",offload_tso=off,offload_ufo=off,offload_csum=off,packed=off", "true");
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
/// went each way after the first 3 MiB, which a full bucket lets pass at once.
fn bytes_a_second() -> [f64; 2] {
    let tap = Tap::new("viv2", 1, "192.0.2.1/24");
    let pieces = (12 << 20) / PIECE as u64;
    let sender = send("192.0.2.1:5003".parse().unwrap(), pieces);
    let receiver = receive("192.0.2.1:5004".parse().unwrap(), pieces);
    let output = MonitorBuilder::linux(Kernel::V6_12, Form::Elf)
        .args(["--net", &format!("tap={},bw_size=3145728,bw_refill_time=1000", tap.name)])
        .cmdline(&format!("viv.net={GUEST}/24"))
        .script(
            r#"set -e
            clock() { read -r up _ </proc/uptime; echo ${up%.*}${up#*.}; }
            start=$(clock); nc 192.0.2.1 5003 </dev/null >/tmp/data; echo "in $(( $(clock) - start ))"
            start=$(clock); nc 192.0.2.1 5004 </tmp/data; echo "out $(( $(clock) - start ))""#,
        )
        .start()
        .succeed();
    sender.join().expect("all was sent");
    receiver.join().expect("what came back is what was sent");
    ["in ", "out "].map(|way| {
        let line = output.lines().find_map(|line| line.strip_prefix(way)).expect("the guest told");
        f64::from(9 << 20) / (line.parse::<f64>().unwrap() / 100.0)
    })
}

/// Headers and acknowledgements count, and are not in what is measured: up to 7 % below.
#[test]
fn a_limit_of_bytes_holds_each_way() {
    const LIMIT: f64 = 3_145_728.0;
    rate::holds("a direction", LIMIT, 0.15, || {
        let [into, out] = bytes_a_second();
        assert!(into <= LIMIT * 1.1, "into the guest: {into} bytes a second exceed {LIMIT}");
        assert!(out <= LIMIT * 1.1, "out of the guest: {out} bytes a second exceed {LIMIT}");
        into.min(out)
    });
}
