//! Attributes of the devices that KVM has for a machine, such as the registers of its interrupt controller.

use kvm_bindings::kvm_device_attr;
use kvm_ioctls::{DeviceFd, Error};

/// The attribute `attr` of `group`, whose value has 32 or 64 bits.
pub(super) fn get(device: &DeviceFd, group: u32, attr: u64) -> Result<u64, Error> {
    let mut value = 0u64;
    let addr = &raw mut value as u64;
    let mut attribute = kvm_device_attr { group, attr, addr, flags: 0 };
    // SAFETY: the attributes of the interrupt controllers that have a value have one of at most 64 bits, and there is room for
    // these.
    unsafe { device.get_device_attr(&mut attribute) }?;
    // The host is little-endian: a value of 32 bits is in the lower half.
    Ok(value)
}

/// Sets an attribute.
pub(super) fn set(device: &DeviceFd, group: u32, attr: u64, value: u64) -> Result<(), Error> {
    let addr = &raw const value as u64;
    device.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })
}
