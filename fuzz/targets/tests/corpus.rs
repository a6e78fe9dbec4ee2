//! Every input of the committed corpora runs through its target.

use std::path::Path;

/// Runs the inputs in `fuzz/corpus/NAME`, in the order of their names.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10, "the corpus {} is all but empty", folder.display());
    for file in files {
        // Shown only if the test fails.
        println!("{}", file.display());
        target(&std::fs::read(&file).unwrap());
    }
}

macro_rules! replay {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name), fuzz_targets::$name);
            }
        )*

        /// A corpus without a target would not be replayed.
        #[test]
        fn every_corpus_has_a_target() {
            let mut corpora: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../corpus"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            corpora.sort();
            assert_eq!(corpora, [$(stringify!($name)),*]);
        }
    };
}

replay!(
    acpi_hotplug,
    api,
    arm_kernel,
    arm_tables,
    blk_packed,
    blk_split,
    fw_cfg,
    gdb,
    ivshmem,
    kernel_loader,
    net_control,
    net_rx,
    net_tx,
    options,
    pci_config,
    pcie_port,
    pflash,
    pl011,
    pl031,
    pl061,
    platform,
    serial,
    virtio_balloon,
    virtio_console,
    virtio_mem,
    virtio_pci,
    virtio_pmem,
    virtio_rtc,
    virtio_vsock,
    virtio_watchdog,
    watchdog,
);
