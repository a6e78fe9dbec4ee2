use super::*;

fn run(line: &str) -> Result<Run, String> {
    let arguments = std::iter::once("vivarium").chain(line.split_whitespace()).map(OsString::from);
    match parse(arguments).map_err(|error| error.0)? {
        Command::Run(run) => Ok(*run),
        Command::Print(text) => Err(text),
    }
}

#[test]
fn a_full_command_line_becomes_a_configuration() {
    let run =
        run("--kernel k --initramfs i --cpus boot=2,max=4,topology=1:2:1:2 --memory size=1G,shared=on \
         --disk path=a,readonly=on path=b,num_queues=4 --disk path=c,bw_size=1000,bw_refill_time=100 \
         --net tap=t0,mac=12:34:56:78:9a:bc --serial file=/tmp/s --console off --pvpanic -vv --seccomp log")
        .unwrap();
    let config = run.config.unwrap();
    assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (2, Some(4)));
    assert_eq!(config.disks.len(), 3);
    assert_eq!(config.disks[1].num_queues, 4);
    let bucket = config.disks[2].rate_limiter_config.unwrap().bandwidth.unwrap();
    assert_eq!((bucket.size, bucket.refill_time), (1000, 100));
    assert_eq!(config.serial.mode, crate::config::ConsoleMode::File);
    assert_eq!((run.log.verbosity, run.seccomp), (2, Seccomp::Log));
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["cpus"]["topology"]["packages"], 2, "the JSON form has cloud-hypervisor's names");
    assert_eq!(serde_json::from_value::<VmConfig>(json).unwrap(), config);
}

