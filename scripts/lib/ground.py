"""Where tests that boot a stock kernel run: directly on this machine's KVM, or in the nested host."""

import fcntl
import os
import struct

from report import Failure

DIRECT = "direct"
NESTED = "nested"


def ground():
    """`direct` or `nested`, by what the processor and /dev/kvm have; VIVARIUM_GROUND overrides."""
    chosen = os.environ.get("VIVARIUM_GROUND", "")
    if chosen in (DIRECT, NESTED):
        return chosen
    if chosen:
        raise Failure(f"VIVARIUM_GROUND={chosen}: must be {DIRECT} or {NESTED}")
    return DIRECT if kvm_usable() and hardware_virtualization() else NESTED


def kvm_usable():
    """Whether this user may open /dev/kvm, of whatever kind."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def hardware_virtualization():
    """Whether /dev/kvm can run a stock kernel. A PC's processor has to show VMX or SVM: a software backend of KVM works without, but
    cannot. An Arm machine has to have a GICv3."""
    if os.uname().machine == "aarch64":
        return has_gic_v3()
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return not {"vmx", "svm"}.isdisjoint(line.split())
    return False


# linux/kvm.h. `KVM_CREATE_DEVICE` is _IOWR with a structure of three words: type, descriptor, flags.
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_CREATE_DEVICE = 0xC00CAEE0
KVM_CREATE_DEVICE_TEST = 1
KVM_CAP_ARM_VM_IPA_SIZE = 165
KVM_DEV_TYPE_ARM_VGIC_V3 = 7
# Address bits of a machine whose type is 0, which some hosts do not have.
USUAL_ADDRESS_BITS = 40


def has_gic_v3():
    """Whether KVM can give a machine a GICv3; boards with a GICv2 alone cannot."""
    try:
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            bits = min(fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE), USUAL_ADDRESS_BITS)
            machine = fcntl.ioctl(kvm, KVM_CREATE_VM, max(bits, 0))
            try:
                fcntl.ioctl(machine, KVM_CREATE_DEVICE, struct.pack("III", KVM_DEV_TYPE_ARM_VGIC_V3, 0, KVM_CREATE_DEVICE_TEST))
            finally:
                os.close(machine)
    except OSError:
        return False
    return True
