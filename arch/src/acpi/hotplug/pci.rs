//! The slots of root buses, and their controller.

use super::{BUS_CHECK, DEVICE_CHECK, EJECT_REQUEST, Encoded, FOREVER, Registers};
use crate::acpi::pci::root_name;
use acpi_tables::aml::{
    Acquire, And, Arg, Device, EISAName, If, Local, Method, MethodCall, Mutex, Name, Notify, ONE, Path,
    Release, ShiftLeft, Store, ZERO,
};

/// Device numbers that have a slot on a root bus: all but the host bridge's.
const SLOTS: std::ops::Range<u8> = 1..32;

fn slot_name(device: u8) -> Path {
    Path::new(&format!("S{device:03X}"))
}

/// The slots of a root bus, which are objects of its bridge: a device for each; `EJCT`, which lets go of a device; and
/// `DVNT`, which notifies those devices whose bits are set in its first argument of its second.
pub(crate) fn pci_slots(segment: u16) -> Encoded {
    let mut out = Encoded::default();
    let segment_number = u32::from(segment);
    for device in SLOTS {
        // The user's number of the slot is unique in the machine; in segment 0 it is the device number.
        let user_number = segment_number << 5 | u32::from(device);
        let address = u32::from(device) << 16;
        // Found in the bridge's scope, below.
        let eject = MethodCall::new("EJCT".into(), vec![&device]);
        out.push(&Device::new(
            slot_name(device),
            vec![
                &Name::new("_SUN".into(), &user_number),
                &Name::new("_ADR".into(), &address),
                &Method::new("_EJ0".into(), 1, true, vec![&eject]),
            ],
        ));
    }
    let device = Arg(0);
    let eject = MethodCall::new("\\_SB_.PHPC.PCEJ".into(), vec![&device, &segment_number]);
    out.push(&Method::new("EJCT".into(), 1, false, vec![&eject]));
    let (devices, notification) = (Arg(0), Arg(1));
    let mut notify = Encoded::default();
    for device in SLOTS {
        let bit = 1u32 << device;
        // The `And` has no target.
        let chosen = And::new(&ZERO, &devices, &bit);
        notify.push(&If::new(&chosen, vec![&Notify::new(&slot_name(device), &notification)]));
    }
    out.push(&Method::new("DVNT".into(), 2, true, vec![&notify]));
    out
}

/// The PCI hotplug controller. Its `PSCN` tells what the registers say of all segments; its `PCEJ` lets go of the
/// device whose number is its first argument, of the segment that is the second.
pub(crate) fn pci_controller(registers: Registers, segments: u16) -> Encoded {
    let (selected, up, down, eject) =
        (Path::new("PSEG"), Path::new("PUPS"), Path::new("PDWN"), Path::new("PEJC"));
    // Registers are those of the segment selected last, so there is one user at a time.
    let (acquire, release) = (Acquire::new("PLCK".into(), FOREVER), Release::new("PLCK".into()));
    let mut scan = Encoded::default();
    let (came, going) = (Local(0), Local(1));
    for segment in 0..segments {
        scan.push(&acquire);
        scan.push(&Store::new(&selected, &segment));
        scan.push(&Store::new(&came, &up));
        scan.push(&Store::new(&going, &down));
        scan.push(&release);
        // Linux looks at one slot alone on a bus check, and numbers the buses of a port there before a driver takes the port. On a
        // device check it looks at all, and a driver may have the port before.
        for (devices, notification) in [(&came, BUS_CHECK), (&came, DEVICE_CHECK), (&going, EJECT_REQUEST)] {
            let tell = Path::new(&format!("\\_SB_.{}.DVNT", root_name(segment)));
            scan.push(&MethodCall::new(tell, vec![devices, &notification]));
        }
    }
    let (device, segment) = (Arg(0), Arg(1));
    let mut out = Encoded::default();
    out.push(&Device::new(
        "PHPC".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A06")),
            &Name::new("_UID".into(), &"PCI hotplug"),
            &registers.region("PREG", &[b"PSEG", b"PUPS", b"PDWN", b"PEJC"]),
            &Mutex::new("PLCK".into(), 0),
            &Method::new("PSCN".into(), 0, true, vec![&scan]),
            &Method::new(
                "PCEJ".into(),
                2,
                true,
                vec![
                    &acquire,
                    &Store::new(&selected, &segment),
                    &ShiftLeft::new(&eject, &ONE, &device),
                    &release,
                ],
            ),
        ],
    ));
    out
}
