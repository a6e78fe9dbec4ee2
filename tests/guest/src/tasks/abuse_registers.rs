//! The bad things that `ring-abuse` does to registers: MSI-X, resets, accesses of any kind, and BARs. Each function is a case
//! of `abuse_cases.rs`.

use super::abuse::{RING, Stage};
use super::{Failure, Outcome};
use crate::clock::Deadline;
use crate::random::Random;
use crate::virtio::status;
use crate::{cpu, pci};

/// Far beyond the RAM of any machine here, yet within what CPUs can address.
pub const NOWHERE: u64 = 1 << 45;
const LOCAL_APIC: u64 = 0xfee0_0000;

pub fn msix_vector_oob(stage: &mut Stage) -> Outcome {
    let entries = stage.device.msix().ok_or(Failure::Unsupported("device has no MSI-X"))?.entries;
    for entry in [entries, 0x7ff, 0x800, 0xfffe] {
        if entry >= entries {
            let answer = stage.device.set_queue_vector(0, entry);
            stage.check("a vector that does not exist reads back as none", answer == 0xffff);
        }
    }
    stage.add_good(0);
    stage.kick();
    Ok(())
}

/// Messages to RAM, to nowhere, to the device itself; unmasked and fired. RAM may be written by such a message.
pub fn msix_garbage(stage: &mut Stage) -> Outcome {
    let msix = stage.device.msix().ok_or(Failure::Unsupported("device has no MSI-X"))?;
    let own = own_registers(stage);
    msix.enable(true);
    stage.device.set_queue_vector(0, 0);
    stage.ring.want_interrupt(true);
    for (address, message) in [(stage.table, 1), (!3, u32::MAX), (own, 0), (LOCAL_APIC | 0xff000, u32::MAX)] {
        msix.set(0, address, message, false);
        stage.add_good(0);
        stage.kick();
        Deadline::after(100).wait(|| stage.ring.has_completion());
        // Taking the completion at once could tell the device that no interrupt is needed.
        Deadline::after(2).wait(|| false);
        stage.ring.take();
    }
    msix.set(0, 0, 0, true);
    msix.enable(false);
    Ok(())
}

pub fn reset_in_flight(stage: &mut Stage) -> Outcome {
    let features = stage.features;
    for _ in 0..10 {
        (0..4).for_each(|slot| stage.add_good(slot));
        stage.kick();
        stage.device.reset()?;
        // After a reset the device may not write any more: what is here now must stay.
        (0..512).step_by(8).for_each(|offset| cpu::write64(stage.buffer + offset, !0));
        Deadline::after(2).wait(|| false);
        let quiet = (0..512).step_by(8).all(|offset| cpu::read64(stage.buffer + offset) == !0);
        stage.check("no write after a reset", quiet);
        stage.device.negotiate(features, 0)?;
        stage.ring = stage.device.make_queue(0, RING, 4, features, false)?;
        stage.device.start();
    }
    stage.add_good(0);
    stage.kick();
    Ok(())
}

pub fn status_out_of_order(stage: &mut Stage) -> Outcome {
    for value in
        [status::DRIVER_OK, 0xff, status::FEATURES_OK, status::NEEDS_RESET, 0x30, status::DRIVER_OK | 0x80]
    {
        stage.device.reset()?;
        stage.device.set_status(value);
        stage.doorbell.ring();
        stage.device.status();
        // Taking bits back without a reset is not allowed either.
        stage.device.set_status(status::ACKNOWLEDGE);
        stage.doorbell.ring();
    }
    Ok(())
}

pub fn features_not_offered(stage: &mut Stage) -> Outcome {
    stage.device.reset()?;
    stage.device.set_status(status::ACKNOWLEDGE);
    stage.device.set_status(status::ACKNOWLEDGE | status::DRIVER);
    stage.device.set_features(u64::MAX);
    stage.device.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    let stuck = stage.device.status() & status::FEATURES_OK != 0;
    stage.check("FEATURES_OK does not stick with features that were not offered", !stuck);
    stage.device.start();
    stage.add_good(0);
    stage.kick();
    Ok(())
}