#[test]
fn a_bad_command_line_is_refused_in_one_line_that_names_option_and_value() {
    for (line, expected) in [
        ("", "--kernel is missing; give the kernel to boot: --kernel PATH"),
        (
            "--kernel k --firmware-vars v",
            "--firmware-vars v: there is no firmware whose variables they are; add --firmware PATH",
        ),
        ("--firmware f --initramfs i", "--initramfs i: firmware gives it to a kernel only; add --kernel"),
        ("--firmware f --cmdline c", "--cmdline c: firmware gives it to a kernel only; add --kernel"),
        ("--kernel k --wrong 1", "--wrong: there is no such option; vivarium --help lists them"),
        ("--kernel k --disc path=a", "--disc: there is no such option; did you mean --disk?"),
        ("--kernel k extra", "extra: is not the value of any option; put it after one"),
        ("--kernel k --cpus boot=1 --cpus boot=2", "--cpus: is given twice; give it once"),
        ("--kernel", "--kernel: needs a value; write --kernel PATH"),
        ("--kernel k --disk", "--disk: needs a value; write --disk KEYS"),
        ("--kernel k --landlock=on", "--landlock on: takes no value; write --landlock alone"),
        (
            "--kernel k --pvpanic=on",
            "--pvpanic on: \"on\" is not of the form key=value; the keys are id, pci_segment",
        ),
        (
            "--help-option kernel",
            "--help-option kernel: no option of that name has keys; those that do are cpus",
        ),
        ("--kernel k --cpus 4", "--cpus 4: \"4\" is not of the form key=value; the keys are boot, max"),
        (
            "--kernel k --net ip=1.2.3",
            "--net ip=1.2.3: ip: \"1.2.3\": invalid IP address syntax; write one like 192.168.0.1",
        ),
        ("--kernel k --net tap=0123456789abcdef", "--net tap=0123456789abcdef: the name is too long"),
        (
            "--kernel k --net tap=t,ip=10.0.0.1,mask=255.0.255.0",
            "--net tap=t: mask=255.0.255.0 is no network mask: its bits are set from the left",
        ),
        (
            "--kernel k --net tap=t1 --net tap=t1",
            "--net tap=t1: is given to two interfaces; give each a tap of its own, or one of them more queues",
        ),
        (
            "--kernel k --net mac=12:34:56:78:9A:bc --net tap=t,mac=12:34:56:78:9a:bc",
            "--net mac=12:34:56:78:9a:bc: is given to two interfaces; give each an address of its own",
        ),
        (
            "--kernel k --net tap=t,ip=0.0.0.0",
            "--net tap=t: ip=0.0.0.0: is no address that an interface has; give",
        ),
        ("--kernel k --net tap=t,ip=fe80::1", "--net tap=t: ip=fe80::1: is an IPv6 address; set it with"),
        (
            "--kernel k --net tap=t,ip=1.2.3.4,mask=ffff::",
            "--net tap=t: mask=ffff::: is an IPv6 address; give the mask of",
        ),
        ("--kernel k --net fd=0", "--net: fd=0: is a standard stream; pass the tap as descriptor 3 or above"),
        (
            "--kernel k --disk path=/x,queue_affinity=[0@[0],0@[1]]",
            "--disk path=/x: queue_affinity: queue 0 is given twice; give it once",
        ),
        (
            "--kernel k --net tap=t,queue_affinity=[1@[0],1@[0]]",
            "--net tap=t: queue_affinity: queue 1 is given twice; give it once",
        ),
        ("--kernel k --net tap=a/b", "--net tap=a/b: the name cannot be an interface's: it may not contain"),
        (
            "--kernel k --pmem file=p,size=3",
            "--pmem file=p size=3: is not a multiple of 2M; make it one, or leave size out",
        ),
        (
            "--kernel k --landlock --landlock-rules path=/,access=x",
            "--landlock-rules path=/,access=x: access: \"x\" is not one of r, w, rw",
        ),
        ("--kernel k --disk path=", "--disk: has no path; add path=<image>"),
        ("--kernel k --serial file", "--serial file: needs a path; write --serial file=<path>"),
        ("--kernel k --serial socket=", "--serial socket: needs a path; write --serial socket=<path>"),
        (
            "--kernel k --disk path=a,id=x --net id=x",
            "--net id=x: is given to two devices; names must differ",
        ),
        (
            "--kernel k --watchdog action=bark",
            "--watchdog action=bark: action: \"bark\" is not one of reset, poweroff, pause, none",
        ),
        ("--kernel k --pmem size=2M", "--pmem: has no file; add file=<path>"),
        ("--kernel k --vsock cid=3", "--vsock cid=3: has no socket; add socket=<path>"),
        (
            "--kernel k --vsock cid=2,socket=/s",
            "--vsock cid=2,socket=/s: cid: 2 is out of range: it can be 3 to 4294967294",
        ),
        ("--kernel k --channel socket=/s", "--channel: has no name; add name=<name>"),
        ("--kernel k --channel name=a", "--channel name=a: has no socket; add socket=<path>"),
        ("--kernel k --channel name=a/b,socket=/s", "--channel name=a/b: the name has up to 128 letters"),
        (
            "--kernel k --channel name=a,socket=/s --channel name=a,socket=/t",
            "--channel name=a: is given to two channels; names must differ",
        ),
        ("--kernel k --rate-limit-group id=a", "--rate-limit-group id=a: limits nothing; give bw_size"),
        (
            "--kernel k --debug-console tty",
            "--debug-console tty: --console has the terminal already (that is its default)",
        ),
        ("--kernel k --cpus boot=0", "--cpus boot=0: a machine needs at least one CPU"),
        ("--kernel k --cpus boot=x", "--cpus boot=x: boot: \"x\" is not a whole number"),
        ("--kernel k --cpus bots=1", "--cpus bots=1: unknown key \"bots\"; did you mean \"boot\"?"),
        ("--kernel k --cpus boot=4,max=2", "--cpus max=2: is less than boot=4; raise max or leave it out"),
        (
            "--kernel k --cpus boot=4,topology=1:1:1:1",
            "--cpus topology=1:1:1:1: makes 1 CPUs, and the machine has 4; the product must be max",
        ),
        ("--kernel k --memory size=0", "--memory size=0: the memory has no size; write size=1G or the like"),
        ("--kernel k --memory size=1", "--memory size=1: is not a multiple of 4K"),
        ("--kernel k --memory size=32M", "--memory size=32M: the least a machine can have is 64M"),
        (
            "--kernel k --disk path=/x path=/x",
            "--disk path=/x: the same disk is given twice; two disks writing one image would destroy it",
        ),
        (
            "--kernel k --disk path=/x,pci_device_id=9,pci_function=1",
            "--disk path=/x pci_function=1: there is no function 0 at pci_device_id=9, without which a guest does not find",
        ),
        (
            "--kernel k --pci-port id=p --disk path=/x,bus=p,pci_function=1",
            "--disk path=/x pci_function=1: there is no function 0 at bus=p, without which",
        ),
        (
            "--kernel k --pci-port id=p,pci_device_id=9,pci_function=2 --disk path=/x,pci_device_id=8",
            "--pci-port id=p pci_function=2: there is no function 0 at pci_device_id=9, without which",
        ),
        ("--kernel k --disk path=/x,queue_size=100", "--disk path=/x: queue_size=100 is not a power of two"),
        (
            "--kernel k --disk path=/x,num_queues=257",
            "--disk path=/x,num_queues=257: num_queues: 257 is out of range: it can be 1 to 256",
        ),
        (
            "--kernel k --ivshmem size=1M",
            "--ivshmem: has no path; add path=<file>, or socket=<path> of a server",
        ),
        (
            "--kernel k --ivshmem socket=/s,path=/p",
            "--ivshmem socket=/s: has a path too; leave that out, since the server has the memory",
        ),
        (
            "--kernel k --landlock-rules path=/nope",
            "--landlock-rules path=/nope: there is no --landlock, without which rules mean nothing; add --landlock",
        ),
        ("--kernel k --seccomp maybe", "--seccomp maybe: write true, log or false"),
        (
            "--kernel k --serial tty --console tty",
            "--console tty: --serial has the terminal already; give one of them off, null or pty",
        ),
        (
            "--kernel k --serial tty,model=8250",
            "--serial tty,model=8250: model: \"8250\" is not one of pl011, 16550",
        ),
        (
            "--kernel k --serial loud",
            "--serial loud: mode: \"loud\" is not one of off, null, tty, pty, file, socket",
        ),
    ] {
        let error = run(line).unwrap_err();
        assert!(error.starts_with(expected), "{line}\n  expected: {expected}\n  got: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn what_is_for_arm_alone_is_refused() {
    if crate::machine::HAS_CHOICES {
        return;
    }
    for (line, expected) in [
        (
            "--kernel k --serial tty,model=pl011",
            "--serial model=pl011: a PC's serial port is a 16550; leave model out",
        ),
        (
            "--kernel k --cpus sve=on",
            "--cpus sve=on: is a choice for Arm machines, and this is none; leave it out",
        ),
    ] {
        assert_eq!(run(line).unwrap_err(), expected);
    }
}

#[test]
fn a_path_that_json_cannot_tell_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let arguments = ["vivarium", "--kernel"].map(OsString::from).into_iter();
    let error = parse(arguments.chain([OsString::from_vec(b"a\xffb".to_vec())])).unwrap_err();
    assert_eq!(error.0, r#""a\xFFb" is not valid UTF-8; give it a name that is"#);
}

#[test]
fn a_failure_tells_each_cause_once() {
    let cause = std::io::Error::from_raw_os_error(2);
    let told = anyhow::Error::new(cause).context("opening /x: No such file or directory (os error 2)");
    let text = failure(&told.context("--serial"));
    assert_eq!(
        text,
        "--serial: opening /x: No such file or directory (os error 2); correct the path, or make what is missing of it"
    );
    let told = anyhow::Error::new(std::io::Error::from_raw_os_error(2)).context("--rng: wrong; leave it out");
    assert_eq!(failure(&told), "--rng: wrong; leave it out: No such file or directory (os error 2)");
}

#[test]
fn help_shows_three_examples_before_the_options() {
    let help = run("--help").unwrap_err();
    let (examples, options) = help.split_once("Options:").unwrap();
    assert_eq!(examples.matches("\n    vivarium ").count(), 3, "{help}");
    assert!(options.contains("--memory-zone"));
}

#[test]
fn the_version_is_cloud_hypervisors_under_its_name() {
    let text = |name: &str| match parse([name, "--version"].map(OsString::from)).unwrap() {
        Command::Print(text) => text,
        Command::Run(_) => String::new(),
    };
    assert!(text("/usr/bin/vivarium").starts_with("vivarium v"));
    assert!(text("/usr/bin/cloud-hypervisor").starts_with("cloud-hypervisor v"));
}
