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

# The vectors' lengths are settled when a CPU is made, and again when the machine restarts; a core dump has the registers, which
# the host then tells as parts of longer ones. Where CPUs may come, the monitor answers a guest that starts one.
SVE = """
vivarium=$1 output=$TMPDIR/output
shift
said() {
    until [ $(grep -c "$2" $output) -ge $1 ]; do
        kill -0 $pid || { cat $output; exit 1; }
        sleep 0.2
    done
}
"$vivarium" "$@" --initramfs "$INITRAMFS" --cpus boot=1,sve=off,pauth=off --cmdline "$GUEST viv.run=$LACKS" >$output
grep -q '@@RC 0' $output || { cat $output; exit 1; }
"$vivarium" "$@" --initramfs "$INITRAMFS" --cpus boot=2 --cmdline "$GUEST viv.run=$HAS viv.then=reboot" --api-socket path=$TMPDIR/socket >$output &
pid=$!
said 2 @@RC
[ $(grep -c '@@RC 0' $output) -ge 2 ] || { cat $output; exit 1; }
"$vivarium" ctl --api-socket $TMPDIR/socket pause
"$vivarium" ctl --api-socket $TMPDIR/socket coredump file://$TMPDIR/core
[ "$(head -c 4 $TMPDIR/core | tail -c 3)" = ELF ]
kill $pid
wait $pid || :
cat "$INITRAMFS" "$PROGRAM" >$TMPDIR/initramfs
"$vivarium" "$@" --initramfs $TMPDIR/initramfs --platform acpi=on --cpus boot=2,max=3 --cmdline "$GUEST viv.run=$COMPUTES" \
    --api-socket path=$TMPDIR/socket >$output &
pid=$!
said 1 @@ADD
"$vivarium" ctl --api-socket $TMPDIR/socket resize --cpus 3
wait $pid
[ $(grep -c '^vectors of 32 bytes' $output) = 6 ] && grep -q '@@RC 0' $output || { cat $output; exit 1; }
"""

# Two programs on each CPU: two that are there at the start, and one that comes.
COMPUTES = """set -e
computes() { taskset $1 /sve 3 >/tmp/other & taskset $1 /sve 5; wait $!; cat /tmp/other; }
computes 1; computes 2; echo @@ADD
until [ -e /sys/devices/system/cpu/cpu2/online ]; do sleep 0.1; done
[ "$(cat /sys/devices/system/cpu/cpu2/online)" = 1 ] || echo 1 >/sys/devices/system/cpu/cpu2/online
computes 4
"""


def _initramfs(processor):
    return guests.folder(processor) / "initramfs-6.12.cpio"


def _guest(binary, processor):
    return [binary, "--kernel", guests.folder(processor) / "vmlinuz-6.12", "--serial", "off", "--console", "tty"]


def _script(text):
    return base64.b64encode(text.encode()).decode()


def _run(kind, *command):
    return [NESTED, "--kind", kind.name, "run", "--timeout", "400", *command]


def vhe(binary, processor):
    """Boots a guest."""
    options = ["--cpus", "boot=2", "--cmdline", f"console=hvc0 quiet panic=-1 viv.run={_script('true')}"]
    return _run(nested_kinds.ARM_VHE, *_guest(binary, processor), "--initramfs", _initramfs(processor), *options)


def sve(binary, processor):
    """Shows features of the CPU to a guest, before and after a restart, hides them from another, and has a third compute with them on
    CPUs that it starts and on one that comes."""
    names = "grep -qw {} /proc/cpuinfo"
    has = " && ".join(names.format(feature) for feature in ("sve", "paca", "pacg"))
    lacks = " && ".join("! " + names.format(feature) for feature in ("sve", "paca", "pacg"))
    settings = [f"INITRAMFS={_initramfs(processor)}", f"PROGRAM={guests.folder(processor) / 'sve.cpio'}", f"COMPUTES={_script(COMPUTES)}"]
    settings += ["GUEST=console=hvc0 quiet panic=-1", f"HAS={_script(has)}", f"LACKS={_script(f'grep -qw asimd /proc/cpuinfo && {lacks}')}"]
    return _run(nested_kinds.ARM_SVE, "env", *settings, "sh", "-ec", SVE, "sve", *_guest(binary, processor))


def iommu(_binary, _processor):
    """Gives a device to VFIO."""
    return _run(nested_kinds.ARM_IOMMU, "sh", "-ec", BIND_TO_VFIO)


# By the words that select them: what each shows, and the command that does.
STEPS = {
    "vhe": ("a guest where the host's kernel is the hypervisor (VHE)", vhe),
    "sve": ("scalable vectors and pointer authentication, which the usual nested Arm host lacks", sve),
    "iommu": ("a device behind the nested Arm host's IOMMU, taken by VFIO", iommu),
}