/// Every width at every offset of every region and a little beyond, misaligned ones too.
pub fn config_access(stage: &mut Stage) -> Outcome {
    let mut random = Random::new(11);
    stage.device.reset()?;
    for area in stage.device.areas().iter().flatten() {
        let reach =
            if stage.device.function().is_some() { area.size.min(96) + 16 } else { area.size.min(0x120) };
        for address in area.address..area.address + reach {
            cpu::read8(address);
            cpu::read16(address);
            cpu::read32(address);
            cpu::read64(address);
            cpu::write8(address, random.next() as u8);
            cpu::write16(address, random.next() as u16);
            cpu::write32(address, random.next() as u32);
            // A queue somewhere in RAM must not become live: the guest itself would suffer.
            stage.device.set_status(0);
        }
    }
    Ok(())
}

/// Moves the BAR with the common registers to where `choose` says, touches the place, and moves it back.
pub fn move_bar(stage: &mut Stage, choose: fn(&Stage) -> Option<u64>) -> Outcome {
    const MARK: u64 = 0x1234_5678_9abc_def0;
    let function = stage.device.function().ok_or(Failure::Unsupported("device is not on PCI"))?;
    let target = choose(stage).ok_or(Failure::Unsupported("there is no other device with registers"))?;
    let common = own_registers(stage);
    let found = (0..6u8).find_map(|index| {
        let bar = function.bar(index).filter(|bar| !bar.io && bar.address != 0)?;
        (bar.address..bar.address + bar.size).contains(&common).then_some((index, bar))
    });
    let (index, bar) = found.ok_or(Failure::Device("no BAR holds its registers"))?;
    cpu::write64(stage.table, MARK);
    function.move_bar(index, &bar, target & !15);
    function.enable();
    if target == stage.table {
        // Whether the register or the RAM answers is the machine's choice; that RAM keeps its content is not.
        cpu::read64(stage.table);
    }
    stage.doorbell.ring();
    stage.device.status();
    function.move_bar(index, &bar, bar.address);
    function.enable();
    let kept = cpu::read64(stage.table) == MARK;
    stage.check("RAM under a moved BAR keeps its content", kept);
    stage.add_good(0);
    stage.kick();
    Ok(())
}

/// Clears a bit of the command register, uses the device, and sets it again.
pub fn command_bits(stage: &mut Stage, bit: u16) -> Outcome {
    let function = stage.device.function().ok_or(Failure::Unsupported("device is not on PCI"))?;
    function.write16(4, function.read16(4) & !bit);
    stage.add_good(0);
    stage.kick();
    stage.device.status();
    Deadline::after(20).wait(|| false);
    function.enable();
    Ok(())
}

/// The window into BARs in configuration space (virtio 1.2, 4.1.4.9) with places that no BAR has.
pub fn config_window(stage: &mut Stage) -> Outcome {
    let function = stage.device.function().ok_or(Failure::Unsupported("device is not on PCI"))?;
    let mut window = None;
    function.capabilities(|id, offset| {
        if id == pci::VENDOR && function.read8(offset + 3) == 5 {
            window = Some(offset);
        }
    });
    let window = window.ok_or(Failure::Unsupported("device has no configuration window"))?;
    for bar in [0, 1, 4, 5, 6, 0xff] {
        for (offset, length) in
            [(0, 4), (0xffff_fffc, 4), (0x7fff_ffff, 2), (1, 4), (0, 0), (0, 8), (0, 0xffff_ffff)]
        {
            function.write8(window + 4, bar);
            function.write32(window + 8, offset);
            function.write32(window + 12, length);
            function.read32(window + 16);
            // Not a write to the live registers, which would make a queue of whatever comes.
            if bar != 4 || offset != 0 {
                function.write32(window + 16, 0);
            }
        }
    }
    stage.add_good(0);
    stage.kick();
    Ok(())
}

/// Where the device's own registers are. The local APIC would be a worse place to let a device write: what comes there
/// is a message, and one of them is INIT.
pub fn own_registers(stage: &Stage) -> u64 {
    stage.device.areas()[0].map_or(NOWHERE, |area| area.address)
}
