"""Where tests that boot a stock kernel run: directly on this machine's KVM, or in the nested host."""

import os

from report import Failure

DIRECT = "direct"
NESTED = "nested"


def ground():
    """`direct` or `nested`, by the processor's flags and /dev/kvm; VIVARIUM_GROUND overrides."""
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
    """Whether a PC's processor shows VMX or SVM. A software backend of KVM works without, but cannot run a stock kernel; other
    processors have none."""
    if os.uname().machine != "x86_64":
        return True
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return not {"vmx", "svm"}.isdisjoint(line.split())
    return False
