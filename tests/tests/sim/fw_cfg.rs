//! What firmware finds in the firmware configuration device, on the simulated backend.

use crate::control::instructions::{fw_cfg_file, fw_cfg_item};
use crate::control::{Control, STUCK, config, ignore};
use hypervisor::sim::Sim;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use vivarium_tests::host::Folder;
use vmm::api::Request;
use vmm::api::request::Resize;
use vmm::config::{FwCfgConfig, Options, VmConfig};

/// What a guest finds each time it starts.
#[derive(Debug, PartialEq)]
struct Found {
    kernel_size: u32,
    tables: Vec<u8>,
    item: Vec<u8>,
}

/// A machine whose guest tells what it finds when it starts. It has one or two CPUs.
fn machine(folder: &Folder, cpus: u32, item: &Path) -> (Control, Receiver<Found>) {
    const KERNEL_SIZE: u16 = 0x08;
    let sim = Arc::new(Sim::new());
    let (told, found) = channel();
    let told = Mutex::new(told);
    sim.program(0, move |cpu| {
        let size = fw_cfg_item(cpu, KERNEL_SIZE, 4);
        let found = Found {
            kernel_size: u32::from_le_bytes(size.try_into().unwrap()),
            tables: fw_cfg_file(cpu, "etc/acpi/tables"),
            item: fw_cfg_file(cpu, "opt/item"),
        };
        told.lock().unwrap().send(found).unwrap();
        ignore(cpu);
    });
    sim.program(1, ignore);
    let mut config: Box<VmConfig> = config(folder);
    config.cpus.boot_vcpus = cpus;
    config.cpus.max_vcpus = Some(2);
    let chosen = format!("items=[name=opt/item,file={}]", item.display());
    config.payload.fw_cfg_config = Some(FwCfgConfig::parse(&chosen).unwrap());
    (Control::boot(&sim, config), found)
}

#[test]
fn a_guest_that_restarts_finds_the_machine_and_the_kernel_as_they_are() {
    let folder = Folder::new();
    let item = folder.join("item");
    std::fs::write(&item, "from the start").unwrap();
    let (two, found) = machine(&folder, 2, &item);
    let of_two = found.recv_timeout(STUCK).unwrap();
    two.end();

    let (control, found) = machine(&folder, 1, &item);
    let mut expected = found.recv_timeout(STUCK).unwrap();
    assert_ne!(expected.tables, of_two.tables, "they tell which CPUs are there");
    // What is the user's is read once.
    std::fs::write(&item, "changed").unwrap();
    let restarted = || {
        control.done(Request::Reboot);
        found.recv_timeout(STUCK).unwrap()
    };
    assert_eq!(restarted(), expected);
    control.done(Request::Resize(Resize { desired_vcpus: Some(2), ..Resize::default() }));
    expected.tables = of_two.tables;
    assert_eq!(restarted(), expected);
    let kernel = std::fs::File::options().append(true).open(folder.join("kernel")).unwrap();
    kernel.set_len(kernel.metadata().unwrap().len() + 512).unwrap();
    expected.kernel_size += 512;
    assert_eq!(restarted(), expected);
    control.end();
}

#[test]
fn a_kernel_larger_than_the_machine_is_refused() {
    let folder = Folder::new();
    let sim = Arc::new(Sim::new());
    let mut config = config(&folder);
    config.payload.fw_cfg_config = Some(FwCfgConfig::default());
    let kernel = folder.join("kernel");
    std::fs::File::options().append(true).open(&kernel).unwrap().set_len(1 << 40).unwrap();
    let control = Control::start(&sim);
    control.done(Request::Create(config));
    let refusal = control.call(Request::Boot).unwrap_err().message;
    assert!(refusal.starts_with(&format!("--kernel {}: has more bytes than", kernel.display())), "{refusal}");
    control.end();
}
