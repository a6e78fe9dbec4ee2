"""Single tests on nested Arm hosts of other kinds than the one that all tests run on, which is made to be fast."""

import base64

import guests
import nested_kinds
from places import PROJECT

NESTED = PROJECT / "scripts" / "nested"

# Takes the device that the machine has for it from its driver and opens it as its user would: through its group.
BIND_TO_VFIO = """
function=0000:00:1e.0
device=/sys/bus/pci/devices/$function
[ "$(cat /sys/class/iommu/*/uevent 2>/dev/null; ls /sys/class/iommu)" ]
modprobe vfio-pci
[ ! -e $device/driver ] || echo $function >$device/driver/unbind
echo vfio-pci >$device/driver_override
echo $function >/sys/bus/pci/drivers_probe
[ "$(basename "$(readlink $device/driver)")" = vfio-pci ]
group=$(basename "$(readlink $device/iommu_group)")
ls $device/iommu_group/devices
exec 3<>/dev/vfio/$group
"""

# Starts a guest, and waits for lines of its console.
CONSOLE = """
vivarium=$1
shift
start() {
    mkfifo $TMPDIR/console
    "$vivarium" "$@" >$TMPDIR/console &
    pid=$!
    exec 3<$TMPDIR/console
}
said() { while read -r line; do echo "$line"; case $line in "$1"*) return;; esac; done <&3; echo "no $1"; return 1; }
succeeded() { said @@RC; case $line in "@@RC 0"*) ;; *) return 1;; esac; }
"""

# The vectors' lengths are settled when a CPU is made, and again when the machine restarts; a core dump has the registers, which
# the host then tells as parts of longer ones.
SVE = """
start "$@" --cpus boot=2 --api-socket path=$TMPDIR/socket
succeeded
succeeded
"$vivarium" ctl --api-socket $TMPDIR/socket pause
"$vivarium" ctl --api-socket $TMPDIR/socket coredump file://$TMPDIR/core
[ "$(head -c 4 $TMPDIR/core | tail -c 3)" = ELF ]
kill $pid
cat <&3
wait $pid
"""

WITHOUT_SVE = """
start "$@" --cpus boot=1,sve=off,pauth=off
succeeded
wait $pid
"""

# Where CPUs may come, the monitor answers a guest that starts one.
SVE_OF_CPUS = """
start "$@" --platform acpi=on --cpus boot=2,max=3 --api-socket path=$TMPDIR/socket
said @@ADD
"$vivarium" ctl --api-socket $TMPDIR/socket resize --cpus 3
said @@COMPUTED
[ "$line" = "@@COMPUTED 6" ]
succeeded
wait $pid
"""

# Two programs on each CPU: two that are there at the start, and one that comes.
COMPUTES = """set -e
computes() { { taskset $1 /sve 3 >>/tmp/other & taskset $1 /sve 5 >>/tmp/one; wait $!; } || { cat /tmp/one /tmp/other; exit 1; }; }
computes 1; computes 2; echo @@ADD
until [ -e /sys/devices/system/cpu/cpu2/online ]; do sleep 0.1; done
[ "$(cat /sys/devices/system/cpu/cpu2/online)" = 1 ] || echo 1 >/sys/devices/system/cpu/cpu2/online
computes 4; echo @@COMPUTED $(cat /tmp/one /tmp/other | grep -c '^vectors of 32 bytes')
"""


def _script(text):
    return base64.b64encode(text.encode()).decode()


def _guest(binary, processor, words, initramfs="initramfs-6.12.cpio"):
    """The monitor's command line for a guest with those words of its own."""
    files = guests.folder(processor)
    options = [binary, "--kernel", files / "vmlinuz-6.12", "--initramfs", files / initramfs, "--serial", "off", "--console", "tty"]
    return [*options, "--cmdline", f"console=hvc0 quiet panic=-1 {words}"]


def _run(kind, *command):
    return [NESTED, "--kind", kind.name, "run", "--timeout", "400", *command]


def _shell(kind, script, *words):
    return _run(kind, "sh", "-ec", script, "sh", *words)


def _has(*features):
    return " && ".join(f"grep -qw {feature} /proc/cpuinfo" for feature in features)


def vhe(binary, processor):
    """Boots a guest."""
    return _run(nested_kinds.ARM_VHE, *_guest(binary, processor, f"viv.run={_script('true')}"), "--cpus", "boot=2")


def sve(binary, processor):
    """Shows features of the CPU to a guest, before and after a restart."""
    words = f"viv.run={_script(_has('sve', 'paca', 'pacg'))} viv.then=reboot"
    return _shell(nested_kinds.ARM_SVE, CONSOLE + SVE, *_guest(binary, processor, words))


def without_sve(binary, processor):
    """Hides them from a guest."""
    lacks = " && ".join(f"! {_has(feature)}" for feature in ("sve", "paca", "pacg"))
    words = f"viv.run={_script(_has('asimd') + ' && ' + lacks)}"
    return _shell(nested_kinds.ARM_SVE, CONSOLE + WITHOUT_SVE, *_guest(binary, processor, words))


def sve_of_cpus(binary, processor):
    """Has a guest compute with vectors on CPUs that it starts and on one that comes."""
    words = f"viv.run={_script(COMPUTES)}"
    return _shell(nested_kinds.ARM_SVE, CONSOLE + SVE_OF_CPUS, *_guest(binary, processor, words, "initramfs-sve.cpio"))


def iommu(_binary, _processor):
    """Gives a device to VFIO."""
    return _shell(nested_kinds.ARM_IOMMU, BIND_TO_VFIO)


# By the words that select them: what each shows, and the command that does.
STEPS = {
    "vhe": ("a guest where the host's kernel is the hypervisor (VHE)", vhe),
    "sve": ("scalable vectors and pointer authentication, which the usual nested Arm host lacks", sve),
    "sve-off": ("a guest that has neither, where the host has them", without_sve),
    "sve-cpus": ("scalable vectors of CPUs that a guest starts, and of one that comes", sve_of_cpus),
    "iommu": ("a device behind the nested Arm host's IOMMU, taken by VFIO", iommu),
}
