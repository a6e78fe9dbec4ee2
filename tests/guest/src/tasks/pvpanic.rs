//! `pvpanic`: tells the host of a panic, by the PCI function (QEMU's docs/specs/pvpanic).

use super::{Context, Failure, Outcome};
use crate::command_line::Task;
use crate::{cpu, pci, report};

const ID: (u16, u16) = (0x1b36, 0x0011);
const REGISTER_BAR: u8 = 0;

/// `pvpanic events=1`: writes events to the register; that it reads as the events that the host understands is reported.
pub fn run(_: &Context, task: &Task) -> Outcome {
    let mut found = None;
    pci::functions(|function| {
        if function.id() == ID {
            found = Some(function);
        }
    });
    let function = found.ok_or(Failure::NoDevice("pvpanic"))?;
    let register = function.place_bar(REGISTER_BAR).ok_or(Failure::Device("pvpanic has no register"))?;
    function.enable();
    let events = u8::try_from(task.number("events", 1)?).map_err(|_| Failure::BadValue("events"))?;
    report!("pvpanic understood={:#x} events={events:#x}", cpu::read8(register));
    cpu::write8(register, events);
    Ok(())
}
