//! `wide-access`: accesses to devices that no hypervisor can carry out.

use super::fuzz::{DEVICES, collect};
use super::{Context, Failure, Outcome};
use crate::command_line::Task;
use crate::native::wide::{ACCESSES, Access, aborted};
use crate::{memory, report};

/// `wide-access serial=0x9000000`: each such access to the registers of each virtio device and of the serial port makes an
/// exception, and none to memory does.
pub fn run(context: &Context, task: &Task) -> Outcome {
    if ACCESSES.is_empty() {
        return Err(Failure::Unsupported("the processor describes every access"));
    }
    let mut devices = [None; DEVICES];
    collect(context, &mut devices);
    let memory = memory::take(64, 64) as u64;
    let mut failed = 0;
    let mut check = |name: &str, access: Access, address: u64, expected: Option<bool>| {
        let found = aborted(access, address);
        if found != expected {
            report!("wide-access access={name} address={address:#x} aborted={found:?}");
            failed += 1;
        }
    };
    let mut made = 0u64;
    for &(name, access) in ACCESSES {
        check(name, access, memory, None);
        check(name, access, task.number("serial", 0x900_0000)?, Some(true));
        made += 2;
        let areas = devices.iter().flatten().flat_map(|device| device.areas()).flatten();
        for area in areas {
            check(name, access, area.address, Some(true));
            made += 1;
        }
    }
    report!("wide-access made={made} failed={failed}");
    if failed == 0 { Ok(()) } else { Err(Failure::Checks(failed)) }
}
